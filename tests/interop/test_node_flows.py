"""Trees of jobs from Node's FlowProducer: children first, then their parent, whatever the children do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.context import Context
from oxherd.errors import WaitForChildren


async def leaf(ctx: Context, payload: dict[str, Any]) -> Any:
    return payload.get("n")


async def fail(ctx: Context, payload: dict[str, Any]) -> None:
    raise RuntimeError("a child broke")


async def total(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    return await ctx.children()


def job(
    queue: Queue, name: str, job_id: str, *children: dict[str, Any], data: Any = None, **opts: Any
) -> dict[str, Any]:
    """A node of a tree as FlowProducer takes it."""
    return {
        "name": name,
        "queueName": queue.name,
        "data": data or {},
        "opts": {"jobId": job_id, **opts},
        "children": list(children),
    }


async def add(queue: Queue, tree: dict[str, Any]) -> str:
    return (await queue.node("flow", tree))["id"]


async def test_a_parent_gets_the_values_of_its_children(queue: Queue) -> None:
    children = [job(queue, "leaf", f"c{n}", data={"n": n}) for n in range(3)]
    parent = await add(queue, job(queue, "total", "p", *children))
    await queue.work(leaf=leaf, total=total)
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:c{n}": n for n in range(3)}}
    completed = await queue.event("completed", times=4)
    assert completed[-1].args["jobId"] == parent
    assert await queue.on_job(parent, "getDependenciesCount") == {
        "processed": 3,
        "unprocessed": 0,
        "ignored": 0,
        "failed": 0,
    }


async def test_a_tree_grows_over_levels_and_queues(queue: Queue, open_queue: Any) -> None:
    other = await open_queue(f"{queue.name}-other")
    leaves = [job(other, "leaf", f"leaf{n}", data={"n": n}) for n in range(2)]
    middle = job(queue, "total", "middle", *leaves)
    root = await add(other, job(other, "total", "root", middle))
    await queue.work(total=total)
    await other.work(leaf=leaf, total=total)
    values = {f"bull:{other.name}:leaf{n}": n for n in range(2)}
    assert await other.finish(root) == {"value": {f"bull:{queue.name}:middle": values}}


async def test_a_parent_with_a_delay_and_one_with_a_priority_run_too(queue: Queue) -> None:
    parents = [
        await add(queue, job(queue, "total", name, job(queue, "leaf", f"{name}-c"), **opts))
        for name, opts in {"later": {"delay": 100}, "urgent": {"priority": 1}}.items()
    ]
    await queue.work(leaf=leaf, total=total)
    for parent in parents:
        assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:{parent}-c": None}}


async def test_a_parent_waits_while_a_child_is_repeated(queue: Queue) -> None:
    async def flaky(ctx: Context, payload: dict[str, Any]) -> int:
        if ctx.attempt == 1:
            raise RuntimeError("once")
        return ctx.attempt

    child = job(queue, "flaky", "c", attempts=2, backoff=50)
    parent = await add(queue, job(queue, "total", "p", child))
    await queue.work(flaky=flaky, total=total)
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:c": 2}}


async def test_a_failed_child_keeps_its_parent_waiting_where_nothing_else_was_asked_for(queue: Queue) -> None:
    parent = await add(queue, job(queue, "total", "p", job(queue, "fail", "c")))
    await queue.work(fail=fail, total=total)
    await queue.event("failed", jobId="c")
    assert await queue.on_job(parent, "getState") == "waiting-children"


async def test_a_parent_goes_on_once_node_retries_the_failed_child(queue: Queue) -> None:
    broken = True

    async def mended(ctx: Context, payload: dict[str, Any]) -> str:
        if broken:
            raise RuntimeError("not yet")
        return "ok"

    parent = await add(queue, job(queue, "total", "p", job(queue, "mended", "c")))
    await queue.work(mended=mended, total=total)
    await queue.event("failed", jobId="c")
    broken = False
    await queue.on_job("c", "retry")
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:c": "ok"}}


async def test_fail_parent_on_failure_fails_the_parent_unrun_as_node_does(queue: Queue, open_queue: Any) -> None:
    theirs = await open_queue(f"{queue.name}-node")
    for one in (queue, theirs):
        child = job(one, "fail", "c", data={"fail": "a child broke"}, failParentOnFailure=True)
        middle = job(one, "total", "m", child, failParentOnFailure=True)
        await add(one, job(one, "total", "p", middle))
    await queue.work(fail=fail, total=total)
    await theirs.node("work", theirs.name)
    reasons = [
        [(await one.finish(job_id))["error"].replace(one.name, "q") for job_id in ("c", "m", "p")]
        for one in (queue, theirs)
    ]
    assert reasons[0] == reasons[1] == ["a child broke", "child bull:q:c failed", "child bull:q:m failed"]
    assert [one.args["jobId"] for one in await queue.event("failed", times=3)] == ["c", "m", "p"]


@pytest.mark.parametrize("option", ["ignoreDependencyOnFailure", "removeDependencyOnFailure"])
async def test_a_parent_may_do_without_a_failed_child(queue: Queue, option: str) -> None:
    children = [job(queue, "fail", "bad", **{option: True}), job(queue, "leaf", "good", data={"n": 1})]
    parent = await add(queue, job(queue, "total", "p", *children))
    await queue.work(fail=fail, leaf=leaf, total=total)
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:good": 1}}
    ignored = await queue.on_job(parent, "getIgnoredChildrenFailures")
    assert ignored == ({f"bull:{queue.name}:bad": "a child broke"} if option.startswith("ignore") else {})


async def test_continue_parent_on_failure_starts_the_parent_while_others_still_run(queue: Queue) -> None:
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(ctx: Context, payload: dict[str, Any]) -> str:
        await finish.wait()
        return "slow but sure"

    async def early(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        if not started.is_set():
            started.set()
            raise WaitForChildren
        return await ctx.children()

    children = [job(queue, "fail", "bad", continueParentOnFailure=True), job(queue, "slow", "good")]
    parent = await add(queue, job(queue, "early", "p", *children))
    await queue.work(fail=fail, slow=slow, early=early)
    await asyncio.wait_for(started.wait(), 5)
    assert await queue.on_job("good", "getState") == "active"
    await queue.event("waiting-children", jobId=parent)
    finish.set()
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:good": "slow but sure"}}


async def test_a_parent_that_returns_while_children_are_open_fails(queue: Queue) -> None:
    finish = asyncio.Event()

    async def slow(ctx: Context, payload: dict[str, Any]) -> None:
        await finish.wait()

    children = [job(queue, "fail", "bad", continueParentOnFailure=True), job(queue, "slow", "good")]
    parent = await add(queue, job(queue, "total", "p", *children))
    await queue.work(fail=fail, slow=slow, total=total)
    assert "children are open" in (await queue.finish(parent))["error"]
    finish.set()
    await queue.event("completed", jobId="good")


async def test_children_may_be_removed_as_soon_as_they_are_done(queue: Queue) -> None:
    children = [job(queue, "leaf", f"c{n}", data={"n": n}, removeOnComplete=True) for n in range(3)]
    parent = await add(queue, job(queue, "total", "p", *children))
    await queue.work(leaf=leaf, total=total)
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:c{n}": n for n in range(3)}}


async def test_a_child_added_while_the_parent_runs_is_waited_for(queue: Queue) -> None:
    async def grow(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
        if ctx.job.attempts_started > 1:
            return await ctx.children()
        parent = {"id": ctx.job.id, "queue": queue.keys.qualified}
        await queue.add("leaf", {"n": 5}, jobId="late", parent=parent, delay=50)
        raise WaitForChildren

    parent = await queue.add("grow", jobId="p")
    await queue.work(leaf=leaf, grow=grow)
    assert await queue.finish(parent) == {"value": {f"bull:{queue.name}:late": 5}}
    assert (await queue.job(parent))["attemptsMade"] == 1


async def test_children_are_shared_with_a_node_worker(queue: Queue, open_queue: Any) -> None:
    other = await open_queue(f"{queue.name}-other")
    theirs = job(other, "leaf", "theirs", data={"n": 1})
    parent = await add(queue, job(queue, "total", "p", theirs, job(queue, "leaf", "ours", data={"n": 2})))
    await queue.work(leaf=leaf, total=total)
    await other.node("work", other.name)
    value = (await queue.finish(parent))["value"]
    assert value[f"bull:{queue.name}:ours"] == 2
    assert value[f"bull:{other.name}:theirs"]["data"] == {"n": 1}


async def test_node_s_parent_gets_the_values_of_our_children(queue: Queue, open_queue: Any) -> None:
    other = await open_queue(f"{queue.name}-other")
    ours = job(queue, "leaf", "ours", data={"n": 2})
    parent = await add(other, job(other, "any", "p", ours, data={"children": True}))
    await queue.work(leaf=leaf)
    await other.node("work", other.name)
    assert (await other.finish(parent))["value"]["children"] == {f"bull:{queue.name}:ours": 2}
