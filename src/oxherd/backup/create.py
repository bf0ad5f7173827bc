"""Taking a backup: one snapshot, from which pg_dump reads and the facts are read; its manifest is written last."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue as queues
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from oxherd.backup import facts, manifest, queue, sealing, tools
from oxherd.backup.storage import Storage
from oxherd.clock import mono, wall_ms
from oxherd.errors import BackupFailed, JobStateError, OxherdError
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.store.address import FAULTS, Address
from oxherd.vault.keyring import KeyRing

LOCK = 0x6F7862616B  # "oxbak": one backup of a database at a time
DUMP = ("--format=custom", "--compress=0", "--no-password", "--quote-all-identifiers", "--lock-wait-timeout=60s")


@dataclass(frozen=True, slots=True)
class Source:
    """What is backed up, and how.

    Attributes:
        address: the database.
        recipients: public keys, as text.
        ring: signs the manifest.
        only: schemas; empty for all.
        link, keys: the queue; None for none.
        limit: bytes a second that are read from the dump; None for no limit.
    """

    address: Address
    recipients: Sequence[str]
    ring: KeyRing
    only: Sequence[str] = ()
    link: Link | None = None
    keys: Keys | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """A database as it was found.

    Attributes:
        version: in words; major: its number.
        tls: whether the connection is encrypted.
        supabase: whether it is one of Supabase's.
        bytes: its size on disk.
        encoding: such as UTF8.
        migration: of Oxherd's newest table, 0 for none.
        taken_at: the transaction's time, wall ms.
    """

    version: str
    major: int
    tls: bool
    supabase: bool
    bytes: int
    encoding: str
    migration: int
    taken_at: int


Told = Callable[[str, int, int], None]  # what is going on, bytes so far, bytes in all (about; 0 for unknown)


def quiet(_stage: str, _done: int, _total: int) -> None:
    """Tells nobody."""


async def look(connection: Any) -> Server:
    """Find out what kind of server answers."""
    row = await connection.fetchrow(
        """select current_setting('server_version') as version, current_setting('server_version_num')::int as number,
            coalesce((select ssl from pg_catalog.pg_stat_ssl where pid = pg_catalog.pg_backend_pid()), false) as tls,
            exists (select from pg_catalog.pg_roles where rolname = 'supabase_admin') as supabase,
            pg_catalog.pg_database_size(pg_catalog.current_database()) as bytes,
            pg_catalog.pg_encoding_to_char(encoding) as encoding,
            (extract(epoch from pg_catalog.now()) * 1000)::bigint as taken_at
        from pg_catalog.pg_database where datname = pg_catalog.current_database()"""
    )
    known = await connection.fetchval("select to_regclass('oxherd.migrations') is not null")
    migration = await connection.fetchval("select coalesce(max(number), 0) from oxherd.migrations") if known else 0
    return Server(
        row["version"], row["number"] // 10_000, row["tls"], row["supabase"], row["bytes"], row["encoding"], migration,
        row["taken_at"],
    )  # fmt: skip


async def create(source: Source, storage: Storage, *, told: Told = quiet) -> manifest.Manifest:
    """Take a backup and store it.

    Raises:
        JobStateError: another one of this database is being taken.
        StoreUnreachable, ServiceUnreachable, ServiceRefused, BackupFailed, UsageError: nothing is listed.
    """
    began = mono()
    recipients = sealing.recipients_of(source.recipients)
    name = new_name()
    connection = await source.address.connect()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await _lock(connection)
            try:
                made = await _take(connection, source, storage, name, recipients, told)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(_discard, storage, name))
                raise
    except FAULTS as error:
        raise source.address.unreachable(error) from None
    finally:
        with contextlib.suppress(*FAULTS):
            await connection.close(timeout=5)
    done = dataclasses.replace(made, seconds=round(mono() - began, 3)).signed(source.ring)
    await asyncio.to_thread(storage.create, f"{name}/{manifest.FILE}", done.as_bytes())
    return done


async def _take(
    connection: Any, source: Source, storage: Storage, name: str, recipients: Sequence[Any], told: Told
) -> manifest.Manifest:
    server = await look(connection)
    client = await asyncio.to_thread(tools.fitting, server.major, tls=server.tls)
    scope = facts.Scope(source.only, facts.MANAGED if server.supabase else ())
    snapshot = await connection.fetchval("select pg_catalog.pg_export_snapshot()")
    environ = client.variables(tools.connection_environ(source.address, tls=server.tls))
    command = [client.program("pg_dump"), *DUMP, f"--snapshot={snapshot}", *_selection(scope, supabase=server.supabase)]
    sink = Sink(storage, name, recipients)
    before = await facts.sequences(connection, scope)
    pace = sealing.Pace(source.limit, lambda done: told("database", done, server.bytes))
    dump = asyncio.create_task(in_thread(lambda stop: stream(command, environ, sink, "database", pace, stop)))
    reading = asyncio.create_task(facts.gather(connection, scope, seed=secrets.randbits(62)))
    try:
        piece, found = await asyncio.gather(dump, reading)
        after = await facts.sequences(connection, scope)
        found["sequences"] = {place: [before.get(place, there), there] for place, there in after.items()}
        pieces, copy = [piece], None
        if source.link is not None and source.keys is not None:
            told("queue", 0, 0)
            copy = queue.Copy()
            pieces.append(await _store_queue(source.link, source.keys, copy, sink))
    finally:
        for task in (dump, reading):
            task.cancel()
        await asyncio.gather(dump, reading, return_exceptions=True)
    return manifest.Manifest(
        name=name, taken_at=server.taken_at, seconds=0.0, oxherd=manifest.oxherd_version(),
        database={
            "name": source.address.shown, "server": server.version, "major": server.major, "bytes": server.bytes,
            "encoding": server.encoding, "migration": server.migration, "supabase": server.supabase,
            "schemas": list(source.only) or None, "excluded": list(scope.without), "client": client.shown,
        },
        tables={table: rows for table, (rows, _) in found["tables"].items()},
        queue=None if copy is None or source.keys is None else {
            "name": source.keys.queue, "keys": copy.keys, "jobs": copy.jobs, "counts": copy.counts,
            "read_at": wall_ms(),
        },
        pieces=tuple(pieces), recipients=list(source.recipients),
        sealed=await asyncio.to_thread(sealing.seal_text, orjson.dumps(found), recipients),
    )  # fmt: skip


class Stop:
    """Ends a program that a thread waits for, and the tries to store what it writes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._storage: Storage | None = None
        self._ended = False

    def watch(self, process: subprocess.Popen[bytes], storage: Storage | None = None) -> None:
        """This one, whose output goes there."""
        self._process, self._storage = process, storage
        if self._ended:
            self.end()

    def end(self) -> None:
        """End it, also where it has not begun."""
        self._ended = True
        if self._process is not None:
            self._process.kill()
        if self._storage is not None:
            self._storage.give_up()


async def in_thread(work: Callable[[Stop], Any]) -> Any:
    """Run it in a thread; when this is cancelled its program is killed, and the thread's end awaited."""
    stop = Stop()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.end()
        await asyncio.gather(running, return_exceptions=True)
        raise


@dataclass(frozen=True, slots=True)
class Sink:
    """Where a backup's streams go, and who can read them."""

    storage: Storage
    backup: str
    recipients: Sequence[Any]

    def take(self, source: sealing.Readable, kind: str, pace: sealing.Pace) -> manifest.Piece:
        """Store a stream."""
        return sealing.seal(source, self.storage, self.backup, kind, recipients=self.recipients, pace=pace)


def stream(
    command: Sequence[str],
    environ: Mapping[str, str],
    sink: Sink,
    kind: str,
    pace: sealing.Pace,
    stop: Stop,
    through: Callable[[sealing.Readable], sealing.Readable] = lambda source: source,
) -> manifest.Piece:
    """Store what a program writes, as it comes out of `through`. Raises BackupFailed where it does not end well."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )
        stop.watch(process, sink.storage)
        assert process.stdout is not None
        try:
            return sink.take(through(_ToTheEnd(process, process.stdout, said)), kind, pace)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


class _ToTheEnd:
    """A program's output, whose end counts only where the program says that all went well."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes], said: IO[bytes]) -> None:
        self._process = process
        self._output = output
        self._said = said

    def read(self, size: int, /) -> bytes:
        data = self._output.read(size)
        if not data and self._process.wait():
            raise failure(Path(self._process.args[0]).name, self._process.returncode, self._said)  # type: ignore[index,arg-type]
        return data


def failure(program: str, code: int, said: IO[bytes]) -> OxherdError:
    """What a program's failure means, with what it said of its first error, or its last words."""
    said.seek(0)
    lines = [line for line in said.read(100_000).decode("utf-8", "replace").splitlines() if line.strip()]
    cause = next((place for place, line in enumerate(lines) if "error:" in line.lower()), max(len(lines) - 3, 0))
    words = " ".join(lines[cause:])[:600] or f"it ended with {code}"
    hint = "log in as the tables' owner, or with BYPASSRLS" if "row-level security" in words else ""
    return BackupFailed(f"{program} failed: {words}", hint=hint)


async def _store_queue(link: Link, keys: Keys, copy: queue.Copy, sink: Sink) -> manifest.Piece:
    channel: queues.Queue[bytes | BaseException | None] = queues.Queue(4)
    sealed = asyncio.ensure_future(asyncio.to_thread(sink.take, _FromQueue(channel), "queue", sealing.Pace()))
    try:
        async for chunk in queue.export(link, keys, copy):
            await _offer(channel, chunk, sealed)
        await _offer(channel, None, sealed)
        return await asyncio.shield(sealed)
    except BaseException as error:
        sink.storage.give_up()
        await asyncio.shield(_offer(channel, error, sealed))
        await asyncio.gather(sealed, return_exceptions=True)
        raise


async def _offer(channel: queues.Queue[Any], item: bytes | BaseException | None, taker: asyncio.Future[Any]) -> None:
    """Hand it over, unless who takes has failed meanwhile."""
    while not taker.done():
        with contextlib.suppress(queues.Full):
            channel.put_nowait(item)
            return
        await asyncio.wait({taker}, timeout=0.02)


class _FromQueue:
    """A stream that another task fills."""

    def __init__(self, channel: queues.Queue[bytes | BaseException | None]) -> None:
        self._channel = channel

    def read(self, _size: int, /) -> bytes:
        while True:
            item = self._channel.get()
            if isinstance(item, BaseException):
                raise BackupFailed("the queue could not be read to its end")
            if item is None:
                return b""
            if item:
                return item


async def _lock(connection: Any) -> None:
    if not await connection.fetchval(f"select pg_catalog.pg_try_advisory_xact_lock({LOCK})"):
        raise JobStateError(
            "another backup of this database is being taken",
            hint="oxherd backup list has it when it is done",
        )


def _selection(scope: facts.Scope, *, supabase: bool) -> list[str]:
    flags = [f"--schema={_pattern(name)}" for name in scope.only]
    flags += [f"--exclude-schema={_pattern(name)}" for name in scope.without]
    return flags + ([f"--exclude-table-data={name}" for name in facts.UNWANTED_ROWS] if supabase else [])


def _pattern(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def new_name() -> str:
    """Such as `2026-11-28T03-17-00Z-1f2e`: sorted by time, and never twice."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-{secrets.token_hex(2)}"


def _discard(storage: Storage, name: str) -> None:
    with contextlib.suppress(OxherdError):
        for each in storage.objects(f"{name}/"):
            storage.delete(each.name)
