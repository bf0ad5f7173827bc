"""Promises 1 and 2: kill -9 at the worst moments loses nothing, finishes nothing twice, pays for no step twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from process import Start, WorkerProcess
from redis import Redis
from stage import Stage

from oxherd.store.postgres import PostgresStore

POINTS = {
    "fetch-sent": ("ok", "saw:ok"),
    "fetched": ("ok", "saw:ok"),
    "mid-handler": ("mid", "saw:mid-end"),
    "between-steps": ("paid", "saw:paid-first"),
    "before-settle": ("ok", "saw:ok"),
    "finish-sent": ("ok", "saw:ok"),
}


def arm(witness: Redis, victim: WorkerProcess, point: str) -> None:
    """Have a worker kill itself when it comes by."""
    witness.set(f"kill:{victim.pid}:{point}", "now")


async def run_of(runs_url: str, stage: Stage, job_id: str) -> dict[str, Any]:
    """The job's row in the store."""
    store = PostgresStore(runs_url)
    await store.start()
    try:
        timestamp = (await stage.job(job_id))["timestamp"]
        run = await store.run(f"{stage.keys.queue}/{job_id}@{timestamp}")
        assert run is not None
        return run
    finally:
        await store.stop()


@pytest.mark.parametrize("survivor", ["another", "restarted"])
async def test_kill_9_at_a_named_point_loses_nothing_and_finishes_nothing_twice(
    redis_url: str, queue_name: str, start: Start, witness: Redis, runs_url: str, survivor: str
):
    async def at(point: str) -> None:
        async with Stage(redis_url, f"{queue_name}-{point}") as stage:
            name, effect = POINTS[point]
            worker = {"database_url": runs_url, "queue": stage.keys.queue}
            # One job at a time: what else it ran when it died would rightly be run again.
            victim = await start(**worker, JOB_CONCURRENCY="1")
            if survivor == "another":
                await start(**worker, JOB_CONCURRENCY="1")
            warm = [await stage.add("ok") for _ in range(4)]
            await stage.finished(*warm)
            arm(witness, victim, point)
            jobs = warm + [await stage.add(name, {"takes": 0.01}) for _ in range(20)]
            assert await victim.exited() == -9, point
            if survivor == "restarted":
                await start(**worker)
            await stage.settle_ledger(*jobs)
            for job in jobs[4:]:
                assert witness.get(f"{effect}:{stage.keys.queue}:{job}") == "1", f"{point}: done once and not again"
                assert (await stage.job(job))["attempts_made"] == 1, point
                assert (await run_of(runs_url, stage, job))["status"] == "completed", point

    await asyncio.gather(*(at(point) for point in POINTS))


async def test_a_stored_result_is_given_to_the_queue_without_running_again(
    stage: Stage, start: Start, witness: Redis, runs_url: str
):
    victim = await start(database_url=runs_url)
    arm(witness, victim, "before-settle")
    job = await stage.add("ok")
    await victim.exited()
    assert (await run_of(runs_url, stage, job))["output"] == {"ran": 1}
    assert (await stage.job(job))["state"] == "active"
    await start(database_url=runs_url)
    await stage.settle_ledger(job)
    assert (await stage.job(job))["returnvalue"] == {"ran": 1}
    assert witness.get(f"saw:ok:{stage.keys.queue}:{job}") == "1"


async def test_without_a_store_a_killed_job_is_run_again(stage: Stage, start: Start, witness: Redis):
    victim = await start()
    arm(witness, victim, "before-settle")
    job = await stage.add("ok")
    await victim.exited()
    await start()
    await stage.settle_ledger(job)
    assert witness.get(f"saw:ok:{stage.keys.queue}:{job}") == "2"
    assert (await stage.job(job))["returnvalue"] == {"ran": 2}


async def test_kill_9_at_random_moments_under_load(stage: Stage, start: Start, witness: Redis, runs_url: str):
    chance = random.Random(7)
    settings = {"database_url": runs_url, "JOB_CRASH_LIMIT": "50"}
    workers = [await start(**settings) for _ in range(2)]
    jobs = [await stage.add("ok", {"takes": chance.random() / 10}) for _ in range(100)]
    jobs += [await stage.add("paid") for _ in range(50)]
    jobs += [await stage.add("fails", {"times": 1}, attempts=9, backoff=20) for _ in range(20)]
    for enough in (30, 70, 110):
        await stage.stream.news.until(lambda: sum(bool(stage.stream.finishes(job)) for job in jobs) >= enough, 15)  # noqa: B023
        victim = workers.pop(0)
        victim.kill()
        await victim.exited()
        workers.append(await start(**settings))
    await stage.finished(*jobs, within=30)
    await stage.settle_ledger(*jobs)
    for job in jobs[100:150]:
        stalled = (await stage.job(job))["stalled"]
        for step in ("first", "second"):
            paid = int(witness.get(f"saw:paid-{step}:{stage.keys.queue}:{job}"))
            assert paid <= 1 + stalled, "a step runs again only where a kill met it in flight"
