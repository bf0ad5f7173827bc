from __future__ import annotations

import pytest
from typer.testing import CliRunner

from oxherd.cli import app


@pytest.mark.parametrize("words", [[], ["1", "--all"], ["--all", "--name", "mail"], ["1", "--name", "mail"]])
def test_replay_wants_exactly_one_way_of_choosing(words):
    done = CliRunner().invoke(app, ["jobs", "replay", *words])
    assert done.exit_code == 2
    assert "say which dead letters" in done.stderr


@pytest.mark.parametrize("words", [[], ["1", "--begun"]])
def test_promote_wants_exactly_one_way_of_choosing(words):
    done = CliRunner().invoke(app, ["jobs", "promote", *words])
    assert done.exit_code == 2
    assert "say which delayed jobs" in done.stderr


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_is_at_least_one(limit):
    assert CliRunner().invoke(app, ["jobs", "dead", "--limit", limit]).exit_code == 2
