from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oxherd.context import Step, Usage
from oxherd.errors import StoreRefused
from oxherd.store import RunRecord
from oxherd.store.rows import begun, scrub, scrubbed, shown, step_row, to_json

RUN = RunRecord(
    id="q/1@2", queue="q", job_id="1", name="n", tenant=None, status="completed", fence=1, attempt=1, attempts=1,
    worker="w", input="{}", output="1", error=None, kind=None, stack=None, enqueued_at=1, started_at=2, finished_at=3,
    cost_usd=Decimal("0.10"),
)  # fmt: skip
STEP = Step(key="k", inputs="i", output=b"1", kind="step", usage=None, attempt=1, started_at=5, ms=1.5)


def test_a_run_goes_out_with_the_names_of_its_columns_and_all_digits_of_its_cost():
    row = orjson.loads(to_json([RUN]))[0]
    assert row.keys() == set(RunRecord.__slots__)
    assert row["cost_usd"] == "0.10"


@given(st.text(st.characters()))
@example("nul \0 and half a pair \ud800")
def test_scrubbed_text_is_always_something_postgres_can_store(text: str):
    clean = scrub(text)
    assert "\0" not in clean
    assert clean.encode().decode() == clean
    assert scrub(clean) == clean


def test_a_clean_record_is_not_copied():
    assert scrubbed(RUN) is RUN
    assert scrubbed(STEP) is STEP


def test_scrubbing_touches_only_what_needs_it():
    assert scrubbed(replace(RUN, error="a\0b", input="ü")) == replace(RUN, error="a\\u0000b", input="ü")


@pytest.mark.parametrize("run", [replace(RUN, error="\ud800"), replace(RUN, fence=2**70)])
def test_what_json_cannot_say_is_refused(run: RunRecord):
    with pytest.raises(StoreRefused):
        to_json([run])


def test_a_step_whose_output_is_no_utf8_is_refused():
    with pytest.raises(StoreRefused, match="'k'"):
        step_row("q/1@2", 1, 0, replace(STEP, output=b"\xff"))


def test_an_unpaid_step_has_no_usage_and_a_paid_one_may_have_unknown_cost():
    assert step_row("r", 1, 0, STEP)["model_calls"] is None
    row = step_row("r", 1, 0, replace(STEP, usage=Usage(calls=1, cost_usd=None)))
    assert (row["model_calls"], row["cost_usd"]) == (1, None)


def test_what_a_claim_answers_becomes_steps():
    row = {
        "key": "k", "kind": "model", "inputs": "i", "output": '"x"', "fence": 3, "started_at": 5, "ms": 1.5,
        "model_calls": 1, "input_tokens": 2, "output_tokens": 3, "cost_usd": "0.10",
        "place": "2.1",
    }  # fmt: skip
    found = begun(orjson.dumps({"allowed": True, "output": None, "steps": [row]}))
    usage = Usage(calls=1, input_tokens=2, output_tokens=3, cost_usd=Decimal("0.10"))
    assert found.steps == [Step("k", "i", b'"x"', "model", usage, 3, 5, 1.5, "2.1")]


@pytest.mark.parametrize("time", ["2025-11-23T12:00:00.001+00:00", "2025-11-23T13:00:00.001+01:00"])
def test_times_are_shown_as_wall_milliseconds_whatever_the_sessions_zone(time: str):
    row = {"enqueued_at": time, "started_at": None, "finished_at": None, "cost_usd": None}
    assert shown(row) == {"enqueued_at": 1_763_899_200_001, "started_at": 0, "finished_at": 0, "cost_usd": None}
