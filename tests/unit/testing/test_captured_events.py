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
    thread = threading.Thread(target=lambda: [emit(JobStalled(id=one)) for one in "ab"])
    both, first = asyncio.gather(oxherd_events.wait(JobStalled, count=2), oxherd_events.wait(JobStalled, id="a")), []
    oxherd_events.on(JobStalled, lambda event: first.append(event.id))
    thread.start()
    assert await both == [[JobStalled(id="a"), JobStalled(id="b")], [JobStalled(id="a")]]
    thread.join()
    assert first == ["a", "b"]


async def test_what_did_not_happen_is_told_with_what_did(oxherd_events):
    emit(JobStalled(id="7"))
    with pytest.raises(AssertionError, match=r"(?s)did not happen within 0.01 s.*JobStalled\(id='7'\)"):
        await oxherd_events.wait(JobStalled, id="8", within=0.01)
