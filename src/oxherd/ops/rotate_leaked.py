"""After a leak: what to rotate, in which order. Takes what `oxherd audit secrets --json` wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from oxherd.errors import RotationStopped, UsageError
from oxherd.ops.rotate_known import NAMES, how_to_replace
from oxherd.ops.rotate_state import write_privately
from oxherd.settings import TABLE, Settings

# First what hands out the others: replaced later, it would hand out their new values, too. Then what gives data or runs
# jobs; then money and the API. ENCRYPTION_KEY after the ways to the rows that it seals.
TIERS: tuple[tuple[str, ...], ...] = (
    ("RAILWAY_API_TOKEN", "RAILWAY_TOKEN", "SUPABASE_ACCESS_TOKEN", "UPSTASH_API_KEY", "OPENROUTER_MANAGEMENT_KEY"),
    ("DATABASE_ADMIN_URL", "DATABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "REDIS_ADMIN_URL", "REDIS_URL"),
    ("API_TOKEN", "OPENROUTER_API_KEY", "API_READ_TOKEN"),
    ("ENCRYPTION_KEY",),
)
HANDS_OUT = {
    "RAILWAY_API_TOKEN": tuple(variable.name for variable in TABLE if variable.secret and variable.name in NAMES),
    "RAILWAY_TOKEN": tuple(variable.name for variable in TABLE if variable.secret and variable.name in NAMES),
    "SUPABASE_ACCESS_TOKEN": ("SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL"),
    "UPSTASH_API_KEY": ("REDIS_URL",),
}


@dataclass(frozen=True, slots=True)
class Due:
    """A secret to replace.

    Attributes:
        variable: its variable; empty where it is nothing of Oxherd's.
        what: in words.
        why: where it was seen, or what hands it out.
        todo: a command, or what to do by hand.
        can_rotate: whether `oxherd rotate` can.
    """

    variable: str
    what: str
    why: str
    todo: str
    can_rotate: bool


_READ = {"variable", "what", "fails", "live", "rotation"}  # of each finding


def read_report(path: Path) -> list[Mapping[str, Any]]:
    """The findings of an audit. Raises UsageError where the file is none."""
    try:
        findings: list[Mapping[str, Any]] = orjson.loads(path.read_bytes())["findings"]
        if all(each.keys() >= _READ for each in findings):
            return findings
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        pass
    raise UsageError(f"{path} is no report of an audit", hint="oxherd audit secrets --json > report.json")


def due(findings: Iterable[Mapping[str, Any]], settings: Settings) -> list[Due]:
    """What to rotate, the worst first, each variable once.

    Left out is what the audit lets pass: notes, what somebody accepted, and what its service no longer takes.

    Parameters:
        findings: of the audit.
        settings: to tell which other secrets there are for a leaked token to hand out.
    """
    counted = [each for each in findings if each["fails"] and each["live"] is not False]
    counted.sort(key=lambda each: (_tier(each["variable"]), not each["live"], not each.get("in_head")))
    made: dict[str, Due] = {}
    for each in counted:
        name = each["variable"] or f"{each['what']} {each.get('fingerprint', '')}"
        made.setdefault(name, _due(each["variable"] or "", each["what"], _seen(each), each["rotation"]))
    for token in [name for name in made if name in HANDS_OUT]:
        for name in HANDS_OUT[token]:
            if getattr(settings, name.lower(), None) is not None and name not in made:
                made[name] = _due(name, name, f"{token} hands it out", "")
    return sorted(made.values(), key=lambda each: _tier(each.variable))


def _due(variable: str, what: str, why: str, otherwise: str) -> Due:
    if variable in NAMES:
        return Due(variable, what, why, f"oxherd rotate {variable}", can_rotate=True)
    return Due(variable, what, why, how_to_replace(variable) if variable else f"by hand: {otherwise}", can_rotate=False)


def _tier(variable: str | None) -> tuple[int, int]:
    for number, tier in enumerate(TIERS):
        if variable in tier:
            return number, tier.index(variable)
    return len(TIERS), 0


def _seen(finding: Mapping[str, Any]) -> str:
    first = finding.get("first") or {}
    place = f"{first.get('path', '?')}:{first.get('line', '?')}"
    live = "; it is live" if finding.get("live") else ""
    return f"seen in {place}{', still in HEAD' if finding.get('in_head') else ''}{live}"


class Replaced:
    """Which variables of a report were replaced, in a file beside the states of rotations: names only.

    Parameters:
        folder: where states are kept.
        report: the audit's.
        resume: go on with what an earlier run of this report has begun; otherwise it begins anew.

    Raises:
        RotationStopped: there is nothing to go on with.
    """

    def __init__(self, folder: Path, report: Path, *, resume: bool) -> None:
        self._file = folder / f"{hashlib.sha256(report.read_bytes()).hexdigest()[:16]}.leaked"
        if resume and not self._file.exists():
            raise RotationStopped(
                f"nothing of {report} is under way", hint=f"oxherd rotate --leaked {report}, without --resume"
            )
        self.names = self._file.read_text().split() if resume else []

    def add(self, name: str) -> None:
        """One more is replaced."""
        self.names.append(name)
        self.save()

    def save(self) -> None:
        """Keep it."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_privately(self._file, "".join(f"{each}\n" for each in self.names).encode())

    def remove(self) -> None:
        """All of them are."""
        self._file.unlink(missing_ok=True)
