"""What Node does to a whole queue while we work on it: pause, limit, drain, clean, obliterate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nodejs import NodeError
from shared_queue import Queue

from oxherd.clock import wall_ms
from oxherd.context import Context
from oxherd.errors import RetryLater
from oxherd.queue.producer import NewJob
from oxherd.worker import worker as worker_module
from oxherd.worker.worker import Limits


async def work(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    return payload


class Slow:
    """A handler that runs until it is let go, and knows how many ran at once."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.now = 0
        self.most = 0

    async def __call__(self, ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        self.started.set()
        try:
            await self.go.wait()
        finally:
            self.now -= 1
        return payload


# -- pause


async def test_a_paused_queue_rests_and_goes_on_at_once_when_resumed(queue: Queue) -> None:
    await queue.work(work=work)
    await queue.call("pause")
    job_ids = [
        await queue.add("work", {"n": n}, **opts) for n, opts in enumerate([{}, {"priority": 1}, {"lifo": True}])
    ]
    await asyncio.sleep(0.1)
    assert not queue.seen("active")
    resumed = wall_ms()
    await queue.call("resume")
    for job_id in job_ids:
        await queue.finish(job_id)
    assert max([(await queue.job(job_id))["processedOn"] for job_id in job_ids]) - resumed < 1000


async def test_a_worker_that_has_long_given_up_looking_hears_the_resume(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SHORT_WAIT", 0.05)  # so that it is soon in its long waits
    await queue.call("pause")
    job_id = await queue.add("work")
    await queue.work(work=work)
    await asyncio.sleep(0.3)
    resumed = wall_ms()
    await queue.call("resume")
    await queue.finish(job_id)
    assert (await queue.job(job_id))["processedOn"] - resumed < 1000


async def test_running_jobs_end_while_the_queue_is_paused_and_no_other_starts(queue: Queue) -> None:
    slow = Slow()
    await queue.work(slow=slow.__call__, work=work)
    first, second = await queue.add("slow"), None
    await slow.started.wait()
    await queue.call("pause")
    second = await queue.add("work")
    slow.go.set()
    await queue.finish(first)
    await asyncio.sleep(0.05)
    assert not queue.seen("active", jobId=second)
    await queue.call("resume")
    await queue.finish(second)


async def test_no_job_is_lost_by_what_we_put_back_while_the_queue_is_paused(queue: Queue) -> None:
    """BullMQ 5 keeps a paused queue's jobs in another list and writes that over `wait` when it is resumed."""
    go = asyncio.Event()
    started = asyncio.Semaphore(0)

    async def late(ctx: Context, payload: dict[str, Any]) -> str:
        if ctx.job.attempts_started > 1:
            return "second"
        started.release()
        await go.wait()
        match payload["end"]:
            case "retry":
                raise RuntimeError("again")
            case "later":
                raise RetryLater(0.01)
        return "first"

    parent = await queue.node(
        "flow",
        {
            "name": "work",
            "queueName": queue.name,
            "children": [{"name": "late", "queueName": queue.name, "data": {"end": "well"}}],
        },
    )
    worker = await queue.work(late=late, work=work, limits=Limits(concurrency=10))
    jobs = [
        await queue.add("late", {"end": "retry"}, attempts=2),
        await queue.add("late", {"end": "retry"}, attempts=2, lifo=True),
        await queue.add("late", {"end": "retry"}, attempts=2, backoff=10),
        await queue.add("late", {"end": "retry"}, attempts=2, priority=2),
        await queue.add("late", {"end": "later"}),
    ]
    for _ in range(6):
        await started.acquire()
    jobs.append(await queue.add("work", delay=20))
    waiting = await queue.add("work")  # so that there is something to write over `wait`
    await queue.event("completed", jobId=waiting)
    await queue.call("pause")
    jobs.append(await queue.add("work"))
    jobs.append(await queue.producer.add("work"))
    jobs.append(await queue.producer.add("work", delay=20))
    jobs.extend(await queue.producer.add_bulk([NewJob("work"), NewJob("work", opts={"priority": 1})]))
    go.set()
    await queue.event("delayed", times=4)
    await asyncio.sleep(0.05)
    worker._stop_waiting()  # as when anything wakes it: a fetch moves due jobs out of `delayed`
    await asyncio.sleep(0.05)
    await queue.call("resume")
    for job_id in [*jobs, parent["id"]]:
        assert "value" in await queue.finish(job_id)
    assert await queue.counts() == {"completed": len(jobs) + 3}


async def test_no_job_is_lost_by_handing_it_back_while_the_queue_is_paused(queue: Queue) -> None:
    slow = Slow()
    worker = await queue.work(slow=slow.__call__)
    job_id = await queue.add("slow")
    await slow.started.wait()
    await queue.call("pause")
    other = await queue.add("slow")
    await worker.stop(grace=0)
    slow.go.set()
    await queue.work(slow=slow.__call__)
    await queue.call("resume")
    assert await queue.finish(job_id) == {"value": {}}
    assert await queue.finish(other) == {"value": {}}


# -- limits of the whole queue


async def test_the_queue_s_own_concurrency_holds_for_all_its_workers(queue: Queue) -> None:
    slow = Slow()
    slow.go.set()
    await queue.call("setGlobalConcurrency", 2)
    await queue.call("addBulk", [{"name": "slow", "data": {}}] * 20)

    async def brief(ctx: Context, payload: dict[str, Any]) -> None:
        await slow(ctx, payload)
        await asyncio.sleep(0)

    for _ in range(2):
        await queue.work(slow=brief)
    await queue.event("completed", times=20)
    assert slow.most <= 2


async def test_jobs_go_on_when_the_queue_s_own_concurrency_is_lifted(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SHORT_WAIT", 0.1)
    monkeypatch.setattr(worker_module, "MAXED_WAIT", 0.1)
    slow = Slow()
    await queue.call("setGlobalConcurrency", 1)
    await queue.call("addBulk", [{"name": "slow", "data": {}}] * 5)
    await queue.work(slow=slow.__call__)
    await slow.started.wait()
    await queue.call("removeGlobalConcurrency")
    await queue.event("active", times=5)
    slow.go.set()
    await queue.event("completed", times=5)
    assert slow.most == 5


async def test_the_queue_s_own_rate_limit_is_kept(queue: Queue) -> None:
    starts = []

    async def note(ctx: Context, payload: dict[str, Any]) -> None:
        starts.append(wall_ms())

    await queue.call("setGlobalRateLimit", 3, 300)
    await queue.call("addBulk", [{"name": "note", "data": {}}] * 7)
    await queue.work(note=note)
    await queue.event("completed", times=7)
    assert starts[3] - starts[0] >= 290
    assert starts[6] - starts[3] >= 290
    assert starts[6] - starts[0] < 1500


async def test_node_holds_a_rate_limited_queue_back_for_a_while(queue: Queue) -> None:
    await queue.call("setGlobalRateLimit", 100, 1000)
    await queue.call("rateLimit", 300)
    held = wall_ms()
    await queue.work(work=work)
    job_id = await queue.add("work")
    await queue.finish(job_id)
    assert (await queue.job(job_id))["processedOn"] - held >= 290


# -- taking jobs away


async def test_node_drains_a_queue_that_we_work_on(queue: Queue) -> None:
    slow = Slow()
    await queue.work(slow=slow.__call__, limits=Limits(concurrency=1))
    running = await queue.add("slow", {"n": 1})
    await slow.started.wait()
    await queue.call("addBulk", [{"name": "slow", "data": {}}] * 5)
    await queue.add("slow", delay=10_000)
    await queue.call("drain", True)
    slow.go.set()
    assert await queue.finish(running) == {"value": {"n": 1}}
    assert await queue.counts() == {"completed": 1}


async def test_node_removes_a_waiting_job_but_not_a_running_one(queue: Queue) -> None:
    slow = Slow()
    await queue.work(slow=slow.__call__, limits=Limits(concurrency=1))
    running, waiting = await queue.add("slow"), await queue.add("slow")
    await slow.started.wait()
    await queue.on_job(waiting, "remove")
    with pytest.raises(NodeError, match="locked by another worker"):
        await queue.on_job(running, "remove")
    slow.go.set()
    await queue.finish(running)
    assert await queue.job(waiting) is None


async def test_node_cleans_finished_jobs(queue: Queue) -> None:
    await queue.work(work=work)
    await queue.call("addBulk", [{"name": "work", "data": {}}] * 5)
    await queue.event("completed", times=5)
    assert len(await queue.call("clean", 0, 100, "completed")) == 5
    assert await queue.counts() == {}


async def test_a_worker_survives_the_obliteration_of_its_queue(queue: Queue) -> None:
    slow = Slow()
    await queue.work(slow=slow.__call__, work=work)
    await queue.add("slow")
    await slow.started.wait()
    await queue.call("obliterate", {"force": True})
    slow.go.set()
    await asyncio.sleep(0.05)
    await queue.call("resume")
    job = await queue.call("add", "work", {"n": 1})
    assert await queue.finish(job["id"]) == {"value": {"n": 1}}
