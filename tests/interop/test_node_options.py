"""Every option that a Node producer can give a job is honoured by our worker."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.clock import wall_ms
from oxherd.context import Context
from oxherd.worker.worker import Limits

ONE = Limits(concurrency=1)


async def work(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    return payload


async def fail(ctx: Context, payload: dict[str, Any]) -> None:
    raise RuntimeError(f"attempt {ctx.attempt}")


# -- order

MIXED = [
    {},
    {"priority": 5},
    {"lifo": True},
    {"priority": 1},
    {},
    {"priority": 5, "lifo": True},
    {"priority": 2_097_151},
    {"lifo": True},
    {"priority": 1},
    {"delay": 1},
    {"delay": 1, "priority": 1},
]


async def test_jobs_run_in_the_order_in_which_node_would_run_them(queue: Queue, open_queue: Any) -> None:
    theirs = await open_queue(f"{queue.name}-node")
    for one in (queue, theirs):
        for place, opts in enumerate(MIXED):
            await one.add("work", {"place": place}, **opts)
    await asyncio.sleep(0.02)  # the delays have passed
    await queue.work(work=work, limits=ONE)
    await queue.node("work", theirs.name, {"concurrency": 1})
    orders = [[one.args["jobId"] for one in await side.event("active", times=len(MIXED))] for side in (queue, theirs)]
    assert orders[0] == orders[1]


# -- delay


async def test_a_delayed_job_starts_when_it_is_due(queue: Queue) -> None:
    started = asyncio.get_running_loop().create_future()

    async def later(ctx: Context, payload: dict[str, Any]) -> None:
        started.set_result(wall_ms())

    await queue.work(later=later)
    added = wall_ms()
    await queue.add("later", delay=300)
    assert 300 <= await started - added < 800


async def test_an_idle_worker_notices_that_a_delay_is_cut_short(queue: Queue) -> None:
    await queue.work(work=work)
    job_id = await queue.add("work", delay=3_600_000)
    await queue.on_job(job_id, "changeDelay", 100)
    await queue.finish(job_id)


async def test_a_delayed_job_that_node_promotes_runs_at_once(queue: Queue) -> None:
    await queue.work(work=work)
    job_id = await queue.add("work", delay=3_600_000)
    await queue.on_job(job_id, "promote")
    await queue.finish(job_id)


async def test_node_changes_data_and_priority_of_a_waiting_job(queue: Queue) -> None:
    first, second = [await queue.add("work", {"n": n}, priority=9) for n in (1, 2)]
    await queue.on_job(second, "changePriority", {"priority": 3})
    await queue.on_job(second, "updateData", {"n": "two"})
    await queue.work(work=work, limits=ONE)
    assert await queue.finish(second) == {"value": {"n": "two"}}
    await queue.finish(first)
    assert [one.args["jobId"] for one in await queue.event("active", times=2)] == [second, first]


# -- attempts and backoff


async def starts_of(queue: Queue, **opts: Any) -> list[int]:
    """Wall ms at which each attempt of a job that always fails began, and at which the last one had failed."""
    starts = []

    async def failing(ctx: Context, payload: dict[str, Any]) -> None:
        starts.append(wall_ms())
        raise RuntimeError("no")

    await queue.work(failing=failing)
    job_id = await queue.add("failing", **opts)
    await queue.event("failed", jobId=job_id)
    return starts


def gaps(starts: list[int]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(starts)]


@pytest.mark.parametrize(
    ("backoff", "pauses"),
    [
        (None, [0, 0]),
        (60, [60, 60]),
        ({"type": "fixed", "delay": 60}, [60, 60]),
        ({"type": "exponential", "delay": 40}, [40, 80]),
        ({"type": "tidal", "delay": 60}, [60, 60]),
    ],
    ids=["none", "number", "fixed", "exponential", "custom counts as fixed"],
)
async def test_a_failed_attempt_is_repeated_after_the_pause_asked_for(
    queue: Queue, backoff: Any, pauses: list[int]
) -> None:
    starts = await starts_of(queue, attempts=3, **({"backoff": backoff} if backoff else {}))
    assert len(starts) == 3
    for gap, pause in zip(gaps(starts), pauses, strict=True):
        assert pause <= gap < pause + 200


@pytest.mark.parametrize("kind", ["fixed", "exponential"])
async def test_jitter_shortens_the_pause_by_its_share_at_most(queue: Queue, kind: str) -> None:
    starts = await starts_of(queue, attempts=4, backoff={"type": kind, "delay": 50, "jitter": 0.5})
    most = [50, 50, 50] if kind == "fixed" else [50, 100, 200]
    for gap, longest in zip(gaps(starts), most, strict=True):
        assert longest // 2 <= gap < longest + 200


@pytest.mark.parametrize("opts", [{}, {"attempts": 0}, {"attempts": 1}], ids=str)
async def test_a_job_without_further_attempts_fails_at_once(queue: Queue, opts: dict[str, Any]) -> None:
    assert len(await starts_of(queue, **opts)) == 1


async def test_a_repeated_job_keeps_its_priority(queue: Queue) -> None:
    await queue.work(fail=fail, limits=ONE)
    job_id = await queue.add("fail", priority=7, attempts=2, backoff=30)
    await queue.event("failed", jobId=job_id)
    assert (await queue.job(job_id))["priority"] == 7


# -- what is kept


async def test_a_finished_job_is_removed_where_that_was_asked_for(queue: Queue) -> None:
    await queue.work(work=work, fail=fail)
    gone = [await queue.add("work", removeOnComplete=True), await queue.add("fail", removeOnFail=True)]
    kept = [await queue.add("fail", removeOnComplete=True), await queue.add("work", removeOnFail=True)]
    await queue.event("completed", times=2)
    await queue.event("failed", times=2)
    assert [await queue.job(job_id) for job_id in gone] == [None, None]
    assert None not in [await queue.job(job_id) for job_id in kept]


@pytest.mark.parametrize("keep", [2, {"count": 2}], ids=["number", "count"])
@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_as_many_finished_jobs_are_kept_as_was_asked_for(queue: Queue, state: str, keep: Any) -> None:
    name, option = ("work", "removeOnComplete") if state == "completed" else ("fail", "removeOnFail")
    job_ids = [await queue.add(name, **{option: keep}) for _ in range(5)]
    await queue.work(work=work, fail=fail, limits=ONE)
    await queue.event(state, times=5)
    left = await queue.call("getJobs", [state])
    assert sorted(job["id"] for job in left) == job_ids[-2:]


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_finished_jobs_past_their_age_go_when_the_next_one_ends(queue: Queue, state: str) -> None:
    name, option = ("work", "removeOnComplete") if state == "completed" else ("fail", "removeOnFail")
    await queue.work(work=work, fail=fail)
    old = await queue.add(name, **{option: {"age": 60}})
    await queue.event(state, jobId=old)
    await queue.raw("ZADD", queue.keys.state(state), "XX", wall_ms() - 61_000, old)
    new = await queue.add(name, **{option: {"age": 60}})
    await queue.event(state, jobId=new)
    assert await queue.job(old) is None
    assert await queue.job(new) is not None


async def test_the_newest_lines_of_a_log_are_kept(queue: Queue) -> None:
    async def chatty(ctx: Context, payload: dict[str, Any]) -> None:
        for n in range(5):
            await ctx.log(f"line {n}")

    await queue.work(chatty=chatty)
    job_id = await queue.add("chatty", keepLogs=2)
    await queue.finish(job_id)
    assert await queue.call("getJobLogs", job_id) == {"logs": ["line 3", "line 4"], "count": 2}


@pytest.mark.parametrize(("limit", "left"), [(0, []), (2, [2, 3]), (9, [1, 2, 3])])
async def test_as_many_stack_traces_are_kept_as_was_asked_for(queue: Queue, limit: int, left: list[int]) -> None:
    await queue.work(fail=fail)
    job_id = await queue.add("fail", attempts=3, stackTraceLimit=limit)
    await queue.event("failed", jobId=job_id)
    job = await queue.job(job_id)
    assert job["failedReason"] == "attempt 3"
    assert [stack.splitlines()[-1] for stack in job["stacktrace"]] == [f"RuntimeError: attempt {n}" for n in left]


# -- identity


async def test_a_second_job_with_the_same_id_is_not_added(queue: Queue) -> None:
    first = await queue.add("work", {"n": 1}, jobId="order-ü-1")
    second = await queue.add("work", {"n": 2}, jobId="order-ü-1")
    await queue.work(work=work)
    assert first == second == "order-ü-1"
    assert await queue.finish(first) == {"value": {"n": 1}}
    await queue.event("duplicated", jobId=first)
    await queue.event("drained")
    assert len(queue.seen("active")) == 1


async def test_a_deduplicated_job_may_come_again_once_the_first_has_ended(queue: Queue) -> None:
    first = await queue.add("work", deduplication={"id": "d"})
    assert await queue.add("work", deduplication={"id": "d"}) == first
    await queue.event("deduplicated", jobId=first)
    await queue.work(work=work)
    await queue.finish(first)
    assert await queue.add("work", deduplication={"id": "d"}) != first


async def test_a_throttled_job_may_come_again_only_after_its_time(queue: Queue) -> None:
    await queue.work(work=work)
    throttle = {"id": "d", "ttl": 400}
    first = await queue.add("work", deduplication=throttle)
    added = wall_ms()
    await queue.finish(first)
    assert await queue.add("work", deduplication=throttle) == first
    await asyncio.sleep(0.41 - (wall_ms() - added) / 1000)
    assert await queue.add("work", deduplication=throttle) != first


async def test_a_debounced_job_runs_once_with_the_last_data(queue: Queue) -> None:
    await queue.work(work=work)
    debounce = {"id": "d", "ttl": 300, "extend": True, "replace": True}
    job_ids = [await queue.add("work", {"n": n}, delay=300, deduplication=debounce) for n in range(3)]
    assert await queue.finish(job_ids[-1]) == {"value": {"n": 2}}
    await queue.event("drained")
    assert len(queue.seen("active")) == 1


async def test_the_last_of_those_that_came_while_one_ran_is_run_after_it(queue: Queue) -> None:
    running, go = asyncio.Event(), asyncio.Event()

    async def slow(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        running.set()
        await go.wait()
        return payload

    await queue.work(slow=slow)
    keep = {"id": "d", "keepLastIfActive": True}
    await queue.add("slow", {"n": 0}, deduplication=keep)
    await running.wait()
    for n in (1, 2, 3):
        await queue.add("slow", {"n": n}, deduplication=keep)
    go.set()
    done = await queue.event("completed", times=2)
    assert [one.args["returnvalue"] for one in done] == [{"n": 0}, {"n": 3}]


# -- the rest


async def test_a_job_within_its_size_limit_runs(queue: Queue) -> None:
    await queue.work(work=work)
    job_id = await queue.add("work", {"text": "12345"}, sizeLimit=100)
    assert await queue.finish(job_id) == {"value": {"text": "12345"}}


async def test_node_counts_finished_jobs_in_its_metrics(queue: Queue) -> None:
    await queue.work(work=work, fail=fail)
    for name in ("work", "work", "fail"):
        await queue.add(name)
    await queue.event("completed", times=2)
    await queue.event("failed")
    assert (await queue.call("getMetrics", "completed"))["meta"]["count"] == 2
    assert (await queue.call("getMetrics", "failed"))["meta"]["count"] == 1
