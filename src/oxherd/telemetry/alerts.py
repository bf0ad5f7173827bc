"""Alerts: from findings to as few messages as possible. Fire, dedupe, repeat, resolve, silence. Pure.

A finding is something wrong that was seen just now. An alert is a finding that lasts: it has a beginning, people are
told of it once, again after a while if it goes on, and when it is over.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
CALM = 5 * MINUTE  # without the finding before an alert counts as over: what flaps is one alert
REPEAT = {"page": 4 * HOUR, "ticket": DAY}


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of alert, with a runbook of the same name in `docs/runbooks/`.

    Attributes:
        name: what it is called everywhere.
        severity: `page` for now, `ticket` for working hours.
        about: what it means, one sentence.
        lasting: seconds that the finding must have been there before anybody is told.
    """

    name: str
    severity: str
    about: str
    lasting: float = 0.0


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("slo-burn-fast", "page", "The error budget of an objective burns so fast that it is gone within days."),
        Kind("slo-burn-slow", "ticket", "The error budget of an objective burns faster than it may."),
        Kind("no-progress", "page", "Jobs wait, workers may take them, and none has ended for a long time."),
        Kind("queue-age", "ticket", "The next job in line has been waiting for too long."),
        Kind("failure-spike", "page", "Far more jobs fail than usual."),
        Kind("quarantined", "ticket", "A job kept killing its workers and was taken out of circulation."),
        Kind("spend-spike", "page", "Model calls cost far more than usual."),
        Kind("intake-stopped", "page", "The money is gone, or the day's cap reached: workers take no more jobs."),
        Kind("gate-closed", "ticket", "Somebody closed the intake gate half an hour ago.", lasting=30 * MINUTE),
        Kind("silent-worker", "page", "A worker is there and takes no jobs, or has vanished without a word."),
        Kind("stuck-drain", "ticket", "A worker has been stopping for longer than its grace."),
        Kind("store-away", "page", "The database takes no writes, and finished jobs wait for it.", lasting=MINUTE),
        Kind("key-expiring", "ticket", "A key is about to expire."),
        Kind("certificate-expiring", "ticket", "A server that workers need shows a certificate that is about to end."),
        Kind("backup-old", "page", "The last good backup is too old, or there is none."),
        Kind("backup-unproven", "page", "The last verification of a backup failed: it may not be one."),
    )
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong right now.

    Attributes:
        kind: a name in `KINDS`.
        subject: what it is about, such as an objective's name or a worker's id; empty where there is only one.
        summary: one sentence with the numbers, without secrets.
        severity: where it differs from its kind's.
    """

    kind: str
    subject: str
    summary: str
    severity: str = ""

    @property
    def key(self) -> str:
        """What makes two findings the same one."""
        return f"{self.kind}/{self.subject}" if self.subject else self.kind


@dataclass(slots=True)
class Alert:
    """A finding that lasts, as it is kept between looks.

    Attributes:
        kind, subject, summary, severity: of the finding as it was last seen.
        since: when it was first seen, wall seconds.
        seen: when it was last seen.
        told: when people were last told; None before.
    """

    kind: str
    subject: str
    summary: str
    severity: str
    since: float
    seen: float
    told: float | None = None

    @property
    def key(self) -> str:
        """See `Finding.key`."""
        return f"{self.kind}/{self.subject}" if self.subject else self.kind

    def dump(self) -> dict[str, Any]:
        """As JSON-able data, for keeping and for people."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def load(cls, kept: Mapping[str, Any]) -> Alert:
        """What `dump` made."""
        return cls(**{name: kept[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Notice:
    """What people are to be told: `fired`, `again` (it goes on) or `resolved`."""

    what: str
    alert: Alert


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody is told of alerts whose key matches, until a time.

    Attributes:
        pattern: such as `queue-age` or `slo-burn-*`; matched against the key and the kind.
        until: wall seconds.
        by, reason: who asked for it and why.
    """

    pattern: str
    until: float
    by: str = ""
    reason: str = ""

    def covers(self, alert: Alert, now: float) -> bool:
        """Whether nobody is to be told of this alert now."""
        return now < self.until and any(fnmatch.fnmatchcase(name, self.pattern) for name in (alert.key, alert.kind))


def covers_any(pattern: str) -> bool:
    """Whether a silence's pattern can match any alert at all: one that can't is a slip of the pen."""
    return any(fnmatch.fnmatchcase(name, pattern.partition("/")[0]) for name in KINDS)


@dataclass(slots=True)
class Looked:
    """What a look at the findings came to.

    Attributes:
        keep: the alerts to keep.
        forget: the keys of those that are over and that nobody was told of.
        over: those that are over and that people were told the end of.
        notices: what to tell. Who was told is noted by `told` once somebody heard it, so that what nobody could be
            told is told at the next look.
    """

    keep: list[Alert] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    over: list[Alert] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def told(self, notice: Notice, now: float) -> None:
        """Note that somebody heard a notice: it is not told again, and an alert that is over is forgotten."""
        notice.alert.told = now
        if notice.what == "resolved":
            self.keep.remove(notice.alert)
            self.forget.append(notice.alert.key)
            self.over.append(notice.alert)


def look(kept: Iterable[Alert], findings: Iterable[Finding], silences: Iterable[Silence] = (), *, now: float) -> Looked:
    """Compare what is wrong now with what was.

    An alert that is silenced goes on untold: it is told when the silence ends, and not at all if it is over by then.

    Parameters:
        kept: the alerts of the last look.
        findings: what is wrong now, each at most once.
        silences: those that somebody asked for.
        now: wall seconds.
    """
    alerts = {alert.key: alert for alert in kept}
    current = {finding.key: finding for finding in findings if finding.kind in KINDS}
    quiet = list(silences)
    result = Looked()
    for key, finding in current.items():
        severity = finding.severity or KINDS[finding.kind].severity
        alert = alerts.setdefault(key, Alert(finding.kind, finding.subject, "", severity, since=now, seen=now))
        worse = alert.severity == "ticket" and severity == "page"
        alert.summary, alert.severity, alert.seen = finding.summary, severity, now
        if now - alert.since < KINDS[finding.kind].lasting or any(each.covers(alert, now) for each in quiet):
            continue
        if alert.told is None:
            result.notices.append(Notice("fired", alert))
        elif worse or now - alert.told >= REPEAT[severity]:
            result.notices.append(Notice("again", alert))
    for key, alert in alerts.items():
        over = key not in current and now - alert.seen >= CALM
        if over and alert.told is None:
            result.forget.append(key)
            continue
        result.keep.append(alert)
        if over:
            result.notices.append(Notice("resolved", alert))
    return result
