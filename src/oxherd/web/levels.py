"""How the queue is doing: service levels, alerts, charts, and the figures of an overview, kept for a moment each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from oxherd.actions import spend_report
from oxherd.clock import wall_ms
from oxherd.queue.admin import Admin
from oxherd.queue.alertbook import AlertBook
from oxherd.queue.connection import Link
from oxherd.queue.indicators import Indicators, Point
from oxherd.queue.keys import Keys
from oxherd.queue.registry import Registry
from oxherd.store import SpendSum, Store
from oxherd.telemetry.alerts import KINDS, Alert, Silence
from oxherd.telemetry.slo import DAY, HOUR, Promises, Standing, worst_first
from oxherd.web.shared import Shared

MOMENT = 1.0  # seconds: what changes all the time
WHILE = 5.0  # what workers write four times a minute, and sums of the ledger
LONGER = 15.0  # what takes a month's buckets

SPANS = {"1h": (HOUR, 60), "6h": (6 * HOUR, 300), "24h": (DAY, 3600), "7d": (7 * DAY, 3600), "30d": (30 * DAY, 21600)}


@dataclass(frozen=True, slots=True)
class Told:
    """An alert as people see it.

    Attributes:
        alert: it.
        state: firing (people were told), silenced, pending (nobody was told yet), or past.
        runbook: the address of its page.
    """

    alert: Alert
    state: str
    runbook: str

    @property
    def about(self) -> str:
        """What it means, one sentence."""
        kind = KINDS.get(self.alert.kind)  # one of another version's worker may be unknown here
        return kind.about if kind else ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The figures of the first page.

    Attributes:
        counts: jobs by state.
        gate: why workers take no jobs, or None.
        workers: each worker's last sign of life, as `Registry.workers` has it.
        standings: how the objectives stand, worst first.
        alerts: those that are not over, pages first.
        spent_today: US dollars of model calls since midnight UTC; None without a store.
    """

    counts: dict[str, int]
    gate: str | None
    workers: list[dict[str, Any]]
    standings: list[Standing]
    alerts: list[Told]
    spent_today: Decimal | None


class Levels:
    """Looks for all who watch.

    Parameters:
        link, keys: where the queue is.
        promises: what was promised.
        runbooks: the address of the runbooks' folder.
        store: where the ledger is, or None.
    """

    def __init__(self, link: Link, keys: Keys, *, promises: Promises, runbooks: str, store: Store | None) -> None:
        self.promises = promises
        self._book = AlertBook(link, keys)
        self._indicators = Indicators(link, keys)
        self._admin = Admin(link, keys)
        self._registry = Registry(link, keys)
        self._runbooks = runbooks.rstrip("/")
        self._store = store
        self._shared = Shared()

    async def standings(self) -> list[Standing]:
        """How the objectives stand, worst first."""
        return await self._shared.ask("standings", LONGER, self._standings)

    async def _standings(self) -> list[Standing]:
        self._indicators.forget()
        return worst_first(await self._indicators.standings(self.promises.objectives))

    async def counted_since(self) -> int | None:
        """Since when the queue is counted, seconds since the epoch."""
        return await self._indicators.since()

    async def series(self, span: str, job: str | None = None) -> list[Point]:
        """A chart's points until now, the oldest first, see `Indicators.series`.

        Parameters:
            span: a name in `SPANS`.
            job: of one job name only.
        """
        seconds, step = SPANS[span]
        look = partial(self._indicators.series, seconds, step, job=job)
        return await self._shared.ask(("series", span, job), WHILE, look)

    async def alerts(self, *, past: bool = False) -> list[Told]:
        """Alerts that are not over, pages first and then the oldest; or those that are, the newest first."""
        if past:
            ended = await self._shared.ask("past", MOMENT, self._book.past)
            return [Told(alert, "past", self._runbook(alert)) for alert in ended]
        alerts, silences = await self._shared.ask("alerts", MOMENT, self._alerts)
        now = wall_ms() / 1000
        told = [Told(alert, _state(alert, silences, now), self._runbook(alert)) for alert in alerts]
        return sorted(told, key=lambda each: (each.alert.severity != "page", each.alert.since))

    async def silences(self) -> list[Silence]:
        """Those that have not ended."""
        return await self._book.silences()

    async def silence(self, silence: Silence) -> None:
        """Tell nobody of these alerts until then; an earlier silence of the same pattern is replaced."""
        await self._book.silence(silence)
        self._shared.forget("alerts")

    async def unsilence(self, pattern: str) -> bool:
        """End a silence; False where there was none of that pattern."""
        ended = await self._book.unsilence(pattern)
        self._shared.forget("alerts")
        return ended

    async def _alerts(self) -> tuple[list[Alert], list[Silence]]:
        return await asyncio.gather(self._book.alerts(), self._book.silences())

    def _runbook(self, alert: Alert) -> str:
        return f"{self._runbooks}/{alert.kind}.md"

    async def workers(self) -> list[dict[str, Any]]:
        """Each worker's last sign of life, the liveliest first."""
        return await self._shared.ask("workers", MOMENT, self._registry.workers)

    async def spend(self, store: Store, *, by: str, days: int) -> Sequence[SpendSum]:
        """What was spent, summed as `actions.spend_report` does, a few seconds ago."""
        report = partial(spend_report, store, by=by, days=days)
        return await self._shared.ask(("spend", by, days), WHILE, report)

    async def spent_today(self) -> Decimal | None:
        """US dollars of model calls since midnight UTC; None without a store."""
        if self._store is None:
            return None
        return sum((line.cost_usd for line in await self.spend(self._store, by="day", days=1)), Decimal(0))

    async def overview(self) -> Overview:
        """All that the first page shows at once."""
        counts, gate, workers, standings, alerts, spent = await asyncio.gather(
            self._shared.ask("counts", MOMENT, self._admin.counts),
            self._shared.ask("gate", MOMENT, self._admin.gate),
            self.workers(),
            self.standings(),
            self.alerts(),
            self.spent_today(),
        )
        return Overview(counts, gate, workers, standings, alerts, spent)


def _state(alert: Alert, silences: Sequence[Silence], now: float) -> str:
    if any(each.covers(alert, now) for each in silences):
        return "silenced"
    return "pending" if alert.told is None else "firing"
