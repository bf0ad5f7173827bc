from __future__ import annotations

import asyncio
import threading

import pytest

from oxherd.telemetry.events import JobCancelRequested, JobStalled, emit
from oxherd.testing import captured_events


def test_events_are_kept_in_order_while_the_context_lasts():
    with captured_events() as events:
        emit(JobStalled(id="1"))
        emit(JobCancelRequested(id="2"))
        emit(JobStalled(id="3"))
    emit(JobStalled(id="4"))
    assert [event.id for event in events] == ["1", "2", "3"]
    assert events.all(JobStalled, id="3") == [JobStalled(id="3")]
    assert len(events.all(JobStalled)) == 2


def test_only_the_kinds_that_were_asked_for_are_kept():
    with captured_events(JobStalled) as events:
        emit(JobCancelRequested(id="1"))
    assert len(events) == 0


async def test_a_test_can_wait_for_events_from_any_thread(oxherd_events):
    waiting, reacted = threading.Event(), []
    thread = threading.Thread(target=lambda: waiting.wait() and [emit(JobStalled(id=one)) for one in "ab"])
    thread.start()
    oxherd_events.on(JobStalled, lambda event: reacted.append(event.id))
    asyncio.get_running_loop().call_later(0.05, waiting.set)  # when the loop has nothing else to do
    found = await asyncio.gather(oxherd_events.wait(JobStalled, count=2), oxherd_events.wait(JobStalled, id="a"))
    assert found == [[JobStalled(id="a"), JobStalled(id="b")], [JobStalled(id="a")]]
    thread.join()
    assert reacted == ["a", "b"]


async def test_what_did_not_happen_is_told_with_what_did(oxherd_events):
    emit(JobStalled(id="7"))
    with pytest.raises(AssertionError, match=r"(?s)did not happen within 0.01 s.*JobStalled\(id='7'\)"):
        await oxherd_events.wait(JobStalled, id="8", within=0.01)
