"""Dead letters: what belongs together, and acting on many."""

from __future__ import annotations

import pytest

from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.dead import DeadLetters, Pick, fingerprint, grouped
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.settings import parse_redis_url


def letter(job_id, name, reason, finished=0):
    return {"id": job_id, "name": name, "failed_reason": reason, "finished_on": finished}


def test_dead_letters_are_grouped_by_name_and_reason_numbers_aside():
    jobs = [
        letter("1", "mail", "timed out after 3.1 s", 10),
        letter("2", "mail", "timed out after 12.7 s", 30),
        letter("3", "mail", "mailbox full"),
        letter("4", "sms", "timed out after 3.1 s"),
    ]
    first, *rest = grouped(jobs)
    kind = fingerprint("mail", "timed out after 99.9 s")
    assert first == {
        "fingerprint": kind, "name": "mail", "reason": "timed out after 3.1 s", "count": 2, "newest": 30,
        "ids": ["1", "2"],
    }  # fmt: skip
    assert [(group["name"], group["count"]) for group in rest] == [("mail", 1), ("sms", 1)]


def test_only_the_first_line_of_a_reason_tells_groups_apart():
    assert len(grouped([letter("1", "a", "boom\nid 1"), letter("2", "a", "boom\nother"), letter("3", "a", None)])) == 2


@pytest.fixture
async def dead(redis_url, queue_name):
    link, keys = Link(parse_redis_url(redis_url), "test"), Keys(queue_name)
    await link.start()
    producer, admin = Producer(link, keys), Admin(link, keys)

    async def fail(name: str, reason: str, at: int) -> str:
        job_id = await producer.add(name)
        await link.call(b"LREM", keys.wait, 1, job_id)
        await link.call(b"HSET", keys.job(job_id), b"failedReason", reason, b"finishedOn", at)
        await link.call(b"ZADD", keys.failed, at, job_id)
        return job_id

    yield DeadLetters(admin), admin, fail
    await link.stop()


async def test_a_group_is_put_back_and_the_others_stay(dead):
    letters, admin, fail = dead
    late = await fail("mail", "timed out after 3 s", 20)
    early = await fail("mail", "timed out after 4 s", 10)
    other = await fail("mail", "mailbox full", 30)
    done = await letters.replay(Pick(kind=fingerprint("mail", "timed out after 0 s")))
    assert (done.done, done.gone, done.next) == ([early, late], [], None)
    assert [await admin.state(each) for each in (early, late, other)] == ["wait", "wait", "failed"]


async def test_many_are_done_in_pieces_each_going_on_where_the_last_ended(dead):
    letters, _, fail = dead
    ids = [await fail("mail", "full", at) for at in range(1, 6)]
    first = await letters.replay(Pick(limit=2))
    second = await letters.replay(Pick(limit=2, after=first.next))
    third = await letters.replay(Pick(limit=2, after=second.next))
    assert [first.done, second.done, third.done] == [ids[:2], ids[2:4], ids[4:]]
    assert third.next is None


async def test_a_replay_leaves_what_failed_after_it_began(dead):
    letters, _, fail = dead
    before, _ = await fail("mail", "full", 10), await fail("mail", "full", 20)
    assert (await letters.replay(Pick(until=20))).done == [before]


async def test_chosen_ones_that_are_no_dead_letters_are_told_and_left_alone(dead):
    letters, admin, fail = dead
    failed = await fail("mail", "full", 10)
    assert await letters.absent([failed, "nope"]) == ["nope"]
    done = await letters.remove(Pick(ids=[failed, "nope"]))
    assert (done.done, done.gone) == ([failed], ["nope"])
    assert await admin.state(failed) == "unknown"


async def test_only_so_many_of_the_newest_are_grouped(dead):
    letters, _, fail = dead
    ids = [await fail("mail", "full", at) for at in range(1, 6)]
    assert [group["ids"] for group in await letters.groups(limit=3)] == [[ids[4], ids[3], ids[2]]]
