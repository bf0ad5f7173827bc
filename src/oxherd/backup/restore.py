"""Putting a backup into an empty database: roles, extensions or stand-ins for them, and everything the dump has."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from oxherd.backup import facts, sealing, tools
from oxherd.backup.create import Server, Told, failure, look, quiet
from oxherd.backup.manifest import Manifest
from oxherd.backup.storage import Storage
from oxherd.embedded.postgres import quoted
from oxherd.errors import BackupDamaged, UsageError
from oxherd.store.address import FAULTS, Address

# Entries of a dump that only Supabase's own servers can take.
SUPABASES = frozenset({"EVENT TRIGGER", "PUBLICATION", "PUBLICATION TABLE", "SUBSCRIPTION"})
NEWER = (b"SET transaction_timeout = 0;",)  # what servers before 17 do not know
OF_A_TABLE = ("TABLE", "TABLE DATA", "ROW SECURITY", "CONSTRAINT", "DEFAULT", "POLICY")  # those that bear its name
KINDS = (
    "ACCESS METHOD", "AGGREGATE", "CAST", "CHECK CONSTRAINT", "COLLATION", "COMMENT", "CONSTRAINT", "CONVERSION",
    "DATABASE", "DATABASE PROPERTIES", "DEFAULT ACL", "DEFAULT", "DOMAIN", "ENCODING", "EVENT TRIGGER", "EXTENSION",
    "FK CONSTRAINT", "FOREIGN DATA WRAPPER", "FOREIGN TABLE", "FUNCTION", "INDEX ATTACH", "INDEX",
    "MATERIALIZED VIEW DATA", "MATERIALIZED VIEW", "OPERATOR CLASS", "OPERATOR FAMILY", "OPERATOR", "POLICY",
    "PROCEDURE", "PUBLICATION TABLES IN SCHEMA", "PUBLICATION TABLE", "PUBLICATION", "ROW SECURITY", "RULE", "SCHEMA",
    "SEARCHPATH", "SECURITY LABEL", "SEQUENCE OWNED BY", "SEQUENCE SET", "SEQUENCE", "SERVER", "SHELL TYPE",
    "STATISTICS DATA", "STATISTICS", "STDSTRINGS", "SUBSCRIPTION TABLE", "SUBSCRIPTION", "TABLE ATTACH", "TABLE DATA",
    "TABLE", "TRANSFORM", "TRIGGER", "TYPE", "USER MAPPING", "VIEW", "ACL", "BLOB DATA", "BLOB", "BLOBS",
    "BLOB COMMENTS", "BLOB METADATA", "PROCEDURAL LANGUAGE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Opened:
    """A backup that can be read: its manifest, where it is, the keys that open it, and its facts."""

    manifest: Manifest
    storage: Storage
    identities: Sequence[Any]
    facts: Mapping[str, Any]


@dataclass
class Filled:
    """What restoring came to.

    Attributes:
        server: the target.
        stand_ins: extensions whose functions were replaced by ones that return null.
        left_out: extensions that the target lacks.
        roles: those that were made.
    """

    server: Server
    stand_ins: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)


def unlock(found: Manifest, storage: Storage, identities: Sequence[Any]) -> Opened:
    """Open a backup's sealed facts, which proves that the identities fit. Raises BackupDamaged."""
    return Opened(found, storage, identities, orjson.loads(sealing.open_text(found.sealed, identities)))


async def refuse_full(connection: Any, shown: str) -> None:
    """Raises UsageError where a database has a table of its own."""
    table = await connection.fetchval(
        "select n.nspname || '.' || r.relname from pg_catalog.pg_class r join pg_catalog.pg_namespace n "
        "on n.oid = r.relnamespace where r.relkind in ('r', 'p', 'm') and n.nspname !~ '^pg_' "
        "and n.nspname <> 'information_schema' "
        f"and not {facts.EXTENSION_MEMBER.format(oid='r.oid')} order by 1 limit 1"
    )
    if table is not None:
        raise UsageError(
            f"{shown} is not empty: it has {table}",
            hint="a backup is only ever put into an empty database; name another, or let it be swapped",
        )


async def fill(
    backup: Opened,
    address: Address,
    *,
    table: str | None = None,
    told: Told = quiet,
) -> Filled:
    """Restore into an empty database; or one table of it into a database that lacks that.

    Parameters:
        backup: of `unlock`.
        address: the database.
        table: only this one, as `schema.table`, with its indexes, policies, sequences, and constraints but for foreign
            keys; all of it or nothing.
        told: how far it is.

    Raises:
        UsageError: the database is not empty, or the backup has no such table.
        BackupDamaged, BackupFailed: it ended early; throw the database away.
        StoreUnreachable: the database did not answer.
    """
    connection = await address.connect()
    try:
        server = await look(connection)
        if table is None:
            await refuse_full(connection, address.shown)
        else:
            refuse_unknown(backup, table)
        filled = Filled(server)
        used = await asyncio.to_thread(_client, server)
        environ = used.variables(tools.connection_environ(address, tls=server.tls))
        entries = await asyncio.to_thread(_entries, backup, used)
        superuser = await connection.fetchval("select current_setting('is_superuser') = 'on'")
        if table is None:
            await _prepare(connection, backup, filled, entries)
            wanted = _wanted(entries, backup, filled)
        else:
            wanted = await _one_table(connection, entries, backup, table, address.shown)
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        with contextlib.suppress(*FAULTS):
            await connection.close(timeout=5)
    flags = [] if superuser else ["--no-owner"]
    await asyncio.to_thread(_pour, backup, used, environ, wanted, flags, server, told, at_once=table is not None)
    return filled


def _client(server: Server) -> tools.Client:
    """An archive wants a pg_restore that is not older than the pg_dump that made it: the newest there is."""
    return tools.fitting(server.major, tls=server.tls)


def refuse_unknown(backup: Opened, table: str) -> None:
    """Raises UsageError where the backup has no rows of such a table."""
    if table not in backup.manifest.tables:
        raise UsageError(
            f"the backup has no table {table}",
            hint="oxherd backup list --json names them all, as schema.table; of a partitioned one its partitions",
        )


async def _prepare(connection: Any, backup: Opened, filled: Filled, entries: Sequence[_Entry]) -> None:
    known = {row[0] for row in await connection.fetch("select rolname from pg_catalog.pg_roles")}
    for role in backup.facts["roles"]:
        if role not in known:
            await connection.execute(f"create role {quoted(role)} nologin")
            filled.roles.append(role)
    # A dump of chosen schemas makes `public`; a dump of all only says whose it is, where that is not the usual owner.
    if "public" in (backup.manifest.database["schemas"] or ()):
        await connection.execute("drop schema if exists public")
    available = {row[0] for row in await connection.fetch("select name from pg_catalog.pg_available_extensions")}
    for extension, schema in backup.facts["extensions"].items():
        if schema != "pg_catalog" and not any(entry.is_of("SCHEMA", "-", schema) for entry in entries):
            await connection.execute(f"create schema if not exists {quoted(schema)}")
        if extension not in available:
            filled.left_out.append(extension)
    await _make_stand_ins(connection, backup, filled)


async def _make_stand_ins(connection: Any, backup: Opened, filled: Filled) -> None:
    for extension, schema, name, arguments, result in backup.facts["stand_ins"]:
        if extension in filled.left_out:
            await connection.execute(f"create schema if not exists {quoted(schema)}")
            await connection.execute(
                f"create function {quoted(schema)}.{quoted(name)}({arguments}) returns {result} "
                "language plpgsql immutable as $$ begin return null; end $$"
            )
            if extension not in filled.stand_ins:
                filled.stand_ins.append(extension)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the archive's table of contents."""

    line: str
    kind: str

    def is_of(self, kind: str, schema: str, name: str) -> bool:
        """Whether it is of this kind, and of this thing; the line does not quote names, which may hold spaces."""
        return self.kind == kind and f" {kind} {schema} {name} " in self.line


def _entries(backup: Opened, client: tools.Client) -> list[_Entry]:
    listing = _run_on_dump(backup, [client.program("pg_restore"), "--list"], client.variables(), quiet).decode()
    found = []
    for line in listing.splitlines():
        if line.startswith(";") or not line.strip():
            continue
        rest = line.split(" ", 3)[3] if line.count(" ") > 3 else ""
        kind = max((each for each in KINDS if rest.startswith(f"{each} ")), key=len, default="")
        found.append(_Entry(line, kind))
    if not found:
        raise BackupDamaged("the dump has nothing in it")
    return found


def _wanted(entries: Sequence[_Entry], backup: Opened, filled: Filled) -> list[str]:
    supabase = backup.manifest.database["supabase"] and not filled.server.supabase
    made = {schema for _, schema, *_ in backup.facts["stand_ins"]} if filled.stand_ins else set()

    def keep(entry: _Entry) -> bool:
        if any(entry.is_of("EXTENSION", "-", each) for each in filled.left_out):
            return False
        if entry.is_of("COMMENT", "-", "EXTENSION"):
            return False
        if any(entry.is_of("SCHEMA", "-", each) for each in made):
            return False
        return not (supabase and entry.kind in SUPABASES)

    return [entry.line for entry in entries if keep(entry)]


async def _one_table(connection: Any, entries: Sequence[_Entry], backup: Opened, table: str, shown: str) -> list[str]:
    """What a table needs; its schema is made, and sequences that others use, too, are taken as they are there."""
    dots = [place for place, letter in enumerate(table) if letter == "."]
    places = [(table[:dot], table[dot + 1 :]) for dot in dots]
    schema, name = next(place for place in places if any(entry.is_of("TABLE", *place) for entry in entries))
    if await _is_there(connection, schema, name):
        raise UsageError(
            f"{shown} has a table {table}",
            hint="move that one to another schema first, with its indexes (alter table … set schema …), or restore "
            "into an empty database and copy the rows you want",
        )
    await connection.execute(f"create schema if not exists {quoted(schema)}")
    whole = re.escape(schema), re.escape(name)
    definition = re.compile(
        r'CREATE (?:UNIQUE )?INDEX ("(?:[^"]|"")+"|\S+) ON (?:ONLY )?'
        rf"(?:{whole[0]}|{re.escape(quoted(schema))})\.(?:{whole[1]}|{re.escape(quoted(name))}) USING "
    )
    indexes = [_bare(found[1]) for each in backup.facts["indexes"].values() if (found := definition.match(each))]
    sequences = [
        (at, sequence, own)
        for at, sequence, own in backup.facts["sequences_of"].get(table, ())
        if own or not await _is_there(connection, at, sequence)
    ]

    def keep(entry: _Entry) -> bool:
        return (
            any(entry.is_of(kind, schema, name) for kind in OF_A_TABLE)
            or any(entry.is_of("INDEX", schema, index) for index in indexes)
            or any(entry.is_of(kind, at, each) for at, each, _ in sequences for kind in ("SEQUENCE", "SEQUENCE SET"))
            or any(entry.is_of("SEQUENCE OWNED BY", at, each) for at, each, own in sequences if own)
        )

    return [entry.line for entry in entries if keep(entry)]


async def _is_there(connection: Any, schema: str, name: str) -> bool:
    return bool(
        await connection.fetchval(
            "select pg_catalog.to_regclass($1) is not null", f"{quoted(schema)}.{quoted(name)}"
        )
    )  # fmt: skip


def _bare(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier


def _pour(
    backup: Opened, client: tools.Client, environ: Mapping[str, str], wanted: Sequence[str], flags: Sequence[str],
    server: Server, told: Told, *, at_once: bool,
) -> None:  # fmt: skip
    with tempfile.NamedTemporaryFile("w", prefix="oxherd-", suffix=".list") as listing:
        listing.write("\n".join(wanted) + "\n")
        listing.flush()
        command = [client.program("pg_restore"), f"--use-list={listing.name}", *flags]
        if server.major >= 17:
            database = environ["PGDATABASE"]
            command += ["--exit-on-error", "--no-password", f"--dbname={_as_dbname(database)}"]
            command += ["--single-transaction"] if at_once else []
            _run_on_dump(backup, command, environ, told)
        else:
            _run_on_dump(backup, [*command, "--file=-"], environ, told, into=_psql(client, at_once=at_once))


def _as_dbname(database: str) -> str:
    return "dbname='" + database.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _psql(client: tools.Client, *, at_once: bool) -> list[str]:
    flags = ["--single-transaction"] if at_once else []
    return [client.program("psql"), "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", *flags, "--file=-"]


def _run_on_dump(
    backup: Opened, command: Sequence[str], environ: Mapping[str, str], told: Told, *, into: Sequence[str] | None = None
) -> bytes:
    """Feed the dump to a program; its output, or nothing where that goes `into` another one."""
    piece = backup.manifest.piece("database")
    assert piece is not None
    pace = sealing.Pace(told=lambda done: told("database", done, piece.raw))
    with contextlib.ExitStack() as stack:
        said, out = stack.enter_context(tempfile.TemporaryFile()), stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE if into else out, stderr=said
        )
        stack.callback(_end, process)
        sink = _Second(into, environ, process, stack) if into else None
        assert process.stdin is not None
        parts = sealing.fetch(backup.storage, backup.manifest.name, piece)
        _feed(parts, process.stdin, backup, pace)
        code = process.wait()
        if code:
            raise failure(Path(command[0]).name, code, said)
        if sink is not None:
            sink.finish()
        out.seek(0)
        return out.read()


def _feed(parts: Generator[bytes, None, None], stdin: IO[bytes], backup: Opened, pace: sealing.Pace) -> None:
    """A program that stops reading has seen all it needs, or its exit code says more."""
    try:
        with contextlib.suppress(BrokenPipeError):
            sealing.unseal(parts, stdin, identities=backup.identities, what=backup.manifest.name, pace=pace)
    finally:
        parts.close()
        with contextlib.suppress(BrokenPipeError):
            stdin.close()


class _Second:
    """A psql that runs the script of a pg_restore, without what an older server does not know."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        first: subprocess.Popen[bytes],
        stack: contextlib.ExitStack,
    ) -> None:
        self._said: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
        self._process = subprocess.Popen(command, env=dict(environ), stdin=subprocess.PIPE, stderr=self._said)
        stack.callback(_end, self._process)
        self._first = first
        self._thread = threading.Thread(target=self._copy, name="oxherd-script", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._thread.join()
        code = self._process.wait()
        if code:
            raise failure("psql", code, self._said)

    def _copy(self) -> None:
        source, sink = self._first.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        with contextlib.suppress(BrokenPipeError):
            for _ in range(200):  # the settings are at the top
                line = source.readline()
                if line.strip() in NEWER:
                    break
                sink.write(line)
            while chunk := source.read(sealing.CHUNK):
                sink.write(chunk)
        with contextlib.suppress(BrokenPipeError):
            sink.close()
        while source.read(sealing.CHUNK):  # let the first one end
            pass


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


async def compare(backup: Opened, address: Address, filled: Filled) -> list[str]:
    """What the restored database has otherwise than the backup, a line for each."""
    connection = await address.connect()
    database = backup.manifest.database
    scope = facts.Scope(database["schemas"] or (), database["excluded"])
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = await facts.gather(connection, scope, seed=backup.facts["seed"])
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        await connection.close()
    return facts.differences(backup.facts, found, skip=("functions",) if filled.stand_ins else ())
