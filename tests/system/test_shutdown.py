"""SIGTERM: what fits the grace finishes, the rest goes back at once with its attempt refunded, and the process ends."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from process import Start, WorkerProcess
from redis import Redis
from stage import Stage, eventually

from oxherd.context import Context
from oxherd.embedded.valkey import Valkey
from oxherd.queue.scripts import script
from oxherd.telemetry.events import JobEnded, JobStarted
from oxherd.worker.executor import Interrupted


async def running(worker: WorkerProcess, count: int) -> None:
    """Until so many jobs run there."""

    async def there() -> bool:
        return bool((await worker.get("/health"))[1]["in_flight"] >= count)

    await eventually(there)


async def test_sigterm_with_twenty_long_jobs_finishes_what_fits_and_hands_back_the_rest(
    stage: Stage, start: Start, witness: Redis
):
    leaving = await start(JOB_CONCURRENCY="10", SHUTDOWN_GRACE="2s", lock_ms=1000)  # a grace of two leases
    jobs = [await stage.add("ok", {"takes": 1.2 if n < 5 else 60}) for n in range(10)]
    jobs += [await stage.add("ok", {"takes": 0}) for _ in range(10)]
    await running(leaving, 10)
    leaving.terminate()
    begun = time.monotonic()
    await leaving.health(503, draining=False)
    assert (await leaving.get("/health/live"))[0] == 200
    assert await leaving.exited() == 0
    assert 2 <= time.monotonic() - begun < 4
    stopped = await leaving.said("worker.stopped")
    assert (stopped["finished"], stopped["handed_back"]) == (5, 5)
    assert await stage.finished(*jobs[:5], within=1) == ["completed"] * 5
    counts = await stage.admin.counts()
    assert (counts["wait"], counts["active"]) == (15, 0)
    for job in jobs[5:10]:
        shown = await stage.job(job)
        assert (shown["attempts_made"], shown["stalled"], shown["attempts_started"]) == (0, 0, 1)
    assert not [line for line in leaving.lines if line["event"] in ("lease.lost", "job.stalled", "worker.fault")]

    # In front of the queue: the next worker begins with those that were interrupted.
    async with Stage(stage.url, stage.keys.queue) as watch:
        heir = await start(JOB_CONCURRENCY="5", SHUTDOWN_GRACE="0")
        await running(heir, 5)
        active = {one["id"] for one in (await watch.admin.pages.page(["active"])).jobs}
    assert active == set(jobs[5:10])


async def test_handed_back_jobs_are_run_to_their_end_by_the_next_worker(stage: Stage, start: Start, witness: Redis):
    leaving = await start(SHUTDOWN_GRACE="0.1s")
    jobs = [await stage.add("gate") for _ in range(3)]
    jobs += [await stage.add("gate", priority=3) for _ in range(2)]
    await running(leaving, 5)
    heir = await start()
    leaving.terminate()
    assert await leaving.exited() == 0
    await running(heir, 5)  # at once, the prioritized ones too
    witness.set("gate", "open")
    await stage.settle_ledger(*jobs)
    for job in jobs:
        shown = await stage.job(job)
        assert (shown["attempts_made"], shown["stalled"], shown["attempts_started"]) == (1, 0, 2)


async def test_a_second_signal_hands_back_without_waiting_for_the_grace(stage: Stage, start: Start, witness: Redis):
    leaving = await start(SHUTDOWN_GRACE="60s")
    job = await stage.add("gate")
    await running(leaving, 1)
    leaving.terminate()
    await leaving.said("worker.draining")
    leaving.terminate()
    assert await leaving.exited(within=5) == 0
    assert (await stage.job(job))["state"] == "wait"


async def test_a_third_signal_leaves_at_once_with_its_own_exit_code(stage: Stage, start: Start, witness: Redis):
    leaving = await start(SHUTDOWN_GRACE="60s")
    await stage.add("stubborn")
    await running(leaving, 1)
    leaving.signal(signal.SIGINT)
    await leaving.said("worker.draining")
    leaving.signal(signal.SIGINT)
    leaving.terminate()
    assert await leaving.exited(within=3) == 130


@pytest.mark.parametrize("name", ["stubborn", "deaf-thread", "deaf-step"])
async def test_a_handler_that_does_not_listen_is_handed_back_over_its_head(
    stage: Stage, start: Start, witness: Redis, name: str
):
    leaving = await start(SHUTDOWN_GRACE="0.1s")
    job = await stage.add(name)
    await running(leaving, 1)
    leaving.terminate()
    assert await leaving.exited(within=12) == 0
    shown = await stage.job(job)
    assert (shown["state"], shown["attempts_made"], shown["stalled"]) == ("wait", 0, 0)


async def test_a_plain_handler_that_can_be_interrupted_is_gone_before_its_job_is_handed_back(
    stage: Stage, start: Start, witness: Redis
):
    leaving = await start(SHUTDOWN_GRACE="0.1s")
    job = await stage.add("thread")
    await running(leaving, 1)
    leaving.terminate()
    assert await leaving.exited(within=3) == 0
    assert (await stage.job(job))["state"] == "wait"


async def test_sigterm_while_the_worker_starts_loses_nothing(stage: Stage, start: Start, witness: Redis):
    """At moments all over its start: a signal must neither orphan a job nor leave the process running."""
    jobs = [await stage.add("ok", {"takes": 0.05}) for _ in range(30)]
    for _ in range(3):
        worker = await start(ready=False, SHUTDOWN_GRACE="0.01s")
        await stage.stream.news.wait(dict, count=len(stage.stream.news.all(dict)) + 1)  # it has begun to take
        worker.terminate()
        assert await worker.exited() in (0, -signal.SIGTERM)
        counts = await stage.admin.counts()
        assert counts["active"] == 0, worker.story()
    await start()
    await stage.settle_ledger(*jobs)
    assert [(await stage.job(job))["stalled"] for job in jobs] == [0] * 30


async def test_sigterm_while_a_service_keeps_the_start_waiting_ends_it(start: Start):
    """A database that accepts and says nothing: the platform wants us gone, and must not have to kill us."""
    knocked = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocked.set()
        await asyncio.sleep(30)
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    worker = await start(ready=False, database_url=f"postgresql://a:b@127.0.0.1:{port}/runs?sslmode=disable")
    await knocked.wait()
    worker.terminate()
    assert await worker.exited(within=5) == 0
    silent.close()


async def test_a_job_whose_fetch_is_under_way_at_the_stop_is_handed_back(stage: Stage):
    """The reply comes after the stop began: the job is ours, nobody else would know of it."""

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    worker = await stage.worker({"work": work})
    fetch = worker.consumer.fetch
    stopping: list[asyncio.Task[None]] = []

    async def fetch_slowly(token: str) -> Any:
        found = await fetch(token)
        if found.job is not None:
            stopping.append(asyncio.create_task(worker.stop(grace=0)))
            await asyncio.sleep(0)  # the stop has begun
            assert worker.stopping
        return found

    worker.consumer.fetch = fetch_slowly
    job = await stage.add("work")
    await stage.happened.wait(JobEnded, id=job)
    await stopping[0]
    shown = await stage.job(job)
    assert (shown["state"], shown["attempts_made"], shown["stalled"]) == ("wait", 0, 0)


async def test_a_result_that_is_there_when_the_grace_ends_counts(stage: Stage):
    """The handler has returned, and is to be interrupted before anybody has looked at what it returned."""

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        interrupt = worker.running[ctx.job.id].interrupt
        asyncio.get_running_loop().call_soon(interrupt, Interrupted("the worker is shutting down"))
        return "done"

    worker = await stage.worker({"work": work})
    job = await stage.add("work")
    assert await stage.finished(job) == ["completed"]
    assert (await stage.job(job))["attempts_started"] == 1


async def test_a_hand_back_with_a_lost_reply_is_not_repeated(stage: Stage, proxy, witness: Redis):
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    worker = await stage.worker({"work": work}, url=proxy.url)
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    loss = proxy.lose_reply(script("moveJobFromActiveToWait").sha)
    await worker.stop(grace=0)
    assert await asyncio.to_thread(loss.done.wait, 5)
    shown = await stage.job(job)
    assert (shown["state"], shown["attempts_made"], shown["stalled"]) == ("wait", 0, 0)
    assert worker.handed_back == 1


async def test_a_queue_with_a_rate_limit_takes_jobs_back_too(stage: Stage):
    """The script answers a hand-back with the limiter's time to live, which is no failure."""

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    await stage.link.call(b"HSET", stage.keys.meta, b"max", 1, b"duration", 60_000)
    worker = await stage.worker({"work": work})
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    await worker.stop(grace=0)
    assert worker.handed_back == 1
    assert (await stage.job(job))["state"] == "wait"


async def test_a_stop_while_redis_is_away_ends_in_bounded_time(own_stage: Stage, own_valkey: Valkey):
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    worker = await own_stage.worker({"work": work})
    job = await own_stage.add("work")
    await own_stage.happened.wait(JobStarted, id=job)
    await asyncio.to_thread(own_valkey.kill)
    begun = time.monotonic()
    await worker.stop(grace=0.1)
    assert time.monotonic() - begun < 7
