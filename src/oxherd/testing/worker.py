"""A whole worker inside a test: the same that `oxherd worker` runs, on real engines."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from oxherd import settings
from oxherd.app import Service, build_approvals, build_store, queue_client
from oxherd.herd import Herd
from oxherd.queue.admin import Admin
from oxherd.queue.producer import Producer
from oxherd.telemetry.events import JobEnded
from oxherd.testing.events import Events, captured_events
from oxherd.testing.model import ScriptedModel
from oxherd.worker.approvals import Approvals

ENDINGS = frozenset({"completed", "failed"})


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker that runs in this process.

    Attributes:
        queue: its queue's name.
        producer: adds jobs, flows and schedules.
        admin: looks at the queue, retries, cancels.
        events: what Oxherd said so far.
        service: the worker itself; `service.port` is where it answers over HTTP.
        approvals: looks at the questions that jobs ask, and answers them; None without a database.
    """

    queue: str
    producer: Producer
    admin: Admin
    events: Events
    service: Service
    approvals: Approvals | None

    async def add(self, name: str, data: Any = None, **opts: Any) -> str:
        """Add a job; returns its id.

        Parameters:
            name: its name.
            data: its payload.
            opts: BullMQ's options by their long names, such as `attempts=3` or `delay=1000`.
        """
        return await self.producer.add(name, data, **opts)

    async def ended(self, job_id: str, *, within: float = 20.0) -> JobEnded:
        """Wait until a job has completed, or failed for good.

        Raises:
            AssertionError: it did not within so many seconds; it shows what happened.
        """

        def look() -> JobEnded | None:
            ends = (end for end in self.events.all(JobEnded, id=job_id) if end.outcome in ENDINGS)
            return next(ends, None)

        return await self.events.until(look, within)

    async def result(self, job_id: str, *, within: float = 20.0) -> Any:
        """Wait for what a job's handler returns.

        Raises:
            AssertionError: the job failed, with the reason; or did not end within so many seconds.
        """
        end = await self.ended(job_id, within=within)
        if end.outcome == "failed":
            job = await self.admin.job(job_id)
            stack = "\n".join(job["stacktrace"][-1:])
            raise AssertionError(f"job {job_id} ({end.job}) failed: {end.reason}\n{stack}")
        return (await self.admin.job(job_id))["returnvalue"]


@asynccontextmanager
async def serving(
    herd: Herd,
    *,
    redis_url: str,
    database_url: str | None = None,
    queue: str | None = None,
    model: ScriptedModel | str | None = None,
    **variables: str,
) -> AsyncIterator[Serving]:
    """Run a worker for a while. This process's own environment is not read.

    Parameters:
        herd: the handlers and agents.
        redis_url: such as the fixture `oxherd_redis_url` gives.
        database_url: of a database with Oxherd's tables, such as `oxherd_database_url`; without one, nothing is kept.
        queue: its name; one that nobody else uses when left out.
        model: what agents call; a text is the base URL of any OpenAI-compatible service.
        variables: more of the settings by their names, such as `JOB_CONCURRENCY="20"`.
    """
    name = queue or f"test-{uuid.uuid4().hex[:8]}"
    given = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": name, "HOST": "127.0.0.1", "PORT": "0"}
    if database_url is not None:
        given["DATABASE_URL"] = database_url
    if model is not None:
        given["OPENROUTER_BASE_URL"] = model.base_url if isinstance(model, ScriptedModel) else model
    known = settings.load(given | variables)
    store = build_store(known)
    service = Service(known, herd, store=store)
    with captured_events() as events:
        await service.start()
        try:
            async with queue_client(known) as (producer, admin):
                approvals = build_approvals(known, store, service.worker.consumer.link) if store else None
                yield Serving(name, producer, admin, events, service, approvals)
        finally:
            await service.close()
