from __future__ import annotations

import html.parser
import shlex

import typer.main

from oxherd.cli import app
from oxherd.ops.disasters import DISASTERS, QUESTIONS
from oxherd.ops.drill import Result, count
from oxherd.ops.drill_report import markdown, page, plan
from oxherd.ops.drills import DRILLS

NOON = 1_790_000_000_000


def row(name: str, rto: float, *, at: int = NOON, outcome: str = "ok", fault: str = "") -> dict:
    result = Result(name, jobs=31, rto_seconds=rto, rpo_seconds=60, fault=fault)
    return {"at": at, "target": name, "outcome": outcome, "summary": result.summary()}


def test_a_step_that_was_kept_and_paid_again_counts_and_one_that_was_not_kept_is_repeated():
    lines = ["paid a look", "kept a look", "paid a look", "paid b think", "paid b think", "kept b think"]
    assert count(lines) == (1, 0, 1)


def test_a_job_is_done_twice_where_its_last_step_was_kept_and_ran_again():
    assert count(["paid a deliver", "kept a deliver", "paid a deliver", "kept a deliver", "paid a deliver"]) == (
        2,
        1,
        0,
    )


def test_what_was_kept_after_the_backup_may_be_repeated():
    lines = ["paid a look", "kept a look", "paid b look", "kept b look", "paid b look", "paid a look"]
    assert count(lines, safe=2) == (1, 0, 1)


def test_a_drill_works_only_where_nothing_is_lost_doubled_or_paid_again():
    assert Result("x", jobs=3).ok
    assert Result("x", gone=["came-later"], repeated=2).ok
    for bad in ({"lost": ["a"]}, {"doubled": 1}, {"paid_again": 1}, {"fault": "no"}):
        assert not Result("x", **bad).ok


def test_every_disaster_is_rehearsed():
    assert {each.name for each in DISASTERS} == set(DRILLS)


def test_every_command_of_every_runbook_exists():
    root = typer.main.get_command(app)
    for command in (each for disaster in DISASTERS for each in disaster.commands):
        program, *words = shlex.split(command.partition(" > ")[0])
        assert program == "oxherd", command
        found = root
        while hasattr(found, "commands") and words:
            found = found.commands[words.pop(0)]
        options = {name for each in found.params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, command


def test_the_report_has_the_newest_of_each_drill_and_its_history():
    rows = [
        row("redis-lost", 30, at=NOON + 9),
        row("redis-lost", 45.0),
        row("worker-down", 31, outcome="failed", fault="<b>"),
    ]
    text = markdown(rows)
    assert "| redis-lost | 2026-09-21 14:13 | yes | 30 s | 60 s | 31 |" in text
    assert "| redis-lost | 45 s, 30 s |" in text
    assert "- worker-down: <b>" in text
    shown = page(rows)
    html.parser.HTMLParser().feed(shown)
    assert 'aria-label="RTO, the oldest first: 45 s, 30 s"' in shown
    assert "<b> " not in shown
    assert "&lt;b&gt;" in shown


def test_the_plan_names_every_runbook_what_was_measured_and_who_is_told():
    text = plan([("queue", "agent-jobs at redis.example:6379")], {"drill": [row("redis-lost", 30)]}, ["slack"])
    assert "| queue | agent-jobs at redis.example:6379 |" in text
    assert "| queue | drill redis-lost | 2026-09-21 14:13 | 30 s | 60 s |" in text
    assert "- slack" in text
    for each in DISASTERS:
        assert f"## {each.name}: " in text
    assert "[redis-lost](#redis-lost-redis-has-lost-its-data)" in text
    assert "## redis-lost: redis has lost its data" in text


def test_some_answer_leads_to_every_disaster():
    led = [name for question in QUESTIONS for _, name in question.answers]
    assert sorted(led) == sorted(each.name for each in DISASTERS if not each.production)


def test_a_plan_without_measurements_says_how_to_take_them():
    assert "`oxherd drill run all`" in plan([], {}, [])
