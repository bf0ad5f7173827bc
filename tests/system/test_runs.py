"""`oxherd runs` against a real queue and a real database, with a worker in between."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from redis import Redis
from typer.testing import CliRunner

from oxherd import settings
from oxherd.app import queue_client, run_loop
from oxherd.cli import app
from oxherd.cli.runs import waterfall
from oxherd.errors import Fatal
from oxherd.herd import Herd
from oxherd.telemetry.events import JobEnded
from oxherd.testing import serving


class Place:
    """A queue, a database, a program with three paid steps, and what ran."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.known = settings.load(environ)
        self.ran: Counter[str] = Counter()
        self.effects: set[str] = set()
        self.broken = False
        self.herd = Herd()
        self.herd.job("report")(self.report)
        self.third = "write"

    async def report(self, ctx, payload):
        async def pay(name: str) -> str:
            self.ran[name] += 1
            self.effects.add(ctx.idempotency_key("bill"))
            return f"{name} of {payload['what']}"

        done = [await ctx.step(name, pay, name) for name in ("load", "think")]
        if self.broken:
            raise Fatal("no paper")
        return [*done, await ctx.step(self.third, pay, self.third)]

    def add(self) -> str:
        async def add() -> str:
            async with queue_client(self.known) as (producer, _):
                return await producer.add("report", {"what": "ox"})

        return run_loop(add())

    def work(self) -> JobEnded:
        """Let a worker run until a job has ended."""

        async def work() -> JobEnded:
            known = {"redis_url": self.environ["REDIS_URL"], "database_url": self.environ["DATABASE_URL"]}
            async with serving(self.herd, **known, queue=self.environ["JOB_QUEUE_NAME"]) as worker:
                return (await worker.events.wait(JobEnded))[0]

        return run_loop(work())

    def job(self, job_id: str) -> dict:
        async def ask() -> dict:
            async with queue_client(self.known) as (_, admin):
                return await admin.job(job_id)

        return run_loop(ask())

    def forget(self, job_id: str) -> None:
        async def remove() -> None:
            async with queue_client(self.known) as (_, admin):
                await admin.remove(job_id)

        run_loop(remove())


@pytest.fixture
def place(redis_url, runs_url, queue_name, monkeypatch) -> Place:
    environ = {"REDIS_URL": redis_url, "DATABASE_URL": runs_url, "JOB_QUEUE_NAME": queue_name}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Place(environ)


def oxherd(*words: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.output


def shown(job_id: str) -> dict:
    return json.loads(oxherd("runs", "show", job_id, "--json"))


def test_a_run_is_listed_and_shown_with_its_steps(place):
    job_id = place.add()
    place.work()
    (run,) = json.loads(oxherd("runs", "list", "--json"))
    assert (run["job_id"], run["status"]) == (job_id, "completed")
    assert f"\n{job_id} " in oxherd("runs", "list")
    assert "no runs" in oxherd("runs", "list", "--status", "failed")
    timeline = shown(job_id)
    assert [(step["place"], step["key"], step["output"]) for step in timeline["steps"]] == [
        ("1", "load", "load of ox"), ("2", "think", "think of ox"), ("3", "write", "write of ox"),
    ]  # fmt: skip
    assert shown(run["id"]) == timeline
    text = oxherd("runs", "show", job_id)
    assert "status       completed" in text
    assert [line.split()[:2] for line in text.splitlines()[-3:]] == [["1", "load"], ["2", "think"], ["3", "write"]]


def test_a_failed_run_is_replayed_and_pays_for_what_is_missing_alone(place):
    place.broken = True
    job_id = place.add()
    assert place.work().outcome == "failed"
    place.broken = False
    assert json.loads(oxherd("runs", "replay", job_id, "--json"))["kept"] == 2
    assert place.work().outcome == "completed"
    assert place.ran == {"load": 1, "think": 1, "write": 1}


@pytest.mark.parametrize("removed", [False, True], ids=["still there", "removed from the queue"])
class TestACompletedRun:
    def test_is_replayed_without_paying_anything(self, place, removed):
        job_id = place.add()
        place.work()
        before = place.job(job_id)
        if removed:
            place.forget(job_id)
        assert oxherd("runs", "replay", job_id) == f"job {job_id} waits: 3 steps from the journal\n"
        ended = place.work()
        assert (ended.id, ended.outcome) == (job_id, "completed")
        after = place.job(job_id)
        assert place.ran == {"load": 1, "think": 1, "write": 1}
        assert (after["returnvalue"], after["timestamp"]) == (before["returnvalue"], before["timestamp"])
        assert after["attempts_started"] == 2

    def test_is_replayed_from_a_step_on(self, place, removed):
        job_id = place.add()
        place.work()
        if removed:
            place.forget(job_id)
        told = json.loads(oxherd("runs", "replay", job_id, "--fork-from", "think", "--json"))
        assert (told["kept"], told["dropped"]) == (1, ["think", "write"])
        place.work()
        assert place.ran == {"load": 1, "think": 2, "write": 2}
        assert len(place.effects) == 3  # to the outside world they are the same effects
        assert len(shown(job_id)["steps"]) == 3

    def test_tells_a_changed_program_which_step_to_fork_from(self, place, removed):
        job_id = place.add()
        place.work()
        if removed:
            place.forget(job_id)
        place.third = "print"
        oxherd("runs", "replay", job_id)
        assert (place.work().outcome, shown(job_id)["kind"]) == ("failed", "journal_mismatch")
        error = shown(job_id)["error"]
        assert "kept is step 3 'write' with inputs" in error
        assert f"oxherd runs replay {job_id} --fork-from write" in error
        assert place.ran["print"] == 0

        if removed:
            place.forget(job_id)
        oxherd("runs", "replay", job_id, "--fork-from", "write")
        assert place.work().outcome == "completed"
        assert place.ran == {"load": 1, "think": 1, "write": 1, "print": 1}


def test_a_restored_number_is_not_given_out_again(place, redis_url):
    job_id = place.add()
    place.work()
    with Redis.from_url(redis_url) as client:
        client.flushall()
    oxherd("runs", "replay", job_id)
    place.work()
    assert place.add() != job_id


def test_a_job_that_waits_is_not_replayed(place):
    job_id = place.add()
    place.work()
    oxherd("runs", "replay", job_id)
    assert f"job {job_id} is wait" in oxherd("runs", "replay", job_id, "--fork-from", "load", exit_code=1)
    assert len(shown(job_id)["steps"]) == 3


def test_what_is_not_there_is_said(place):
    assert "no run 4711" in oxherd("runs", "show", "4711", exit_code=1)
    assert "no run 4711" in oxherd("runs", "replay", "4711", exit_code=1)
    job_id = place.add()
    place.work()
    assert "has no step 'thnik'" in oxherd("runs", "replay", job_id, "--fork-from", "thnik", exit_code=2)


def test_without_a_store_there_are_no_runs(place, monkeypatch):
    monkeypatch.delenv("DATABASE_URL")
    assert "no store is configured" in oxherd("runs", "list", exit_code=2)


def test_the_waterfall_shows_what_ran_when():
    def step(started_at: int, ms: float) -> dict:
        return {"started_at": 1_000 + started_at, "ms": ms}

    assert waterfall([step(0, 500), step(0, 1000), step(500, 250), step(1000, 0)], width=8) == [
        "████", "████████", "    ██", "       █",
    ]  # fmt: skip
    assert waterfall([step(0, 0)], width=8) == ["█"]
