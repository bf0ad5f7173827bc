from __future__ import annotations

from datetime import UTC, datetime

import pytest

from oxherd.errors import PayloadInvalid
from oxherd.queue.schedule import Repeat, first_run, next_match


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def test_a_five_field_pattern_is_utc_unless_told():
    assert next_match("30 9 * * *", None, ms("2026-11-23T09:00:00")) == ms("2026-11-23T09:30:00")


def test_a_pattern_follows_its_time_zone_across_the_clock_change():
    assert next_match("0 9 * * *", "Europe/Berlin", ms("2026-10-24T12:00:00")) == ms("2026-10-25T08:00:00")
    assert next_match("0 9 * * *", "Europe/Berlin", ms("2026-10-23T12:00:00")) == ms("2026-10-24T07:00:00")


def test_a_local_time_that_the_clock_change_skips_runs_once_that_day():
    assert next_match("30 2 * * *", "Europe/Berlin", ms("2026-03-28T12:00:00")) == ms("2026-03-29T01:30:00")


def test_a_frequent_pattern_goes_on_through_the_repeated_hour():
    assert next_match("*/10 * * * *", "Europe/Berlin", ms("2026-10-25T00:50:00")) == ms("2026-10-25T01:00:00")


def test_six_fields_have_the_seconds_first():
    assert next_match("15 * * * * *", None, ms("2026-11-23T09:00:00")) == ms("2026-11-23T09:00:15")


@pytest.mark.parametrize(("pattern", "tz"), [("every day", None), ("0 9 * * *", "Mars/Olympus"), ("99 * * * *", None)])
def test_a_malformed_schedule_is_named(pattern, tz):
    with pytest.raises(PayloadInvalid, match="schedule"):
        next_match(pattern, tz, 0)


@pytest.mark.parametrize("repeat", [Repeat(), Repeat(every=1000, pattern="* * * * *")])
def test_a_schedule_has_exactly_one_rhythm(repeat):
    with pytest.raises(PayloadInvalid, match="exactly one"):
        first_run(repeat, 0)
