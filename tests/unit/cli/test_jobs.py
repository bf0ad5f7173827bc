from __future__ import annotations

import pytest
from typer.testing import CliRunner

from oxherd.cli import app
from oxherd.cli.jobs import grouped


def failed(job_id, name, reason, finished=0):
    return {"id": job_id, "name": name, "failed_reason": reason, "finished_on": finished}


def test_dead_letters_are_grouped_by_name_and_reason_numbers_aside():
    jobs = [
        failed("1", "mail", "timed out after 3.1 s", 10),
        failed("2", "mail", "timed out after 12.7 s", 30),
        failed("3", "mail", "mailbox full"),
        failed("4", "sms", "timed out after 3.1 s"),
    ]
    first, *rest = grouped(jobs)
    assert first == {"name": "mail", "reason": "timed out after 3.1 s", "count": 2, "newest": 30, "ids": ["1", "2"]}
    assert [(group["name"], group["count"]) for group in rest] == [("mail", 1), ("sms", 1)]


def test_only_the_first_line_of_a_reason_tells_groups_apart():
    assert len(grouped([failed("1", "a", "boom\nid 1"), failed("2", "a", "boom\nother"), failed("3", "a", None)])) == 2


@pytest.mark.parametrize("words", [[], ["1", "--all"], ["--all", "--name", "mail"], ["1", "--name", "mail"]])
def test_replay_wants_exactly_one_way_of_choosing(words):
    done = CliRunner().invoke(app, ["jobs", "replay", *words])
    assert done.exit_code == 2
    assert "say which dead letters" in done.stderr


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_is_at_least_one(limit):
    assert CliRunner().invoke(app, ["jobs", "dead", "--limit", limit]).exit_code == 2
