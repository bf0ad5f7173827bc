"""Job schedulers made by Node: we run their jobs and make the next one on pickup, as Node's worker would."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.clock import wall_ms
from oxherd.context import Context
from oxherd.queue.schedule import next_match
from oxherd.telemetry.events import ScheduleFailed, attach


async def work(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    return payload


async def fail(ctx: Context, payload: dict[str, Any]) -> None:
    raise RuntimeError("no")


def slot(job_id: str) -> int:
    """The wall ms in a scheduled job's id."""
    return int(job_id.rpartition(":")[2])


async def upsert(queue: Queue, scheduler: str, repeat: dict[str, Any], **template: Any) -> str:
    job = await queue.call("upsertJobScheduler", scheduler, repeat, {"name": "work", **template})
    return job["id"]


async def test_a_scheduler_fires_at_its_interval(queue: Queue) -> None:
    await queue.work(work=work)
    await upsert(queue, "tick", {"every": 100}, data={"n": 1}, opts={"attempts": 2})
    done = await queue.event("completed", times=4)
    assert {slot(later) - slot(earlier) for earlier, later in pairwise(ids(done))} == {100}
    assert {one.args["returnvalue"]["n"] for one in done} == {1}
    scheduler = await queue.call("getJobScheduler", "tick")
    assert scheduler["iterationCount"] >= 5
    pending = await queue.job(f"repeat:tick:{scheduler['next']}")
    assert (pending["name"], pending["data"], pending["opts"]["attempts"]) == ("work", {"n": 1}, 2)


def ids(events: list[Any]) -> list[str]:
    return [one.args["jobId"] for one in events]


async def test_a_scheduler_goes_on_after_a_failed_run(queue: Queue) -> None:
    await queue.work(fail=fail)
    await queue.call("upsertJobScheduler", "tick", {"every": 80}, {"name": "fail"})
    await queue.event("failed", times=3)


async def test_a_scheduler_with_a_pattern_fires_on_the_second(queue: Queue) -> None:
    await queue.work(work=work)
    await upsert(queue, "cron", {"pattern": "* * * * * *"})
    done = await queue.event("completed", times=2)
    first, second = map(slot, ids(done))
    assert (first % 1000, second - first) == (0, 1000)


async def test_a_scheduler_stops_at_its_limit(queue: Queue) -> None:
    await queue.work(work=work)
    await upsert(queue, "thrice", {"every": 50, "limit": 3})
    await queue.event("completed", times=3)
    await asyncio.sleep(0.15)
    assert await queue.counts() == {"completed": 3}


@pytest.mark.parametrize("repeat", [{"every": 200}, {"pattern": "* * * * * *"}], ids=["every", "pattern"])
async def test_a_scheduler_leaves_the_same_behind_as_under_a_node_worker(
    queue: Queue, open_queue: Any, repeat: dict[str, Any]
) -> None:
    theirs = await open_queue(f"{queue.name}-node")
    await queue.work(work=work)
    await theirs.node("work", theirs.name)
    end = wall_ms() + (500 if "every" in repeat else 1200)
    for one in (queue, theirs):
        await upsert(one, "ends", {**repeat, "endDate": end}, data={"n": 1}, opts={"priority": 3})
    await asyncio.sleep((end - wall_ms()) / 1000 + 0.3)
    left = [(await one.counts(), await one.call("getJobScheduler", "ends") is None) for one in (queue, theirs)]
    assert left[0] == left[1]


async def test_a_repeatable_job_of_old_is_repeated_until_its_limit(queue: Queue) -> None:
    if queue.node.version > 5:
        pytest.skip("BullMQ 6 has no repeatable jobs any more")
    await queue.work(work=work)
    await queue.add("work", {"n": 1}, repeat={"every": 60, "limit": 3})
    done = await queue.event("completed", times=3)
    assert {one.args["returnvalue"]["n"] for one in done} == {1}
    await asyncio.sleep(0.15)
    assert await queue.counts() == {"completed": 3}


async def test_a_repeatable_job_from_before_version_5_runs_and_its_end_is_told(queue: Queue) -> None:
    told: list[ScheduleFailed] = []
    detach = attach(told.append, ScheduleFailed)
    repeat = {"count": 1, "pattern": "* * * * *"}
    job_id = await queue.add("work", jobId="repeat:0123456789abcdef:1795453240500")
    await queue.raw("HSET", queue.keys.job(job_id), "rjk", "work::::* * * * *", "opts", json.dumps({"repeat": repeat}))
    await queue.work(work=work)
    await queue.finish(job_id)
    detach()
    assert [(one.scheduler, "before version 5" in one.error) for one in told] == [("work::::* * * * *", True)]


async def test_a_scheduler_that_starts_later_waits_until_then(queue: Queue) -> None:
    await queue.work(work=work)
    start = wall_ms() + 300
    await upsert(queue, "later", {"every": 100, "startDate": start})
    await queue.event("completed")
    assert wall_ms() >= start


async def test_a_scheduler_that_node_removes_fires_no_more(queue: Queue) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def slow(ctx: Context, payload: dict[str, Any]) -> None:
        started.set()
        await go.wait()

    await queue.work(slow=slow)
    await queue.call("upsertJobScheduler", "tick", {"every": 100}, {"name": "slow"})
    await started.wait()
    assert await queue.call("removeJobScheduler", "tick") is True
    go.set()
    await queue.event("completed")
    await asyncio.sleep(0.15)
    assert await queue.counts() == {"completed": 1}


async def test_a_scheduler_that_node_changes_goes_on_with_the_new_template(queue: Queue) -> None:
    await queue.work(work=work)
    await upsert(queue, "tick", {"every": 100}, data={"n": 1})
    await queue.event("completed", times=2)
    await upsert(queue, "tick", {"every": 60}, data={"n": 2})
    await queue.node.until(
        lambda: len([one for one in queue.seen("completed") if one.args["returnvalue"] == {"n": 2}]) >= 3,
        what="runs with the new data",
    )
    scheduler = await queue.call("getJobScheduler", "tick")
    assert (scheduler["every"], scheduler["template"]["data"]) == (60, {"n": 2})


async def test_the_next_run_is_made_with_the_scheduler_s_time_zone(queue: Queue) -> None:
    await queue.work(work=work)
    repeat = {"pattern": "0 30 3 * * *", "tz": "Asia/Kathmandu"}
    first = await upsert(queue, "nightly", repeat)
    await queue.on_job(first, "promote")
    await queue.finish(first)
    scheduler = await queue.call("getJobScheduler", "nightly")
    assert scheduler["next"] == await queue.node("next", slot(first), repeat)
    assert await queue.on_job(f"repeat:nightly:{scheduler['next']}", "getState") == "delayed"


AUTUMN = datetime(2026, 10, 24, 21, 59, 30, tzinfo=UTC)
SPRING = datetime(2027, 3, 27, 21, 59, 30, tzinfo=UTC)
LEAP = datetime(2028, 2, 27, 12, tzinfo=UTC)
PATTERNS = [
    "* * * * *",
    "*/7 * * * * *",
    "0 30 3 * * *",
    "15,45 9-17 * * 1-5",
    "0 0 1 * *",
    "0 0 31 * *",
    "0 0 L * *",
    "0 0 29 2 *",
    "0 12 * * 0",
    "0 12 * * 7",
    "0 12 * * MON",
    "0 0 1 JAN *",
    "0 0 13 * 5",
    "30 8 * * 1#2",
    "0 22 * * 5L",
    "@daily",
    "@hourly",
    "0 4 8-14 * *",
    "10-50/20 */6 * * *",
    "0 0 ? * 3",
]


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_patterns_mean_what_they_mean_to_node(node: Any, pattern: str) -> None:
    for zone in (None, "America/New_York", "Australia/Lord_Howe"):
        moment = int(AUTUMN.timestamp() * 1000)
        for _ in range(4):
            theirs = await node("next", moment, {"pattern": pattern, **({"tz": zone} if zone else {})})
            ours = next_match(pattern, zone, moment)
            assert (ours, zone) == (theirs, zone), f"after {moment}"
            moment = theirs


@pytest.mark.parametrize(
    "pattern", ["30 2 * * *", "0 2 * * *", "*/30 * * * *", "0 */2 * * *", "0 0 2 * * *", "59 1 * * *"]
)
@pytest.mark.parametrize("moment", [AUTUMN, SPRING], ids=["autumn", "spring"])
async def test_patterns_survive_the_change_of_the_clocks_as_in_node(node: Any, pattern: str, moment: datetime) -> None:
    at = int(moment.timestamp() * 1000)
    for _ in range(10):
        theirs = await node("next", at, {"pattern": pattern, "tz": "Europe/Berlin"})
        assert next_match(pattern, "Europe/Berlin", at) == theirs
        at = theirs
