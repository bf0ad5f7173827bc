"""Promise 6: error attempts, crashes and deploys are counted apart, and a job that kills its workers is taken out."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from process import Start
from redis import Redis
from stage import Stage

from oxherd.context import Context
from oxherd.errors import Fatal, RetryLater
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat
from oxherd.telemetry.events import InternalFault, JobEnded, JobStarted


async def test_a_job_that_kills_its_workers_is_quarantined_and_others_are_not_harmed(
    stage: Stage, start: Start, witness: Redis, runs_url: str
):
    settings = {"JOB_CRASH_LIMIT": "2", "JOB_CONCURRENCY": "1", "database_url": runs_url, "lock_ms": 700}
    poison = await stage.add("poison", attempts=5)
    others = [await stage.add("ok") for _ in range(5)]
    workers = 0
    while not stage.stream.finishes(poison):
        worker = await start(ready=False, **settings)  # it may die before it is
        workers += 1
        gone = asyncio.create_task(worker.exited(within=60))
        done = asyncio.create_task(stage.finished(poison, within=60))
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
    await stage.settle_ledger(poison, *others, failed=1)
    assert workers == 4, "three of them died: the first crash and two more are allowed"
    shown = await stage.job(poison)
    assert shown["stalled"] == 3
    assert shown["attempts_made"] == 1, "only the quarantine itself, no error attempt was spent"
    assert "quarantined" in shown["failed_reason"]
    assert "3 times" in shown["failed_reason"]
    assert int(witness.get(f"saw:poison:{stage.keys.queue}:{poison}")) == 3
    assert (await worker.said("job.ended", id=poison))["kind"] == "quarantined"


async def test_a_quarantined_job_that_a_person_retries_gets_another_chance(stage: Stage):
    async def fine(ctx: Context, payload: dict[str, Any]) -> str:
        return "fine now"

    job = await stage.add("fine")
    k = stage.keys
    await stage.link.call(b"HSET", k.job(job), b"stc", 3, b"defa", b"job stalled more than allowable limit")
    await stage.worker({"fine": fine})
    assert await stage.finished(job) == ["failed"]
    await stage.admin.retry(job)
    await stage.on_stream(job, "completed")
    assert (await stage.job(job))["returnvalue"] == "fine now"


async def test_a_scheduled_job_that_kills_its_workers_is_quarantined_too(stage: Stage):
    """BullMQ's script spares it for ever; the next iteration is another job and gets its own chances."""

    async def tick(ctx: Context, payload: dict[str, Any]) -> None: ...

    job = await stage.producer.schedule("tick", Repeat(every=60_000), NewJob("tick"))
    await stage.link.call(b"HSET", stage.keys.job(job), b"stc", 3)
    await stage.worker({"tick": tick}, crash_limit=2)
    assert await stage.finished(job) == ["failed"]
    assert "quarantined" in (await stage.job(job))["failed_reason"]
    assert (await stage.admin.counts())["delayed"] == 1


async def test_the_three_budgets_do_not_touch_each_other(stage: Stage):
    """Two errors, a deploy, a crash and a RetryLater in one job's life, with three attempts allowed."""
    script = iter(["error", "later", "deploy", "crash", "error", "done"])
    acts: list[str] = []
    waiting = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        acts.append(next(script))
        match acts[-1]:
            case "error":
                raise ValueError("an error")
            case "later":
                raise RetryLater(0.01)
            case "done":
                return "done"
        waiting.set()
        await asyncio.sleep(60)
        return "never"

    worker = await stage.worker({"work": work})
    job = await stage.add("work", attempts=3)
    await waiting.wait()  # the deploy
    waiting.clear()
    await worker.stop(grace=0)
    worker = await stage.worker({"work": work})
    await waiting.wait()  # the crash: the lease is gone as if its worker had died
    worker.leases.let_go(job)
    await stage.link.call(b"DEL", stage.keys.lock(job))
    assert await stage.finished(job) == ["completed"]
    shown = await stage.job(job)
    assert acts == ["error", "later", "deploy", "crash", "error", "done"]
    assert (shown["attempts_made"], shown["stalled"], shown["attempts_started"]) == (3, 1, 6)


async def test_retry_later_spends_no_attempt_however_often(stage: Stage):
    ran: Counter[str] = Counter()

    async def later(ctx: Context, payload: dict[str, Any]) -> str:
        ran[ctx.job.id] += 1
        if ran[ctx.job.id] <= 5:
            raise RetryLater(0.001)
        assert ctx.attempt == 1
        return "at last"

    await stage.worker({"later": later})
    job = await stage.add("later", attempts=1)
    await stage.settle_ledger(job)
    assert ran[job] == 6
    assert (await stage.job(job))["attempts_made"] == 1


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -5, 1e30, "soon", None])
async def test_an_odd_retry_later_is_no_fault_of_ours(stage: Stage, seconds: Any):
    async def later(ctx: Context, payload: dict[str, Any]) -> str:
        if ctx.job.attempts_started == 1:
            raise RetryLater(seconds)
        return "done"

    await stage.worker({"later": later})
    job = await stage.add("later")
    [ended] = await stage.happened.wait(JobEnded, id=job)
    assert ended.outcome in ("delayed", "failed")
    assert not stage.happened.all(InternalFault)


async def test_fatal_is_not_retried_and_plain_errors_are(stage: Stage):
    ran: Counter[str] = Counter()

    async def fails(ctx: Context, payload: dict[str, Any]) -> None:
        ran[ctx.job.id] += 1
        raise {"fatal": Fatal, "plain": ValueError}[payload["how"]]("no")

    await stage.worker({"fails": fails})
    fatal = await stage.add("fails", {"how": "fatal"}, attempts=5)
    plain = await stage.add("fails", {"how": "plain"}, attempts=3, backoff=5)
    await stage.settle_ledger(fatal, plain, failed=2)
    assert ran == {fatal: 1, plain: 3}
    assert len((await stage.job(plain))["stacktrace"]) == 3


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Odd(Exception):
    pass


ODD_ENDS = {
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "cancelled": asyncio.CancelledError(),
    "stop": StopIteration(),
    "stop-async": StopAsyncIteration(),
    "unprintable": Unprintable(),
    "surrogate": Odd("half a pair: \ud800"),
    "null": Odd("a\0b"),
    "endless": Odd("x" * 5_000_000),
    "empty": Odd(),
    "group": ExceptionGroup("many", [Odd("one"), Odd("two")]),
}


@pytest.mark.parametrize("handler", ["async", "thread"])
@pytest.mark.parametrize("end", ODD_ENDS)
async def test_whatever_a_handler_raises_ends_its_job_and_nothing_else(stage: Stage, end: str, handler: str):
    async def odd(ctx: Context, payload: dict[str, Any]) -> None:
        raise ODD_ENDS[end]

    def odd_in_thread(ctx: Context, payload: dict[str, Any]) -> None:
        raise ODD_ENDS[end]

    async def ok(ctx: Context, payload: dict[str, Any]) -> None: ...

    worker = await stage.worker({"odd": odd if handler == "async" else odd_in_thread, "ok": ok}, concurrency=2)
    jobs = [await stage.add("odd") for _ in range(3)]
    jobs += [await stage.add("ok") for _ in range(3)]
    await stage.settle_ledger(*jobs, failed=3)
    assert len((await stage.job(jobs[0]))["failed_reason"]) < 5_000
    assert not stage.happened.all(InternalFault)
    assert not worker.running
    assert worker.taking


async def test_results_that_json_can_not_hold_fail_once_with_the_reason(stage: Stage):
    ran: Counter[str] = Counter()
    results = {"object": object(), "surrogate": "\ud800", "bytes": b"x", "loop": (loop := [])}
    loop.append(loop)

    async def work(ctx: Context, payload: dict[str, Any]) -> Any:
        ran[ctx.job.id] += 1
        return results[payload["result"]]

    await stage.worker({"work": work})
    jobs = [await stage.add("work", {"result": name}, attempts=3) for name in results]
    await stage.settle_ledger(*jobs, failed=len(jobs))
    assert set(ran.values()) == {1}
    for job in jobs:
        assert "can't be written as JSON" in (await stage.job(job))["failed_reason"]
    assert len(stage.happened.all(JobStarted)) == len(jobs)
