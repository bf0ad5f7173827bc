"""A local folder where a backup waits until it is stored: an upload goes on where a killed process left it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oxherd.backup import manifest, sealing
from oxherd.backup.catalogue import NAME
from oxherd.backup.create import Told
from oxherd.backup.storage import Storage, open_storage
from oxherd.errors import BackupFailed, JobStateError
from oxherd.settings import Settings


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder, while no other process uses it; `storage` is the same, to write to."""

    folder: Path
    storage: Storage

    def left(self, note: Callable[[str], None]) -> list[str]:
        """Names of whole backups that were not stored, the oldest first; what was never finished is thrown away."""
        names = sorted(path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        whole = [name for name in names if (self.folder / name / manifest.FILE).exists()]
        for name in set(names) - set(whole):
            note(f"{name} is thrown away: the process that took it ended before its dump did")
            self.discard(name)
        return whole

    async def send(self, name: str, target: Storage, *, told: Told, limit: float | None) -> manifest.Manifest:
        """Store a whole backup, without those of its parts that are stored already; then it is no longer here.

        Parameters:
            name: the backup's.
            target: where to.
            told: how far it is.
            limit: bytes a second; None for no limit.

        Raises:
            ServiceUnreachable, ServiceRefused: not all is stored; what is, stays.
            BackupDamaged: it is not what was written here.
            BackupFailed: somebody deletes there what is being stored.
        """
        raw = await asyncio.to_thread(self.storage.get, f"{name}/{manifest.FILE}")
        made = manifest.read(raw, name)
        todo = await asyncio.to_thread(_lacking, made, target)
        stored = made.stored - sum(part.size for part in todo)
        pace = sealing.Pace(limit, lambda done: told("upload", stored + done, made.stored))
        for place in range(0, len(todo), sealing.UNDER_WAY):
            parts = todo[place : place + sealing.UNDER_WAY]
            try:
                await asyncio.gather(*(asyncio.to_thread(self._put, name, part, target) for part in parts))
            except asyncio.CancelledError:
                target.give_up()
                raise
            await asyncio.to_thread(pace.passed, sum(part.size for part in parts))
        if await asyncio.to_thread(_lacking, made, target):  # to `prune`, parts of yesterday look abandoned
            raise BackupFailed(f"parts of {name} were deleted while others were stored", hint="do it again")
        if not await asyncio.to_thread(_has, target, f"{name}/{manifest.FILE}", raw):
            await asyncio.to_thread(target.create, f"{name}/{manifest.FILE}", raw)
        self.discard(name)
        return made

    def discard(self, name: str) -> None:
        """Remove a backup from the folder."""
        shutil.rmtree(self.folder / name)

    def _put(self, name: str, part: manifest.Part, target: Storage) -> None:
        path = self.folder / name / part.name
        data = path.read_bytes() if path.exists() else b""
        target.put(f"{name}/{part.name}", sealing.whole(data, name, part))


@contextlib.contextmanager
def opened(settings: Settings, folder: Path) -> Iterator[Spool]:
    """Use the folder, which is made where it is missing; the lock ends with the process. Raises JobStateError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobStateError(
                f"another backup is being taken by way of {folder}", hint="oxherd backup list has it when it is done"
            ) from None
        yield Spool(folder, open_storage(settings, str(folder), patience=0))


def _lacking(made: manifest.Manifest, target: Storage) -> list[manifest.Part]:
    """The parts that are not stored. A store writes an object as a whole or not, so its size tells."""
    sizes = {each.name: each.size for each in target.objects(f"{made.name}/")}
    return [part for piece in made.pieces for part in piece.parts if sizes.get(f"{made.name}/{part.name}") != part.size]


def _has(target: Storage, name: str, raw: bytes) -> bool:
    try:
        return target.get(name) == raw
    except FileNotFoundError:
        return False
