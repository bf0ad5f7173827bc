from __future__ import annotations

import io

import pytest
import typer
from typer.testing import CliRunner

from oxherd.cli import app
from oxherd.cli.enqueue import backoff, describe, read_payload, seconds
from oxherd.errors import UsageError


def test_a_payload_is_json_text_a_file_stdin_or_empty(tmp_path, monkeypatch):
    (tmp_path / "payload.json").write_text('{"from": "file"}')
    monkeypatch.setattr("sys.stdin", io.StringIO('{"from": "stdin"}'))
    assert read_payload(None) == {}
    assert read_payload('{"from": "text"}') == {"from": "text"}
    assert read_payload(f"@{tmp_path}/payload.json") == {"from": "file"}
    assert read_payload("-") == {"from": "stdin"}


def test_a_payload_that_is_no_json_says_where():
    with pytest.raises(UsageError, match=r"the payload is not JSON: .*line 1 column 6"):
        read_payload('{"a" 1}')


@pytest.mark.parametrize("text", ["[]", "1", '"text"', "null"])
def test_a_payload_must_be_an_object(text):
    with pytest.raises(UsageError, match="must be a JSON object"):
        read_payload(text)


def test_a_payload_file_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"can't read nowhere\.json"):
        read_payload("@nowhere.json")


def test_durations_and_backoffs_as_bullmq_takes_them():
    assert seconds("1.5m") == 90
    assert backoff("2s") == {"type": "fixed", "delay": 2000}
    assert backoff("exponential:500ms") == {"type": "exponential", "delay": 500}


@pytest.mark.parametrize("text", ["soon", "custom:2s", "exponential:", ":2s"])
def test_a_backoff_that_is_none_is_refused(text):
    with pytest.raises(typer.BadParameter):
        backoff(text)


@pytest.mark.parametrize(
    "words",
    [
        ["--delay", "soon"],
        ["--priority", "-1"],
        ["--priority", "2097152"],
        ["--attempts", "0"],
        ["--backoff", "x:1s"],
        ["{"],
    ],
)
def test_wrong_arguments_are_told_before_anything_is_asked_of_redis(words):
    done = CliRunner().invoke(app, ["enqueue", "hi", *words], env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert done.exit_code == 2, done.output


def test_a_missing_variable_is_named():
    done = CliRunner().invoke(app, ["enqueue", "hi"], env={"REDIS_URL": ""})
    assert done.exit_code == 2
    assert "REDIS_URL is missing" in done.stderr


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "active"}, "running"),
        ({"event": "waiting"}, "waiting for a worker"),
        ({"event": "delayed"}, "waiting for its time"),
        ({"event": "progress", "data": "40"}, "progress: 40"),
        ({"event": "stalled"}, "stalled"),
    ],
)
def test_events_in_words(event, words):
    assert describe(event) == words
