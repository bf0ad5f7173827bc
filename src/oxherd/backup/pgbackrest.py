"""pgBackRest, where a server has it: base backups and going back are left to it, with its own repository."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from oxherd.backup.create import Stop
from oxherd.backup.pitr import need_empty
from oxherd.errors import BackupFailed, BackupNotFound, UsageError
from oxherd.settings import child_environ

QUIET = ("--log-level-console=off", "--log-level-stderr=error")  # so that its output is only what was asked for


@dataclass(frozen=True, slots=True)
class Taken:
    """A base backup in pgBackRest's repository.

    Attributes:
        name: its label.
        ended_at: from this moment on it can be gone back to, wall ms.
        server: the major version.
        after: the one that it has only the changes since; None for a whole one.
        bytes: what it takes in the repository.
    """

    name: str
    ended_at: int
    server: int
    after: str | None
    bytes: int


def take(stanza: str, *, incremental: bool, stop: Stop) -> Taken:
    """Take a base backup; pgBackRest deletes those that its own retention no longer keeps. Raises as `backups`.

    Parameters:
        stanza: pgBackRest's name for the server.
        incremental: only what changed since the last one; pgBackRest takes a whole one where there is none.
        stop: ends it.
    """
    _run(stanza, f"--type={'incr' if incremental else 'full'}", "--start-fast", "backup", stop=stop)
    return backups(stanza)[0]


def backups(stanza: str) -> list[Taken]:
    """All base backups of a stanza, the newest first.

    Raises:
        UsageError: pgBackRest is not installed, or does not know the stanza.
        BackupFailed: with what it said.
    """
    return _taken(_info(stanza))


def _taken(known: dict[str, Any]) -> list[Taken]:
    versions = {each["id"]: int(each["version"].partition(".")[0]) for each in known["db"]}
    found = [
        Taken(
            each["label"], (each["timestamp"]["stop"] + 1) * 1000,  # whole seconds
            versions[each["database"]["id"]], each["prior"], each["info"]["repository"]["delta"],
        )
        for each in known["backup"]
    ]  # fmt: skip
    return sorted(found, key=lambda each: each.ended_at, reverse=True)


def before(stanza: str, to: datetime) -> Taken:
    """The newest base backup from which a moment can be gone to. Raises BackupNotFound, and as `backups`."""
    found = next((each for each in backups(stanza) if each.ended_at <= to.timestamp() * 1000), None)
    if found is None:
        raise BackupNotFound(f"no base backup had ended by {to.isoformat()}", hint="oxherd backup base")
    return found


def rewind(stanza: str, to: datetime, folder: Path) -> Taken:
    """Have it make a data folder that, when Postgres starts on it, replays WAL up to a moment and opens for writing.

    The base backup is named to it: by itself it takes the newest one where none had ended by then, and ends elsewhere.

    Raises:
        BackupNotFound: no base backup had ended by then.
        UsageError: the folder is not empty; and as `backups`.
    """
    need_empty(folder)
    base = before(stanza, to)
    _run(
        stanza, f"--pg1-path={folder.absolute()}", f"--set={base.name}", "--type=time",
        f"--target={to.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f+00}", "--target-action=promote", "--archive-mode=off",
        "restore",
    )  # fmt: skip
    return base


def look(stanza: str) -> str:
    """Its version, and what it has of a stanza, once it has found that WAL arrives. Raises as `backups`."""
    known = _info(stanza)
    found = _taken(known)
    _run(stanza, "check")
    newest = f", the newest {found[0].name}" if found else ""
    return f"{installed()}, stanza {stanza}: WAL arrives; {len(found)} base backups{newest}; cipher: {known['cipher']}"


def installed() -> str | None:
    """Its name and version, or None where it is not installed."""
    if (program := shutil.which("pgbackrest")) is None:
        return None
    return subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout.strip()


def _info(stanza: str) -> dict[str, Any]:
    (known,) = orjson.loads(_run(stanza, "--output=json", "info"))
    if known["status"]["code"] == 1:
        raise UsageError(
            f"pgBackRest has no stanza {stanza}: {known['status']['message']}",
            hint=f"pgbackrest --stanza={stanza} stanza-create; or mend BACKUP_PGBACKREST_STANZA",
        )
    found: dict[str, Any] = known
    return found


def _run(stanza: str, *words: str, stop: Stop | None = None) -> bytes:
    program = shutil.which("pgbackrest")
    if program is None:
        raise UsageError(
            "BACKUP_PGBACKREST_STANZA is set, but there is no pgbackrest on the path",
            hint="apt-get install pgbackrest; or unset it, and PostgreSQL's own programs are used",
        )
    process = subprocess.Popen(
        [program, f"--stanza={stanza}", *QUIET, *words], env=child_environ({}, inherit=False),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    if stop is not None:
        stop.watch(process)
    try:
        said, fault = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        lines = " ".join(line.strip() for line in fault.decode("utf-8", "replace").splitlines())
        raise BackupFailed(f"pgbackrest {words[-1]} failed: {lines[:600] or f'it ended with {process.returncode}'}")
    return said
