"""Time limits and cancellation: a job is stopped when it must be, whatever its handler does, and only then."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from bench.soak.proxy import Proxy
from process import Start
from redis import Redis
from stage import Stage, eventually

from oxherd.clock import mono
from oxherd.context import Context
from oxherd.errors import JobCancelled
from oxherd.telemetry.events import JobCancelRequested, JobEnded, JobStarted
from oxherd.worker.handlers import make_handler


async def sleeps(ctx: Context, payload: dict[str, Any]) -> None:
    await asyncio.sleep(60)


async def test_the_total_limit_ends_a_handler_and_counts_as_an_error(stage: Stage):
    await stage.worker({"work": make_handler("work", sleeps, timeout=0.3)})
    job = await stage.add("work", attempts=2)
    await stage.settle_ledger(job, failed=1)
    ended = stage.happened.all(JobEnded, id=job)
    assert [one.outcome for one in ended] == ["retried", "failed"]
    assert ended[1].kind == "timeout"
    assert 300 <= ended[0].run_ms < 1200
    assert "time limit" in (await stage.job(job))["failed_reason"]


async def test_the_idle_limit_spares_who_shows_signs_of_life(stage: Stage):
    async def lively(ctx: Context, payload: dict[str, Any]) -> str:
        for n in range(8):
            await asyncio.sleep(0.1)
            await (ctx.progress(n) if n % 2 else ctx.log(f"line {n}"))
        return "alive"

    await stage.worker(
        {
            "lively": make_handler("lively", lively, idle_timeout=0.5),
            "idle": make_handler("idle", sleeps, idle_timeout=0.5),
        }
    )
    lively_job, idle_job = await stage.add("lively"), await stage.add("idle")
    assert await stage.finished(lively_job, idle_job) == ["completed", "failed"]
    assert "no step, progress or log line" in (await stage.job(idle_job))["failed_reason"]


async def test_no_limit_ends_a_job_whose_result_waits_for_redis_or_store(stage: Stage, proxy: Proxy):
    """The handler has returned: what comes after is our business, not the job's."""

    async def quick(ctx: Context, payload: dict[str, Any]) -> str:
        proxy.refuse()
        return "quick"

    await stage.worker({"quick": make_handler("quick", quick, timeout=0.2)}, url=proxy.url, lock_ms=5000)
    job = await stage.add("quick")
    await stage.happened.wait(JobStarted, id=job)
    await asyncio.sleep(0.6)
    proxy.allow()
    assert await stage.finished(job) == ["completed"]


async def test_a_running_job_is_cancelled_from_another_process_within_a_second(
    stage: Stage, start: Start, witness: Redis
):
    worker = await start()
    for name in ("gate", "thread"):
        job = await stage.add(name, attempts=3)
        await eventually(lambda name=name, job=job: seen(witness, stage, name, job))
        begun = time.monotonic()
        assert await stage.admin.cancel(job) == "stopping"
        assert await stage.finished(job) == ["failed"]
        assert time.monotonic() - begun < 1
        assert (await worker.said("job.ended", id=job))["kind"] == "cancelled"
        assert (await stage.job(job))["failed_reason"] == "cancelled on request"


async def seen(witness: Redis, stage: Stage, what: str, job: str) -> bool:
    return bool(witness.exists(f"saw:{what}:{stage.keys.queue}:{job}"))


async def test_a_cancel_that_overtakes_the_fetch_is_not_lost(stage: Stage):
    """The job is active in Redis, but the worker has not seen the reply yet when it hears the request."""
    worker = await stage.worker({"work": sleeps}, concurrency=1)
    fetch, asked = worker.consumer.fetch, []

    async def fetch_slowly(token: str) -> Any:
        found = await fetch(token)
        if found.job is not None and not asked:
            asked.append(await stage.admin.cancel(found.job.id))
            assert await stage.link.call(b"PING") == b"PONG"
            await asyncio.sleep(0.2)  # the request has arrived and found nobody
        return found

    worker.consumer.fetch = fetch_slowly
    job = await stage.add("work")
    assert await stage.finished(job, within=5) == ["failed"]
    assert asked == ["stopping"]


async def test_a_cancel_request_that_came_too_late_does_not_haunt_the_next_run(stage: Stage):
    async def quick(ctx: Context, payload: dict[str, Any]) -> str:
        return "done"

    worker = await stage.worker({"quick": quick})
    job = await stage.add("quick")
    await stage.finished(job)
    await stage.link.call(b"ZADD", stage.keys.cancels, 0, job)  # as if it had been asked just before the end
    await stage.admin.retry(job)
    await stage.on_stream(job, "completed", count=2)
    assert not stage.happened.all(JobCancelRequested)
    worker.control._link.drop()  # on reconnection it reads what was asked
    await stage.happened.wait(JobStarted, id=job, count=2)
    assert not stage.stream.by_job[job].count("failed")


async def test_cancel_requests_made_while_the_worker_was_cut_off_are_heard(stage: Stage, proxy: Proxy):
    await stage.worker({"work": sleeps}, url=proxy.url, lock_ms=10_000)
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    proxy.refuse()
    await stage.admin.cancel(job)
    proxy.allow()
    assert await stage.finished(job) == ["failed"]


async def test_cancel_requests_are_heard_although_the_network_forgot_the_connections(stage: Stage, proxy: Proxy):
    """The connection that listens hangs, and has nothing to send by which it would notice."""
    await stage.worker({"work": sleeps}, url=proxy.url)
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    proxy.freeze()
    await stage.admin.cancel(job)
    assert await stage.finished(job, within=8) == ["failed"]


async def test_a_handler_has_time_to_tidy_up_when_it_is_stopped(stage: Stage):
    tidied: list[str] = []

    async def careful(ctx: Context, payload: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1.0)  # a rollback over the network
            tidied.append(ctx.job.id)

    await stage.worker({"careful": make_handler("careful", careful, timeout=0.1)})
    job = await stage.add("careful")
    assert await stage.finished(job) == ["failed"]
    assert tidied == [job]


async def test_a_thread_is_gone_before_its_job_is_given_out_again(stage: Stage):
    """A plain handler inside a long C call can't be interrupted: the retry must not run beside it."""
    inside: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def blocks(ctx: Context, payload: dict[str, Any]) -> None:
        with lock:
            inside.append(1)
            most.append(len(inside))
        try:
            time.sleep(0.9)
        finally:
            with lock:
                inside.pop()

    await stage.worker({"blocks": make_handler("blocks", blocks, timeout=0.2)})
    job = await stage.add("blocks", attempts=3)
    await stage.settle_ledger(job, failed=1)
    assert len(most) == 3
    assert max(most) == 1


async def test_threads_that_were_interrupted_leave_the_pool_whole(stage: Stage):
    def spins(ctx: Context, payload: dict[str, Any]) -> None:
        while True:
            time.sleep(0.001)

    def quick(ctx: Context, payload: dict[str, Any]) -> str:
        return threading.current_thread().name

    worker = await stage.worker({"spins": make_handler("spins", spins, timeout=0.1), "quick": quick}, concurrency=4)
    spun = [await stage.add("spins") for _ in range(16)]
    await stage.finished(*spun, within=20)
    jobs = [await stage.add("quick") for _ in range(40)]
    await stage.settle_ledger(*spun, *jobs, failed=16)
    assert not worker.running


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_handler_that_eats_its_first_cancellation_is_told_again(stage: Stage, kind: str):
    told: list[float] = []

    async def eats(ctx: Context, payload: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append(mono())
        await asyncio.sleep(60)

    def eats_in_thread(ctx: Context, payload: dict[str, Any]) -> None:
        for _ in range(2):
            try:
                while True:
                    time.sleep(0.005)
            except JobCancelled as error:
                told.append(mono())
                last = error
        raise last

    handler = make_handler("eats", eats if kind == "async" else eats_in_thread, timeout=0.1)
    await stage.worker({"eats": handler})
    job = await stage.add("eats")
    assert await stage.finished(job) == ["failed"]
    assert told
