"""Watchdogs: one worker per queue looks once a minute whether something is wrong, and tells people.

It is the one that watches the leases, too (`stalled`). What it found is kept in Redis, so that whoever takes over goes
on where it left off. While nothing happens it looks every two hours: hosted Redis bills per command.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oxherd.clock import mono, wall_ms
from oxherd.errors import RedisRefused, RedisUnreachable, StoreUnreachable
from oxherd.queue.admin import REOPEN, Admin
from oxherd.queue.alertbook import AlertBook
from oxherd.queue.connection import Link
from oxherd.queue.indicators import Indicators
from oxherd.queue.keys import Keys
from oxherd.queue.registry import Registry
from oxherd.telemetry.alerts import Finding, Notice, look
from oxherd.telemetry.channels import Channel, Wording, deliver
from oxherd.telemetry.events import AlertUndelivered, InternalFault, emit
from oxherd.telemetry.slo import HOUR, Promises
from oxherd.worker.probes import SPIKE, Probe

MINUTE = 60.0
EVERY = 60.0  # seconds between looks
EVERY_IDLE = 120 * MINUTE  # the same once nothing has happened for a while
IDLE_AFTER = 2 * MINUTE
SPIKE_LEAST, SPIKE_SHARE = 5, 0.2  # so many failures, this share of all
SLOW = 30.0  # seconds that a worker may need to stop, beyond its grace


class Watchdogs:
    """Looks, and tells.

    Parameters:
        link, keys: where the queue is.
        promises: what was promised, and how long things may last.
        channels: where people are told; the log is told in any case.
        runbooks: the address of the runbooks' folder.
        watching: whether this worker is the one that looks.
        busy_at: monotonic seconds at which work was last seen on the queue.
        probes: further findings, such as of the database or of backups.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        *,
        promises: Promises,
        channels: Sequence[Channel],
        runbooks: str,
        watching: Callable[[], bool],
        busy_at: Callable[[], float],
        probes: Sequence[Probe] = (),
    ) -> None:
        self.book = AlertBook(link, keys)
        self._link = link
        self._keys = keys
        self._admin = Admin(link, keys)
        self._indicators = Indicators(link, keys)
        self._promises = promises
        self._channels = channels
        self._runbooks = runbooks
        self._watching = watching
        self._busy_at = busy_at
        self._probes = (self._burning, self._intake, self._failing, self._workers, *probes)
        self._wrong = False
        self._looked_at = mono()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._keep_looking(), name="watchdogs")

    async def stop(self) -> None:
        """Stop looking. Twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            idle = mono() - self._busy_at() > IDLE_AFTER and not self._wrong
            if not self._watching() or (idle and mono() - self._looked_at < EVERY_IDLE):
                continue
            try:
                await self.look()
            except (RedisUnreachable, RedisRefused):
                continue  # the link says so itself
            except Exception:  # noqa: BLE001  our own fault: say so and look again in a minute
                emit(InternalFault(where="watchdogs", stack=traceback.format_exc()))

    async def look(self) -> list[Notice]:
        """Look once and tell what is new. Returns what was told.

        Raises:
            RedisUnreachable, RedisRefused: nothing was told that will not be told again.
        """
        self._looked_at = mono()
        self._indicators.forget()
        kept, silences = await asyncio.gather(self.book.alerts(), self.book.silences())
        findings = [finding for probe in self._probes for finding in await self._found(probe)]
        looked = look(kept, findings, silences, now=wall_ms() / 1000)
        self._wrong = bool(looked.keep)
        told = []
        for notice in list(looked.notices):
            words = Wording(notice, self._keys.queue, self._runbooks)
            words.announce()
            if await deliver(self._channels, words, self._undelivered):
                looked.told(notice, wall_ms() / 1000)
                told.append(notice)
        await self.book.keep(looked)
        return told

    @staticmethod
    async def _found(probe: Probe) -> list[Finding]:
        try:
            return await probe()
        except StoreUnreachable:
            return []  # another probe says so; it must not keep people from hearing of the rest

    @staticmethod
    def _undelivered(channel: str, error: str) -> None:
        emit(AlertUndelivered(channel=channel, error=error))

    # -- what is wrong

    async def _burning(self) -> list[Finding]:
        found = []
        for each in await self._indicators.standings(self._promises.objectives):
            if each.severity is None:
                continue
            burn = each.burning[0]
            rate = each.rates[burn.long] or 0.0
            kind = "slo-burn-fast" if each.severity == "page" else "slo-burn-slow"
            summary = (
                f"{each.objective.words}: over the last {burn.long / HOUR:g} h its error budget burnt {rate:.1f} times "
                f"as fast as it may, {max(each.left, 0):.0%} of it is left"
            )
            found.append(Finding(kind, each.objective.name, summary))
        return found

    async def _intake(self) -> list[Finding]:
        """A closed gate, or jobs that wait although it is open."""
        reason = await self._admin.gate()
        if reason is None:
            return await self._queue()
        # What a worker closed is an emergency; what a person closed is a reminder.
        kind = "intake-stopped" if reason.endswith(REOPEN) else "gate-closed"
        return [Finding(kind, "", reason)]

    async def _queue(self) -> list[Finding]:
        """Jobs that wait though workers may take them."""
        counts = await self._admin.counts()
        waiting = counts["wait"] + counts["prioritized"]
        held = await self._link.call(b"HEXISTS", self._keys.meta, b"paused")
        if not waiting or held:
            return []
        age = await self._oldest()
        found = []
        if age is not None and age > self._promises.queue_age:
            found.append(Finding("queue-age", "", f"the next of {waiting} jobs has waited for {age / MINUTE:.0f} min"))
        tally, counted = await self._indicators.tally(self._promises.no_progress)
        if age is not None and age > self._promises.no_progress <= counted and not tally.number("a"):
            minutes = self._promises.no_progress / MINUTE
            found.append(Finding("no-progress", "", f"{waiting} jobs wait and none has ended for {minutes:.0f} min"))
        return found

    async def _oldest(self) -> float | None:
        """Seconds for which the next job in line has waited; None where it ran before, since it was put back later."""
        ids = await self._link.call(b"LRANGE", self._keys.wait, -1, -1)
        ids += await self._link.call(b"ZRANGE", self._keys.prioritized, 0, 0)
        ages = []
        for job_id in ids:
            key = self._keys.base + job_id
            added, delay, fetched = await self._link.call(b"HMGET", key, b"timestamp", b"delay", b"ats")
            if added is not None and fetched is None:
                ages.append((wall_ms() - int(added) - int(delay or 0)) / 1000)
        return max(ages, default=None)

    async def _failing(self) -> list[Finding]:
        """Jobs that were quarantined; far more failures in these five minutes than in the last six hours."""
        (now, _), (usual, _) = await self._indicators.tally(300), await self._indicators.tally(6 * HOUR)
        killers = now.number("q")
        found = [Finding("quarantined", "", f"{killers} quarantined in five minutes")] if killers else []
        failed, ended = now.number("f"), now.number("f") + now.number("c")
        before_failed = usual.number("f") - failed
        before = before_failed + usual.number("c") - now.number("c")
        often = before_failed / before if before > 0 else 0.0
        if failed < SPIKE_LEAST or failed / ended < max(SPIKE_SHARE, SPIKE * often):
            return found
        summary = f"{failed} of {ended} jobs failed in five minutes; usual are {often:.1%}"
        return [*found, Finding("failure-spike", "", summary)]

    async def _workers(self) -> list[Finding]:
        """Workers that are there and do not work."""
        return [each for worker in await Registry(self._link, self._keys).workers() for each in _wrong_with(worker)]


def _wrong_with(worker: Mapping[str, Any]) -> list[Finding]:
    name = f"worker {worker['id'][:8]} on {worker['host']}"
    if not worker["alive"]:
        words = f"{name} has given no sign of life for {worker['seen'] / 1000:.0f} s and did not take its leave"
        return [Finding("silent-worker", worker["id"], words, severity="ticket")]
    if worker["draining"]:
        words = f"{name} has been stopping for {worker['draining_s']:.0f} s with {worker['in_flight']} jobs"
        return [Finding("stuck-drain", worker["id"], words)] if worker["draining_s"] > worker["grace_s"] + SLOW else []
    if not worker["consuming"]:
        return [Finding("silent-worker", worker["id"], f"{name} is up and takes no jobs")]
    return []
