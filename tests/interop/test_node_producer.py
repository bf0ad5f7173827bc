"""A Node producer puts jobs on the queue, we run them, Node sees all of it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import pytest
from shared_queue import Queue

from oxherd.context import Context
from oxherd.errors import Fatal
from oxherd.worker.worker import Limits


async def echo(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    return payload


async def fail(ctx: Context, payload: dict[str, Any]) -> None:
    raise RuntimeError("the moon is down")


async def test_node_gets_the_value_that_our_handler_returned(queue: Queue) -> None:
    await queue.work(echo=echo)
    job_id = await queue.add("echo", {"n": 1})
    assert await queue.finish(job_id) == {"value": {"n": 1}}
    job = await queue.job(job_id)
    assert (job["returnvalue"], job["attemptsMade"], job["attemptsStarted"]) == ({"n": 1}, 1, 1)
    assert job["timestamp"] <= job["processedOn"] <= job["finishedOn"]
    assert await queue.on_job(job_id, "getState") == "completed"


async def test_node_gets_the_reason_of_a_failure(queue: Queue) -> None:
    await queue.work(fail=fail)
    job_id = await queue.add("fail")
    assert await queue.finish(job_id) == {"error": "the moon is down"}
    job = await queue.job(job_id)
    assert (job["failedReason"], job["attemptsMade"]) == ("the moon is down", 1)
    assert len(job["stacktrace"]) == 1
    assert "RuntimeError: the moon is down" in job["stacktrace"][0]
    assert await queue.on_job(job_id, "getState") == "failed"


async def test_every_job_is_marked_with_the_same_worker_name(queue: Queue) -> None:
    job_ids = [await queue.add("echo") for _ in range(3)]
    await queue.work(echo=echo, limits=Limits(concurrency=1))  # so that some are fetched when one before is finished
    for job_id in job_ids:
        await queue.finish(job_id)
    names = {(await queue.job(job_id))["processedBy"] for job_id in job_ids}
    assert names == {socket.gethostname()}


async def test_a_job_tells_its_story_in_events(queue: Queue) -> None:
    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        await ctx.progress(50)
        return "done"

    job_id = await queue.add("work")
    await queue.work(work=work)
    await queue.event("drained")
    story = [(one.name, one.args) for one in queue.node.events if one.queue == queue.name]
    assert story == [
        ("added", {"jobId": job_id, "name": "work"}),
        ("waiting", {"jobId": job_id}),
        ("active", {"jobId": job_id, "prev": "waiting"}),
        ("progress", {"jobId": job_id, "data": 50}),
        ("completed", {"jobId": job_id, "returnvalue": "done", "prev": "active"}),
        ("drained", {}),
    ]


async def test_a_job_that_runs_out_of_attempts_tells_so_in_events(queue: Queue) -> None:
    await queue.work(fail=fail)
    job_id = await queue.add("fail", attempts=3, backoff={"type": "fixed", "delay": 20})
    await queue.event("retries-exhausted", jobId=job_id, attemptsMade="3")
    assert len(queue.seen("delayed", jobId=job_id)) == 2
    assert len(queue.seen("active", jobId=job_id)) == 3
    [failed] = queue.seen("failed", jobId=job_id)
    assert failed.args == {"jobId": job_id, "failedReason": "the moon is down", "prev": "active"}


async def test_an_error_that_is_final_ends_the_job_at_its_first_attempt(queue: Queue) -> None:
    async def give_up(ctx: Context, payload: dict[str, Any]) -> None:
        raise Fatal("never again")

    await queue.work(give_up=give_up)
    job_id = await queue.add("give_up", attempts=5)
    assert await queue.finish(job_id) == {"error": "never again"}
    assert (await queue.job(job_id))["attemptsMade"] == 1
    await queue.event("drained")
    assert not queue.seen("retries-exhausted", jobId=job_id)


@pytest.mark.parametrize("value", [7, "half", {"done": 3, "of": 9}], ids=["number", "text", "object"])
async def test_node_sees_progress(queue: Queue, value: Any) -> None:
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        await ctx.progress(value)

    await queue.work(work=work)
    job_id = await queue.add("work")
    [event] = await queue.event("progress", jobId=job_id)
    assert event.args["data"] == value
    assert await queue.finish(job_id) == {"value": None}
    assert (await queue.job(job_id))["progress"] == value


async def test_node_reads_the_log_of_a_job(queue: Queue) -> None:
    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        for line in ("first", "zweite ☂"):
            await ctx.log(line)

    await queue.work(work=work)
    job_id = await queue.add("work")
    await queue.finish(job_id)
    assert await queue.call("getJobLogs", job_id) == {"logs": ["first", "zweite ☂"], "count": 2}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"text": 'naïve ☂ 🐂 \u0000 \u2028 "quoted" \\ back'},
        {"ключ": {"深い": [1, [2, [3, {"": None}]]]}},
        {"int": 2**53 - 1, "float": 0.1, "tiny": 5e-324, "huge": sys.float_info.max, "minus": -1},
        {"big": "x" * 1_000_000},
        {"deep": json.loads("[" * 200 + "]" * 200)},
    ],
    ids=["empty", "odd text", "odd keys", "numbers", "a megabyte", "deep"],
)
async def test_data_comes_back_as_node_sent_it(queue: Queue, data: dict[str, Any]) -> None:
    await queue.work(echo=echo)
    job_id = await queue.add("echo", data)
    assert await queue.finish(job_id) == {"value": data}


async def test_a_job_without_data_gets_an_empty_payload(queue: Queue) -> None:
    await queue.work(echo=echo)
    job = await queue.call("add", "echo")
    assert await queue.finish(job["id"]) == {"value": {}}


@pytest.mark.parametrize(
    ("data", "what"), [(None, "null"), ([1], "an array"), ("text", "a string"), (7, "a number")], ids=str
)
async def test_data_that_is_no_object_fails_the_job_and_says_so(queue: Queue, data: Any, what: str) -> None:
    await queue.work(echo=echo)
    job = await queue.call("add", "echo", data, {"attempts": 3})
    done = await queue.finish(job["id"])
    assert done == {"error": f"the payload must be a JSON object, it is {what}"}
    assert (await queue.job(job["id"]))["attemptsMade"] == 1


async def test_half_a_character_in_the_data_fails_the_job_and_not_the_worker(queue: Queue) -> None:
    await queue.work(echo=echo)
    job_id = await queue.add("echo", {"cut": "\ud83d"})
    assert "the payload is not JSON" in (await queue.finish(job_id))["error"]
    assert await queue.finish(await queue.add("echo", {"n": 1})) == {"value": {"n": 1}}


async def test_a_name_nobody_handles_fails_the_job_and_names_those_that_are(queue: Queue) -> None:
    await queue.work(echo=echo)
    job_id = await queue.add("ekko", attempts=3)
    done = await queue.finish(job_id)
    assert "no handler for job name 'ekko'; this worker has: echo" in done["error"]
    assert (await queue.job(job_id))["attemptsMade"] == 1


async def test_trace_metadata_reaches_the_handler_and_stays_on_the_job(queue: Queue) -> None:
    seen = []

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        seen.append(ctx.job.telemetry)

    await queue.work(work=work)
    metadata = '{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
    job_id = await queue.add("work", telemetry={"metadata": metadata})
    await queue.finish(job_id)
    assert seen == [metadata]
    assert (await queue.job(job_id))["opts"]["telemetry"] == {"metadata": metadata}


async def test_node_retries_a_failed_job(queue: Queue) -> None:
    fixed = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> int:
        if not fixed.is_set():
            raise RuntimeError("not yet")
        return ctx.attempt

    await queue.work(work=work)
    job_id = await queue.add("work", attempts=2)
    await queue.event("failed", jobId=job_id)
    fixed.set()
    await queue.on_job(job_id, "retry")
    await queue.event("completed", jobId=job_id)
    job = await queue.job(job_id)
    assert "failedReason" not in job
    assert await queue.on_job(job_id, "getState") == "completed"


async def test_node_retries_all_failed_jobs_at_once(queue: Queue) -> None:
    fixed = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        if not fixed.is_set():
            raise RuntimeError("not yet")

    await queue.work(work=work)
    await queue.call("addBulk", [{"name": "work", "data": {}}] * 10)
    await queue.event("failed", times=10)
    fixed.set()
    await queue.call("retryJobs")
    await queue.event("completed", times=10)


async def test_node_retries_a_completed_job(queue: Queue) -> None:
    runs = []

    async def work(ctx: Context, payload: dict[str, Any]) -> int:
        runs.append(ctx.job.id)
        return len(runs)

    await queue.work(work=work)
    job_id = await queue.add("work")
    await queue.event("completed", jobId=job_id)
    await queue.on_job(job_id, "retry", "completed")
    await queue.event("completed", times=2, jobId=job_id)
    assert (await queue.job(job_id))["returnvalue"] == 2
