"""What is kept: backups of seven days, five weeks, twelve months, the last verified one; and what rewinding needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from oxherd.backup import pitr
from oxherd.backup.catalogue import Catalogue, Entry
from oxherd.backup.pitr import Archive, Base
from oxherd.backup.storage import Stored

KEPT: tuple[tuple[str, int, Callable[[datetime], str]], ...] = (
    ("daily", 7, lambda at: f"{at:%Y-%m-%d}"),
    ("weekly", 5, lambda at: f"{at:%G-%V}"),
    ("monthly", 12, lambda at: f"{at:%Y-%m}"),
)
WINDOW = 7 * 86_400.0  # seconds back within which `rewind` can go to every moment


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each backup, of each base backup, and of archived WAL.

    Attributes:
        keep: with the reasons, in words.
        drop: the oldest first.
        abandoned: objects of backups and base backups that were never finished.
        keep_bases: with the reason, in words.
        drop_bases: the newest first: what has only the changes since another one goes before that.
        wal: what no base backup needs that is kept.
        damaged: why nothing of base backups and WAL is deleted; empty where nothing is wrong.
    """

    keep: tuple[tuple[Entry, str], ...] = ()
    drop: tuple[Entry, ...] = ()
    abandoned: tuple[str, ...] = ()
    keep_bases: tuple[tuple[Base, str], ...] = ()
    drop_bases: tuple[Base, ...] = ()
    wal: tuple[Stored, ...] = ()
    damaged: tuple[str, ...] = ()

    @property
    def does_nothing(self) -> bool:
        """Whether nothing is deleted."""
        return not (self.drop or self.abandoned or self.drop_bases or self.wal)


def plan(catalogue: Catalogue, archive: Archive, *, now: float) -> Plan:
    """What to keep, and what not.

    Of backups: the newest of each of the last 7 days, 5 weeks and 12 months that have one, and the last verified one.
    Of base backups: those of the last 7 days, and the newest before them that is whole with all that it is after, from
    which the first of these days is gone to. Of WAL: all since the oldest of them began.

    Parameters:
        catalogue: the backups.
        archive: base backups and WAL; nothing of it is deleted while it has a damaged index, which may be all that
            knows what is needed.
        now: wall seconds.
    """
    reasons: dict[str, list[str]] = {entry.name: [] for entry in catalogue.entries}
    for word, count, period in KEPT:
        seen: set[str] = set()
        for entry in catalogue.entries:  # the newest first
            name = period(datetime.fromtimestamp(entry.manifest.taken_at / 1000, UTC))
            if name not in seen and len(seen) < count:
                seen.add(name)
                reasons[entry.name].append(word)
    verified = next((entry for entry in catalogue.entries if entry.is_verified), None)
    if verified is not None:
        reasons[verified.name].append("the last verified")
    keep = tuple((entry, ", ".join(reasons[entry.name])) for entry in catalogue.entries if reasons[entry.name])
    drop = tuple(entry for entry in reversed(catalogue.entries) if not reasons[entry.name])
    bases = _bases(archive, now)
    first = min((base.wal for base, _ in bases), default="")
    return Plan(
        keep, drop, catalogue.abandoned + archive.abandoned, bases,
        tuple(base for base in archive.bases if base not in {each for each, _ in bases}),
        () if archive.damaged else tuple(wal for wal in archive.wal if not pitr.needed(wal, first)),
        archive.damaged,
    )  # fmt: skip


def _bases(archive: Archive, now: float) -> tuple[tuple[Base, str], ...]:
    begins = (now - WINDOW) * 1000
    start = next((base for base in archive.bases if base.ended_at <= begins and archive.chain(base)), None)
    if start is None or archive.damaged:
        return tuple((base, "to rewind") for base in archive.bases)
    used = [base for base in archive.bases if base.ended_at >= start.ended_at]
    reasons = dict.fromkeys(used, "to rewind")
    for base in used:
        for each in archive.chain(base):
            reasons.setdefault(each, f"{base.name} is after it")
    return tuple(reasons.items())
