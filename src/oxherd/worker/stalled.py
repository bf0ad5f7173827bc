"""Giving dead workers' jobs back: one watcher per queue looks at the leases and sweeps right after one runs out."""

from __future__ import annotations

import asyncio
import random

from oxherd.clock import wall_ms
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.telemetry.events import JobStalled, emit

SLACK = 0.25  # seconds after a lease's end before we look: its owner's clock and ours are one, Redis's
SWEEP_EVERY_MS = 1  # our own throttle key: BullMQ's would let a Node worker's check delay ours by 30 s


class Stalled:
    """The watcher.

    Parameters:
        link: the worker's connection.
        keys: the queue's keys.
        worker: this worker's id.
        interval: seconds between looks while nothing is about to run out.
        crash_limit: how many times a job may lose its worker before it is quarantined.
    """

    def __init__(self, link: Link, keys: Keys, *, worker: str, interval: float, crash_limit: int) -> None:
        self._link = link
        self._keys = keys
        self._worker = worker
        self._interval = interval
        self._crash_limit = crash_limit
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
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """One look; returns seconds until the next one is worth it."""
        k = self._keys
        hold_ms = int((self._interval + 2) * 1000)
        watching: int
        seen: list[int]
        watching, *seen = await self._link.run(script("watchActive"), k.active, k.watch, k.base, self._worker, hold_ms)
        if not watching:
            return max(seen[0], 0) / 1000 + random.uniform(0.05, 0.5)
        soonest, bare = seen
        if bare:
            await self._sweep()
        return self._interval if soonest < 0 else min(soonest / 1000 + SLACK, self._interval)

    async def _sweep(self) -> None:
        # BullMQ's script marks on the first pass and moves what is still without a lease on the second.
        k = self._keys
        for _ in range(2):
            moved = await self._link.insist(
                script("moveStalledJobsToWait"), k.stalled, k.wait, k.active, k.sweep, k.meta, k.paused, k.marker,
                k.events, k.repeat, self._crash_limit, k.base, wall_ms(), SWEEP_EVERY_MS,
            )  # fmt: skip
            for job_id in moved:
                emit(JobStalled(id=job_id.decode()))
            await asyncio.sleep(0.005)  # our throttle is 1 ms
