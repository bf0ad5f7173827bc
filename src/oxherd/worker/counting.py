"""Counts what this worker does, for service levels and charts: a minute at a time, written to Redis every 15 seconds.

While nothing happens it writes once in five minutes, that it is healthy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable

from oxherd.clock import mono, wall_ms
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.indicators import LATE, MINUTE, MOST, Indicators, bucket_of
from oxherd.telemetry.events import JobEnded, ModelCalled, attach

LOOK = 15.0  # seconds between looks at our own health, and between writes while something happens
IDLE_PAUSE = float(LATE - MINUTE)  # seconds between writes while nothing does
LAST_WORD = 2.0  # seconds that the last write may take
UNKNOWN = "_unknown"  # names no handler has share one, as in the metrics
MOST_AGENTS = 50  # that are counted apart: definitions come with jobs, so there is no end to their names


class _Names:
    """The counters of one job name."""

    def __init__(self, job: str) -> None:
        self.attempts, self.errors, self.quarantined = f"{job}|a", f"{job}|e", f"{job}|q"
        self.completed, self.failed = f"{job}|c", f"{job}|f"
        self.runs, self.waits = ([f"{job}|{kind}{place}" for place in range(MOST + 1)] for kind in "rw")


class Counting:
    """Follows this worker's events.

    Parameters:
        indicators: where they are written.
    """

    def __init__(self, indicators: Indicators) -> None:
        self._indicators = indicators
        self._pending: dict[str, int] = defaultdict(int)
        self._minute = 0  # in which that was counted
        self._minutes: set[int] = set()
        self._names: dict[str, _Names] = {}
        self._agents: set[str] = set()
        self._healthy: Callable[[], bool] = bool
        self._written_at = 0.0
        self._detach: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self, handlers: Iterable[str], healthy: Callable[[], bool]) -> None:
        """Begin to count.

        Parameters:
            handlers: the job names that are counted apart; all others share `_unknown`.
            healthy: whether this worker is, now; quick.
        """
        self._names = {job: _Names(job) for job in (*handlers, UNKNOWN)}
        self._healthy = healthy
        self._detach = [attach(self._job_ended, JobEnded), attach(self._model_called, ModelCalled)]
        self._written_at = mono()
        self._minute = wall_ms() // 60_000
        self._task = asyncio.create_task(self._keep_writing(), name="counting")

    async def stop(self) -> None:
        """Write what is left, and end. Twice is fine."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for detach in self._detach:
            detach()
        with contextlib.suppress(TimeoutError):  # a connection may hang without our knowing
            async with asyncio.timeout(LAST_WORD):
                await self._write_or_keep()

    def _job_ended(self, event: JobEnded) -> None:
        names = self._names.get(event.job) or self._names[UNKNOWN]
        add = self._pending
        add[names.attempts] += 1
        add[names.runs[bucket_of(event.run_ms)]] += 1
        if event.attempt == 1:
            add[names.waits[bucket_of(event.wait_ms)]] += 1
        if event.outcome == "completed":
            add[names.completed] += 1
        elif event.outcome == "failed":
            add[names.failed] += 1
            add[names.errors] += 1
            if event.kind == "quarantined":
                add[names.quarantined] += 1
        elif event.outcome == "retried":
            add[names.errors] += 1

    def _model_called(self, event: ModelCalled) -> None:
        if event.first_token_s is None:
            return
        if len(self._agents) < MOST_AGENTS:
            self._agents.add(event.agent)
        agent = event.agent if event.agent in self._agents else UNKNOWN
        self._pending[f"{agent}|t{bucket_of(event.first_token_s * 1000)}"] += 1

    async def _keep_writing(self) -> None:
        while True:
            now = wall_ms() / 1000
            if self._healthy():
                self._minutes.add(int(now) // MINUTE)
            if self._pending or mono() - self._written_at >= IDLE_PAUSE:
                await self._write_or_keep()
            self._minute = wall_ms() // 60_000
            await asyncio.sleep(min(LOOK, MINUTE - wall_ms() / 1000 % MINUTE))  # a minute's events are written as its

    async def _write_or_keep(self) -> None:
        """Write; while Redis is away all is kept for the next time, and counts then."""
        self._written_at = mono()
        pending, self._pending = self._pending, defaultdict(int)
        minutes, self._minutes = self._minutes, set()
        try:
            await self._indicators.write(pending, minutes, minute=self._minute)
        except (RedisUnreachable, RedisRefused):
            for name, number in pending.items():
                self._pending[name] += number
            self._minutes |= minutes
