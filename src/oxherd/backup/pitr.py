"""Going back to any moment: PostgreSQL's own base backups and archived WAL, sealed, and put together again."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from oxherd.backup import create, facts, manifest, sealing, tools
from oxherd.backup.create import Told, quiet
from oxherd.backup.storage import Storage
from oxherd.clock import wall_ms
from oxherd.errors import BackupDamaged, BackupFailed, BackupNotFound, UsageError
from oxherd.store.address import FAULTS, Address

BASES, WAL, INDEX = "pitr/base", "pitr/wal", "base.json"
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
        piece: what is stored.
    """

    name: str
    ended_at: int
    server: int
    piece: manifest.Piece


@dataclass(frozen=True, slots=True)
class Rewound:
    """A data folder that is ready: from which base, with how many WAL files, to which moment."""

    base: str
    segments: int
    to: str


async def take_base(address: Address, storage: Storage, recipients: Sequence[str], *, told: Told = quiet) -> Base:
    """Take a base backup with `pg_basebackup`, through a replication connection.

    Raises:
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
    command = [client.program("pg_basebackup"), *BASE]
    piece = await create.in_thread(lambda stop: create.stream(command, environ, sink, "base", pace, stop))
    made = Base(name, wall_ms(), server.major, piece)
    index = {"name": name, "ended_at": made.ended_at, "server": made.server, "piece": piece}
    await asyncio.to_thread(storage.create, f"{BASES}/{name}/{INDEX}", orjson.dumps(index))
    return made


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
    return [_base(storage, name) for name in sorted(found, reverse=True)]


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
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    _unpack(storage, base, identities, folder, told)
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
    client = tools.fitting(base.server, tls=False)
    command = [client.program("pg_verifybackup"), "--no-parse-wal", str(folder)]
    done = subprocess.run(command, env=client.variables(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupFailed(f"pg_verifybackup failed: {done.stderr.strip()[:400]}")


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
    return Base(data["name"], data["ended_at"], data["server"], manifest.Piece(piece["kind"], piece["raw"], parts))
