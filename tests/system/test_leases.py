"""Promises 3 and 4: a lease outlives a blocked loop, and who has lost it writes nothing any more."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from bench.soak.proxy import Proxy
from process import Start
from redis import Redis
from stage import Stage, eventually

from oxherd.clock import mono
from oxherd.context import Context
from oxherd.queue.producer import NewJob
from oxherd.queue.scripts import script
from oxherd.telemetry.events import JobEnded, JobStalled, JobStarted, LeaseWasLost, LoopBlocked, RedisLost
from oxherd.worker.worker import Worker


def saw(witness: Redis, stage: Stage, what: str, job: str) -> int:
    return int(witness.get(f"saw:{what}:{stage.keys.queue}:{job}") or 0)


async def until_seen(witness: Redis, stage: Stage, what: str, job: str) -> None:
    async def seen() -> int:
        return saw(witness, stage, what, job)

    await eventually(seen)


async def test_a_loop_blocked_for_longer_than_the_lease_keeps_its_job(stage: Stage, start: Start, witness: Redis):
    blocked = await start(lock_ms=1000)
    job = await stage.add("block", {"seconds": 3.0})
    await until_seen(witness, stage, "block", job)
    other = await start(lock_ms=1000)
    await stage.settle_ledger(job)
    line = await blocked.said("loop.blocked")
    assert "block_the_loop" in line["stack"]
    assert saw(witness, stage, "block", job) == saw(witness, stage, "block-end", job) == 1
    assert (await stage.job(job))["stalled"] == 0
    assert not [line for line in (*blocked.lines, *other.lines) if line["event"] in ("lease.lost", "job.stalled")]


async def test_a_blocked_loop_is_seen_in_the_lag_that_health_reports(stage: Stage):
    lags: list[float] = []

    async def block(ctx: Context, payload: dict[str, Any]) -> None:
        time.sleep(1.4)  # noqa: ASYNC251  on purpose
        lags.append(worker.leases.loop_lag)

    worker = await stage.worker({"block": block})
    job = await stage.add("block")
    await stage.finished(job)
    [event] = await stage.happened.wait(LoopBlocked)
    assert "time.sleep(1.4)" in event.stack
    assert lags[0] > 1.0
    assert worker.leases.lag == 0.0


async def test_a_stopped_process_that_wakes_up_after_its_lease_was_taken_writes_nothing(
    stage: Stage, start: Start, witness: Redis, runs_url: str
):
    """SIGSTOP for longer than the lease, another worker does the job, SIGCONT: a zombie at its most natural."""
    zombie = await start(lock_ms=1000, database_url=runs_url)
    job = await stage.add("gate")
    await until_seen(witness, stage, "gate", job)
    zombie.signal(signal.SIGSTOP)
    other = await start(lock_ms=1000, database_url=runs_url)
    await other.said("job.stalled", id=job)
    witness.set("gate", "open")
    await stage.finished(job)
    zombie.signal(signal.SIGCONT)
    ended = await zombie.said("job.ended", id=job)
    assert ended["outcome"] == "lease_lost"
    await stage.settle_ledger(job)
    assert saw(witness, stage, "gate", job) == 2
    assert (await stage.job(job))["attempts_made"] == 1


async def test_the_steps_and_the_result_of_a_zombie_are_refused(
    stage: Stage, start: Start, witness: Redis, runs_url: str
):
    """It wakes inside a paid step that somebody else has finished meanwhile."""
    zombie = await start(lock_ms=1000, database_url=runs_url)
    job = await stage.add("slow-step")
    await until_seen(witness, stage, "slow-step", job)
    zombie.signal(signal.SIGSTOP)
    witness.set("gate", "open")
    other = await start(lock_ms=1000, database_url=runs_url)
    await stage.finished(job)
    assert (await stage.job(job))["returnvalue"] == f"by {other.pid}"
    zombie.signal(signal.SIGCONT)
    assert (await zombie.said("job.ended", id=job))["outcome"] == "lease_lost"
    await stage.settle_ledger(job)
    assert (await stage.job(job))["returnvalue"] == f"by {other.pid}"


async def taken_by_somebody(stage: Stage, job: str) -> None:
    """What a worker that recovers a stalled job does: the lease is another's, a later attempt has begun."""
    await stage.link.call(b"SET", stage.keys.lock(job), b"somebody:else", b"PX", 60_000)
    await stage.link.call(b"HINCRBY", stage.keys.job(job), b"ats", 1)


async def test_a_lost_lease_cancels_the_handler_and_its_end_is_not_told(stage: Stage):
    ends: list[str] = []

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        return "finished"

    worker = await stage.worker({"work": work})
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    await taken_by_somebody(stage, job)
    begun = mono()
    await stage.happened.wait(LeaseWasLost, id=job)
    assert mono() - begun < worker.limits.lock_ms / 1000
    assert ends == ["cancelled"]
    assert stage.happened.all(JobEnded, id=job)[0].outcome == "lease_lost"
    assert not stage.stream.finishes(job)
    assert await stage.link.call(b"GET", stage.keys.lock(job)) == b"somebody:else"


async def test_a_finish_that_comes_after_the_lease_was_taken_is_refused(stage: Stage):
    go = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        await go.wait()
        return "a zombie's word"

    await stage.worker({"work": work}, lock_ms=60_000)  # no renewal will notice before the handler returns
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    await taken_by_somebody(stage, job)
    go.set()
    await stage.happened.wait(LeaseWasLost, id=job)
    assert not stage.stream.finishes(job)
    assert (await stage.job(job))["returnvalue"] is None


async def test_leases_are_renewed_while_the_worker_drains_for_longer_than_a_lease(stage: Stage):
    go = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        await go.wait()
        return "done"

    worker = await stage.worker({"work": work}, lock_ms=600)
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    other = await stage.worker({"work": work}, lock_ms=600)
    stopping = asyncio.create_task(worker.stop(grace=10))
    await asyncio.sleep(1.5)  # more than two leases
    go.set()
    await stopping
    await stage.settle_ledger(job)
    assert worker.finished == 1
    assert other.finished == 0
    assert not stage.happened.all(JobStalled)


async def test_a_lease_survives_a_network_that_forgets_its_connections(stage: Stage, proxy: Proxy):
    """Half-open: the connections hang without a word. New ones work, so the lease must be renewed over one in time."""
    go = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        await go.wait()
        return "done"

    await stage.worker({"work": work}, url=proxy.url, lock_ms=2000)
    watcher = await stage.worker({}, lock_ms=2000)  # reaches Redis directly, and would take the job
    job = await stage.add("work")
    [started] = await stage.happened.wait(JobStarted)
    assert started.id == job
    proxy.freeze()
    await stage.happened.wait(RedisLost, purpose="lease")
    await asyncio.sleep(2.4)  # longer than the lease: nothing may happen in it
    go.set()
    await stage.settle_ledger(job)
    assert not stage.happened.all(JobStalled)
    assert not stage.happened.all(LeaseWasLost)
    assert watcher.finished == 0


async def test_a_finish_into_a_connection_that_hangs_is_told_over_another(stage: Stage, proxy: Proxy):
    go = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        await go.wait()
        return "done"

    await stage.worker({"work": work}, url=proxy.url, lock_ms=3000)
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    proxy.freeze()
    go.set()
    await stage.settle_ledger(job)
    assert (await stage.job(job))["stalled"] == 0


async def add_without_a_word(stage: Stage, **opts: Any) -> str:
    """Add a job whose marker is gone before anybody sees it, as when the worker that took it died."""
    loaded, *args = stage.producer._command(NewJob("ok", {}, opts), stage.keys)
    await stage.link.call(b"SCRIPT", b"LOAD", loaded.body)
    stage.link.post(b"MULTI")
    stage.link.post(b"EVALSHA", loaded.sha, loaded.numkeys, *args)
    stage.link.post(b"DEL", stage.keys.marker)
    job_id, _ = await stage.link.send(b"EXEC")
    return str(job_id.decode())


@pytest.mark.parametrize("opts", [{}, {"priority": 3}, {"delay": 200}], ids=["wait", "prioritized", "delayed"])
async def test_work_whose_marker_died_with_a_worker_is_noticed(stage: Stage, opts: dict[str, int]):
    async def ok(ctx: Context, payload: dict[str, Any]) -> None: ...

    worker = await stage.worker({"ok": ok})
    await waits_for_long(stage, worker)
    job = await add_without_a_word(stage, **opts)
    assert await stage.finished(job, within=4) == ["completed"]


async def test_work_that_a_busy_watcher_notices_is_told_to_others(stage: Stage):
    async def ok(ctx: Context, payload: dict[str, Any]) -> None:
        await asyncio.sleep(payload.get("takes", 0))

    watcher = await stage.worker({"ok": ok}, concurrency=1)
    await stage.happened.wait(JobStarted, id=await stage.add("ok", {"takes": 30}))
    idle = await stage.worker({"ok": ok})
    await waits_for_long(stage, idle)
    job = await add_without_a_word(stage)
    await stage.happened.wait(JobEnded, id=job, within=4)
    assert (watcher.finished, idle.finished) == (0, 1)


async def test_work_is_noticed_by_a_worker_whose_blocking_connection_hangs(stage: Stage, proxy: Proxy):
    async def ok(ctx: Context, payload: dict[str, Any]) -> None: ...

    worker = await stage.worker({"ok": ok}, url=proxy.url)
    await waits_for_long(stage, worker)
    proxy.freeze()
    job = await stage.add("ok")
    assert await stage.finished(job, within=8) == ["completed"]


async def waits_for_long(stage: Stage, worker: Worker) -> None:
    """Until the worker blocks on the marker."""

    async def blocks() -> bool:
        clients = (await stage.link.call(b"CLIENT", b"LIST")).decode()
        return "cmd=bzpopmin" in clients and worker._waiting is not None

    await eventually(blocks)


async def test_a_script_flush_in_the_middle_is_no_more_than_a_detour(stage: Stage):
    async def ok(ctx: Context, payload: dict[str, Any]) -> None: ...

    await stage.worker({"ok": ok}, concurrency=20)
    jobs = []
    for _ in range(5):
        await stage.link.call(b"SCRIPT", b"FLUSH")
        jobs += await stage.producer.add_bulk([NewJob("ok") for _ in range(20)])
    await stage.settle_ledger(*jobs)
    assert script("moveToFinished").sha
