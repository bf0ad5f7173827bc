"""A request that is sent twice counts once, also when the first was cut off."""

from __future__ import annotations

import pytest

from oxherd.errors import KeyReused, RedisUnreachable
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.idempotency import once
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.settings import parse_redis_url


@pytest.fixture
async def queue(redis_url, queue_name):
    link, keys = Link(parse_redis_url(redis_url), "test"), Keys(queue_name)
    await link.start()
    yield link, keys, Producer(link, keys), Admin(link, keys)
    await link.stop()


async def test_a_repeated_request_adds_nothing_and_gets_the_same_answer(queue):
    link, keys, producer, admin = queue

    async def add(prefix: str) -> list[str]:
        return [await producer.add("a", jobId=f"{prefix}-{number}") for number in range(2)]

    ids, earlier = await once(link, keys, "key", b"request", add)
    assert (len(ids), earlier) == (2, False)
    assert [await admin.remove(each) for each in ids] == [True, True]  # the memory outlives the jobs
    assert await once(link, keys, "key", b"request", add) == (ids, True)
    assert (await admin.counts())["wait"] == 0
    assert await once(link, keys, "other key", b"request", add) != (ids, True)


async def test_a_key_that_comes_with_another_request_is_refused(queue):
    link, keys, _, _ = queue

    async def add(prefix: str) -> list[str]:
        return [prefix]

    await once(link, keys, "key", b"one", add)
    with pytest.raises(KeyReused, match="another request"):
        await once(link, keys, "key", b"two", add)


async def test_a_request_that_was_cut_off_may_be_repeated(queue):
    link, keys, producer, admin = queue

    async def cut_off(prefix: str) -> list[str]:
        await producer.add("a", jobId=prefix)
        raise RedisUnreachable("gone")

    async def add(prefix: str) -> list[str]:
        return [await producer.add("a", jobId=prefix)]

    with pytest.raises(RedisUnreachable):
        await once(link, keys, "key", b"request", cut_off)
    _, earlier = await once(link, keys, "key", b"request", add)
    assert not earlier
    assert (await admin.counts())["wait"] == 1
