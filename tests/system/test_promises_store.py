"""Postgres away: finishes are delayed and not lost, and whoever asks can see it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from process import Start
from redis import Redis
from stage import Stage, eventually

import oxherd.worker.health
from oxherd.clock import mono
from oxherd.context import Context
from oxherd.embedded.postgres import Postgres
from oxherd.errors import Fatal
from oxherd.store.migrate import migrate
from oxherd.store.postgres import PostgresStore
from oxherd.telemetry.events import JobEnded, JobStarted, StoreBack, StoreLost
from oxherd.worker.health import Facts, Health


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A Postgres for this test to mistreat."""
    with Postgres() as engine:
        yield engine


async def test_results_wait_for_a_postgres_that_is_killed_and_comes_back(
    stage: Stage, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
):
    await migrate(own_postgres.url)
    store = PostgresStore(own_postgres.url)
    await store.start()
    ran: Counter[str] = Counter()
    go = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> Any:
        ran[ctx.job.id] += 1
        await go.wait()
        return await ctx.step("paid", pay, ctx)

    async def pay(ctx: Context) -> str:
        ran[f"paid {ctx.job.id}"] += 1
        return "paid"

    worker = await stage.worker({"work": work}, store=store, lock_ms=1000)
    health = Health(worker, store, Facts("0", "", mono()))
    jobs = [await stage.add("work") for _ in range(8)]
    await stage.happened.wait(JobStarted, count=5)
    await asyncio.to_thread(own_postgres.kill)
    go.set()
    await stage.happened.wait(StoreLost)
    monkeypatch.setattr(oxherd.worker.health, "STORE_AWAY", 0.5)
    await asyncio.sleep(1.5)  # the outage, longer than a lease
    ok, report = health.report()
    assert not ok
    assert not report["checks"]["store"]["ok"]
    assert report["checks"]["store"]["away_s"] > 0.5
    assert report["checks"]["store"]["waiting"] >= 5
    assert not stage.happened.all(JobEnded), "no finish may be told before its result is kept"
    await asyncio.to_thread(own_postgres.start)
    await stage.happened.wait(StoreBack)
    await stage.settle_ledger(*jobs)
    assert health.report()[0]
    assert set(ran.values()) == {1}
    for job in jobs:
        run = await store.run(f"{stage.keys.queue}/{job}@{(await stage.job(job))['timestamp']}")
        assert run is not None
        assert (run["status"], run["output"]) == ("completed", "paid")
    await worker.stop()
    await store.stop()


async def test_postgres_restarted_again_and_again_while_jobs_finish(
    stage: Stage, start: Start, witness: Redis, own_postgres: Postgres
):
    await migrate(own_postgres.url)
    worker = await start(database_url=own_postgres.url, JOB_CONCURRENCY="10", lock_ms=3000)
    jobs = [await stage.add("ok", {"takes": 0.03}) for _ in range(100)]
    jobs += [await stage.add("paid") for _ in range(50)]
    for enough in (20, 60, 100):
        await worker.said("job.ended", count=enough)
        await asyncio.to_thread(own_postgres.kill)
        await asyncio.to_thread(own_postgres.start)
    await stage.settle_ledger(*jobs)
    for job in jobs[:100]:
        assert witness.get(f"saw:ok:{stage.keys.queue}:{job}") == "1"
    for job in jobs[100:]:
        assert witness.get(f"saw:paid-first:{stage.keys.queue}:{job}") == "1"
        assert witness.get(f"saw:paid-second:{stage.keys.queue}:{job}") == "1"
    await worker.health(200, store=True)


async def test_a_stop_while_postgres_is_away_hands_the_jobs_back(stage: Stage, start: Start, own_postgres: Postgres):
    await migrate(own_postgres.url)
    worker = await start(database_url=own_postgres.url, SHUTDOWN_GRACE="0.3s")
    await asyncio.to_thread(own_postgres.kill)
    job = await stage.add("ok")
    await worker.said("store.lost")
    worker.terminate()
    assert await worker.exited() == 0
    assert (await stage.job(job))["state"] == "wait"
    await asyncio.to_thread(own_postgres.start)
    await start(database_url=own_postgres.url)
    await stage.settle_ledger(job)
    shown = await stage.job(job)
    assert (shown["attempts_made"], shown["stalled"]) == (1, 0)


def run_row(*, fence: int, status: str = "running", output: str | None = None) -> str:
    started = {"enqueued_at": 1, "started_at": 1, "finished_at": 0 if status == "running" else 2}
    empty = dict.fromkeys(("tenant", "error", "kind", "stack", "cost_usd"))
    counts = {"model_calls": 0, "input_tokens": 0, "output_tokens": 0}
    named = {"id": "q/1@1", "queue": "q", "job_id": "1", "name": "n", "worker": "w", "input": "{}"}
    attempt = {"fence": fence, "attempt": 1, "attempts": 1, "status": status, "output": output}
    return json.dumps({**started, **empty, **counts, **named, **attempt})


STEP = json.dumps(
    [
        {
            "run_id": "q/1@1", "key": "paid", "kind": "step", "inputs": "", "output": '"once"', "fence": 1,
            "attempt_started_at": 1, "started_at": 1, "ms": 1.0,
        }
    ]
)  # fmt: skip


@pytest.mark.parametrize("row", ["is not there yet", "is there"])
async def test_a_step_and_the_claim_of_its_run_by_a_later_attempt_never_overlap(runs_url: str, row: str):
    """A zombie's step commits while its heir claims the run: the heir must see it, or the zombie must be refused."""
    one, other = await asyncpg.connect(runs_url), await asyncpg.connect(runs_url)
    write, claim = "select oxherd.write_batch(null, $1)", "select oxherd.begin_run($1)"
    if row == "is there":
        await one.fetchval("select oxherd.write_batch($1, null)", f"[{run_row(fence=1)}]")

    first = one.transaction()
    await first.start()
    assert json.loads(await one.fetchval(write, STEP)) == {"runs": None, "steps": None}
    claiming = asyncio.create_task(other.fetchval(claim, run_row(fence=2)))
    await asyncio.sleep(0.1)
    assert not claiming.done(), "the claim must wait for the step's fate"
    await first.commit()
    assert [step["key"] for step in json.loads(await claiming)["steps"]] == ["paid"]

    first = one.transaction()
    await first.start()
    await one.fetchval(claim, run_row(fence=3))
    writing = asyncio.create_task(other.fetchval(write, STEP))
    await asyncio.sleep(0.1)
    assert not writing.done(), "the step must wait for the claim"
    await first.commit()
    assert json.loads(await writing)["steps"] == [1], "the step is refused"
    await one.close()
    await other.close()


async def test_a_result_survives_the_same_attempt_beginning_again(runs_url: str):
    """Redis forgot, in a failover, that the job was finished: the worker finds it active and its own, and claims it."""
    connection = await asyncpg.connect(runs_url)
    done = run_row(fence=1, status="completed", output='{"answer":42}')
    await connection.fetchval("select oxherd.write_batch($1, null)", f"[{done}]")
    begun = json.loads(await connection.fetchval("select oxherd.begin_run($1)", run_row(fence=1)))
    assert (begun["allowed"], begun["output"]) == (True, '{"answer":42}')
    await connection.close()


async def test_a_finished_job_that_redis_forgot_in_a_failover_is_not_run_again(stage: Stage, runs_url: str):
    store = PostgresStore(runs_url)
    await store.start()
    ran: Counter[str] = Counter()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        ran[ctx.job.id] += 1
        return "once"

    worker = await stage.worker({"work": work}, store=store, lock_ms=20_000)
    k = stage.keys
    token: list[bytes] = []
    stage.happened.on(JobStarted, lambda event: token.append(worker.running[event.id].job.token.encode()))
    job = await stage.add("work")
    await stage.finished(job)
    # What a replica that lagged behind would still have: the job active, with our lease.
    await stage.link.call(b"ZREM", k.completed, job)
    await stage.link.call(b"HDEL", k.job(job), b"returnvalue", b"finishedOn", b"atm")
    await stage.link.call(b"LPUSH", k.active, job)
    await stage.link.call(b"SET", k.lock(job), token[0], b"PX", 20_000)
    worker.consumer.link.drop()
    await stage.on_stream(job, "completed", count=2)
    assert ran == {job: 1}
    assert (await stage.job(job))["returnvalue"] == "once"
    await worker.stop()
    await store.stop()


@pytest.mark.parametrize("child", ["open", "failed"])
async def test_a_parent_that_may_not_complete_is_recorded_as_the_queue_has_it(stage: Stage, runs_url: str, child: str):
    """Its handler has returned, its result is stored, and then the queue refuses: the store must not say completed."""
    store = PostgresStore(runs_url)
    await store.start()

    async def parent(ctx: Context, payload: dict[str, Any]) -> str:
        await ctx.spawn("child", {}, delay=0 if child == "failed" else 60_000, failParentOnFailure=True)
        if child == "failed":
            await eventually(lambda: has_failed_child(stage, ctx.job.id))
        return "done, or so it thinks"

    async def fails(ctx: Context, payload: dict[str, Any]) -> None:
        raise Fatal("no")

    worker = await stage.worker({"parent": parent, "child": fails}, store=store)
    job = await stage.add("parent")
    assert await stage.finished(job) == ["failed"]
    run = await store.run(f"{stage.keys.queue}/{job}@{(await stage.job(job))['timestamp']}")
    assert run is not None
    assert (run["status"], run["output"]) == ("failed", None)
    await worker.stop()
    await store.stop()


async def has_failed_child(stage: Stage, job: str) -> bool:
    return bool(await stage.link.call(b"ZCARD", stage.keys.job(job) + b":unsuccessful"))


async def test_a_postgres_that_is_not_there_at_the_start_is_exit_code_3(start: Start):
    worker = await start(ready=False, database_url="postgresql://someone:secret@127.0.0.1:9/runs")
    assert await worker.exited() == 3
    assert "127.0.0.1:9" in worker.stderr
    assert "secret" not in worker.stderr
