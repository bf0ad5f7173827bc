"""Giving dead workers' jobs back: one watcher per queue looks at the leases and sweeps right after one runs out.

It also notices work that waits while nobody was told, since the worker that was told died, and answers whose jobs were
not woken, since whoever answered died.
"""

from __future__ import annotations

import asyncio
import math
import random
import traceback
from collections.abc import Callable

from oxherd.clock import mono, wall_ms
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.answers import Answers
from oxherd.queue.connection import Link
from oxherd.queue.consumer import text_of
from oxherd.queue.keys import Keys
from oxherd.queue.registry import KEPT_MS, SILENT_MS
from oxherd.queue.scripts import script
from oxherd.telemetry.events import InternalFault, JobStalled, emit

SLACK = 0.25  # seconds after a lease's end before we look: its owner's clock and ours are one, Redis's
SWEEP_EVERY_MS = 1  # our own throttle key: BullMQ's would let a Node worker's check delay ours by 30 s


class Stalled:
    """The watcher.

    Parameters:
        link: the worker's connection.
        keys: the queue's keys.
        interval: seconds between looks while nothing is about to run out.
        crash_limit: how many times a job may lose its worker before it is quarantined.
        lock_ms: how long a lease lasts without renewal.
        sign: this worker's id, and what it says of itself as JSON, for the registry of workers.
        answers: wakes jobs that were waiting for one.
        on_work: called where work waits: the worker fetches, whatever it is waiting for.

    Attributes:
        watching: whether this worker is the queue's watcher.
        busy_at: monotonic seconds at which it last saw a job run or wait, or a worker that has gone silent; minus
            infinity before.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        interval: float,
        crash_limit: int,
        lock_ms: int,
        sign: Callable[[], tuple[str, bytes]],
        answers: Answers,
        on_work: Callable[[], None],
    ) -> None:
        self._link = link
        self._keys = keys
        self._interval = interval
        self._crash_limit = crash_limit
        self._lock_ms = lock_ms
        self._sign = sign
        self._answers = answers
        self._on_work = on_work
        self.watching = False
        self.busy_at = -math.inf
        self._reconnects = 0
        self._wary_until = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name="stalled")

    async def stop(self) -> None:
        """Stop watching. Another worker takes over when our watch runs out."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                pause = await self._look()
            except (RedisUnreachable, RedisRefused):
                pause = 1.0
            except Exception:  # noqa: BLE001  our own fault: without a watcher no dead worker's job comes back
                emit(InternalFault(where="stalled", stack=traceback.format_exc()))
                pause = self._interval
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """One look; returns seconds until the next one is worth it."""
        k = self._keys
        hold_ms = int((self._interval + 2) * 1000)
        worker, said = self._sign()
        watching: int
        soonest: int
        unheard: list[bytes]
        watching, soonest, *seen = await self._link.run(
            script("watchQueue"), k.active, k.watch, k.wait, k.prioritized, k.delayed, k.meta, k.marker,
            k.workers, k.workers_seen, k.answers, k.base, worker, hold_ms, wall_ms(), said, KEPT_MS,
            SILENT_MS,
        )  # fmt: skip
        self.watching = bool(watching)
        if not watching:
            return max(soonest, 0) / 1000 + random.uniform(0.05, 0.5)
        bare, waits, silent, *unheard = seen
        if waits or bare or silent or soonest >= 0:
            self.busy_at = mono()
        if waits:
            self._on_work()
        await self._answers.wake_all(unheard)
        if bare and (wary := self._wary_for()):
            return min(wary, self._interval)
        if bare:
            await self._sweep()
        return self._interval if soonest < 0 else min(soonest / 1000 + SLACK, self._interval)

    def _wary_for(self) -> float:
        """Seconds for which leases that ran out may still be taken back by owners that were cut off as we were."""
        if self._link.reconnects != self._reconnects:
            self._reconnects = self._link.reconnects
            self._wary_until = mono() + self._lock_ms / 3000
        return max(self._wary_until - mono(), 0.0)

    async def _sweep(self) -> None:
        # BullMQ's script marks on the first pass and moves what is still without a lease on the second.
        k = self._keys
        for _ in range(2):
            moved = await self._link.insist(
                script("moveStalledJobsToWait"), k.stalled, k.wait, k.active, k.sweep, k.meta, k.paused, k.marker,
                k.events, k.repeat, self._crash_limit, k.base, wall_ms(), SWEEP_EVERY_MS,
            )  # fmt: skip
            for job_id in moved:
                emit(JobStalled(id=text_of(job_id)))
            await asyncio.sleep(0.005)  # our throttle is 1 ms
