from __future__ import annotations

import pytest

from oxherd.errors import JobStateError, PayloadInvalid
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
    yield Producer(link, keys), Admin(link, keys)
    await link.stop()


async def test_jobs_land_in_the_state_their_options_ask_for(queue):
    producer, admin = queue
    await producer.add("a")
    await producer.add("a", delay=60_000)
    await producer.add("a", priority=3)
    await producer.add_flow(NewJob("parent", children=[NewJob("child")]))
    counts = await admin.counts()
    assert (counts["wait"], counts["delayed"], counts["prioritized"], counts["waiting-children"]) == (2, 1, 1, 1)


async def test_the_same_job_id_is_added_once(queue):
    producer, admin = queue
    assert [await producer.add("a", jobId="order-1"), await producer.add("a", jobId="order-1")] == ["order-1"] * 2
    assert (await admin.counts())["wait"] == 1


async def test_deduplication_answers_with_the_first_jobs_id(queue):
    producer, _ = queue
    first = await producer.add("a", deduplication={"id": "x"})
    assert await producer.add("a", deduplication={"id": "x"}) == first


async def test_bulk_keeps_the_order(queue):
    producer, admin = queue
    ids = await producer.add_bulk([NewJob("a", {"n": n}) for n in range(20)])
    listed = await admin.pages.page(["wait"], limit=20)
    assert [job["id"] for job in listed.jobs] == ids
    assert [(await admin.job(job_id))["data"]["n"] for job_id in ids] == list(range(20))


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        ({"prio": 1}, "prio"),
        ({"priority": -1}, "priority"),
        ({"priority": 2**21}, "priority"),
        ({"delay": 1.5}, "delay"),
        ({"attempts": "3"}, "attempts"),
        ({"jobId": "a:b"}, "jobId"),
        ({"sizeLimit": 3}, "sizeLimit"),
        ({"failParentOnFailure": True, "ignoreDependencyOnFailure": True}, "failParentOnFailure"),
    ],
)
async def test_a_bad_option_is_named_and_nothing_is_added(queue, opts, named):
    producer, admin = queue
    with pytest.raises(PayloadInvalid, match=named):
        await producer.add("a", {"some": "data"}, **opts)
    assert sum((await admin.counts()).values()) == 0


async def test_a_child_of_a_parent_that_is_gone_is_refused(queue):
    producer, _ = queue
    with pytest.raises(JobStateError, match="parent"):
        await producer.add("a", parent={"id": "gone", "queue": "bull:nowhere"})


async def test_a_schedule_makes_its_first_job_and_goes_away_again(queue):
    producer, admin = queue
    job_id = await producer.schedule("daily", Repeat(pattern="0 9 * * *", tz="Europe/Berlin"), NewJob("report"))
    assert job_id.startswith("repeat:daily:")
    assert (await admin.job(job_id))["scheduler"] == "daily"
    assert await producer.unschedule("daily")
    assert not await producer.unschedule("daily")
    assert (await admin.counts())["delayed"] == 0
