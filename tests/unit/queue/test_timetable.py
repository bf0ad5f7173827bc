"""Schedules for people: listed, paused, resumed, run now."""

from __future__ import annotations

import pytest

from oxherd.errors import JobStateError, PayloadInvalid, ScheduleNotFound
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat
from oxherd.queue.timetable import Timetable
from oxherd.settings import parse_redis_url

NIGHTLY = Repeat(pattern="0 3 * * *", tz="Europe/Berlin")
REPORT = NewJob("report", {"what": "ox"}, {"attempts": 3, "keepLogs": 5})


@pytest.fixture
async def queue(redis_url, queue_name):
    link, keys = Link(parse_redis_url(redis_url), "test"), Keys(queue_name)
    await link.start()
    yield Timetable(link, keys), Admin(link, keys), link, keys
    await link.stop()


async def test_a_schedule_is_shown_as_it_was_put(queue):
    timetable, _, _, _ = queue
    await timetable.put("nightly", NIGHTLY, REPORT)
    (found,) = await timetable.all()
    assert found == await timetable.one("nightly")
    assert found["next"] > 0
    del found["next"]
    assert found == {
        "id": "nightly", "name": "report", "every": None, "pattern": "0 3 * * *", "tz": "Europe/Berlin", "limit": None,
        "start": None, "end": None, "count": 1, "paused": False, "data": {"what": "ox"},
        "opts": {"attempts": 3, "keepLogs": 5},
    }  # fmt: skip


async def test_a_paused_schedule_leaves_bullmq_s_list_and_comes_back_as_it_was(queue):
    timetable, admin, link, keys = queue
    await timetable.put("nightly", NIGHTLY, REPORT)
    before = await timetable.one("nightly")
    paused = await timetable.pause("nightly")
    assert (paused["paused"], paused["next"]) == (True, None)
    assert await timetable.all() == [paused]
    assert await link.call(b"ZCARD", keys.repeat) == 0
    assert (await admin.counts())["delayed"] == 0
    with pytest.raises(JobStateError, match="is paused"):
        await timetable.pause("nightly")
    assert await timetable.resume("nightly") == before
    assert (await admin.counts())["delayed"] == 1
    with pytest.raises(JobStateError, match="not paused"):
        await timetable.resume("nightly")


async def test_a_run_now_is_one_more_job_of_the_same_kind(queue):
    timetable, admin, _, _ = queue
    await timetable.put("often", Repeat(every=3_600_000), REPORT)
    await timetable.pause("often")
    job = await admin.job(await timetable.run_now("often"))
    assert (job["name"], job["data"], job["attempts"], job["scheduler"]) == ("report", {"what": "ox"}, 3, None)


async def test_a_removed_schedule_is_gone_paused_or_not(queue):
    timetable, admin, _, _ = queue
    for pause in (False, True):
        await timetable.put("nightly", NIGHTLY, REPORT)
        if pause:
            await timetable.pause("nightly")
        await timetable.remove("nightly")
        assert await timetable.all() == []
        assert (await admin.counts())["delayed"] == 0
    for act in (timetable.one, timetable.pause, timetable.resume, timetable.run_now, timetable.remove):
        with pytest.raises(ScheduleNotFound, match="nightly"):
            await act("nightly")


async def test_what_is_put_again_is_no_longer_paused(queue):
    timetable, _, _, _ = queue
    await timetable.put("nightly", NIGHTLY, REPORT)
    await timetable.pause("nightly")
    await timetable.put("nightly", NIGHTLY, NewJob("other"))
    (found,) = await timetable.all()
    assert (found["name"], found["paused"]) == ("other", False)


async def test_a_malformed_schedule_is_refused(queue):
    timetable, _, _, _ = queue
    with pytest.raises(PayloadInvalid, match="exactly one"):
        await timetable.put("both", Repeat(every=1, pattern="* * * * *"), REPORT)
    with pytest.raises(PayloadInvalid, match="can't be read"):
        await timetable.put("odd", Repeat(pattern="every day"), REPORT)
