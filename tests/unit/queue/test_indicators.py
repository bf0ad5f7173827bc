from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from oxherd.queue import indicators
from oxherd.queue.connection import Link
from oxherd.queue.indicators import Histogram, Indicators, Tally, bucket_of, upper_ms
from oxherd.queue.keys import Keys
from oxherd.settings import parse_redis_url
from oxherd.telemetry.slo import DAY, HOUR, Objective, Sli

NOW = 1_780_000_200  # seconds; begins a minute, not an hour


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


async def test_a_window_takes_its_share_of_the_bucket_that_it_cuts(link, queue_name, clock):
    worker = Indicators(link, Keys(queue_name))
    await worker.write({"reply|c": 100})
    clock.now += 330  # that minute ended 270 s ago
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
    assert all(0 < life <= (DAY / 2 if b":60:" in key else 31 * DAY) for key, life in lives.items())


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


def test_a_job_name_may_hold_any_character():
    tally = Tally()
    tally.add({"a|b|c": 2, "a|b|w12": 1, "up3": 1})
    assert (tally.number("c", "a|b"), tally.histogram("w", "a|b").total) == (2, 1)


async def test_a_chart_has_a_point_for_each_step_and_none_from_before_anything_was_counted(link, queue_name, clock):
    worker = Indicators(link, Keys(queue_name))
    assert await worker.series(HOUR, 60) == []
    await worker.write({"reply|a": 4, "reply|e": 1, "reply|c": 2, "reply|f": 1, "reply|r40": 3, "reply|r80": 1})
    clock.now += 60
    await worker.write({"other|a": 1, "other|c": 1, "other|w20": 1})
    clock.now += 75  # the third minute is there for 15 s
    points = await worker.series(HOUR, 60)
    assert [(each.at, each.seconds, each.attempts, each.completed) for each in points] == [
        (NOW, 60, 4, 2), (NOW + 60, 60, 1, 1), (NOW + 120, 15, 0, 0),
    ]  # fmt: skip
    assert (points[0].errors, points[0].failed) == (1, 1)
    assert points[0].run == pytest.approx((100, 10_000, 10_000))
    assert points[0].wait == (None, None, None)
    assert [each.completed for each in await worker.series(6 * HOUR, 300)] == [3]
    assert [each.completed for each in await worker.series(HOUR, 60, job="other")] == [0, 1, 0]


async def test_a_chart_that_is_drawn_again_asks_redis_for_its_newest_points_only(link, queue_name, clock, monkeypatch):
    worker, asked = Indicators(link, Keys(queue_name)), []
    await worker.write({"reply|c": 1})
    clock.now += 3000
    call = link.call

    def listen(*args):
        asked.append(args)
        return call(*args)

    monkeypatch.setattr(link, "call", listen)
    first = await worker.series(HOUR, 60)
    assert len(asked) == len(first) + 1  # and since when
    asked.clear()
    worker.forget()
    assert await worker.series(HOUR, 60) == first
    assert len(asked) == 3  # those that some worker may still write


async def test_counting_costs_one_command_however_much_was_counted(link, queue_name, clock, monkeypatch):
    worker, asked = Indicators(link, Keys(queue_name)), []
    await worker.write({"reply|c": 1})
    call = link.call

    def listen(*args):
        asked.append(args)
        return call(*args)

    monkeypatch.setattr(link, "call", listen)
    await worker.write({f"reply|r{each}": each for each in range(50)}, [NOW // 60])
    assert len(asked) == 1
