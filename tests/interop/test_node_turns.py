"""Tenants take turns in our workers; Node adds their jobs, and sees, changes and runs those that were put aside."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from shared_queue import Queue
from test_node_options import MIXED

from oxherd.context import Context
from oxherd.queue.turns import Turns
from oxherd.worker.worker import Limits

ONE_EACH = Limits(concurrency=5, turns=Turns(1))


class Held:
    """A handler that waits until it may go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def work(self, ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        await self.go.wait()
        await asyncio.sleep(payload.get("sleep", 0) / 1000)
        return {"by": "oxherd", "data": payload}


@pytest.fixture
async def held() -> Held:
    return Held()


async def add(queue: Queue, tenant: str, many: int, **data: Any) -> list[str]:
    jobs = [{"name": "work", "data": {"tenant": tenant, **data}}] * many
    return [job["id"] for job in await queue.call("addBulk", jobs)]


async def put_aside(queue: Queue, held: Held, eventually: Any, many: int = 4) -> tuple[str, list[str]]:
    """A job of a tenant that runs, and those that are put aside meanwhile."""
    await queue.work(work=held.work, limits=ONE_EACH)
    first, *rest = await add(queue, "a", many + 1)

    async def settled() -> bool:
        return await queue.counts() == {"active": 1, "prioritized": many}

    await eventually(settled)
    return first, rest


async def test_both_kinds_of_workers_share_tenants_jobs_and_each_runs_once(queue: Queue, held: Held) -> None:
    held.go.set()
    many = await add(queue, "a", 300, sleep=4)
    few = await add(queue, "b", 3, sleep=4)
    await queue.work(work=held.work)
    await queue.node("work", queue.name, {"concurrency": 5})
    done = await queue.event("completed", times=303)
    assert Counter(one.args["jobId"] for one in done) == Counter([*many, *few])
    assert Counter(one.args["jobId"] for one in queue.seen("active")) == Counter([*many, *few])
    shares = Counter(one.args["returnvalue"]["by"] for one in done)
    assert min(shares.values()) > 30
    places = [one.args["jobId"] for one in queue.seen("active")]
    assert max(places.index(one) for one in few) < 60, "Node takes what is left for it, in the old order"


async def test_a_tenant_s_jobs_run_in_the_order_in_which_node_would_run_them(queue: Queue, open_queue: Any) -> None:
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        pass

    theirs = await open_queue(f"{queue.name}-node")
    for one in (queue, theirs):
        for opts in MIXED:
            await one.add("work", {"tenant": "a"}, **opts)
    await asyncio.sleep(0.02)  # the delays have passed
    await queue.work(work=work, limits=Limits(concurrency=1))
    await queue.node("work", theirs.name, {"concurrency": 1})
    orders = [[one.args["jobId"] for one in await side.event("active", times=len(MIXED))] for side in (queue, theirs)]
    assert orders[0] == orders[1]


async def test_node_sees_removes_and_changes_jobs_that_were_put_aside(
    queue: Queue, held: Held, eventually: Any
) -> None:
    first, (second, third, fourth, fifth) = await put_aside(queue, held, eventually)
    assert await queue.on_job(second, "getState") == "prioritized"
    assert [job["id"] for job in await queue.call("getJobs", ["prioritized"], 0, -1, True)] == [
        second, third, fourth, fifth,
    ]  # fmt: skip
    await queue.on_job(second, "remove")
    await queue.on_job(third, "changePriority", {"priority": 7})
    await queue.on_job(fourth, "updateData", {"tenant": "a", "new": True})
    held.go.set()
    assert (await queue.finish(fourth))["value"]["data"]["new"] is True
    await queue.event("completed", times=4)
    assert [one.args["jobId"] for one in queue.seen("active")] == [first, fourth, fifth, third]


async def test_node_drains_and_obliterates_jobs_that_were_put_aside(queue: Queue, held: Held, eventually: Any) -> None:
    first, _ = await put_aside(queue, held, eventually)
    await queue.call("drain")
    assert await queue.counts() == {"active": 1}
    held.go.set()
    await queue.finish(first)
    held.go.clear()
    running, *_ = await add(queue, "a", 4)
    await queue.event("active", jobId=running)
    await queue.call("obliterate", {"force": True})
    held.go.set()
    await queue.call("resume")
    [last] = await add(queue, "a", 1)
    assert "value" in await queue.finish(last)
    assert await queue.raw("KEYS", queue.keys.turns + b"*") == []


async def test_no_job_put_aside_is_lost_while_node_pauses_and_resumes(
    queue: Queue, held: Held, eventually: Any
) -> None:
    first, rest = await put_aside(queue, held, eventually)
    await queue.call("pause")
    more = await add(queue, "a", 3)
    held.go.set()
    await queue.finish(first)
    await asyncio.sleep(0.05)
    assert [one.args["jobId"] for one in queue.seen("active")] == [first]
    await queue.call("resume")
    await queue.event("completed", times=8)
    assert [one.args["jobId"] for one in queue.seen("active")] == [first, *rest, *more]


async def test_a_node_worker_runs_what_our_last_worker_left_put_aside(
    queue: Queue, held: Held, eventually: Any
) -> None:
    worker = await queue.work(work=held.work, limits=ONE_EACH)
    jobs = await add(queue, "a", 5)

    async def settled() -> bool:
        return await queue.counts() == {"active": 1, "prioritized": 4}

    await eventually(settled)
    await worker.stop(grace=0)
    await queue.node("work", queue.name, {"concurrency": 1})
    await queue.event("completed", times=5)
    assert [one.args["jobId"] for one in queue.seen("active")] == [jobs[0], *jobs]


async def test_a_deduplicated_job_that_is_put_aside_counts_as_waiting(
    queue: Queue, held: Held, eventually: Any
) -> None:
    first, _ = await put_aside(queue, held, eventually, many=1)
    once = {"deduplication": {"id": "report", "ttl": 60_000, "extend": True, "replace": True}}
    waiting = await queue.add("work", {"tenant": "a", "n": 1}, **once)

    async def settled() -> bool:
        return await queue.counts() == {"active": 1, "prioritized": 2}

    await eventually(settled)
    assert await queue.add("work", {"tenant": "a", "n": 2}, **once) == waiting
    held.go.set()
    assert (await queue.finish(waiting))["value"]["data"]["n"] == 1
    await queue.finish(first)


async def test_a_node_worker_s_jobs_count_for_their_tenants(queue: Queue, held: Held, eventually: Any) -> None:
    await queue.node("work", queue.name, {"concurrency": 1})
    [theirs] = await add(queue, "a", 1, sleep=1500)
    await queue.event("active", jobId=theirs)
    await queue.work(work=held.work, limits=ONE_EACH)
    [ours] = await add(queue, "a", 1)
    [other] = await add(queue, "b", 1)
    await queue.event("active", jobId=other)
    assert not queue.seen("active", jobId=ours)
    held.go.set()
    await queue.finish(theirs)
    await queue.finish(ours)
