"""Which backups there are, and what verifying them came to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from oxherd.backup import manifest
from oxherd.backup.manifest import Manifest
from oxherd.backup.storage import Storage
from oxherd.errors import BackupDamaged, BackupNotFound
from oxherd.vault.keyring import KeyRing

REPORT = "verified."  # and the wall ms; after the backup's name
ABANDONED = 86_400.0  # seconds after which objects without a manifest count as left behind
NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ-[0-9a-f]{4}")  # whatever else is there is not ours to delete


@dataclass(frozen=True, slots=True)
class Entry:
    """One backup.

    Attributes:
        manifest: its own.
        objects: the names of all its objects, the manifest's first: a backup that is half deleted is not listed.
        verified: the newest report that was signed here, or None.
    """

    manifest: Manifest
    objects: tuple[str, ...]
    verified: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The backup's."""
        return self.manifest.name

    @property
    def is_verified(self) -> bool:
        """Whether it was restored and was found whole, last time."""
        return self.verified is not None and bool(self.verified.get("ok"))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is there.

    Attributes:
        entries: all backups, the newest first.
        abandoned: objects that belong to none and are old.
        damaged: what is wrong with those whose manifest can't be read; nothing deletes them.
    """

    entries: tuple[Entry, ...]
    abandoned: tuple[str, ...]
    damaged: tuple[str, ...] = ()


def load(storage: Storage, name: str) -> Manifest:
    """A backup's manifest, by its name, the beginning of it, or `latest`. Raises BackupNotFound, BackupDamaged."""
    names = [each.name.partition("/")[0] for each in storage.objects() if each.name.endswith(f"/{manifest.FILE}")]
    whole = manifest.find(names, name)
    try:
        return manifest.read(storage.get(f"{whole}/{manifest.FILE}"), whole)
    except FileNotFoundError:
        raise BackupNotFound(f"{whole} was deleted just now") from None


def read(storage: Storage, ring: KeyRing, *, now: float) -> Catalogue:
    """All of them.

    Parameters:
        storage: where they are.
        ring: a report that none of its keys signed counts as none.
        now: wall seconds.
    """
    folders: dict[str, list[str]] = {}
    newest: dict[str, float] = {}
    for each in storage.objects():
        name, _, rest = each.name.partition("/")
        if rest and NAME.fullmatch(name):
            folders.setdefault(name, []).append(each.name)
            newest[name] = max(newest.get(name, 0.0), each.at)
    entries, abandoned, damaged = [], [], []
    for name, objects in sorted(folders.items(), reverse=True):
        if f"{name}/{manifest.FILE}" in objects:
            try:
                entries.append(_entry(storage, ring, name, objects))
            except BackupDamaged as error:
                damaged.append(error.message)
        elif now - newest[name] > ABANDONED:
            abandoned += objects
    return Catalogue(tuple(entries), tuple(abandoned), tuple(damaged))


def _entry(storage: Storage, ring: KeyRing, name: str, objects: list[str]) -> Entry:
    own = f"{name}/{manifest.FILE}"
    reports = sorted(each for each in objects if each.startswith(f"{name}/{REPORT}"))
    verified = next(
        (report for each in reversed(reports) if (report := _report(storage, ring, each)) is not None), None
    )
    try:
        found = manifest.read(storage.get(own), name)
    except FileNotFoundError:
        raise BackupDamaged(f"{name} is being deleted", hint="ask again") from None
    return Entry(found, (own, *(each for each in sorted(objects) if each != own)), verified)


def _report(storage: Storage, ring: KeyRing, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = orjson.loads(storage.get(name))
    except (orjson.JSONDecodeError, FileNotFoundError):
        return None
    return found if manifest.is_ours(found, ring, manifest.REPORT_LABEL) else None
