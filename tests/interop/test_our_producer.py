"""Our producer puts jobs on the queue, a Node worker runs them: it can't tell them from Node's own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.clock import wall_ms
from oxherd.errors import PayloadInvalid
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat

DATA = {"text": 'naïve ☂ 🐂 "quoted"', "list": [1, None, {"deep": True}], "float": 0.1}
OPTIONS = {
    "none": {},
    "delay": {"delay": 60_000},
    "priority": {"priority": 7},
    "lifo": {"lifo": True},
    "attempts": {"attempts": 3},
    "backoff number": {"attempts": 3, "backoff": 500},
    "backoff object": {"attempts": 3, "backoff": {"type": "exponential", "delay": 500, "jitter": 0.5}},
    "keep none": {"removeOnComplete": True, "removeOnFail": False},
    "keep some": {"removeOnComplete": 10, "removeOnFail": {"age": 3600, "count": 5}},
    "id": {"jobId": "order-1"},
    "dedup": {"deduplication": {"id": "d"}},
    "throttle": {"deduplication": {"id": "d", "ttl": 5000}},
    "debounce": {"delay": 5000, "deduplication": {"id": "d", "ttl": 5000, "extend": True, "replace": True}},
    "keep last": {"deduplication": {"id": "d", "keepLastIfActive": True}},
    "logs": {"keepLogs": 5},
    "stacks": {"stackTraceLimit": 2},
    "size": {"sizeLimit": 1000},
    "timestamp": {"timestamp": 1_700_000_000_000},
    "trace": {"telemetry": {"metadata": '{"traceparent":"00-1-2-01"}', "omitContext": True}},
    "on failure": {"failParentOnFailure": True},
}


def plain(fields: dict[str, str], name: str) -> dict[str, Any]:
    """A job's hash without what differs between any two jobs."""
    decoded = {
        key: json.loads(value) if key in ("opts", "data", "parent") else value.replace(name, "q")
        for key, value in fields.items()
    }
    for place in (decoded, decoded["opts"]):
        if abs(int(place.get("timestamp", 0)) - wall_ms()) < 60_000:
            place["timestamp"] = "now"
    return json.loads(json.dumps(decoded).replace(name, "q"))


async def rest_of(queue: Queue) -> dict[str, Any]:
    """Everything a queue's keys hold besides its jobs and events."""
    found = {}
    for key in await queue.raw("KEYS", queue.keys.base + b"*"):
        kind = (await queue.raw("TYPE", key)).decode()
        if kind in ("hash", "stream") and key != queue.keys.meta:
            continue
        read = {"string": ["GET"], "list": ["LRANGE", 0, -1], "zset": ["ZRANGE", 0, -1], "hash": ["HKEYS"]}[kind]
        expires = "expires" if await queue.raw("PTTL", key) > 0 else "stays"
        found[key.decode().replace(queue.name, "q")] = (await queue.raw(read[0], key, *read[1:]), expires)
    meta = found["bull:q:meta"]
    found["bull:q:meta"] = (sorted(set(meta[0]) - {b"version"}), meta[1])
    return found


@pytest.mark.parametrize("opts", OPTIONS.values(), ids=OPTIONS.keys())
async def test_our_job_is_stored_as_node_would_store_it(queue: Queue, open_queue: Any, opts: dict[str, Any]) -> None:
    theirs = await open_queue(f"{queue.name}-node")
    our_id = await queue.producer.add("work", DATA, **opts)
    their_id = await theirs.add("work", DATA, **opts)
    assert our_id == their_id
    assert plain(await queue.hash(our_id), queue.name) == plain(await theirs.hash(their_id), theirs.name)
    assert await rest_of(queue) == await rest_of(theirs)


async def test_node_reads_our_job_as_its_own(queue: Queue) -> None:
    opts = {"attempts": 2, "keepLogs": 3, "telemetry": {"metadata": "m"}, "deduplication": {"id": "d"}}
    ours = await queue.job(await queue.producer.add("work", DATA, jobId="ours", **opts))
    assert (ours["name"], ours["data"], ours["deduplicationId"]) == ("work", DATA, "d")
    assert {key: ours["opts"][key] for key in opts} == opts


async def test_a_node_worker_runs_our_jobs(queue: Queue) -> None:
    await queue.node("work", queue.name, {"concurrency": 5})
    job_ids = [
        await queue.producer.add("work", {"n": 1}),
        await queue.producer.add("work", {"n": 2}, delay=50),
        await queue.producer.add("work", {"n": 3}, priority=3),
        *await queue.producer.add_bulk([NewJob("work", {"n": n}) for n in (4, 5, 6)]),
    ]
    for n, job_id in enumerate(job_ids, 1):
        assert (await queue.finish(job_id))["value"]["data"] == {"n": n}


async def test_a_node_worker_repeats_our_job_as_often_as_we_asked(queue: Queue) -> None:
    await queue.node("work", queue.name)
    job_id = await queue.producer.add("work", {"fail": "no"}, attempts=3, backoff={"type": "fixed", "delay": 10})
    assert await queue.finish(job_id) == {"error": "no"}
    assert (await queue.job(job_id))["attemptsMade"] == 3


async def test_a_thousand_jobs_at_once_keep_their_order(queue: Queue) -> None:
    job_ids = await queue.producer.add_bulk([NewJob("work", {"n": n}) for n in range(1000)])
    waiting = await queue.call("getJobs", ["waiting"], 0, -1, True)
    assert [job["id"] for job in waiting] == job_ids
    assert [job["data"]["n"] for job in waiting] == list(range(1000))


async def test_our_flow_is_stored_as_node_would_store_it(queue: Queue, open_queue: Any) -> None:
    theirs = await open_queue(f"{queue.name}-node")

    def children() -> list[tuple[str, dict[str, Any]]]:
        return [
            ("plain", {}),
            ("fpof", {"failParentOnFailure": True}),
            ("idof", {"ignoreDependencyOnFailure": True, "delay": 1000}),
            ("rdof", {"removeDependencyOnFailure": True, "priority": 2}),
            ("cpof", {"continueParentOnFailure": True, "attempts": 2}),
        ]

    tree = NewJob(
        "top", {"n": 0}, {"jobId": "top"}, [NewJob("leaf", {}, {"jobId": name, **opts}) for name, opts in children()]
    )
    await queue.producer.add_flow(tree)
    await theirs.node(
        "flow",
        {
            "name": "top",
            "queueName": theirs.name,
            "data": {"n": 0},
            "opts": {"jobId": "top"},
            "children": [
                {"name": "leaf", "queueName": theirs.name, "data": {}, "opts": {"jobId": name, **opts}}
                for name, opts in children()
            ],
        },
    )
    for job_id in ("top", *(name for name, _ in children())):
        assert plain(await queue.hash(job_id), queue.name) == plain(await theirs.hash(job_id), theirs.name), job_id
    counts = [await one.on_job("top", "getDependenciesCount") for one in (queue, theirs)]
    assert counts[0] == counts[1]
    assert counts[0]["unprocessed"] == 5


async def test_a_node_worker_runs_our_flow_from_the_leaves_up(queue: Queue, open_queue: Any) -> None:
    other = await open_queue(f"{queue.name}-other")
    leaves = [NewJob("leaf", {"n": n}, queue=other.name) for n in range(2)]
    root = await queue.producer.add_flow(
        NewJob("root", {"children": True}, children=[NewJob("middle", {"children": True}, children=leaves)])
    )
    for one in (queue, other):
        await one.node("work", one.name)
    value = (await queue.finish(root))["value"]
    [middle] = value["children"].values()
    assert sorted(leaf["data"]["n"] for leaf in middle["children"].values()) == [0, 1]


@pytest.mark.parametrize("opts", [{}, {"delay": 60_000}, {"priority": 1}], ids=["plain", "delay", "priority"])
async def test_our_flow_waits_for_all_its_children_though_one_was_done_before(
    queue: Queue, opts: dict[str, Any]
) -> None:
    await queue.node("work", queue.name)
    await queue.finish(await queue.producer.add("work", jobId="done"))
    children = [NewJob("work", opts={"jobId": "done"}), NewJob("work", opts={"delay": 200})]
    root = await queue.producer.add_flow(NewJob("work", {"children": True}, {"jobId": "p", **opts}, children))
    assert await queue.on_job(root, "getState") == "waiting-children"
    assert (await queue.on_job(root, "getDependenciesCount"))["unprocessed"] == 1
    if "delay" not in opts:
        assert len((await queue.finish(root))["value"]["children"]) == 2


async def test_our_flow_starts_its_parent_at_once_where_all_its_children_were_done_before(queue: Queue) -> None:
    await queue.node("work", queue.name)
    await queue.finish(await queue.producer.add("work", jobId="done"))
    root = await queue.producer.add_flow(
        NewJob("work", {"children": True}, children=[NewJob("work", opts={"jobId": "done"})])
    )
    assert len((await queue.finish(root))["value"]["children"]) == 1


@pytest.mark.parametrize("opts", [{}, {"attempts": 2, "priority": 3}], ids=["plain", "with options"])
@pytest.mark.parametrize(
    "repeat",
    [
        {"every": 60_000},
        {"every": 60_000, "limit": 5},
        {"pattern": "0 0 3 * * *", "tz": "Asia/Kathmandu"},
        {"pattern": "0 3 * * *", "startDate": 1_900_000_000_000, "endDate": 1_990_000_000_000},
    ],
    ids=["every", "limit", "pattern", "dates"],
)
async def test_our_scheduler_is_stored_as_node_would_store_it(
    queue: Queue, open_queue: Any, repeat: dict[str, Any], opts: dict[str, Any]
) -> None:
    theirs = await open_queue(f"{queue.name}-node")
    renamed = {{"startDate": "start", "endDate": "end"}.get(key, key): value for key, value in repeat.items()}
    our_id = await queue.producer.schedule("nightly", Repeat(**renamed), NewJob("work", {"n": 1}, opts))
    their_id = (
        await theirs.call("upsertJobScheduler", "nightly", repeat, {"name": "work", "data": {"n": 1}, "opts": opts})
    )["id"]
    jobs = [plain(await queue.hash(our_id), queue.name), plain(await theirs.hash(their_id), theirs.name)]
    if "every" in repeat:
        for job, job_id in zip(jobs, (our_id, their_id), strict=True):
            slot = int(job_id.rpartition(":")[2])
            assert abs(slot - wall_ms()) < 5000
            job["opts"] = {key: value for key, value in job["opts"].items() if key not in ("prevMillis", "jobId")}
    else:
        assert our_id == their_id
        assert abs(int(jobs[0].pop("delay")) - int(jobs[1].pop("delay"))) < 5000
        assert abs(jobs[0]["opts"].pop("delay") - jobs[1]["opts"].pop("delay")) < 5000
    assert jobs[0] == jobs[1]
    stored = [await one.call("getJobScheduler", "nightly") for one in (queue, theirs)]
    if "every" in repeat:
        assert [one["next"] % one["every"] for one in stored] == [one.pop("offset") for one in stored]
    assert abs(stored[0].pop("next") - stored[1].pop("next")) < 5000
    assert stored[0] == stored[1]


async def test_a_node_worker_keeps_our_scheduler_going(queue: Queue) -> None:
    await queue.node("work", queue.name)
    await queue.producer.schedule("tick", Repeat(every=80), NewJob("work", {"n": 1}))
    done = await queue.event("completed", times=3)
    assert {one.args["returnvalue"]["data"]["n"] for one in done} == {1}


async def test_we_remove_a_scheduler_that_node_made(queue: Queue) -> None:
    await queue.call("upsertJobScheduler", "tick", {"every": 60_000}, {"name": "work"})
    assert await queue.producer.unschedule("tick")
    assert await queue.call("getJobSchedulers") == []


async def test_we_change_a_scheduler_that_node_made(queue: Queue) -> None:
    await queue.call("upsertJobScheduler", "tick", {"every": 60_000}, {"name": "work", "data": {"n": 1}})
    await queue.producer.schedule("tick", Repeat(pattern="0 3 * * *"), NewJob("other", {"n": 2}))
    scheduler = await queue.call("getJobScheduler", "tick")
    assert (scheduler["name"], scheduler["pattern"], scheduler["template"]["data"]) == ("other", "0 3 * * *", {"n": 2})
    assert scheduler.get("every") is None
    assert len(await queue.call("getJobs", ["delayed", "waiting"])) == 1


@pytest.mark.parametrize(
    ("opts", "complaint"),
    [
        ({"jobId": "7"}, "integers"),
        ({"jobId": "a:b"}, "contain :"),
        ({"priority": 2**21}, "between 0 and 2097151"),
        ({"sizeLimit": 3}, "exceeds the limit"),
        ({"failParentOnFailure": True, "removeDependencyOnFailure": True}, "cannot be used together"),
        ({"deduplication": {"ttl": 5}}, "eduplication id must be provided"),
        ({"backoff": {"type": "fixed", "delay": 1, "jitter": 2}}, "between 0 and 1"),
    ],
    ids=["integer id", "colon", "priority", "size", "exclusive", "dedup", "jitter"],
)
async def test_what_node_refuses_we_refuse(queue: Queue, opts: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        await queue.add("work", {"n": 1}, **opts)
    with pytest.raises(PayloadInvalid):
        await queue.producer.add("work", {"n": 1}, **opts)
    assert await queue.counts() == {}


async def test_we_retry_cancel_and_promote_what_node_added(queue: Queue) -> None:
    await queue.node("work", queue.name)
    failed = await queue.add("work", {"fail": "no"})
    await queue.event("failed", jobId=failed)
    await queue.on_job(failed, "updateData", {"n": 1})
    await queue.admin.retry(failed)
    await queue.event("completed", jobId=failed)
    later = await queue.add("work", {"n": 2}, delay=60_000)
    await queue.admin.promote(later)
    await queue.event("completed", jobId=later)
    never = await queue.add("work", {"n": 3}, delay=60_000)
    assert await queue.admin.cancel(never) == "removed"
    assert await queue.job(never) is None


async def test_we_see_what_node_pauses_and_parks(queue: Queue) -> None:
    await queue.call("pause")
    job_id = await queue.add("work")
    assert (await queue.admin.counts())["wait"] == 1
    assert await queue.admin.state(job_id) == "wait"
    assert [job["id"] for job in (await queue.admin.pages.page(["wait"])).jobs] == [job_id]
    assert await queue.admin.cancel(job_id) == "removed"


async def test_we_hear_what_a_node_worker_does(queue: Queue) -> None:
    heard = []

    async def listen() -> None:
        async for _, event in queue.admin.events("0"):
            heard.append(event["event"])
            if event["event"] == "completed":
                return

    await queue.node("work", queue.name)
    await queue.add("work", {"progress": 50})
    async with asyncio.timeout(5):
        await listen()
    assert heard == ["added", "waiting", "active", "progress", "completed"]
