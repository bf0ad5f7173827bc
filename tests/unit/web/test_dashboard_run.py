"""A run's time line, attempts and conversation, from rows as the store has them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from oxherd.web.dashboard_run import attempts, conversation, time_line


def step(
    key: str, kind: str = "step", *, at: int = 0, ms: float = 10, attempt: int = 1, output: Any = None, **more: Any
):
    usage = {"model_calls": None, "input_tokens": None, "output_tokens": None, "cost_usd": None}
    return {**usage, "key": key, "kind": kind, "started_at": at, "ms": ms, "attempt": attempt, "output": output, **more}


def plain(data: Any) -> Any:
    return data


def test_bars_are_where_and_as_long_as_their_steps():
    bars, total = time_line([step("b", at=150, ms=50), step("a", at=100, ms=100)])
    assert total == 100
    assert [(bar.name, bar.left, bar.width) for bar in bars] == [("a", 0.0, 100.0), ("b", 50.0, 50.0)]


def test_a_step_inside_another_is_shown_below_it():
    bars, _ = time_line([step("outer/one", at=1, ms=5), step("outer", at=0, ms=10), step("other/one", at=20)])
    assert [(bar.name, bar.depth) for bar in bars] == [("outer", 0), ("one", 1), ("other/one", 0)]


def test_a_step_that_took_no_time_has_a_bar_all_the_same():
    bars, total = time_line([step("a", ms=0)])
    assert (total, bars[0].width) == (1.0, 0.4)
    assert time_line([]) == ([], 0.0)


def test_each_attempt_has_its_own_steps_and_says_what_it_kept():
    run = {"fence": 2, "status": "completed", "error": None}
    model = {"model_calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_usd": Decimal("0.002")}
    steps = [step("a", at=0, ms=5), step("m", "model", at=5, ms=20, **model), step("b", at=90, attempt=2)]
    first, second = attempts(run, steps, ["Traceback (most recent call last):\n  File\nValueError: no"])
    assert (first.how, first.error, first.steps, first.tokens, first.cost, first.ms) == (
        "failed", "ValueError: no", 2, 15, Decimal("0.002"), 25,
    )  # fmt: skip
    assert (second.how, second.error, second.steps, second.kept) == ("completed", "", 1, 2)


def test_errors_are_not_given_to_attempts_where_their_number_does_not_fit():
    run = {"fence": 3, "status": "failed", "error": "in the end"}
    found = attempts(run, [], ["only one"])
    assert [(each.how, each.error) for each in found] == [("ended", ""), ("ended", ""), ("failed", "in the end")]


def test_a_tool_s_result_stands_beside_what_it_was_given():
    call = {"function": {"name": "find", "arguments": '{"q": 1}'}}
    said = conversation(
        [
            step("s/model-1", "model", output={"message": {"content": None, "tool_calls": [call]}, "model": "m/one"}),
            step("s/tool-1-find", "tool", output={"ok": False, "content": "not there"}),
            step("s/model-2", "model", output={"message": {"content": [{"type": "text", "text": "Sorry."}]}}),
            step("version", "agent", output=3),
            step("mine", "step", output={"rows": 2}),
        ],
        plain,
    )
    assert [(each.who, each.title, each.text) for each in said] == [
        ("model", "m/one", ""), ("tool", "find", "not there"), ("model", "model", "Sorry."),
        ("step", "mine", {"rows": 2}),
    ]  # fmt: skip
    assert said[0].calls == [("find", '{"q": 1}')]
    assert (said[1].given, said[1].ok) == ('{"q": 1}', False)


def test_users_own_steps_of_these_kinds_may_hold_anything():
    said = conversation(
        [
            step("odd", "model", output=[1]),
            step("odder", "tool", output="x"),
            step("no number", "tool", output={"content": 1}),
        ],
        plain,
    )
    assert [(each.who, each.given) for each in said] == [("step", None), ("step", None), ("tool", None)]
