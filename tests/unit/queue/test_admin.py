from __future__ import annotations

import pytest

from oxherd.errors import JobNotFound, JobStateError
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.producer import NewJob, Producer
from oxherd.queue.schedule import Repeat
from oxherd.settings import parse_redis_url


@pytest.fixture
async def queue(redis_url, queue_name):
    link, keys = Link(parse_redis_url(redis_url), "test"), Keys(queue_name)
    await link.start()
    yield Producer(link, keys), Admin(link, keys), link
    await link.stop()


async def test_cancelling_a_waiting_job_removes_it(queue):
    producer, admin, _ = queue
    job_id = await producer.add("a")
    assert await admin.cancel(job_id) == "removed"
    assert await admin.state(job_id) == "unknown"


async def test_what_is_not_there_is_said_to_be_not_there(queue):
    _, admin, _ = queue
    for action in (admin.job, admin.retry, admin.cancel):
        with pytest.raises(JobNotFound, match="nope"):
            await action("nope")


async def test_only_finished_jobs_can_be_retried(queue):
    producer, admin, _ = queue
    with pytest.raises(JobStateError, match="is wait"):
        await admin.retry(await producer.add("a"))


async def test_a_delayed_job_can_be_promoted_and_a_waiting_one_can_not(queue):
    producer, admin, _ = queue
    job_id = await producer.add("a", delay=60_000)
    await admin.promote(job_id)
    assert await admin.state(job_id) == "wait"
    with pytest.raises(JobStateError, match="not delayed"):
        await admin.promote(job_id)


async def test_what_waits_between_two_tries_can_be_promoted_and_what_never_ran_keeps_its_time(
    queue, queue_name, monkeypatch
):
    producer, admin, link = queue
    monkeypatch.setattr("oxherd.queue.admin.AT_ONCE", 2)
    later = [await producer.add("a", delay=60_000) for _ in range(3)]
    begun = [await producer.add("b", delay=60_000) for _ in range(5)]
    for job_id in begun:
        await link.call(b"HSET", Keys(queue_name).job(job_id), b"processedOn", b"1")
    assert sorted(await admin.promote_begun()) == sorted(begun)
    assert {await admin.state(job_id) for job_id in begun} == {"wait"}
    assert {await admin.state(job_id) for job_id in later} == {"delayed"}
    assert await admin.promote_begun() == []


async def test_the_gate_remembers_its_reason(queue):
    _, admin, _ = queue
    assert await admin.gate() is None
    await admin.close_gate("no credit")
    assert await admin.gate() == "no credit"
    await admin.open_gate()
    assert await admin.gate() is None


async def test_a_payload_that_is_not_json_is_shown_as_text(queue):
    producer, admin, link = queue
    job_id = await producer.add("a")
    await link.call(b"HSET", f"{admin._keys.qualified}:{job_id}", b"data", b"not json")
    assert (await admin.job(job_id))["data"] == "not json"


async def test_events_are_read_from_a_position_on(queue):
    producer, admin, link = queue
    other = Link(link._target, "events")
    await other.start()
    job_id = await producer.add("a")
    seen = []
    async for _, event in Admin(other, admin._keys).events("0"):
        seen.append(event["event"])
        if event["event"] == "waiting":
            assert event["jobId"] == job_id
            break
    assert seen == ["added", "waiting"]
    await other.stop()


async def test_a_drain_removes_what_waits_in_pieces_and_leaves_the_rest(queue):
    producer, admin, _ = queue
    await producer.add("urgent", priority=1)
    for _ in range(4):
        await producer.add("a")
    later = await producer.add("later", delay=60_000)
    await producer.schedule("often", Repeat(every=3_600_000), NewJob("tick"))
    assert await admin.drain(limit=3) == (3, 3)
    assert (await admin.drain(limit=10))[0] == 2
    assert await admin.state(later) == "delayed"
    await admin.drain(limit=10, delayed=True)
    assert await admin.state(later) == "unknown"
