from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate
from time import time

import pytest

from oxherd.agents.faults import LONGEST_LATER, Verdict, fault_of, later, lengthened
from oxherd.errors import LimitsReached, ModelUnreachable, OutOfCredit, RetryLater
from oxherd.job import Job

NOW = time()
RETRY, AFFORD, PARK, REFUSE = Verdict.RETRY, Verdict.AFFORD, Verdict.PARK, Verdict.REFUSE


def error(code=None, message="no", **rest):
    return {"error": {**({} if code is None else {"code": code}), "message": message, **rest}}


@pytest.mark.parametrize(
    ("status", "body", "verdict", "says"),
    [
        (400, error(400, "bad"), REFUSE, "answered 400: bad"),
        (401, error(401, "No auth credentials found"), REFUSE, "refused the key"),
        (402, error(402, "Insufficient credits"), PARK, "answered 402"),
        (402, error(402, "You requested up to 65536 tokens, but can only afford 14114."), AFFORD, "402"),
        (403, error(403, "flagged", metadata={"reasons": ["violence"]}), REFUSE, r"\(flagged: violence\)"),
        (403, error(403, "region"), REFUSE, "answered 403: region"),
        (404, error(404, "No endpoints found"), REFUSE, "404"),
        (404, None, REFUSE, "404"),
        (302, None, REFUSE, "302"),
        (408, error(408), RETRY, "408"),
        (413, error(413), REFUSE, "413"),
        (422, {"detail": "temperature"}, REFUSE, "422: temperature"),
        (429, error(429), RETRY, "429"),
        (500, error(500), RETRY, "500"),
        (500, None, RETRY, "500: no reason given"),
        (502, b"", RETRY, "502"),
        (503, {"error": "model is loading"}, RETRY, "503: model is loading"),
        (524, None, RETRY, "524"),
        (529, error(529), RETRY, "529"),
        # In the body of a success, with codes of all kinds.
        (200, error(429, "Rate limit exceeded"), RETRY, "429"),
        (200, error("429"), RETRY, "429"),
        (200, error("server_error", "Provider disconnected unexpectedly"), RETRY, "500"),
        (200, error(None, metadata={"error_type": "context_length_exceeded"}), REFUSE, "too long"),
        (200, error(None, metadata={"error_type": "content_policy_violation"}), REFUSE, "403"),
        (200, error(None, metadata={"error_type": "something_new"}), RETRY, "500"),
        # Without a code: what stands beside the message counts as well.
        (200, error(None, error_type="authentication"), REFUSE, "refused the key"),
        (200, error(None, "full", http_status=429), RETRY, "429: full"),
        # The length, as three services say it.
        (400, error(400, metadata={"error_type": "context_length_exceeded"}), REFUSE, "too long"),
        (400, error(400, "This model's maximum context length is 4096 tokens"), REFUSE, "too long"),
        (400, error(400, type="exceed_context_size_error"), REFUSE, "too long"),
        # OpenRouter's own verdict counts.
        (404, error(404, availability={"code": "temporarily_unavailable", "retryable": True}), RETRY, "404"),
        (503, error(503, availability={"code": "model_deprecated", "retryable": False}), REFUSE, "503"),
    ],
)
def test_every_answer_has_its_verdict(status, body, verdict, says):
    fault = fault_of(status, {}, body)
    assert fault.verdict is verdict
    with pytest.raises(type(fault), match=says):
        raise fault


def test_the_affordable_output_is_read_from_the_refusal():
    assert fault_of(402, {}, error(402, "but can only afford 14114. To increase, …")).affordable == 14114


def test_a_refused_key_names_its_variable_and_repeats_nothing_of_it():
    fault = fault_of(401, {}, error(401, "Incorrect API key provided: sk-or-v1-12345***"))
    assert fault.hint == "check OPENROUTER_API_KEY"
    assert "sk-or" not in fault.message


def test_flagged_input_and_the_providers_raw_answer_are_not_repeated():
    fault = fault_of(403, {}, error(403, "no", metadata={"reasons": ["x"], "flagged_input": "SECRET", "raw": "SECRET"}))
    assert "SECRET" not in fault.message


def test_the_provider_is_named():
    fault = fault_of(
        502, {}, error(502, "Provider returned error", metadata={"provider_name": "Groq", "raw": "SECRET"})
    )
    assert fault.message == "the model service answered 502: Provider returned error (from Groq)"


def test_long_messages_are_cut():
    assert len(fault_of(400, {}, error(400, "x" * 10_000)).message) < 400


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, error(429), 7),
        ({"retry-after": formatdate(NOW + 60, usegmt=True)}, error(429), 60),
        ({"Retry-After": "soon"}, error(429), None),
        ({"X-RateLimit-Reset": str(int((NOW + 90) * 1000))}, error(429), 90),
        ({"X-RateLimit-Reset": "30"}, error(429), None),
        ({}, error(429, metadata={"headers": {"X-RateLimit-Reset": str(int((NOW + 90) * 1000))}}), 90),
        ({}, error(429, availability={"retryable": True, "retry_after": 40}), 40),
        ({"Retry-After": "-5"}, error(503), 0),
        ({}, error(503), None),
    ],
)
def test_the_pause_that_the_service_asks_for_is_found_wherever_it_is(headers, body, seconds, oxherd_clock):
    oxherd_clock.freeze(NOW)
    told = fault_of(429, headers, body).retry_after
    assert told == (seconds if seconds is None else pytest.approx(seconds, abs=5))


def job(returns: int, hours: float = 0.0) -> Job:
    now = int(time() * 1000)
    started = {"attempts_made": 1, "attempts_started": returns + 2}
    return Job("1", "n", b"", {}, "t", timestamp=now - int(hours * 3_600_000), processed_on=now, **started)


def test_each_delay_of_a_job_is_longer_than_the_last_up_to_an_hour():
    delays = [lengthened(RetryLater(30.0, "busy"), job(returns)).seconds for returns in range(12)]
    assert delays[:7] == sorted(delays[:7])
    assert 30 <= delays[0] <= 37.5
    assert all(LONGEST_LATER <= delay <= LONGEST_LATER * 1.25 for delay in delays[7:])


def test_a_longer_wait_that_the_service_asked_for_is_kept_but_no_more_than_a_day_or_so():
    assert lengthened(RetryLater(5000.0), job(0)).seconds == 5000
    assert later(1e12) <= 86_400 * 1.25
    assert 30 <= later(None) <= 37.5


def test_a_job_that_waits_for_its_turn_comes_back_when_there_is_room_however_often():
    assert lengthened(LimitsReached(20.0, "full"), job(12, hours=50)).seconds == 20


def test_delays_are_not_for_ever():
    assert isinstance(lengthened(RetryLater(30.0, "busy"), job(12, hours=5)), RetryLater)
    assert isinstance(lengthened(RetryLater(30.0, "busy"), job(11, hours=50)), RetryLater)
    gone = lengthened(RetryLater(30.0, "busy"), job(12, hours=7))
    assert isinstance(gone, ModelUnreachable)
    assert "busy" in gone.message


def test_waiting_for_people_is_not_the_service_s_delay():
    asked = replace(job(12, hours=7), parked=12)
    assert lengthened(RetryLater(30.0, "busy"), asked).seconds <= 37.5


def test_a_lack_of_credit_is_waited_out_behind_the_gate():
    error = OutOfCredit(900.0, "pay")
    assert lengthened(error, job(50, hours=50)) is error
