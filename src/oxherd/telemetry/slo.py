"""Service level objectives: what was promised, what is left of the error budget, how fast it burns. Pure.

Terms and method are those of Google's SRE Workbook, chapter 2 (SLI, SLO, error budget) and chapter 5 (alerting on burn
rates over two windows each): https://sre.google/workbook/alerting-on-slos/.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from oxherd.errors import UsageError
from oxherd.settings import parse_duration

HOUR = 3600.0
DAY = 24 * HOUR
LONGEST_WINDOW = 30 * DAY  # for so long indicators are kept
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Sli(StrEnum):
    """What is measured: each is a share of good events among all that count.

    availability: minutes in which some worker was healthy, of all minutes.
    success: jobs that completed, of those that completed or failed for good.
    attempts: attempts that did not end in an error, of all attempts.
    wait: jobs that were fetched within the threshold after they were ready to run.
    run: attempts that took no longer than the threshold.
    first_token: streamed model calls whose first token came within the threshold.
    """

    AVAILABILITY = "availability"
    SUCCESS = "success"
    ATTEMPTS = "attempts"
    WAIT = "wait"
    RUN = "run"
    FIRST_TOKEN = "first_token"  # noqa: S105  a token of text


TIMED = frozenset({Sli.WAIT, Sli.RUN, Sli.FIRST_TOKEN})


@dataclass(frozen=True, slots=True)
class Objective:
    """One promise.

    Attributes:
        name: unique; alerts, reports and dashboards call it that.
        sli: what is measured.
        target: the share of good events that was promised, above 0 and below 1, such as 0.99.
        threshold: seconds, for the timed indicators; None for the others.
        window: seconds over which the promise holds, rolling.
        job: only jobs of this name (`first_token`: model calls of the agent of this name); None for all.
    """

    name: str
    sli: Sli
    target: float
    threshold: float | None = None
    window: float = LONGEST_WINDOW
    job: str | None = None

    @property
    def budget(self) -> float:
        """The share of events that may be bad."""
        return 1 - self.target

    @property
    def words(self) -> str:
        """The promise as a sentence."""
        what = {
            Sli.AVAILABILITY: "of all minutes have a healthy worker",
            Sli.SUCCESS: "of jobs complete",
            Sli.ATTEMPTS: "of attempts end without an error",
            Sli.WAIT: f"of jobs start within {_span(self.threshold or 0)}",
            Sli.RUN: f"of attempts take at most {_span(self.threshold or 0)}",
            Sli.FIRST_TOKEN: f"of streamed replies begin within {_span(self.threshold or 0)}",
        }[self.sli]
        whose = f" ({self.job})" if self.job else ""
        return f"{self.target * 100:g} % {what}, over {_span(self.window)}{whose}"


DEFAULTS = (
    Objective("availability", Sli.AVAILABILITY, 0.995),
    Objective("success", Sli.SUCCESS, 0.99),
    Objective("wait", Sli.WAIT, 0.99, threshold=60.0),
)


@dataclass(frozen=True, slots=True)
class Count:
    """Good events and all events of some span of time."""

    good: float = 0.0
    total: float = 0.0

    @property
    def bad(self) -> float:
        """Events that broke the promise."""
        return max(self.total - self.good, 0.0)

    @property
    def ratio(self) -> float | None:
        """The share of good events; None where there was none: no events is not a broken promise."""
        return self.good / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class Burn:
    """A pair of windows: the alert fires while the budget burns faster than `factor` in both.

    Attributes:
        severity: `page` for now, `ticket` for working hours.
        long, short: seconds. The short one lets the alert end soon after the trouble has.
        spent: the share of the whole window's budget that is gone when the long window has burnt at `factor`.
    """

    severity: str
    long: float
    short: float
    spent: float

    def factor(self, window: float) -> float:
        """How many times faster than allowed the budget burns, for an objective over `window` seconds."""
        return self.spent * window / self.long


# SRE Workbook, table 5-8: 14.4, 6 and 1 times, for a window of 30 days.
BURNS = (
    Burn("page", 1 * HOUR, 5 * 60, 0.02),
    Burn("page", 6 * HOUR, 30 * 60, 0.05),
    Burn("ticket", 3 * DAY, 6 * HOUR, 0.10),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How an objective stands.

    Attributes:
        objective: the promise.
        count: events in its window.
        left: the share of the error budget that is left; below 0 once the promise is broken, 1 without events.
        burning: the pairs of windows that fire now, worst first.
        rates: burn rate over each window that was asked for, by its seconds; None without events.
    """

    objective: Objective
    count: Count
    left: float
    burning: tuple[Burn, ...]
    rates: Mapping[float, float | None]

    @property
    def severity(self) -> str | None:
        """The worst that fires, or None."""
        return self.burning[0].severity if self.burning else None

    def dump(self) -> dict[str, Any]:
        """As JSON-able data, for programs."""
        promise = self.objective
        return {
            "name": promise.name, "sli": promise.sli, "promise": promise.words, "target": promise.target,
            "threshold_s": promise.threshold, "window_s": promise.window, "job": promise.job,
            "reached": self.count.ratio, "events": self.count.total, "bad": self.count.bad, "budget_left": self.left,
            "severity": self.severity, "burn_rates": {f"{seconds:g}s": rate for seconds, rate in self.rates.items()},
        }  # fmt: skip


Measure = Callable[[Objective, float], Count]


def standing(objective: Objective, measure: Measure, *, least_bad: int = 2) -> Standing:
    """How an objective stands now.

    Parameters:
        objective: the promise.
        measure: counts its events over the last so many seconds.
        least_bad: so many bad events must be in the long window before a pair of windows fires: where little happens,
            a single failure would else be an alarm (SRE Workbook, "Low-Traffic Services and Error Budget Alerting").
    """
    usable = [burn for burn in BURNS if burn.long <= objective.window]
    spans = sorted({span for burn in usable for span in (burn.long, burn.short)})
    counts = {span: measure(objective, span) for span in spans}
    rates = {span: burn_rate(objective, count) for span, count in counts.items()}
    firing = tuple(
        burn
        for burn in usable
        if counts[burn.long].bad >= least_bad
        and all((rates[span] or 0.0) >= burn.factor(objective.window) for span in (burn.long, burn.short))
    )
    whole = measure(objective, objective.window)
    return Standing(objective, whole, budget_left(objective, whole), firing, rates)


def burn_rate(objective: Objective, count: Count) -> float | None:
    """How many times faster than allowed the budget burns: 1 uses it up exactly at the window's end."""
    return count.bad / count.total / objective.budget if count.total else None


def budget_left(objective: Objective, count: Count) -> float:
    """The share of the error budget that is left: 1 is all of it, 0 none, below 0 the promise is broken."""
    return 1 - count.bad / count.total / objective.budget if count.total else 1.0


@dataclass(frozen=True, slots=True)
class Promises:
    """What the file says.

    Attributes:
        objectives: what was promised.
        no_progress: seconds that jobs may wait while none ends, before somebody is told.
        queue_age: seconds that the next job in line may wait.
        backup_age: seconds that the last good backup may be old.
    """

    objectives: tuple[Objective, ...] = DEFAULTS
    no_progress: float = 15 * 60.0
    queue_age: float = 10 * 60.0
    backup_age: float = 26 * HOUR


_LIMITS = ("no_progress", "queue_age", "backup_age")


def load_promises(path: Path) -> Promises:
    """Read `oxherd.toml`: `[[slo]]` tables, and an `[alerts]` table of durations, named as in Promises.

    Parameters:
        path: of the file; where there is none, the defaults hold.

    Raises:
        UsageError: naming the file and every field that is wrong, with the fix.
    """
    if not path.is_file():
        return Promises()
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is no TOML: {error}") from None
    faults = [f"{key}: is not known; known are alerts, slo" for key in tables if key not in {"slo", "alerts"}]
    alerts = tables.get("alerts", {})
    read = _Reader(alerts, "alerts", faults) if isinstance(alerts, dict) else None
    limits = {name: read(name, _seconds) for name in _LIMITS if name in alerts} if read else {}
    faults += [] if read else ["alerts: must be a table"]
    faults += [f"alerts.{key}: is not known" for key in alerts if key not in _LIMITS]
    try:
        objectives = read_objectives(tables["slo"]) if "slo" in tables else DEFAULTS
    except UsageError as error:
        faults.append(error.message)
        objectives = ()
    if faults:
        raise UsageError(f"{path}: {'; '.join(faults)}", hint="docs/slo.md has an example")
    return Promises(objectives, **limits)


def read_objectives(listed: Any) -> tuple[Objective, ...]:
    """The `[[slo]]` tables of `oxherd.toml`.

    Parameters:
        listed: as TOML has them: a list of tables, each with `name`, `sli`, `target` (0.99 or "99%"), and by need
            `threshold` ("30s"), `window` ("30d") and `job`.

    Raises:
        UsageError: naming every entry and field that is wrong, with the fix.
    """
    if not isinstance(listed, list):
        raise UsageError("slo: must be a list of tables, each under [[slo]]")
    faults: list[str] = []
    found: list[Objective] = []
    for place, each in enumerate(listed, 1):
        objective = _objective(each, f"slo {place}", faults)
        if objective is not None:
            if any(objective.name == other.name for other in found):
                faults.append(f"slo {place}.name: there are two called {objective.name!r}")
            found.append(objective)
    if faults:
        raise UsageError("; ".join(faults), hint="docs/slo.md has an example")
    return tuple(found)


def _objective(table: Any, where: str, faults: list[str]) -> Objective | None:
    if not isinstance(table, dict):
        faults.append(f"{where}: must be a table")
        return None
    before = len(faults)
    known = {"name", "sli", "target", "threshold", "window", "job"}
    faults += [
        f"{where}.{key}: is not known; known are {', '.join(sorted(known))}" for key in table if key not in known
    ]
    read = _Reader(table, where, faults)
    name = read("name", _name)
    sli = read("sli", _sli)
    target = read("target", _share)
    threshold = read("threshold", _seconds) if "threshold" in table else None
    window = read("window", _window) if "window" in table else LONGEST_WINDOW
    job = read("job", _text) if "job" in table else None
    if sli in TIMED and "threshold" not in table:
        faults.append(f'{where}.threshold: {sli} needs one, such as "30s"')
    if sli is not None and sli not in TIMED and "threshold" in table:
        faults.append(f"{where}.threshold: {sli} has none; leave it out")
    if sli is Sli.AVAILABILITY and job is not None:
        faults.append(f"{where}.job: availability is of workers, not of jobs; leave it out")
    if len(faults) > before:
        return None
    return Objective(name, sli, target, threshold, window, job)


class _Reader:
    """Reads fields of one table and notes what is wrong with them."""

    def __init__(self, table: Mapping[str, Any], where: str, faults: list[str]) -> None:
        self._table, self._where, self._faults = table, where, faults

    def __call__(self, key: str, parse: Callable[[Any], Any]) -> Any:
        if key not in self._table:
            self._faults.append(f"{self._where}.{key}: is missing")
            return None
        try:
            return parse(self._table[key])
        except (ValueError, TypeError) as fault:
            self._faults.append(f"{self._where}.{key}: {fault}")
            return None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 63 small letters, digits or -, such as reply-wait")
    return value


def _sli(value: Any) -> Sli:
    if value not in list(Sli):
        raise ValueError(f"must be one of {', '.join(Sli)}")
    return Sli(value)


def _share(value: Any) -> float:
    wrong = 'must be above 0 and below 1, such as 0.99 or "99%"'
    if isinstance(value, str) and (number := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        value = float(number[1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(wrong)
    return float(value)


def _seconds(value: Any) -> float:
    seconds = parse_duration(value) if isinstance(value, str) else float(value)
    if isinstance(value, bool) or seconds <= 0:
        raise ValueError("must be a duration such as 30s, 10m or 1h")
    return seconds


def _window(value: Any) -> float:
    seconds = _seconds(value)
    if not HOUR <= seconds <= LONGEST_WINDOW:
        raise ValueError("must be from 1h to 30d: indicators are kept for 30 days")
    return seconds


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a job's name")
    return value


def _span(seconds: float) -> str:
    for unit, size in (("d", DAY), ("h", HOUR), ("min", 60.0)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def worst_first(standings: Sequence[Standing]) -> list[Standing]:
    """Those with the least budget left come first."""
    return sorted(standings, key=lambda each: each.left)
