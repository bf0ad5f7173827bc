from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxherd.errors import UsageError
from oxherd.telemetry.slo import BURNS, DAY, HOUR, Count, Objective, Sli, budget_left, read_objectives, standing

SUCCESS = Objective("success", Sli.SUCCESS, 0.99)


def steady(bad_share: float, per_hour: float = 1000.0):
    """A measure of traffic that has been the same for ever."""

    def measure(_: Objective, seconds: float) -> Count:
        total = per_hour * seconds / HOUR
        return Count(total * (1 - bad_share), total)

    return measure


def recent(bad_share: float, lasted: float):
    """A measure of good traffic with a bad spell over the last `lasted` seconds."""

    def measure(_: Objective, seconds: float) -> Count:
        total = 1000.0 * seconds / HOUR
        return Count(total - 1000.0 * min(lasted, seconds) / HOUR * bad_share, total)

    return measure


def test_the_factors_for_thirty_days_are_the_workbook_s():
    assert [round(burn.factor(30 * DAY), 3) for burn in BURNS] == [14.4, 6.0, 1.0]


def test_a_budget_that_burns_just_faster_than_allowed_is_a_ticket_not_a_page():
    found = standing(SUCCESS, steady(0.0100001))
    assert found.severity == "ticket"
    assert found.left == pytest.approx(0.0, abs=1e-4)


def test_no_events_are_no_broken_promise():
    found = standing(SUCCESS, lambda *_: Count())
    assert (found.severity, found.left, found.count.ratio) == (None, 1.0, None)


def test_a_fast_burn_pages():
    assert standing(SUCCESS, recent(0.5, 3600)).severity == "page"


def test_a_trouble_that_is_over_stops_to_fire_with_the_short_window():
    def over(_: Objective, seconds: float) -> Count:
        total = 1000.0 * seconds / HOUR
        bad = 500.0 if seconds >= HOUR else 0.0  # all of it was more than half an hour ago
        return Count(total - bad, total)

    assert [burn.long for burn in standing(SUCCESS, over).burning] == []


def test_a_single_failure_where_little_happens_is_no_alarm():
    found = standing(SUCCESS, lambda *_: Count(0.0, 1.0))
    assert found.severity is None
    assert found.left < 0


def test_a_short_objective_uses_only_windows_that_fit_into_it():
    objective = Objective("today", Sli.SUCCESS, 0.99, window=DAY)
    assert set(standing(objective, steady(0.5)).rates) == {300.0, HOUR, 1800.0, 6 * HOUR}


@given(good=st.integers(0, 10**9), bad=st.integers(0, 10**9), target=st.floats(0.01, 0.9999))
def test_the_budget_left_is_whole_without_bad_events_and_below_zero_once_the_promise_is_broken(good, bad, target):
    count = Count(float(good), float(good + bad))
    left = budget_left(Objective("x", Sli.SUCCESS, target), count)
    assert left <= 1
    if not bad:
        assert left == 1
    elif abs(good / (good + bad) - target) > 1e-9:
        assert (left < 0) == (good / (good + bad) < target)


def test_objectives_are_read_from_toml():
    text = """
    [[slo]]
    name = "reply-wait"
    sli = "wait"
    target = "99.5 %"
    threshold = "30s"
    window = "7d"
    job = "support.reply"
    [[slo]]
    name = "up"
    sli = "availability"
    target = 0.999
    """
    wait, up = read_objectives(tomllib.loads(text)["slo"])
    assert wait == Objective("reply-wait", Sli.WAIT, 0.995, 30.0, 7 * DAY, "support.reply")
    assert up == Objective("up", Sli.AVAILABILITY, 0.999)
    assert wait.words == "99.5 % of jobs start within 30 s, over 7 d (support.reply)"


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"name": "Ab", "sli": "wait", "target": 0.9, "threshold": "1s"}, "slo 1.name"),
        ({"sli": "success", "target": 0.9}, "slo 1.name: is missing"),
        ({"name": "a", "sli": "speed", "target": 0.9}, "slo 1.sli"),
        ({"name": "a", "sli": "success", "target": 99}, "slo 1.target"),
        ({"name": "a", "sli": "success", "target": True}, "slo 1.target"),
        ({"name": "a", "sli": "success", "target": "100%"}, "slo 1.target"),
        ({"name": "a", "sli": "wait", "target": 0.9}, "slo 1.threshold"),
        ({"name": "a", "sli": "wait", "target": 0.9, "threshold": "soon"}, "slo 1.threshold"),
        ({"name": "a", "sli": "wait", "target": 0.9, "threshold": [1]}, "slo 1.threshold"),
        ({"name": "a", "sli": "success", "target": 0.9, "threshold": "1s"}, "slo 1.threshold"),
        ({"name": "a", "sli": "success", "target": 0.9, "window": "90d"}, "slo 1.window"),
        ({"name": "a", "sli": "availability", "target": 0.9, "job": "x"}, "slo 1.job"),
        ({"name": "a", "sli": "success", "target": 0.9, "jobs": "x"}, "slo 1.jobs: is not known"),
        ("a", "slo 1: must be a table"),
    ],
)
def test_a_wrong_field_is_named(table, named):
    with pytest.raises(UsageError) as caught:
        read_objectives([table])
    assert named in caught.value.message


def test_all_faults_are_told_at_once_and_names_are_unique():
    good = {"name": "a", "sli": "success", "target": 0.9}
    with pytest.raises(UsageError) as caught:
        read_objectives([good, good, {"name": "b"}])
    assert "two called 'a'" in caught.value.message
    assert "slo 3.sli: is missing" in caught.value.message
    assert "slo 3.target: is missing" in caught.value.message
