from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxherd.errors import (
    BudgetExceeded,
    Fatal,
    JobCancelled,
    JobTimeout,
    LeaseLost,
    PayloadInvalid,
    Quarantined,
    RetryLater,
    WaitForChildren,
)
from oxherd.job import Delay, Drop, Fail, Job, Park, Retry
from oxherd.worker.retry import backoff_ms, outcome_of


def job(**fields) -> Job:
    return Job(id="1", name="a", raw=b"{}", opts=fields.pop("opts", {}), token="t", **fields)


def test_the_last_attempt_fails_and_earlier_ones_are_retried():
    opts = {"attempts": 2}
    assert isinstance(outcome_of(ValueError("x"), job(opts=opts)), Retry)
    assert isinstance(outcome_of(ValueError("x"), job(opts=opts, attempts_made=1)), Fail)


def test_without_attempts_a_job_runs_once():
    assert isinstance(outcome_of(ValueError("x"), job(opts={"attempts": 0})), Fail)


def test_a_handlers_own_retries_serve_jobs_whose_producer_set_none():
    outcome = outcome_of(ValueError("x"), job(), retries=2)
    assert isinstance(outcome, Retry)
    assert 500 <= outcome.delay_ms <= 1000
    assert isinstance(outcome_of(ValueError("x"), job(attempts_made=2), retries=2), Fail)
    assert isinstance(outcome_of(ValueError("x"), job(opts={"attempts": 1}), retries=2), Fail)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Fatal("x"), "failed"),
        (PayloadInvalid("x"), "invalid"),
        (Quarantined("x"), "quarantined"),
        (JobCancelled("x"), "cancelled"),
        (BudgetExceeded("x"), "budget"),
    ],
)
def test_what_is_fatal_fails_whatever_attempts_are_left(error, kind):
    outcome = outcome_of(error, job(opts={"attempts": 9}))
    assert isinstance(outcome, Fail)
    assert outcome.kind == kind


def test_a_timeout_uses_up_an_attempt_like_any_error():
    assert isinstance(outcome_of(JobTimeout("x"), job(opts={"attempts": 2})), Retry)
    last = outcome_of(JobTimeout("x"), job())
    assert isinstance(last, Fail)
    assert last.kind == "timeout"


def test_retry_later_delays_without_an_attempt():
    assert outcome_of(RetryLater(2.5, "slow down"), job()) == Delay(2500, "slow down")


def test_a_lost_lease_is_dropped_and_waiting_children_park():
    assert outcome_of(LeaseLost("x"), job()) == Drop()
    assert outcome_of(WaitForChildren(), job()) == Park()


@pytest.mark.parametrize(
    ("backoff", "attempt", "pause"),
    [
        (None, 1, 0),
        (700, 3, 700),
        ({"type": "fixed", "delay": 50}, 4, 50),
        ({"type": "exponential", "delay": 100}, 1, 100),
        ({"type": "exponential", "delay": 100}, 4, 800),
        ({"type": "my-own", "delay": 80}, 4, 80),
        ({"type": "fixed"}, 1, 1000),
        ("nonsense", 1, 0),
        (True, 1, 0),
    ],
)
def test_backoff_follows_bullmq(backoff, attempt, pause):
    assert backoff_ms(backoff, attempt) == pause


@given(st.floats(0, 1), st.integers(1, 60))
def test_jitter_only_ever_shortens_the_pause_and_by_no_more_than_asked(jitter, attempt):
    whole = backoff_ms({"type": "exponential", "delay": 100}, attempt)
    drawn = backoff_ms({"type": "exponential", "delay": 100, "jitter": jitter}, attempt)
    assert int(whole * (1 - jitter)) - 1 <= drawn <= whole


def test_the_reason_names_the_error_and_its_hint():
    plain = outcome_of(KeyError("email"), job())
    ours = outcome_of(Fatal("no such order", hint="look it up"), job())
    assert isinstance(plain, Fail)
    assert isinstance(ours, Fail)
    assert plain.reason == "KeyError: 'email'"
    assert ours.reason == "no such order (look it up)"
    assert "KeyError" in plain.stack
