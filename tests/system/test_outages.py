"""Redis away, Redis refusing, replies lost: nothing is lost and nothing is finished twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from bench.soak.proxy import Proxy
from redis import Redis
from stage import Stage

from oxherd.context import Context
from oxherd.embedded.valkey import Valkey
from oxherd.errors import RetryLater
from oxherd.queue.scripts import script
from oxherd.telemetry.events import JobEnded, JobStarted, LeaseWasLost, RedisBack, RedisRefusedCommand
from oxherd.worker.worker import Worker

WAYS_TO_END = {
    "moveToFinished": {},
    "moveToDelayed": {"attempts": 2, "backoff": 50},
    "retryJob": {"attempts": 2},
}


class Effects:
    """What handlers did, counted outside of the queue."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.hold = asyncio.Event()

    async def ok(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        await asyncio.sleep(payload.get("takes", 0))
        return {"n": payload.get("n")}

    async def held(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        await self.hold.wait()
        return {"n": payload.get("n")}

    async def once_bad(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        if self.ran[ctx.job.id] == 1:
            raise ValueError("the first attempt fails")
        return "the second did it"

    async def later(self, ctx: Context, payload: dict[str, Any]) -> Any:
        self.ran[ctx.job.id] += 1
        if self.ran[ctx.job.id] == 1:
            raise RetryLater(0.05)
        return "later"


async def all_slots_free(worker: Worker) -> None:
    await worker.stop()
    assert worker._slots == 0


@pytest.fixture
async def effects() -> Effects:
    return Effects()


async def test_a_job_whose_fetch_got_no_reply_is_adopted_and_run_once(stage: Stage, proxy: Proxy, effects: Effects):
    job = await stage.add("ok")
    loss = proxy.lose_reply(script("moveToActive").sha)
    worker = await stage.worker({"ok": effects.ok}, url=proxy.url)
    assert await stage.finished(job) == ["completed"]
    assert loss.done.is_set()
    assert effects.ran == {job: 1}
    assert sum(event.adopted for event in stage.happened.all(RedisBack)) == 1
    assert (await stage.job(job))["stalled"] == 0
    await stage.settle_ledger(job)
    await all_slots_free(worker)


@pytest.mark.parametrize("command", WAYS_TO_END)
async def test_a_settle_whose_reply_was_lost_is_not_repeated(
    stage: Stage, proxy: Proxy, effects: Effects, command: str
):
    handler = effects.ok if command == "moveToFinished" else effects.once_bad
    worker = await stage.worker({"job": handler}, url=proxy.url)
    loss = proxy.lose_reply(script(command).sha)
    job = await stage.add("job", **WAYS_TO_END[command])
    await stage.settle_ledger(job)
    assert loss.done.is_set()
    assert effects.ran[job] == (1 if command == "moveToFinished" else 2)
    assert (await stage.job(job))["stalled"] == 0
    assert (await stage.job(job))["attempts_made"] == effects.ran[job]
    assert not stage.happened.all(LeaseWasLost)
    await all_slots_free(worker)


async def test_the_next_job_that_came_with_a_lost_reply_is_run(stage: Stage, proxy: Proxy, effects: Effects):
    worker = await stage.worker({"held": effects.held, "ok": effects.ok}, url=proxy.url, concurrency=1)
    first = await stage.add("held")
    await stage.happened.wait(JobStarted, id=first)
    second = await stage.add("ok")
    loss = proxy.lose_reply(script("moveToFinished").sha)
    effects.hold.set()
    await stage.settle_ledger(first, second)
    assert loss.done.is_set()
    assert effects.ran == {first: 1, second: 1}
    assert (await stage.job(second))["stalled"] == 0
    await all_slots_free(worker)


async def test_a_retry_whose_reply_was_lost_and_that_was_fetched_in_the_same_breath_runs(
    stage: Stage, proxy: Proxy, effects: Effects
):
    """The job is fetched again by this very worker while it still asks itself how the first attempt's end went."""
    await stage.worker({"job": effects.once_bad}, url=proxy.url, lock_ms=20_000)
    proxy.lose_reply(script("retryJob").sha)
    proxy.lose_reply(script("moveToActive").sha)
    job = await stage.add("job", attempts=2)
    await stage.settle_ledger(job)
    assert effects.ran[job] == 2
    assert (await stage.job(job))["stalled"] == 0


async def test_many_jobs_over_a_network_that_is_cut_all_the_time(stage: Stage, proxy: Proxy, effects: Effects):
    await stage.worker({"ok": effects.ok, "bad": effects.once_bad}, url=proxy.url, concurrency=20, lock_ms=20_000)
    jobs = [await stage.add("ok", {"takes": 0.02}) for _ in range(200)]
    jobs += [await stage.add("bad", attempts=3, backoff=20) for _ in range(50)]

    async def cut() -> None:
        seen = 0
        while True:
            await stage.happened.wait(JobEnded, count=seen + 20, within=60)
            seen = len(stage.happened.all(JobEnded))
            proxy.cut()

    cutter = asyncio.create_task(cut())
    await stage.finished(*jobs, within=30)
    cutter.cancel()
    await stage.settle_ledger(*jobs)
    assert len(stage.happened.all(RedisBack, purpose="worker")) > 5
    assert Counter(effects.ran.values()) == {1: 200, 2: 50}
