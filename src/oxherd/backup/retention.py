"""Which backups are kept: seven days, five weeks, twelve months; and the last that was verified, however old."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from oxherd.backup.catalogue import Catalogue, Entry

KEPT: tuple[tuple[str, int, Callable[[datetime], str]], ...] = (
    ("daily", 7, lambda at: f"{at:%Y-%m-%d}"),
    ("weekly", 5, lambda at: f"{at:%G-%V}"),
    ("monthly", 12, lambda at: f"{at:%Y-%m}"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each backup.

    Attributes:
        keep: with the reasons.
        drop: the oldest first.
        abandoned: objects of backups that were never finished.
    """

    keep: tuple[tuple[Entry, str], ...]
    drop: tuple[Entry, ...]
    abandoned: tuple[str, ...]


def plan(catalogue: Catalogue) -> Plan:
    """The newest of each of the last 7 days, 5 weeks and 12 months that have one, and the last verified one."""
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
    return Plan(keep, drop, catalogue.abandoned)
