"""Going back to any moment: PostgreSQL's own base backups and archived WAL, sealed, and put together again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import orjson

from oxherd.backup import create, facts, manifest, sealing, tools
from oxherd.backup.catalogue import ABANDONED
from oxherd.backup.create import Told, quiet
from oxherd.backup.storage import Storage, Stored
from oxherd.clock import wall_ms
from oxherd.errors import BackupDamaged, BackupFailed, BackupNotFound, UsageError
from oxherd.store.address import FAULTS, Address
from oxherd.vault.keyring import KeyRing

PREFIX, INDEX = "pitr/", "base.json"
BASES, WAL = f"{PREFIX}base", f"{PREFIX}wal"
LABEL = b"oxherd base backup 1"
FILES = "backup_manifest"  # PostgreSQL's list of files and their checksums: what an incremental one is taken after
FETCHED = 4  # WAL files that are fetched at the same time; a week has thousands
START = "backup_label"  # where it says at which WAL file it begins
VERIFY, COMBINE = "pg_verifybackup", "pg_combinebackup"
# From this version on both read pg_control, which only the same major version's program can. Seen with Postgres 17.10.
EXACT = 17
BASE = ("--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast", "--no-password")
_SEGMENT = re.compile(r"[0-9A-F]{24}(\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history")
_START = re.compile(rb"START WAL LOCATION: \S+ \(file ([0-9A-F]{24})\)")


@dataclass(frozen=True, slots=True)
class Base:
    """A base backup.

    Attributes:
        name: its own.
        ended_at: from this moment on it can be gone back to, wall ms.
        server: the major version; the same one has to run it.
        after: the base backup that it has only the changes since; None for a whole one.
        piece: what is stored.
        wal: the first WAL file that it needs.
        segment: bytes of a WAL file of that server.
        files: SHA-256 of PostgreSQL's list of its files as it is stored, hex.
        signature: see `signed`.
    """

    name: str
    ended_at: int
    server: int
    after: str | None
    piece: manifest.Piece
    wal: str
    segment: int
    files: str
    signature: str = ""

    @property
    def bytes(self) -> int:
        """As they are stored."""
        return self.piece.stored

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of all its objects, the index first: what is half deleted is not listed."""
        files = (INDEX, f"{FILES}.zst", *(part.name for part in self.piece.parts))
        return tuple(f"{BASES}/{self.name}/{each}" for each in files)

    def signed(self, ring: KeyRing) -> Base:
        """The same, signed as a manifest is."""
        return dataclasses.replace(self, signature=manifest.signature(dataclasses.asdict(self), ring, LABEL))


@dataclass(frozen=True, slots=True)
class Archive:
    """What there is to go back with.

    Attributes:
        bases: base backups whose index is ours, the newest first.
        wal: archived WAL.
        abandoned: objects of base backups that were never finished, and are old.
        damaged: what is wrong with those whose index can't be read or is not ours; nothing deletes them.
    """

    bases: tuple[Base, ...] = ()
    wal: tuple[Stored, ...] = ()
    abandoned: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    def chain(self, base: Base) -> tuple[Base, ...]:
        """It and those that it has only the changes since, the whole one first; nothing where one of them is gone."""
        known, found = {each.name: each for each in self.bases}, [base]
        while (after := found[0].after) is not None:
            if after not in known:
                return ()
            found.insert(0, known[after])
        return tuple(found)

    def before(self, to: datetime) -> tuple[Base, ...]:
        """The chain of the newest base backup from which a moment can be gone to.

        Raises:
            BackupNotFound: none had ended by then.
            BackupDamaged: there is none, and some can't be used.
        """
        for base in self.bases:
            if base.ended_at <= to.timestamp() * 1000 and (chain := self.chain(base)):
                return chain
        if self.damaged:
            raise BackupDamaged(f"no base backup before {to.isoformat()} can be used: {'; '.join(self.damaged)}")
        raise BackupNotFound(f"no base backup had ended by {to.isoformat()}", hint="oxherd backup base")

    def reach(self, base: Base) -> tuple[float, str]:
        """How far archived WAL goes on from a base backup without a gap.

        Returns the wall seconds at which the last such file was stored, which is a bit after what it has, and the name
        of the one that is missing next where later ones are there; empty where none is missing.
        """
        per = (1 << 32) // base.segment
        stored: dict[int, float] = {}
        for each in self.wal:
            if len(_file(each)) == 24 and needed(each, base.wal):  # of any timeline: a new one goes on where it began
                stored[_place(_file(each), per)] = each.at
        until, place = base.ended_at / 1000, _place(base.wal, per)
        while place in stored:
            until, place = max(until, stored[place]), place + 1
        is_gap = any(each > place for each in stored)
        return until, f"{base.wal[:8]}{place // per:08X}{place % per:08X}" if is_gap else ""


@dataclass(frozen=True, slots=True)
class Rewound:
    """A data folder that is ready.

    Attributes:
        base: from which base backup.
        segments: with how many WAL files.
        to: the moment.
        compared: whether PostgreSQL compared each file with its own list; that program may be missing here. What was
            stored was whole in any case, or there were no folder.
    """

    base: str
    segments: int
    to: str
    compared: bool


async def take_base(
    address: Address,
    storage: Storage,
    recipients: Sequence[str],
    ring: KeyRing,
    *,
    incremental: bool = False,
    told: Told = quiet,
) -> Base:
    """Take a base backup with `pg_basebackup`, through a replication connection.

    Parameters:
        address, storage, recipients: what, where to, and for whom.
        ring: signs its index.
        incremental: only what changed since the last one; the server needs `summarize_wal = on`.
        told: how far it is.

    Raises:
        BackupNotFound, BackupDamaged: an incremental one, and there is none before it, or its list was changed.
        BackupFailed: with what it said, such as that the login may not replicate.
        StoreUnreachable, ServiceUnreachable, ServiceRefused, UsageError: nothing is kept.
    """
    connection = await address.connect()
    try:
        server = await create.look(connection)
        segment = await connection.fetchval("select setting::int from pg_settings where name = 'wal_segment_size'")
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        await connection.close()
    client = await asyncio.to_thread(tools.fitting, server.major, tls=server.tls)
    name = create.new_name()
    environ = client.variables(tools.connection_environ(address, tls=server.tls))
    sink = create.Sink(storage, f"{BASES}/{name}", sealing.recipients_of(recipients))
    pace = sealing.Pace(told=lambda done: told("base", done, server.bytes))
    before = await asyncio.to_thread(_newest, storage, ring) if incremental else None
    with tempfile.NamedTemporaryFile(prefix="oxherd-") as file:
        command = [client.program("pg_basebackup"), *BASE]
        if before is not None:
            file.write(await asyncio.to_thread(_files_of, storage, before))
            file.flush()
            command.append(f"--incremental={file.name}")
        with _Look() as look:
            piece = await create.in_thread(
                lambda stop: create.stream(command, environ, sink, "base", pace, stop, look.over)
            )
    listed, first = look.found()
    files = sealing.zipped(listed)
    await asyncio.to_thread(storage.put, f"{BASES}/{name}/{FILES}.zst", files)
    after, digest = before.name if before else None, hashlib.sha256(files).hexdigest()
    made = Base(name, wall_ms(), server.major, after, piece, first, segment, digest).signed(ring)
    await asyncio.to_thread(storage.create, f"{BASES}/{name}/{INDEX}", orjson.dumps(made))
    return made


def _files_of(storage: Storage, base: Base) -> bytes:
    try:
        files = storage.get(f"{BASES}/{base.name}/{FILES}.zst")
    except FileNotFoundError:
        files = b""
    if hashlib.sha256(files).hexdigest() != base.files:
        raise BackupDamaged(f"base backup {base.name} has no longer its list of files", hint="take a whole one")
    return sealing.unzipped(files)


def _newest(storage: Storage, ring: KeyRing) -> Base:
    found = read(storage, ring, now=time.time()).bases
    if not found:
        raise BackupNotFound("there is no base backup yet", hint="oxherd backup base, without --incremental")
    return found[0]


class _Look:
    """Reads PostgreSQL's list of files, and where its WAL begins, out of a tar that goes by."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self._source = os.fdopen(read, "rb")
        self._sink = os.fdopen(write, "wb")
        self._found: dict[str, bytes] = {}
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

    def found(self) -> tuple[bytes, str]:
        """The list and the first WAL file, once the stream has ended. Raises BackupDamaged where one is missing."""
        start = _START.search(self._found.get(START, b""))
        if FILES not in self._found or start is None:
            raise BackupDamaged("pg_basebackup did not send a list of its files, or where its WAL begins")
        return self._found[FILES], start[1].decode()

    def _read(self) -> None:
        with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=self._source, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in {FILES, START} and (file := archive.extractfile(member)) is not None:
                    self._found[name] = file.read()
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


def read(storage: Storage, ring: KeyRing, *, now: float) -> Archive:
    """All that there is to go back with.

    Parameters:
        storage: where it is.
        ring: an index that none of its keys signed is damaged.
        now: wall seconds.
    """
    folders: dict[str, list[Stored]] = {}
    wal: list[Stored] = []
    for each in storage.objects(PREFIX):
        folder = each.name.rpartition("/")[0]
        if folder == WAL and _SEGMENT.fullmatch(_file(each)):
            wal.append(each)
        elif folder.startswith(f"{BASES}/"):
            folders.setdefault(folder, []).append(each)
    bases: list[Base] = []
    abandoned: list[str] = []
    damaged: list[str] = []
    for folder, objects in folders.items():
        if f"{folder}/{INDEX}" in {each.name for each in objects}:
            try:
                bases.append(_base(storage, folder, ring))
            except BackupDamaged as error:
                damaged.append(error.message)
        elif now - max(each.at for each in objects) > ABANDONED:
            abandoned += [each.name for each in objects]
    bases.sort(key=lambda base: base.ended_at, reverse=True)  # names have whole seconds
    return Archive(tuple(bases), tuple(wal), tuple(abandoned), tuple(damaged))


def rewind(
    archive: Archive, storage: Storage, identities: Sequence[Any], to: datetime, folder: Path, *, told: Told = quiet
) -> Rewound:
    """Make a data folder that, when Postgres starts on it, replays WAL up to a moment and opens for writing.

    Parameters:
        archive: of `read`.
        storage, identities: where it is, and what opens it.
        to: the moment, with a time zone.
        folder: of the new cluster; empty or missing.
        told: how far it is.

    Raises:
        BackupNotFound: no base backup had ended by then.
        BackupDamaged, BackupFailed: none is whole; throw the folder away.
        UsageError: the folder is not empty, or the programs for an incremental one are not here.
    """
    need_empty(folder)
    chain = archive.before(to)
    base = chain[-1]
    _put_together(storage, chain, identities, folder, told)
    compared = _check(base, folder)
    wal = folder / "oxherd_wal"
    wal.mkdir(mode=0o700)
    segments = _fetch_wal(archive, storage, identities, base.wal, wal, told)
    moment = to.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    with (folder / "postgresql.auto.conf").open("a") as file:
        copy = facts.literal(f'cp "{wal.absolute()}/%f" "%p"')
        file.write(f"\n# oxherd backup rewind\nrestore_command = {copy}\nrecovery_target_time = '{moment}'\n")
        file.write("recovery_target_action = 'promote'\narchive_mode = 'off'\n")
    (folder / "recovery.signal").touch(mode=0o600)
    return Rewound(base.name, segments, moment, compared)


def need_empty(folder: Path) -> None:
    """Raises UsageError where there is something in a folder in which a cluster is to be made."""
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="a cluster is only ever made in an empty folder")


def _put_together(storage: Storage, chain: Sequence[Base], identities: Sequence[Any], folder: Path, told: Told) -> None:
    """Unpack a base backup; an incremental one with all before it, which PostgreSQL then combines."""
    client = _client(chain[-1], COMBINE) if len(chain) > 1 else None
    if len(chain) > 1 and client is None:
        raise UsageError(
            f"{chain[-1].name} is incremental, and no {COMBINE} of Postgres {chain[-1].server} is here",
            hint=f"do it where that Postgres is installed, such as postgresql-{chain[-1].server} of Debian or PGDG",
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if client is None:
        _unpack(storage, chain[0], identities, folder, told)
        return
    with tempfile.TemporaryDirectory(prefix=".oxherd-", dir=folder.parent) as work:
        parts = [Path(work) / each.name for each in chain]
        for each, part in zip(chain, parts, strict=True):
            part.mkdir(mode=0o700)
            _unpack(storage, each, identities, part, told)
        _run(client, COMBINE, *map(str, parts), f"--output={folder}", "--copy")


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


def _check(base: Base, folder: Path) -> bool:
    """Have PostgreSQL compare every file with the base backup's own manifest; False where that program is not here."""
    client = _client(base, VERIFY)
    if client is not None:
        _run(client, VERIFY, "--no-parse-wal", str(folder))
    return client is not None


def _client(base: Base, program: str) -> tools.Client | None:
    """The newest client with a program that understands that base backup's files."""
    for client in tools.found_clients():
        fits = client.version[0] == base.server if base.server >= EXACT else client.version[0] >= base.server
        if fits and Path(client.program(program)).is_file():
            return client
    return None


def _run(client: tools.Client, program: str, *words: str) -> None:
    command = [client.program(program), *words]
    done = subprocess.run(command, env=client.variables(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupFailed(f"{program} failed: {done.stderr.strip()[:400]}")


def _fetch_wal(
    archive: Archive, storage: Storage, identities: Sequence[Any], first: str, folder: Path, told: Told
) -> int:
    wanted = [each for each in archive.wal if needed(each, first)]
    total, done = sum(each.size for each in wanted), 0

    def fetch(each: Stored) -> int:
        (folder / _file(each)).write_bytes(sealing.open_text(storage.get(each.name).decode(), identities))
        return each.size

    with ThreadPoolExecutor(FETCHED, thread_name_prefix="oxherd-wal") as pool:
        try:
            for size in pool.map(fetch, wanted):
                done += size
                told("WAL", done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sum(len(_file(each)) == 24 for each in wanted)


def needed(wal: Stored, first: str) -> bool:
    """Whether archived WAL is needed by a base backup that begins at WAL file `first`; timelines' histories are."""
    return _file(wal).endswith(".history") or _file(wal) >= first


def _place(name: str, per: int) -> int:
    return int(name[8:16], 16) * per + int(name[16:24], 16)


def _file(wal: Stored) -> str:
    return wal.name.rpartition("/")[2].removesuffix(".age")


def _base(storage: Storage, folder: str, ring: KeyRing) -> Base:
    name = folder.rpartition("/")[2]
    try:
        data = orjson.loads(storage.get(f"{folder}/{INDEX}"))
        manifest.check(data, ring, LABEL, f"the index of base backup {name}")
        piece = data["piece"]
        parts = tuple(manifest.Part(**part) for part in piece["parts"])
        return Base(**{**data, "piece": manifest.Piece(piece["kind"], piece["raw"], parts)})
    except FileNotFoundError:
        raise BackupDamaged(f"base backup {name} is being deleted", hint="ask again") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BackupDamaged(f"the index of base backup {name} can't be read: {type(error).__name__}") from None
