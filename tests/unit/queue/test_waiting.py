from __future__ import annotations

import asyncio

import pytest

from oxherd.errors import JobNotFound, RedisUnreachable
from oxherd.queue import waiting
from oxherd.queue.waiting import Ending, as_json, wait_for_end


class Queue:
    """Stands for both admins: the job as it is found, look by look, and the events, connection by connection."""

    def __init__(self, looks, events=()) -> None:
        self.looks = list(looks)
        self.streams = [list(each) for each in events]
        self.since: list[str] = []

    async def job(self, job_id):
        found = self.looks.pop(0) if self.looks else {"state": "active"}
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise JobNotFound(job_id)
        return {"returnvalue": None, "failed_reason": None, **found}

    async def events(self, since):
        self.since.append(since)
        for item in self.streams.pop(0) if self.streams else ():
            if isinstance(item, Exception):
                raise item
            yield item
        await asyncio.Event().wait()


async def end(queue, seen=None) -> Ending:
    return await wait_for_end(queue, queue, "7", since="1-0", on_event=(seen if seen is not None else []).append)


async def test_a_job_that_has_ended_already_needs_no_event():
    assert await end(Queue([{"state": "completed", "returnvalue": 5}])) == Ending("completed", value=5)
    assert await end(Queue([{"state": "failed", "failed_reason": "no"}])) == Ending("failed", reason="no")


async def test_events_lead_to_the_end_and_those_of_other_jobs_are_passed_over():
    progress = {"event": "progress", "jobId": "7", "data": "50"}
    stream = [
        ("2-0", {"event": "completed", "jobId": "8", "returnvalue": "1"}),
        ("3-0", progress),
        ("4-0", {"event": "completed", "jobId": "7", "returnvalue": '{"a":1}'}),
    ]
    seen: list = []
    assert await end(Queue([{"state": "wait"}], [stream]), seen) == Ending("completed", value={"a": 1})
    assert seen == [progress]


async def test_a_failure_has_its_reason_and_a_removal_is_an_end():
    failed = [("2-0", {"event": "failed", "jobId": "7", "failedReason": "broken"})]
    removed = [("2-0", {"event": "removed", "jobId": "7"})]
    assert await end(Queue([{"state": "active"}], [failed])) == Ending("failed", reason="broken")
    assert await end(Queue([{"state": "wait"}], [removed])) == Ending("removed")


async def test_a_job_that_was_removed_when_it_completed_still_tells_its_result():
    stream = [("2-0", {"event": "completed", "jobId": "7", "returnvalue": "9"})]
    assert await end(Queue([None], [stream])) == Ending("completed", value=9)


async def test_after_a_lost_connection_it_goes_on_from_the_last_event_seen():
    streams = [
        [("2-0", {"event": "active", "jobId": "7"}), RedisUnreachable("gone")],
        [("3-0", {"event": "completed", "jobId": "7", "returnvalue": "1"})],
    ]
    queue = Queue([{"state": "wait"}, {"state": "active"}], streams)
    assert await end(queue) == Ending("completed", value=1)
    assert queue.since == ["1-0", "2-0"]


async def test_a_connection_lost_while_looking_is_no_end():
    queue = Queue([RedisUnreachable("gone"), {"state": "completed", "returnvalue": 3}])
    assert await end(queue) == Ending("completed", value=3)


async def test_a_job_that_ended_while_the_events_were_lost_is_seen_by_looking():
    queue = Queue([{"state": "wait"}, {"state": "failed", "failed_reason": "meanwhile"}], [[RedisUnreachable("gone")]])
    assert await end(queue) == Ending("failed", reason="meanwhile")


async def test_a_silent_stream_is_not_trusted_for_ever(monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_AGAIN", 0.01)
    assert await end(Queue([None, None])) == Ending("removed")


@pytest.mark.parametrize(("text", "value"), [(None, None), ("1", 1), ('"x"', "x"), ("no json", "no json")])
def test_a_value_in_an_event_is_json_or_text(text, value):
    assert as_json(text) == value
