"""A Node worker and one of ours on the same queue: they share the work, and each takes over when the other dies."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodejs import Node
from shared_queue import Queue

from oxherd.clock import mono, wall_ms
from oxherd.context import Context
from oxherd.embedded.valkey import Valkey
from oxherd.queue.producer import NewJob
from oxherd.worker.worker import Limits

VICTIM = Path(__file__).with_name("victim.py")
QUICK = Limits(lock_ms=500, stalled_interval=0.2)
QUICK_NODE = {"lockDuration": 500, "stalledInterval": 200}


async def brief(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(payload.get("sleep", 0) / 1000)
    return {"by": "oxherd"}


@pytest.fixture
def doomed(node: Node, valkey: Valkey) -> Iterator[Node]:
    """One more Node process of the same version, to be killed."""
    process = Node(node.version, valkey.url)
    yield process
    process.kill()


@pytest.fixture
async def victim(queue: Queue, valkey: Valkey) -> AsyncIterator[asyncio.subprocess.Process]:
    """One more worker of ours, to be killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, VICTIM, valkey.url, queue.name, "500", stdout=asyncio.subprocess.PIPE
    )
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_two_workers_share_300_jobs_and_each_is_done_once(queue: Queue) -> None:
    await queue.work(work=brief)
    await queue.node("work", queue.name, {"concurrency": 5})
    added = await queue.call("addBulk", [{"name": "work", "data": {"sleep": 4}}] * 300)
    done = await queue.event("completed", times=300)
    await queue.event("drained")
    assert sorted(one.args["jobId"] for one in done) == sorted(job["id"] for job in added)
    assert Counter(one.args["jobId"] for one in queue.seen("active")) == Counter(job["id"] for job in added)
    shares = Counter(one.args["returnvalue"]["by"] for one in done)
    assert min(shares["oxherd"], shares[f"node{queue.node.version}"]) > 30
    assert await queue.counts() == {"completed": 300}


async def test_the_queue_s_own_concurrency_holds_across_both(queue: Queue) -> None:
    await queue.call("setGlobalConcurrency", 2)
    await queue.work(work=brief)
    await queue.node("work", queue.name, {"concurrency": 5})
    await queue.call("addBulk", [{"name": "work", "data": {"sleep": 3}}] * 40)
    await queue.event("completed", times=40)
    running = most = 0
    for one in queue.node.events:
        if one.queue == queue.name:
            running += (one.name == "active") - (one.name == "completed")
            most = max(most, running)
    assert most == 2


async def test_no_job_is_lost_while_node_pauses_and_resumes_all_the_time(queue: Queue) -> None:
    async def second_time(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.002)
        if ctx.attempt == 1:
            raise RuntimeError("again")
        return payload

    async def flicker() -> None:
        while True:
            for method in ("pause", "resume"):
                await queue.call(method)
                await asyncio.sleep(0.02)

    await queue.work(work=second_time)
    await queue.node("work", queue.name, {"concurrency": 3})
    flickering = asyncio.create_task(flicker())
    for n in range(20):
        await queue.producer.add_bulk([NewJob("work", {"sleep": 2, "n": n}, {"attempts": 2}) for _ in range(5)])
        await queue.add("work", {"n": n}, attempts=2, delay=10)
    await asyncio.sleep(0.5)
    flickering.cancel()
    await asyncio.gather(flickering, return_exceptions=True)
    await queue.call("resume")
    await queue.event("completed", times=120)
    assert await queue.counts() == {"completed": 120}


async def test_attempts_are_counted_across_both(queue: Queue) -> None:
    seen = []

    async def second(ctx: Context, payload: dict[str, Any]) -> None:
        seen.append((ctx.attempt, ctx.job.attempts, len(ctx.job.stacktrace)))

    await queue.node("work", queue.name)
    job_id = await queue.add("second", {"fail": "in Node"}, attempts=3, backoff=100)
    await queue.event("delayed", jobId=job_id)
    await queue.node("rest", queue.name)
    await queue.work(second=second)
    await queue.event("completed", jobId=job_id)
    assert seen == [(2, 3, 1)]


async def test_node_does_not_take_a_job_that_we_hold(queue: Queue) -> None:
    await queue.node("work", queue.name, {"lockDuration": 300, "stalledInterval": 50, "concurrency": 3})
    await queue.node("rest", queue.name)
    await queue.work(work=brief, limits=QUICK)
    job_id = await queue.add("work", {"sleep": 1500})
    await queue.event("active", jobId=job_id)
    await queue.node("work", queue.name, {"lockDuration": 300, "stalledInterval": 50, "concurrency": 3})
    assert await queue.finish(job_id) == {"value": {"by": "oxherd"}}
    assert not queue.seen("stalled")


async def test_we_do_not_take_a_job_that_node_holds(queue: Queue) -> None:
    await queue.node("work", queue.name, QUICK_NODE)
    job_id = await queue.add("work", {"sleep": 1500})
    await queue.event("active", jobId=job_id)
    await queue.work(work=brief, limits=QUICK)
    assert (await queue.finish(job_id))["value"]["by"] == f"node{queue.node.version}"
    assert not queue.seen("stalled")


async def test_we_finish_the_job_of_a_node_worker_that_was_killed(queue: Queue, doomed: Node) -> None:
    await doomed("work", queue.name, QUICK_NODE)
    job_id = await queue.add("work", {"sleep": 60_000})
    await queue.event("active", jobId=job_id)

    async def quick(ctx: Context, payload: dict[str, Any]) -> int:
        return ctx.job.stalled

    await queue.work(work=quick, limits=QUICK)
    doomed.kill()
    killed = mono()
    assert await queue.finish(job_id) == {"value": 1}
    assert mono() - killed < 2
    await queue.event("stalled", jobId=job_id)
    job = await queue.job(job_id)
    assert (job["stalledCounter"], job["attemptsMade"], job["attemptsStarted"]) == (1, 1, 2)


async def test_node_finishes_the_job_of_a_worker_of_ours_that_was_killed(
    queue: Queue, victim: asyncio.subprocess.Process
) -> None:
    job_id = await queue.add("work")
    assert (await victim.stdout.readline()).decode() == f"started {job_id}\n"
    await queue.node("work", queue.name, QUICK_NODE)
    victim.kill()
    assert (await queue.finish(job_id))["value"]["by"] == f"node{queue.node.version}"
    await queue.event("stalled", jobId=job_id)
    assert (await queue.job(job_id))["stalledCounter"] == 1


async def test_a_job_that_kills_node_workers_is_quarantined_by_us(queue: Queue, doomed: Node) -> None:
    async def never(ctx: Context, payload: dict[str, Any]) -> None:
        pytest.fail("it was run")

    await doomed("work", queue.name, QUICK_NODE)
    job_id = await queue.add("work", {"sleep": 60_000}, attempts=5)
    await queue.event("active", jobId=job_id)
    await queue.raw("HSET", queue.keys.job(job_id), "stc", 2)  # it has done so twice before
    await queue.work(work=never, limits=QUICK)
    doomed.kill()
    assert "quarantined: job stalled more than allowable limit" in (await queue.finish(job_id))["error"]


async def test_a_job_that_kills_workers_of_ours_is_failed_by_node(
    queue: Queue, victim: asyncio.subprocess.Process
) -> None:
    job_id = await queue.add("work", attempts=5)
    assert (await victim.stdout.readline()).decode() == f"started {job_id}\n"
    await queue.raw("HSET", queue.keys.job(job_id), "stc", 2)
    await queue.node("work", queue.name, {**QUICK_NODE, "maxStalledCount": 2})
    victim.kill()
    assert await queue.finish(job_id) == {"error": "job stalled more than allowable limit"}


async def test_a_delayed_job_is_not_forgotten_with_the_worker_that_was_to_start_it(queue: Queue, doomed: Node) -> None:
    await doomed("work", queue.name, QUICK_NODE)  # it waits first, so the marker goes to it
    await queue.work(work=brief, limits=QUICK)
    await asyncio.sleep(0.05)
    added = wall_ms()
    job_id = await queue.add("work", delay=400)
    await queue.event("delayed", jobId=job_id)
    doomed.kill()
    assert await queue.finish(job_id) == {"value": {"by": "oxherd"}}
    assert (await queue.job(job_id))["processedOn"] - added < 1500


async def test_a_job_that_was_failed_from_afar_is_not_run(queue: Queue) -> None:
    ran = []

    async def note(ctx: Context, payload: dict[str, Any]) -> None:
        ran.append(ctx.job.id)

    job_id = await queue.add("note", attempts=5)
    await queue.raw("HSET", queue.keys.job(job_id), "defa", "child bull:other:1 failed")
    await queue.work(note=note)
    assert await queue.finish(job_id) == {"error": "child bull:other:1 failed"}
    assert not ran
