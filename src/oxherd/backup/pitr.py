"""Going back to any moment: PostgreSQL's own base backups and archived WAL, sealed, and put together again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import orjson

from oxherd.backup import create, facts, manifest, sealing, tools
from oxherd.backup.create import Told, quiet
from oxherd.backup.storage import Storage
from oxherd.clock import wall_ms
from oxherd.errors import BackupDamaged, BackupFailed, BackupNotFound, UsageError
from oxherd.store.address import FAULTS, Address

BASES, WAL, INDEX = "pitr/base", "pitr/wal", "base.json"
FILES = "backup_manifest"  # PostgreSQL's list of files and their checksums: what an incremental one is taken after
BASE = ("--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast", "--no-password")
_SEGMENT = re.compile(r"[0-9A-F]{24}(\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history")
_START = re.compile(r"START WAL LOCATION: \S+ \(file ([0-9A-F]{24})\)")


@dataclass(frozen=True, slots=True)
class Base:
    """A base backup.

    Attributes:
        name: its own.
        ended_at: from this moment on it can be gone back to, wall ms.
        server: the major version; the same one has to run it.
        after: the base backup that it has only the changes since; None for a whole one.
        piece: what is stored.
    """

    name: str
    ended_at: int
    server: int
    after: str | None
    piece: manifest.Piece


@dataclass(frozen=True, slots=True)
class Rewound:
    """A data folder that is ready: from which base, with how many WAL files, to which moment."""

    base: str
    segments: int
    to: str


async def take_base(
    address: Address, storage: Storage, recipients: Sequence[str], *, incremental: bool = False, told: Told = quiet
) -> Base:
    """Take a base backup with `pg_basebackup`, through a replication connection.

    Parameters:
        address, storage, recipients: what, where to, and for whom.
        incremental: only what changed since the last one; the server needs `summarize_wal = on`.
        told: how far it is.

    Raises:
        BackupNotFound: an incremental one, and there is none before it.
        BackupFailed: with what it said, such as that the login may not replicate.
        StoreUnreachable, ServiceUnreachable, ServiceRefused, UsageError: nothing is kept.
    """
    connection = await address.connect()
    try:
        server = await create.look(connection)
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        await connection.close()
    client = await asyncio.to_thread(tools.fitting, server.major, tls=server.tls)
    name = create.new_name()
    environ = client.variables(tools.connection_environ(address, tls=server.tls))
    sink = create.Sink(storage, f"{BASES}/{name}", sealing.recipients_of(recipients))
    pace = sealing.Pace(told=lambda done: told("base", done, server.bytes))
    before = await asyncio.to_thread(_newest, storage) if incremental else None
    with tempfile.NamedTemporaryFile(prefix="oxherd-") as file:
        command = [client.program("pg_basebackup"), *BASE]
        if before is not None:
            file.write(sealing.unzipped(storage.get(f"{BASES}/{before.name}/{FILES}.zst")))
            file.flush()
            command.append(f"--incremental={file.name}")
        with _Look() as look:
            piece = await create.in_thread(
                lambda stop: create.stream(command, environ, sink, "base", pace, stop, look.over)
            )
    files = look.found()
    await asyncio.to_thread(storage.put, f"{BASES}/{name}/{FILES}.zst", sealing.zipped(files))
    made = Base(name, wall_ms(), server.major, before.name if before else None, piece)
    await asyncio.to_thread(storage.create, f"{BASES}/{name}/{INDEX}", orjson.dumps(made))
    return made


def _newest(storage: Storage) -> Base:
    found = bases(storage)
    if not found:
        raise BackupNotFound("there is no base backup yet", hint="oxherd backup base, without --incremental")
    return found[0]


class _Look:
    """Reads PostgreSQL's list of files out of a tar that goes by."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self._source = os.fdopen(read, "rb")
        self._sink = os.fdopen(write, "wb")
        self._list = b""
        self._thread = threading.Thread(target=self._read, name="oxherd-tar", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.close()
        self._thread.join()
        self._source.close()

    def over(self, source: sealing.Readable) -> sealing.Readable:
        """The same stream, looked at."""
        return _Seen(source, self._sink)

    def found(self) -> bytes:
        """The list, once the stream has ended. Raises BackupDamaged where there was none."""
        if not self._list:
            raise BackupDamaged("pg_basebackup sent no list of its files")
        return self._list

    def _read(self) -> None:
        with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=self._source, mode="r|") as archive:
            for member in archive:
                if member.name.removeprefix("./") == FILES:
                    file = archive.extractfile(member)
                    self._list = file.read() if file else b""
        while self._source.read(sealing.CHUNK):  # what comes after the archive's end
            pass


class _Seen:
    def __init__(self, source: sealing.Readable, sink: IO[bytes]) -> None:
        self._source = source
        self._sink = sink

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._sink.write(data)
        return data


def push_wal(path: Path, storage: Storage, recipients: Sequence[str]) -> list[str]:
    """Store a finished WAL file, as Postgres's `archive_command` gives it; or all in a folder, which are then removed.

    Raises:
        UsageError: it is no WAL file.
        ServiceUnreachable, ServiceRefused: it was not stored; Postgres gives it again.
    """
    keys = sealing.recipients_of(recipients)
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [each for each in found if _SEGMENT.fullmatch(each.name)]
    if not files and not path.is_dir():
        raise UsageError(f"{path.name} is no WAL file", hint="archive_command = 'oxherd backup wal-push %p'")
    for each in files:
        storage.put(f"{WAL}/{each.name}.age", sealing.seal_text(each.read_bytes(), keys).encode())
        if path.is_dir():
            each.unlink()
    return [each.name for each in files]


def bases(storage: Storage) -> list[Base]:
    """All base backups, the newest first."""
    found = [each.name for each in storage.objects(f"{BASES}/") if each.name.endswith(f"/{INDEX}")]
    # Names have whole seconds.
    return sorted((_base(storage, name) for name in found), key=lambda base: base.ended_at, reverse=True)


def rewind(storage: Storage, identities: Sequence[Any], to: datetime, folder: Path, *, told: Told = quiet) -> Rewound:
    """Make a data folder that, when Postgres starts on it, replays WAL up to a moment and opens for writing.

    Parameters:
        storage, identities: where the base is, and what opens it.
        to: the moment, with a time zone.
        folder: of the new cluster; empty or missing.
        told: how far it is.

    Raises:
        BackupNotFound: no base backup had ended by then.
        BackupDamaged, BackupFailed: it is not whole; throw the folder away.
        UsageError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="a cluster is only ever made in an empty folder")
    base = next((each for each in bases(storage) if each.ended_at <= to.timestamp() * 1000), None)
    if base is None:
        raise BackupNotFound(f"no base backup had ended by {to.isoformat()}", hint="oxherd backup base")
    _put_together(storage, base, identities, folder, told)
    _check(base, folder)
    wal = folder / "oxherd_wal"
    wal.mkdir(mode=0o700)
    segments = _fetch_wal(storage, identities, _first(folder), wal)
    moment = to.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    with (folder / "postgresql.auto.conf").open("a") as file:
        copy = facts.literal(f'cp "{wal.absolute()}/%f" "%p"')
        file.write(f"\n# oxherd backup rewind\nrestore_command = {copy}\nrecovery_target_time = '{moment}'\n")
        file.write("recovery_target_action = 'promote'\narchive_mode = 'off'\n")
    (folder / "recovery.signal").touch(mode=0o600)
    return Rewound(base.name, segments, moment)


def _put_together(storage: Storage, base: Base, identities: Sequence[Any], folder: Path, told: Told) -> None:
    """Unpack a base backup; an incremental one with all before it, which PostgreSQL then combines."""
    known = {each.name: each for each in bases(storage)}
    chain = [base]
    while (after := chain[0].after) is not None:
        if after not in known:
            raise BackupDamaged(f"{chain[0].name} has only the changes since {after}, which is gone")
        chain.insert(0, known[after])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if len(chain) == 1:
        _unpack(storage, base, identities, folder, told)
        return
    with tempfile.TemporaryDirectory(prefix=".oxherd-", dir=folder.parent) as work:
        parts = [Path(work) / each.name for each in chain]
        for each, part in zip(chain, parts, strict=True):
            part.mkdir(mode=0o700)
            _unpack(storage, each, identities, part, told)
        _tool(base, "pg_combinebackup", *map(str, parts), f"--output={folder}", "--copy")


def _unpack(storage: Storage, base: Base, identities: Sequence[Any], folder: Path, told: Told) -> None:
    read, write = os.pipe()
    failures: list[BaseException] = []
    pace = sealing.Pace(told=lambda done: told("base", done, base.piece.raw))

    def pour() -> None:
        with os.fdopen(write, "wb") as sink:
            try:
                parts = sealing.fetch(storage, f"{BASES}/{base.name}", base.piece)
                sealing.unseal(parts, sink, identities=identities, what=base.name, pace=pace)
            except BaseException as error:  # noqa: BLE001  told to who reads, below
                failures.append(error)

    thread = threading.Thread(target=pour, name="oxherd-unseal", daemon=True)
    thread.start()
    try:
        with os.fdopen(read, "rb") as source, tarfile.open(fileobj=source, mode="r|") as archive:
            archive.extractall(folder, filter="data")
            while source.read(sealing.CHUNK):
                pass
    except (tarfile.TarError, EOFError) as error:
        if not failures:
            raise BackupDamaged(f"{base.name} can't be unpacked: {error}") from None
    thread.join()
    if failures:
        raise failures[0]


def _check(base: Base, folder: Path) -> None:
    """Have PostgreSQL compare every file with the base backup's own manifest."""
    _tool(base, "pg_verifybackup", "--no-parse-wal", str(folder))


def _tool(base: Base, program: str, *words: str) -> None:
    client = tools.fitting(base.server, tls=False)
    command = [client.program(program), *words]
    done = subprocess.run(command, env=client.variables(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupFailed(f"{program} failed: {done.stderr.strip()[:400]}")


def _first(folder: Path) -> str:
    found = _START.search((folder / "backup_label").read_text())
    if found is None:
        raise BackupDamaged("the base backup does not say where its WAL begins")
    return found[1]


def _fetch_wal(storage: Storage, identities: Sequence[Any], first: str, folder: Path) -> int:
    count = 0
    for name in _wanted(storage, first):
        data = sealing.open_text(storage.get(f"{WAL}/{name}.age").decode(), identities)
        (folder / name).write_bytes(data)
        count += len(name) == 24
    return count


def _wanted(storage: Storage, first: str) -> Iterator[str]:
    for each in storage.objects(f"{WAL}/"):
        name = each.name.rpartition("/")[2].removesuffix(".age")
        if name.endswith(".history") or name >= first:
            yield name


def _base(storage: Storage, name: str) -> Base:
    data = orjson.loads(storage.get(name))
    piece = data["piece"]
    parts = tuple(manifest.Part(**part) for part in piece["parts"])
    stored = manifest.Piece(piece["kind"], piece["raw"], parts)
    return Base(data["name"], data["ended_at"], data["server"], data["after"], stored)
