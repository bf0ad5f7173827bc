"""Running a job on somebody's queue to see whether it works, through Redis or through a worker's HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from oxherd.app import queue_client
from oxherd.cloud.worker_api import WorkerApi
from oxherd.errors import JobStateError, NotFound, OxherdError, ServiceRefused
from oxherd.queue.admin import Admin
from oxherd.queue.producer import NewJob, Producer
from oxherd.queue.waiting import Ending, wait_for_end
from oxherd.settings import Settings

FIRST_LOOK, LONGEST_PAUSE = 0.1, 1.0  # seconds between looks at a job over HTTP
KEPT = {"age": 600}  # seconds: what a `verify` that is killed leaves behind goes with the next job that ends


class Way(Protocol):
    """How jobs get to the queue. Both ways remove what they add."""

    words: str

    async def run(self, name: str, data: Mapping[str, Any], *, patience: float, count: int = 1) -> list[Ending]:
        """Run a job before all that wait, with one attempt; how it ended, unless it had no end within `patience` s.

        Nothing of it stays on the queue. What has no end is cancelled.

        Parameters:
            name, data: the job.
            patience: seconds.
            count: how many of it to add at once: each wakes another idle worker.
        """

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""

    async def jobs(self, states: Sequence[str], *, limit: int, since: int | None = None) -> list[dict[str, Any]]:
        """The first jobs of some states: what runs next where they wait, what ended since, wall ms, where not."""


class ThroughRedis:
    """Straight to the queue, as producers do."""

    words = "Redis"

    def __init__(self, producer: Producer, admin: Admin, watcher: Admin) -> None:
        self._producer = producer
        self._admin = admin
        self._watcher = watcher

    async def run(self, name: str, data: Mapping[str, Any], *, patience: float, count: int = 1) -> list[Ending]:
        """See Way."""
        since = await self._watcher.newest_event()
        opts = {"lifo": True, "attempts": 1, "removeOnComplete": True, "removeOnFail": True}
        open_ids = await self._producer.add_bulk([NewJob(name, dict(data), opts)] * count)
        endings = []
        try:
            async with asyncio.timeout(patience):
                while open_ids:
                    endings.append(await wait_for_end(self._admin, self._watcher, open_ids[0], since=since))
                    open_ids.pop(0)
        except TimeoutError:
            pass
        finally:
            for job_id in open_ids:
                with contextlib.suppress(NotFound, JobStateError):  # it ended just now
                    await self._admin.cancel(job_id)
        return endings

    async def counts(self) -> dict[str, int]:
        """See Way."""
        return await self._admin.counts()

    async def jobs(self, states: Sequence[str], *, limit: int, since: int | None = None) -> list[dict[str, Any]]:
        """See Way."""
        found: list[dict[str, Any]] = []
        for state in states:
            found += (await self._admin.pages.page([state], limit=limit, since=since)).jobs
        return found


class ThroughApi:
    """Over a worker's HTTP API, where Redis can't be reached from here."""

    words = "the HTTP API"

    def __init__(self, api: WorkerApi, queue: str) -> None:
        self._api = api
        self._queue = queue

    async def run(self, name: str, data: Mapping[str, Any], *, patience: float, count: int = 1) -> list[Ending]:
        """See Way."""
        options = {"lifo": True, "attempts": 1, "remove_on_complete": KEPT, "remove_on_fail": KEPT}
        ids = await self._api.add_jobs([{"name": name, "data": data, "options": options}] * count)
        open_ids, endings = list(ids), []
        try:
            async with asyncio.timeout(patience):
                while open_ids:
                    endings.append(await self._end_of(open_ids[0]))
                    open_ids.pop(0)
        except TimeoutError:
            pass
        finally:
            for job_id in open_ids:
                with contextlib.suppress(NotFound, ServiceRefused):
                    await self._api.cancel_job(job_id)
            for job_id in ids:
                with contextlib.suppress(OxherdError):  # its options see to it then
                    await self._api.remove_job(job_id)
        return endings

    async def _end_of(self, job_id: str) -> Ending:
        pause = FIRST_LOOK
        while True:
            try:
                job = await self._api.job(job_id)
            except NotFound:
                return Ending("removed")
            if job["state"] == "completed":
                return Ending("completed", value=job["returnvalue"])
            if job["state"] == "failed":
                return Ending("failed", reason=job["failed_reason"])
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    async def counts(self) -> dict[str, int]:
        """See Way."""
        return await self._api.counts(self._queue)

    async def jobs(self, states: Sequence[str], *, limit: int, since: int | None = None) -> list[dict[str, Any]]:
        """See Way."""
        return await self._api.jobs(states, limit=limit, since=since)


@contextlib.asynccontextmanager
async def through_redis(settings: Settings) -> AsyncIterator[Way]:
    """The queue of these settings. Raises RedisUnreachable, RedisRefused."""
    async with queue_client(settings) as (producer, admin), queue_client(settings) as (_, watcher):
        yield ThroughRedis(producer, admin, watcher)
