from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oxherd.queue.consumer import PARKED, READY_AT, _keep, parse

FIELDS = [b"name", b"data", b"opts", b"timestamp", b"ats", b"atm", b"stc", b"stacktrace", b"priority", b"delay"]


def test_a_job_is_read_with_bullmqs_short_names():
    job = parse(
        "7",
        [b"name", b"mail", b"data", b'{"a":1}', b"opts", b'{"attempts":3,"tm":"trace"}', b"timestamp", b"1000",
         b"processedOn", b"1500", b"ats", b"3", b"atm", b"1", b"stc", b"1", b"rjk", b"daily"],
        "token",
    )  # fmt: skip
    assert (job.name, job.attempts, job.attempt, job.fence, job.stalled) == ("mail", 3, 2, 3, 1)
    assert (job.scheduler, job.telemetry, job.waited_ms) == ("daily", "trace", 500)


def test_waiting_for_a_person_is_no_waiting_in_the_queue():
    asked = [b"timestamp", b"1000", b"processedOn", b"90500", b"ats", b"3"]
    job = parse("7", [*asked, PARKED, b"2", READY_AT, b"90000"], "token")
    assert (job.parked, job.ready_at, job.waited_ms) == (2, 90_000, 500)
    assert parse("7", asked, "token").waited_ms == 89_500


@given(st.dictionaries(st.sampled_from(FIELDS), st.binary(max_size=40)))
def test_no_hash_a_careless_producer_wrote_breaks_the_reading(fields):
    job = parse("1", [part for pair in fields.items() for part in pair], "t")
    assert job.attempts >= 1
    assert job.attempt >= 1 or job.attempts_made < 0


def test_keep_options_become_what_the_script_wants():
    assert _keep(None) == {"count": -1}
    assert _keep(False) == {"count": -1}
    assert _keep(True) == {"count": 0}
    assert _keep(100) == {"count": 100}
    assert _keep({"age": 60, "count": 5}) == {"age": 60, "count": 5}
    assert _keep("nonsense") == {"count": -1}
