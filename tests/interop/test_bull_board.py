"""Bull Board on a queue of ours: its own API, with its own checks of what it answers, as its pages call it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.clock import wall_ms
from oxherd.context import Context
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat

JOB = "/api/queues/:queueName/:jobId"


async def work(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    await ctx.log("on my way")
    await ctx.progress({"done": 1})
    return {"got": payload}


async def fail(ctx: Context, payload: dict[str, Any]) -> None:
    raise RuntimeError("no good")


async def board(queue: Queue, method: str, route: str, **request: Any) -> Any:
    """One call of Bull Board's API that must succeed."""
    answer = await queue.node("board", queue.name, method, route, request)
    assert answer["status"] in (200, 204), answer
    return answer.get("body")


async def shown(queue: Queue, status: str) -> list[dict[str, Any]]:
    query = {"activeQueue": queue.name, "status": status, "page": "1", "jobsPerPage": "10"}
    [one] = (await board(queue, "get", "/api/queues", query=query))["queues"]
    return one["jobs"]


async def test_the_overview_shows_our_jobs_in_every_state(queue: Queue) -> None:
    hold = asyncio.Event()

    async def slow(ctx: Context, payload: dict[str, Any]) -> None:
        await hold.wait()

    await queue.work(work=work, fail=fail, slow=slow)
    for name in ("work", "fail", "slow"):
        await queue.producer.add(name, {"n": 1})
    await queue.event("completed")
    await queue.event("failed")
    await queue.event("active", times=3)
    await queue.producer.add("work", delay=60_000)
    await queue.producer.add_flow(NewJob("top", children=[NewJob("work", opts={"delay": 60_000})]))
    assert [job["name"] for job in await shown(queue, "active")] == ["slow"]
    assert [job["name"] for job in await shown(queue, "waiting-children")] == ["top"]
    assert len(await shown(queue, "delayed")) == 2
    [done] = await shown(queue, "completed")
    assert (done["returnValue"], done["progress"], done["isFailed"]) == ({"got": {"n": 1}}, {"done": 1}, False)
    [failed] = await shown(queue, "failed")
    assert (failed["failedReason"], failed["isFailed"], failed["attempts"]) == ("no good", True, 1)
    assert "RuntimeError: no good" in failed["stacktrace"][0]
    assert len(await shown(queue, "latest")) == 6
    hold.set()


async def test_a_job_s_page_shows_its_log_and_its_flow(queue: Queue) -> None:
    await queue.work(work=work)
    root = await queue.producer.add_flow(NewJob("work", children=[NewJob("work", {"n": 1}), NewJob("work", {"n": 2})]))
    await queue.finish(root)
    params = {"jobId": root}
    page = await board(queue, "get", JOB, params=params)
    assert (page["job"]["id"], page["status"]) == (root, "completed")
    assert await board(queue, "get", f"{JOB}/logs", params=params) == ["on my way"]
    flow = await board(queue, "get", f"{JOB}/flow", params=params, query={})
    assert len(flow["flowRoot"]["children"]) == 2


async def test_the_board_sees_our_workers(queue: Queue, eventually: Any) -> None:
    worker = await queue.work(work=work)
    seen = await board(queue, "get", "/api/queues/:queueName/workers")
    assert [one["name"] for one in seen["workers"]] == [socket.gethostname()]
    assert await queue.call("getWorkersCount") == 1
    await worker.stop()

    async def gone() -> bool:
        return await queue.call("getWorkersCount") == 0

    await eventually(gone)


async def test_the_board_counts_our_finished_jobs(queue: Queue) -> None:
    await queue.work(work=work, fail=fail)
    await queue.producer.add_bulk([NewJob("work"), NewJob("work"), NewJob("fail")])
    await queue.event("completed", times=2)
    await queue.event("failed")
    metrics = await board(queue, "get", "/api/queues/:queueName/metrics")
    assert metrics["completed"]["meta"]["count"] == 2
    assert metrics["failed"]["meta"]["count"] == 1


async def test_the_board_shows_and_runs_our_scheduler(queue: Queue) -> None:
    await queue.work(work=work)
    await queue.producer.schedule("nightly", Repeat(pattern="0 3 * * *", tz="Europe/Berlin"), NewJob("work", {"n": 1}))
    shown = await board(queue, "get", "/api/job-schedulers", query={})
    assert "nightly" in str(shown)
    params = {"schedulerId": "nightly"}
    run = await board(queue, "put", "/api/queues/:queueName/job-schedulers/:schedulerId/run", params=params)
    assert "id" in str(run)
    [done] = await queue.event("completed")
    assert done.args["returnvalue"] == {"got": {"n": 1}}
    await board(queue, "put", "/api/queues/:queueName/job-schedulers/:schedulerId/remove", params=params)
    assert await queue.counts() == {"completed": 1}


async def test_jobs_are_added_retried_promoted_changed_and_removed_from_the_board(queue: Queue) -> None:
    await queue.work(work=work, fail=fail)
    body = {"name": "work", "data": {"from": "board"}, "options": {}}
    added = await board(queue, "post", "/api/queues/:queueName/add", body=body)
    await queue.event("completed", jobId=added["job"]["id"])

    failed = await queue.producer.add("fail")
    await queue.event("failed", jobId=failed)
    await board(queue, "put", f"{JOB}/retry", params={"jobId": failed})
    await queue.event("failed", times=2, jobId=failed)
    await board(queue, "put", "/api/queues/:queueName/retry/:queueStatus", params={"queueStatus": "failed"})
    await queue.event("failed", times=3, jobId=failed)

    later = await queue.producer.add("work", {"n": 1}, delay=60_000)
    await board(queue, "patch", f"{JOB}/update-data", params={"jobId": later}, body={"jobData": {"n": 2}})
    await board(queue, "put", f"{JOB}/promote", params={"jobId": later})
    assert await queue.finish(later) == {"value": {"got": {"n": 2}}}

    await board(queue, "put", f"{JOB}/clean", params={"jobId": later})
    assert await queue.job(later) is None
    await queue.raw("ZADD", queue.keys.failed, "XX", wall_ms() - 60_000, failed)  # the board spares the last seconds
    await board(queue, "put", "/api/queues/:queueName/clean/:queueStatus", params={"queueStatus": "failed"})
    assert await queue.job(failed) is None


async def test_the_board_pauses_resumes_and_empties_the_queue(queue: Queue) -> None:
    await queue.work(work=work)
    await board(queue, "put", "/api/queues/:queueName/pause")
    kept = await queue.producer.add("work", {"n": 1})
    await asyncio.sleep(0.05)
    assert not queue.seen("active")
    await board(queue, "put", "/api/queues/:queueName/resume")
    await queue.finish(kept)
    await queue.producer.add("work", delay=60_000)
    await board(queue, "put", "/api/queues/:queueName/empty")
    await board(queue, "put", "/api/queues/:queueName/pause")
    await board(queue, "put", "/api/queues/:queueName/obliterate", body={"force": False})
    assert await queue.counts() == {}


@pytest.mark.parametrize(
    ("route", "body", "shown"),
    [
        ("concurrency", {"concurrency": 2}, {"concurrency": b"2"}),
        ("rate-limit", {"max": 5, "duration": 1000}, {"max": b"5", "duration": b"1000"}),
    ],
    ids=["concurrency", "rate limit"],
)
async def test_limits_are_set_from_the_board(queue: Queue, route: str, body: dict[str, int], shown: Any) -> None:
    await board(queue, "put", f"/api/queues/:queueName/{route}", body=body)
    values = await queue.raw("HMGET", queue.keys.meta, *shown)
    assert dict(zip(shown, values, strict=True)) == shown
    await queue.work(work=work)
    await queue.finish(await queue.producer.add("work"))
