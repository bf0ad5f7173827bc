"""Promise 8: nothing fails silently. /health tells when jobs are no longer taken, /health/live only that we breathe."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest
from bench.soak.proxy import Proxy
from process import Start
from redis import Redis
from stage import Stage, eventually

import oxherd.worker.health
from oxherd.clock import mono
from oxherd.context import Context
from oxherd.telemetry.events import Event, InternalFault, JobStarted, RedisLost, attach
from oxherd.worker.health import Facts, Health
from oxherd.worker.worker import Worker


async def ok(ctx: Context, payload: dict[str, Any]) -> None: ...


def health_of(worker: Worker) -> Health:
    return Health(worker, None, Facts("0", "", mono()))


async def test_a_healthy_worker_says_so_and_nothing_secret(stage: Stage, start: Start):
    worker = await start()
    report = await worker.health(200)
    assert report["status"] == "ok"
    assert set(report["checks"]) >= {"redis", "store", "consuming", "loop", "leases", "draining"}
    assert stage.url not in str(report)
    assert await worker.get("/health/live") == (200, {"status": "ok"})
    status, page = await worker.get("/metrics")
    assert status == 200
    assert "oxherd" in page


async def test_redis_away_turns_health_503_and_back(stage: Stage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oxherd.worker.health, "REDIS_AWAY", 0.2)
    worker = await stage.worker({"ok": ok}, url=proxy.url)
    health = health_of(worker)
    assert health.report()[0]
    proxy.refuse()
    await stage.happened.wait(RedisLost, purpose="worker")

    async def unwell() -> bool:
        return not health.report()[0]

    await eventually(unwell)
    assert not health.report()[1]["checks"]["redis"]["ok"]
    proxy.allow()

    async def well() -> bool:
        return health.report()[0]

    await eventually(well)


async def test_a_dead_take_loop_turns_health_503_although_the_process_lives(stage: Stage):
    worker = await stage.worker({"ok": ok})
    health = health_of(worker)
    assert health.report()[0]
    worker._loops[0].cancel()
    await asyncio.gather(worker._loops[0], return_exceptions=True)
    fine, report = health.report()
    assert not fine
    assert not report["checks"]["consuming"]["ok"]


async def test_a_fault_of_ours_while_taking_is_told_shown_and_survived(stage: Stage):
    worker = await stage.worker({"ok": ok})
    health = health_of(worker)
    fetch = worker.consumer.fetch

    async def broken(token: str) -> Any:
        raise ZeroDivisionError("a fault of our own")

    worker.consumer.fetch = broken
    job = await stage.add("ok")
    [fault] = await stage.happened.wait(InternalFault)
    assert "a fault of our own" in fault.stack
    assert not health.report()[0]
    worker.consumer.fetch = fetch
    await stage.settle_ledger(job)
    assert health.report()[0]


async def test_a_listener_that_fails_harms_no_job(stage: Stage, capfd: pytest.CaptureFixture[str]):
    """A full disk under the log, a metric with a bad label: our listeners' faults, not the jobs'."""

    def broken(event: Event) -> None:
        raise OSError("No space left on device")

    detach = attach(broken)
    try:
        worker = await stage.worker({"ok": ok})
        jobs = [await stage.add("ok") for _ in range(10)]
        await stage.settle_ledger(*jobs)
        assert worker.taking
    finally:
        detach()
    assert "No space left on device" in capfd.readouterr().err


async def test_leases_that_are_not_renewed_turn_health_503(stage: Stage, proxy: Proxy):
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    worker = await stage.worker({"work": work}, url=proxy.url, lock_ms=1000)
    health = health_of(worker)
    job = await stage.add("work")
    await stage.happened.wait(JobStarted, id=job)
    proxy.refuse()

    async def late() -> bool:
        return not health.report()[1]["checks"]["leases"]["ok"]

    await eventually(late)
    assert health.report()[1]["checks"]["redis"]["away_s"] < 10
    proxy.allow()
    await worker.stop(grace=0)


async def test_a_draining_worker_is_not_ready_but_alive(stage: Stage, start: Start, witness: Redis):
    worker = await start(SHUTDOWN_GRACE="20s")
    job = await stage.add("gate")
    await stage.on_stream(job, "active")
    worker.terminate()
    await worker.health(503, draining=False)
    assert (await worker.get("/health/live"))[0] == 200
    witness.set("gate", "open")
    assert await worker.exited() == 0
    await stage.settle_ledger(job)


async def test_sigusr1_shows_every_task_and_changes_nothing(stage: Stage, start: Start, witness: Redis):
    worker = await start()
    job = await stage.add("gate")
    await eventually(lambda: seen(witness, stage, job))
    worker.signal(signal.SIGUSR1)
    await worker.until(lambda: "in gate" in worker.stderr)
    witness.set("gate", "open")
    await stage.settle_ledger(job)


async def seen(witness: Redis, stage: Stage, job: str) -> bool:
    return bool(witness.exists(f"saw:gate:{stage.keys.queue}:{job}"))
