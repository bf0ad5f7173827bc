from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.settings import parse_redis_url
from oxherd.telemetry.events import JobEnded, emit
from oxherd.telemetry.slo import DAY, HOUR, Objective, Sli
from oxherd.worker import indicators
from oxherd.worker.indicators import Histogram, Indicators, Tally, bucket_of, upper_ms

NOW = 1_780_000_200  # seconds; begins a bucket of five minutes, not one of an hour


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

    monkeypatch.setattr(indicators, "wall_ms", lambda: int(Clock.now * 1000))
    return Clock


@given(st.floats(1.0, 1e7))
def test_a_duration_counts_in_the_bucket_it_lies_in_and_the_ends_are_twelve_percent_apart(ms):
    bucket = bucket_of(ms)
    assert ms <= upper_ms(bucket) * (1 + 1e-9)
    assert upper_ms(bucket) / upper_ms(bucket - 1) == pytest.approx(10**0.05)
    assert ms >= upper_ms(bucket - 1) * (1 - 1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_that_of_the_durations_to_twelve_percent(durations, share):
    found = Histogram()
    found.counts.update(bucket_of(each) for each in durations)
    exact = sorted(durations)[max(0, -int(-share * len(durations) // 1) - 1)]
    got = found.quantile(share)
    assert exact <= got * 1.0001
    assert got <= max(exact * 1.1221, 1.0001)


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(1, 1e6))
def test_how_many_were_within_a_limit_is_off_by_no_more_than_the_bucket_it_lies_in(durations, limit):
    found = Histogram()
    found.counts.update(bucket_of(each) for each in durations)
    exact = sum(each <= limit for each in durations)
    same = sum(bucket_of(each) == bucket_of(limit) for each in durations)
    assert abs(found.within(limit) - exact) <= same


async def test_what_two_workers_did_is_added_up_and_survives_them(link, queue_name, clock):
    keys = Keys(queue_name)
    for events in (
        [ended(), ended(outcome="failed", run_ms=5000.0), ended("other", wait_ms=90_000)],
        [ended(outcome="retried"), ended(attempt=2, wait_ms=999_999)],
    ):
        worker = Indicators(link, keys)
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


async def test_a_window_takes_its_share_of_the_bucket_that_it_cuts(link, queue_name, clock):
    worker = Indicators(link, Keys(queue_name))
    await worker.write({"reply|c": 100})
    clock.now += 450  # that bucket ended 150 s ago
    tally, _ = await worker.tally(300)
    assert tally.number("c") == 50
    tally, _ = await worker.tally(600)
    assert tally.number("c") == 100


async def test_a_month_is_read_from_the_hours_and_the_fine_buckets_are_gone_by_then(link, queue_name, clock, redis_url):
    worker = Indicators(link, Keys(queue_name))
    for _ in range(3):
        await worker.write({"reply|c": 10})
        clock.now += DAY
    tally, counted = await worker.tally(30 * DAY)
    assert (tally.number("c"), counted) == (30, 3 * DAY)
    with Redis.from_url(redis_url) as redis:
        lives = {key: redis.ttl(key) for key in redis.scan_iter(f"*{queue_name}:sli:*") if not key.endswith(b"since")}
    assert len(lives) == 6
    assert all(0 < life <= (DAY / 2 if b":300:" in key else 31 * DAY) for key, life in lives.items())


async def test_minutes_without_a_healthy_worker_count_against_availability(link, queue_name, clock):
    worker = Indicators(link, Keys(queue_name))
    first = NOW // 60
    await worker.write({}, range(first, first + 6))
    await worker.write({}, range(first + 4, first + 8))  # another worker, partly in the same minutes
    clock.now += 600 + indicators.LATE
    tally, _ = await worker.tally(HOUR)
    count = tally.count(Objective("x", Sli.AVAILABILITY, 0.99))
    assert (count.good, count.total) == (8, 10)


async def test_nothing_counted_is_no_promise_broken(link, queue_name):
    worker = Indicators(link, Keys(queue_name))
    found = await worker.standings([Objective("x", Sli.AVAILABILITY, 0.99), Objective("y", Sli.SUCCESS, 0.99)])
    assert [(each.left, each.severity) for each in found] == [(1.0, None), (1.0, None)]


async def test_a_bad_hour_burns(link, queue_name, clock):
    worker = Indicators(link, Keys(queue_name))
    await worker.write({"reply|c": 1000})
    clock.now += 2 * HOUR
    await worker.write({"reply|f": 100, "reply|c": 100})
    clock.now += 30
    (found,) = await worker.standings([Objective("y", Sli.SUCCESS, 0.99)])
    assert found.severity == "page"
    assert found.left == pytest.approx(1 - 100 / 1200 / 0.01)


async def test_what_redis_did_not_take_is_written_later(link, queue_name, valkey, monkeypatch):
    worker = Indicators(link, Keys(queue_name))
    await worker.start(["reply"], lambda: True)
    emit(ended())
    link.drop()
    await worker._write_or_keep()
    await link.ready()
    await worker.stop()
    tally, _ = await worker.tally(HOUR)
    assert tally.number("c") == 1


async def test_an_idle_worker_writes_nothing_but_its_minutes_and_those_rarely(link, queue_name, monkeypatch):
    monkeypatch.setattr(indicators, "LOOK", 0.01)
    monkeypatch.setattr(indicators, "IDLE_PAUSE", 0.3)
    worker, writes = Indicators(link, Keys(queue_name)), []
    wrote = asyncio.Event()

    async def write(counted, minutes=()):
        writes.append((dict(counted), set(minutes)))
        wrote.set()

    monkeypatch.setattr(worker, "write", write)
    await worker.start(["reply"], lambda: True)
    await asyncio.wait_for(wrote.wait(), 5)
    await worker.stop()
    assert writes[0][0] == {}
    assert writes[0][1]


def test_a_job_name_may_hold_any_character():
    tally = Tally()
    tally.add({"a|b|c": 2, "a|b|w12": 1, "up3": 1})
    assert (tally.number("c", "a|b"), tally.histogram("w", "a|b").total) == (2, 1)
