from __future__ import annotations

import asyncio

import pytest

from oxherd.queue import indicators
from oxherd.queue.connection import Link
from oxherd.queue.indicators import Indicators
from oxherd.queue.keys import Keys
from oxherd.settings import parse_redis_url
from oxherd.telemetry.events import JobEnded, emit
from oxherd.telemetry.slo import HOUR, Objective, Sli
from oxherd.worker import counting
from oxherd.worker.counting import Counting

NOW = 1_780_000_200  # seconds; begins a minute, not an hour


def ended(job: str = "reply", outcome: str = "completed", wait_ms: int = 10, run_ms: float = 100.0, attempt: int = 1):
    return JobEnded(
        job=job, id="1", attempt=attempt, attempts=3, outcome=outcome, kind="", wait_ms=wait_ms, run_ms=run_ms,
        total_ms=0, tokens=0, cost_usd=None, reason="",
    )  # fmt: skip


@pytest.fixture
async def link(redis_url: str):
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    yield link
    await link.stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Wall time that a test sets, in seconds."""

    class Clock:
        now = float(NOW)

    for module in (indicators, counting):
        monkeypatch.setattr(module, "wall_ms", lambda: int(Clock.now * 1000))
    return Clock


async def test_what_two_workers_did_is_added_up_and_survives_them(link, queue_name, clock):
    keys = Keys(queue_name)
    for events in (
        [ended(), ended(outcome="failed", run_ms=5000.0), ended("other", wait_ms=90_000)],
        [ended(outcome="retried"), ended(attempt=2, wait_ms=999_999)],
    ):
        worker = Counting(Indicators(link, keys))
        await worker.start(["reply"], lambda: True)
        for event in events:
            emit(event)
        await worker.stop()
    clock.now += 60
    tally, counted = await Indicators(link, keys).tally(HOUR)
    assert counted == 60
    assert (tally.number("a"), tally.number("a", "reply"), tally.number("a", "_unknown")) == (5, 4, 1)
    assert (tally.number("c"), tally.number("f"), tally.number("e")) == (3, 1, 2)
    assert tally.histogram("w").total == 4  # a second attempt did not wait as a user does
    assert tally.histogram("w").quantile(1.0) == pytest.approx(90_000, rel=0.13)
    count = tally.count(Objective("x", Sli.SUCCESS, 0.9))
    assert (count.good, count.total) == (3, 4)
    count = tally.count(Objective("x", Sli.WAIT, 0.9, threshold=60.0))
    assert (count.good, count.total) == (3, 4)


async def test_what_redis_did_not_take_is_written_later(link, queue_name, valkey, monkeypatch):
    kept = Indicators(link, Keys(queue_name))
    worker = Counting(kept)
    await worker.start(["reply"], lambda: True)
    emit(ended())
    link.drop()
    await worker._write_or_keep()
    await link.ready()
    await worker.stop()
    tally, _ = await kept.tally(HOUR)
    assert tally.number("c") == 1


async def test_an_idle_worker_writes_nothing_but_its_minutes_and_those_rarely(link, queue_name, monkeypatch):
    monkeypatch.setattr(counting, "LOOK", 0.01)
    monkeypatch.setattr(counting, "IDLE_PAUSE", 0.3)
    kept, writes = Indicators(link, Keys(queue_name)), []
    worker = Counting(kept)
    wrote = asyncio.Event()

    async def write(counted, minutes=(), *, minute):
        writes.append((dict(counted), set(minutes)))
        wrote.set()

    monkeypatch.setattr(kept, "write", write)
    await worker.start(["reply"], lambda: True)
    await asyncio.wait_for(wrote.wait(), 5)
    await worker.stop()
    assert writes[0][0] == {}
    assert writes[0][1]


async def test_what_ended_in_a_minute_counts_in_it_though_it_is_written_in_the_next(link, queue_name, clock):
    kept = Indicators(link, Keys(queue_name))
    worker = Counting(kept)
    await worker.start(["reply"], lambda: True)
    emit(ended())
    clock.now += 61
    await worker.stop()
    assert [each.completed for each in await kept.series(HOUR, 60)] == [1, 0]
