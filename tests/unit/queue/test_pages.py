"""Pages of jobs: stable under inserts, bounded in what they look at."""

from __future__ import annotations

import pytest

from oxherd.queue import pages
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.pages import Place
from oxherd.queue.producer import NewJob, Producer
from oxherd.settings import parse_redis_url


@pytest.fixture
async def queue(redis_url, queue_name):
    link, keys = Link(parse_redis_url(redis_url), "test"), Keys(queue_name)
    await link.start()
    yield Producer(link, keys), Admin(link, keys), link, keys
    await link.stop()


async def failed(link, keys, *ends: tuple[str, int], reason: str = "no paper", data: bytes = b"{}") -> None:
    for job_id, at in ends:
        await link.call(
            b"HSET", keys.job(job_id), b"name", b"print", b"data", data, b"failedReason", reason, b"finishedOn", at
        )
        await link.call(b"ZADD", keys.failed, at, job_id)


async def walked(admin, *, limit, between=None, **filters):
    """The ids of every page, something being done between them."""
    place, found = None, []
    while True:
        page = await admin.pages.page(limit=limit, after=place, **filters)
        found.append([job["id"] for job in page.jobs])
        if (place := page.next) is None:
            return found
        if between is not None:
            await between()


async def test_a_list_shows_what_runs_first_and_goes_on_where_the_page_before_ended(queue):
    producer, admin, link, keys = queue
    urgent = await producer.add("urgent", priority=1)
    waiting = [await producer.add("plain") for _ in range(3)]
    later = await producer.add("later", delay=60_000)
    await failed(link, keys, ("old", 1000), ("new", 2000))
    found = await walked(admin, limit=2)
    assert [job for page in found for job in page] == [urgent, *waiting, later, "new", "old"]
    assert all(len(page) <= 2 for page in found)


async def test_jobs_that_are_added_meanwhile_neither_repeat_nor_hide_one(queue):
    producer, admin, link, keys = queue
    ids = [await producer.add("a") for _ in range(5)]
    assert [job for page in await walked(
        admin, limit=2, states=["wait"], between=lambda: producer.add("b", lifo=True)
    ) for job in page][:5] == ids  # fmt: skip

    await failed(link, keys, *((f"f{number}", 1000 + number) for number in range(5)))
    newest = iter(range(100))

    async def another() -> None:
        await failed(link, keys, (f"g{next(newest)}", 5000))

    found = await walked(admin, limit=2, states=["failed"], between=another)
    assert [job for page in found for job in page] == ["f4", "f3", "f2", "f1", "f0"]


async def test_a_page_goes_on_where_its_last_job_has_left_or_has_ended_again(queue):
    _, admin, link, keys = queue
    await failed(link, keys, ("a", 7), ("b", 7), ("c", 7), ("d", 9), ("e", 5))

    async def put_back() -> None:
        await link.call(b"ZREM", keys.failed, b"c")

    async def failed_again() -> None:
        await failed(link, keys, ("c", 100))

    for between in (failed_again, put_back):
        page = await admin.pages.page(["failed"], limit=2)
        assert [job["id"] for job in page.jobs] == ["d", "c"]
        await between()
        rest = await admin.pages.page(["failed"], limit=9, after=page.next)
        assert [job["id"] for job in rest.jobs] == ["b", "a", "e"]
        await failed(link, keys, ("c", 7))
    first = await admin.pages.page(["failed"], limit=3, oldest_first=True)
    await link.call(b"ZREM", keys.failed, b"e", b"a", b"b")
    rest = await admin.pages.page(["failed"], limit=9, after=first.next, oldest_first=True)
    assert [job["id"] for job in rest.jobs] == ["c", "d"]


async def test_a_waiting_list_goes_on_when_workers_took_what_was_shown(queue):
    producer, admin, link, keys = queue
    ids = [await producer.add("a") for _ in range(6)]
    page = await admin.pages.page(["wait"], limit=2)
    await link.call(b"LMOVE", keys.wait, keys.active, b"RIGHT", b"LEFT")
    rest = await admin.pages.page(["wait"], limit=2, after=page.next)
    assert [job["id"] for job in rest.jobs] == ids[2:4]
    for _ in range(3):
        await link.call(b"LMOVE", keys.wait, keys.active, b"RIGHT", b"LEFT")
    rest = await admin.pages.page(["wait"], limit=9, after=rest.next)
    assert [job["id"] for job in rest.jobs] == ids[4:]


async def test_those_that_ended_in_a_span_of_time_are_a_range(queue):
    _, admin, link, keys = queue
    await failed(link, keys, *((str(at), at) for at in range(1, 9)))
    found = await walked(admin, limit=2, states=["failed"], since=3, until=7)
    assert [job for page in found for job in page] == ["6", "5", "4", "3"]
    found = await walked(admin, limit=3, states=["failed"], since=3, until=7, oldest_first=True)
    assert [job for page in found for job in page] == ["3", "4", "5", "6"]


async def test_a_filter_looks_at_so_many_jobs_and_says_where_it_stopped(queue, monkeypatch):
    producer, admin, _, _ = queue
    monkeypatch.setattr(pages, "MOST_EXAMINED", 150)
    await producer.add_bulk([NewJob("common", {"tenant": "acme"}) for _ in range(200)])
    rare = await producer.add("rare", {"tenant": "zeta"})

    def keep(job):
        return job["tenant"] == "zeta"

    first = await admin.pages.page(["wait"], keep=keep, limit=5)
    assert first.jobs == []
    second = await admin.pages.page(["wait"], keep=keep, limit=5, after=first.next)
    assert [(job["id"], job["tenant"]) for job in second.jobs] == [(rare, "zeta")]
    assert second.next is None


async def test_a_list_carries_no_large_payload_and_no_long_reason(queue):
    producer, admin, link, keys = queue
    await producer.add("large", {"tenant": "acme", "text": "x" * 70_000})
    (job,) = (await admin.pages.page(["wait"])).jobs
    assert job["tenant"] is None
    await failed(link, keys, ("f", 1), reason="é" * 5_000)
    (job,) = (await admin.pages.page(["failed"])).jobs
    assert len(job["failed_reason"]) < 1_001
    assert (await admin.job("f"))["failed_reason"] == "é" * 5_000


async def test_a_page_of_a_long_queue_reads_a_page(queue):
    _, admin, link, keys = queue
    await link.call(b"EVAL", b"for i = 1, 50000 do redis.call('ZADD', KEYS[1], i, 'j' .. i) end", 1, keys.completed)
    place = Place("completed", "j25000", "25000")
    page = await admin.pages.page(["completed"], limit=3, after=place)
    assert [job["id"] for job in page.jobs] == ["j24999", "j24998", "j24997"]
