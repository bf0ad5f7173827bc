from __future__ import annotations

import io

import pytest
from typer.testing import CliRunner

from oxherd.cli import app
from oxherd.cli.following import Screen, describe
from oxherd.queue.feed import Entry

STEP = "support/model-1"


def shown(capsys: pytest.CaptureFixture[str], *entries: dict) -> tuple[str, str]:
    """What is written to `out` and to stderr."""
    out = io.StringIO()
    screen = Screen(out)
    for number, entry in enumerate(entries):
        screen.add(Entry(f"{number}-0", entry["type"], entry))
    return out.getvalue(), capsys.readouterr().err


def text(n: int, words: str) -> dict:
    return {"type": "text", "step": STEP, "n": n, "text": words}


def step(state: str, **more: object) -> dict:
    return {"type": "step", "state": state, "step": STEP, "kind": "model", **more}


def test_text_is_written_as_it_comes_and_other_lines_begin_on_a_line_of_their_own(capsys):
    usage = {"calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_usd": "0.0002"}
    out, err = shown(
        capsys, step("started"), text(0, "Hello"), text(1, " you"), step("finished", ms=1200.0, usage=usage)
    )
    assert out == "Hello you\n"
    assert err == f"{STEP}  1.2 s, 10 tokens in, 5 out, $0.0002\n"


def test_a_piece_that_comes_again_is_written_once(capsys):
    out, _ = shown(capsys, text(0, "Hello"), text(1, " you"), text(0, "Hello"), text(1, " you"))
    assert out == "Hello you"


def test_a_reply_that_begins_anew_begins_on_a_new_line(capsys):
    out, err = shown(capsys, text(0, "Wrong"), {"type": "reset", "step": STEP, "tried": 2}, text(0, "Right"))
    assert out == "Wrong\nRight"
    assert "begins anew" in err


def test_a_replayed_step_that_was_shown_in_part_is_completed(capsys):
    whole = {"type": "whole", "step": STEP, "n": 0, "text": "Hello you"}
    out, _ = shown(capsys, text(0, "Hello"), whole, step("replayed", ms=1.0))
    assert out == "Hello you\n"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "attempt", "state": "started", "attempt": 2, "late": False}, "attempt 2"),
        ({"type": "attempt", "state": "started", "attempt": 2, "late": True}, "attempt 2, joined on the way"),
        ({"type": "attempt", "state": "ended", "outcome": "handed_back"}, "handed back"),
        ({"type": "attempt", "state": "ended", "outcome": "retried", "reason": "no", "delay_ms": 1}, "retried: no"),
        (step("failed"), f"{STEP}  failed"),
        ({"type": "call", "step": STEP, "call": 0, "call_id": "c", "name": "find", "n": 0, "text": ""}, "calls find"),
        ({"type": "call", "step": STEP, "call": 0, "call_id": "c", "name": "find", "n": 1, "text": "{}"}, ""),
        ({"type": "result", "step": "t", "ok": True, "content": "a\nb"}, "→ a b"),
        ({"type": "progress", "value": {"done": 3}}, 'progress: {"done":3}'),
        ({"type": "log", "text": "half way"}, "log: half way"),
        ({"type": "gap", "dropped": 3, "reason": "slow"}, "something is missing: slow"),
        ({"type": "reasoning", "step": STEP, "n": 0, "text": "hm"}, ""),
        ({"type": "end", "outcome": "completed"}, ""),
    ],
)
def test_entries_in_words(entry, words):
    assert describe(entry) == words


def test_from_is_for_one_job():
    done = CliRunner().invoke(app, ["jobs", "tail", "--from", "1-0"])
    assert done.exit_code == 2
    assert "--from is for following one job" in done.stderr


def test_stream_is_for_a_job_that_is_waited_for():
    done = CliRunner().invoke(app, ["enqueue", "x", "--stream"])
    assert done.exit_code == 2
    assert "add --wait" in done.stderr
