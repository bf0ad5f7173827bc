"""Leases: a thread of its own, with a connection of its own, renews the locks of all running jobs.

It goes on while the event loop is blocked and while the worker drains, until the last job has ended. It also notices
when the event loop stands still.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from oxherd.clock import mono
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.job import Job
from oxherd.queue.connection import Link
from oxherd.queue.consumer import text_of
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.settings import RedisTarget
from oxherd.telemetry.events import InternalFault, LeasesLate, LoopBlocked, emit

BATCH = 1_000  # leases in one script call: keeps Redis responsive
BLOCKED_AFTER = 1.0  # seconds without a sign of life from the event loop
BEAT = 0.2  # seconds between signs of life


class Leases:
    """Renews leases from a thread.

    Parameters:
        target, keys: where the queue is.
        lock_ms: how long a lease lasts; it is renewed three times as often.
        on_lost: called in this thread, at once, with the id of each job whose lease is lost.
    """

    def __init__(self, target: RedisTarget, keys: Keys, *, lock_ms: int, on_lost: Callable[[str], None]) -> None:
        self._keys = keys
        self._lock_ms = lock_ms
        self._interval = lock_ms / 3000
        self._on_lost = on_lost
        # Two thirds of a lease are left when its renewal is due: enough to notice a dead connection and make another.
        self._link = Link(
            target, "lease", preload=("renewLeases",), patience=lock_ms / 6000, longest_pause=min(lock_ms / 6000, 5.0)
        )
        self._held: dict[str, tuple[str, int, float]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._beat = mono()
        self._watched = threading.get_ident()
        self._blocked_since: float | None = None
        self.renewed_at = mono()

    async def start(self) -> None:
        """Start the thread and wait until its connection is up. Raises what connecting raised."""
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="oxherd-leases", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._started.wait)
        if self._failure is not None:
            self._thread = None
            raise self._failure
        self._pulse()

    async def stop(self) -> None:
        """End the thread. Call it when no job runs any more."""
        if self._thread is None or self._loop is None:
            return
        thread, self._thread = self._thread, None
        self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(thread.join, 5.0)

    def hold(self, job: Job) -> None:
        """Renew this job's lease from now on."""
        self._held[job.id] = (job.token, job.attempts_started, mono())

    def let_go(self, job_id: str) -> None:
        """Stop renewing it."""
        self._held.pop(job_id, None)

    @property
    def lag(self) -> float:
        """Seconds by which the oldest renewal is overdue; 0.0 while all is well or nothing runs."""
        if not self._held:
            return 0.0
        oldest = min((at for _, _, at in list(self._held.values())), default=mono())
        return max(mono() - max(oldest, self.renewed_at) - self._interval, 0.0)

    @property
    def loop_lag(self) -> float:
        """Seconds since the event loop's sign of life was due."""
        return max(mono() - self._beat - BEAT, 0.0)

    def _pulse(self) -> None:
        self._beat = mono()
        if self._thread is not None:
            asyncio.get_running_loop().call_later(BEAT, self._pulse)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        try:
            await self._link.start()
        except BaseException as error:  # noqa: BLE001  handed to start()
            self._failure = error
            return
        finally:
            self._started.set()
        watch = asyncio.create_task(self._watch_loop())
        renew = asyncio.create_task(self._renew_forever())
        await self._stopping.wait()
        for task in (watch, renew):
            task.cancel()
        await asyncio.gather(watch, renew, return_exceptions=True)
        await self._link.stop()

    async def _renew_forever(self) -> None:
        told = False
        while True:
            await asyncio.sleep(self._interval if not told else min(self._interval, 1.0))
            try:
                await self._renew_due()
                told = False
            except (RedisUnreachable, RedisRefused) as error:
                if not told:
                    told = True
                    emit(LeasesLate(seconds=round(self.lag, 1), error=str(error)))
            except Exception:  # noqa: BLE001  our own fault with one lease must not let all others run out
                emit(InternalFault(where="leases", stack=traceback.format_exc()))

    async def _renew_due(self) -> None:
        # Fresh leases have at least two thirds of their time left: leave them for the next round.
        due = [(job_id, *held) for job_id, held in list(self._held.items()) if held[2] < mono() - self._interval / 2]
        for start in range(0, len(due), BATCH):
            batch = due[start : start + BATCH]
            triplets: list[Any] = [part for job_id, token, started, _ in batch for part in (job_id, token, started)]
            lost = await self._link.run(
                script("renewLeases"), self._keys.stalled, self._keys.active, self._keys.base, self._lock_ms, *triplets
            )
            for job_id in lost:
                self._lose(text_of(job_id), batch)
        self.renewed_at = mono()

    def _lose(self, job_id: str, batch: list[tuple[str, str, int, float]]) -> None:
        held = self._held.get(job_id)
        asked = next(entry for entry in batch if entry[0] == job_id)
        if held is None or (held[0], held[1]) != (asked[1], asked[2]):
            return  # settled, or fetched again, while the question was on its way
        self.let_go(job_id)
        self._on_lost(job_id)

    async def _watch_loop(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            lag = self.loop_lag
            if lag > BLOCKED_AFTER and self._blocked_since is None:
                self._blocked_since = self._beat
                emit(LoopBlocked(seconds=round(lag, 2), stack=self._stack()))
            elif lag <= BLOCKED_AFTER and self._blocked_since is not None:
                self._blocked_since = None

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001  the only way to see another thread's stack
        return "".join(traceback.format_stack(frame)[-12:]) if frame else "(no stack)"
