from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.sentry import FakeSentry
from oxherd.queue.alertbook import AlertBook
from oxherd.queue.connection import Link
from oxherd.queue.indicators import Indicators
from oxherd.queue.keys import Keys
from oxherd.settings import child_environ, parse_redis_url
from oxherd.telemetry.alerts import Alert, look

NOW = 1_780_000_000.0


@pytest.fixture
def oxherd(redis_url, queue_name, tmp_path):
    def run(*args: str, **more: str):
        variables = child_environ({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, **more}, inherit=False)
        return subprocess.run(
            [sys.executable, "-m", "oxherd", *args],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
async def link(redis_url):
    link = Link(parse_redis_url(redis_url), "test")
    await link.start()
    yield link
    await link.stop()


async def test_what_is_wrong_is_listed_and_can_be_silenced(oxherd, link, queue_name):
    assert oxherd("alerts", "list").returncode == 0
    book = AlertBook(link, Keys(queue_name))
    looked = look([Alert("queue-age", "", "3 jobs wait", "ticket", NOW, NOW, told=NOW)], [], now=NOW)
    await book.keep(looked)
    listed = oxherd("alerts", "list", "--json")
    assert listed.returncode == 1
    assert json.loads(listed.stdout)["alerts"][0]["summary"] == "3 jobs wait"
    assert oxherd("alerts", "silence", "queue-*", "--for", "2h", "--reason", "moving").returncode == 0
    silences = json.loads(oxherd("alerts", "silences", "--json").stdout)["silences"]
    assert [(each["pattern"], each["reason"]) for each in silences] == [("queue-*", "moving")]
    assert oxherd("alerts", "unsilence", "queue-*").returncode == 0
    assert oxherd("alerts", "unsilence", "queue-*").returncode == 1


@pytest.mark.parametrize(
    ("args", "named"), [(("queue-agee", "--for", "2h"), "queue-age,"), (("queue-age", "--for", "soon"), "--for")]
)
def test_a_silence_that_would_silence_nothing_is_refused(oxherd, args, named):
    refused = oxherd("alerts", "silence", *args)
    assert refused.returncode == 2
    assert named in refused.stderr


def test_a_channel_that_does_not_answer_is_named_and_its_address_is_not(oxherd):
    assert "no channel is configured" in oxherd("alerts", "test").stderr
    tried = oxherd("alerts", "test", ALERT_SLACK_URL="http://127.0.0.1:9/hidden-path")
    assert tried.returncode == 1
    assert "slack" in tried.stdout
    assert "hidden-path" not in tried.stdout + tried.stderr


async def test_sentry_is_tried_with_an_alert_like_the_real_ones(oxherd):
    async with FakeSentry() as sentry:
        tried = await asyncio.to_thread(oxherd, "alerts", "test", "--json", SENTRY_DSN=sentry.dsn)
        (event,) = sentry.all("event")
    assert json.loads(tried.stdout) == {"channels": {"sentry": {"ok": True, "error": None}}}
    assert (event["message"], event["level"]) == ("This is a test: nothing is wrong.", "warning")
    assert event["tags"]["alert"] == "queue-age"
    assert event["extra"]["runbook"].endswith("/queue-age.md")


async def test_a_sentry_that_takes_no_alert_is_told(oxherd):
    async with FakeSentry() as sentry:
        tried = await asyncio.to_thread(oxherd, "alerts", "test", SENTRY_DSN=f"{sentry.dsn}0")
    assert (tried.returncode, "HTTP 404" in tried.stdout) == (1, True), tried.stdout
    tried = await asyncio.to_thread(oxherd, "alerts", "test", SENTRY_DSN="http://key@127.0.0.1:9/1")
    assert (tried.returncode, "no answer" in tried.stdout) == (1, True), tried.stdout


async def test_objectives_of_the_file_are_told_and_reported(oxherd, link, queue_name, tmp_path: Path):
    (tmp_path / "oxherd.toml").write_text('[[slo]]\nname = "done"\nsli = "success"\ntarget = "90%"\n')
    await Indicators(link, Keys(queue_name)).write({"echo|c": 80, "echo|f": 20})
    told = oxherd("slo", "status", "--json")
    assert told.returncode == 1
    (objective,) = json.loads(told.stdout)["objectives"]
    assert (objective["name"], objective["reached"]) == ("done", 0.8)
    assert objective["budget_left"] == pytest.approx(-1)
    assert "| 90 % of jobs complete, over 30 d | NO | 80.00 % | 100 | 20 | -100% |" in oxherd("slo", "report").stdout
    assert oxherd("slo", "report", "--output", "report.html").returncode == 0
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()
    assert oxherd("slo", "report", "--month", "2020-01").returncode == 2


def test_a_file_that_is_wrong_is_named_with_all_its_faults(oxherd, tmp_path: Path):
    (tmp_path / "oxherd.toml").write_text('[[slo]]\nname = "Done"\n[alerts]\nqueue_age = "soon"\n[more]\n')
    refused = oxherd("slo", "status")
    assert refused.returncode == 2
    for fault in ("oxherd.toml", "slo 1.name", "slo 1.sli: is missing", "alerts.queue_age", "more: is not known"):
        assert fault in refused.stderr


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    from oxherd.telemetry.alerts import KINDS

    folder = Path(__file__).parents[2] / "docs" / "runbooks"
    assert {page.stem for page in folder.glob("*.md")} == set(KINDS)
    for page in folder.glob("*.md"):
        assert page.read_text().startswith(f"# {page.stem}: "), page


def test_every_command_of_the_runbooks_exists():
    import re

    import typer.main

    from oxherd.cli import app

    root = typer.main.get_command(app)
    pages = (Path(__file__).parents[2] / "docs" / "runbooks").glob("*.md")
    commands = {line for page in pages for line in re.findall(r"oxherd ((?:[a-z-]+ ?)+)", page.read_text())}
    assert commands
    for line in commands:
        found = root
        for word in line.split():
            if not hasattr(found, "commands"):
                break
            assert word in found.commands, line
            found = found.commands[word]
