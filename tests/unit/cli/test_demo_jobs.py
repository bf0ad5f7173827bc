from __future__ import annotations

import asyncio
import signal

import pytest

from oxherd.cli import demo_app
from oxherd.cli.demo import answer, run_row, tidy_up_on_any_signal
from oxherd.cli.demo_jobs import JOBS, DemoJob, Ended, follow, unless
from oxherd.errors import OxherdError
from oxherd.herd import BUILT_IN
from oxherd.queue.producer import OPTIONS
from oxherd.worker.handlers import read_payload

VIEW = {"state": "completed", "timestamp": 1000, "processed_on": 1200, "finished_on": 1500, "attempts_made": 1}
RUN = {"status": "completed", "input_tokens": 30, "output_tokens": 12}
JOB = DemoJob("something", "agent.run", {}, {})


def test_every_job_has_a_handler_that_takes_its_payload_and_options_that_bullmq_knows():
    for job in JOBS:
        assert set(job.opts) <= OPTIONS
        assert job.name in BUILT_IN | demo_app.herd.handlers.keys()
        if job.name not in BUILT_IN:
            import orjson

            read_payload(demo_app.herd.handlers[job.name], orjson.dumps(job.data))
    assert {job.data["agent"] for job in JOBS if isinstance(job.data.get("agent"), str)} <= demo_app.herd.agents.keys()


def test_a_job_is_as_expected_only_where_queue_and_database_agree():
    assert Ended(JOB, VIEW, RUN).as_expected
    assert not Ended(JOB, VIEW, None).as_expected
    assert not Ended(JOB, VIEW, {**RUN, "status": "failed"}).as_expected
    assert not Ended(JOB, {**VIEW, "state": "failed"}, RUN).as_expected


def test_a_jobs_time_runs_from_being_added_and_its_tokens_are_both_ways():
    ended = Ended(JOB, VIEW, RUN)
    assert (ended.seconds, ended.tokens) == (0.5, 42)


async def test_following_ends_when_every_job_has_ended_and_reports_them_in_their_own_order():
    class Queue:
        async def job(self, job_id):
            return {**VIEW, "id": job_id}

        async def events(self, since):
            assert since == "0"
            for job_id in ["3", "other", "1", "1", "4", "2"]:
                yield "1-0", {"event": "added", "jobId": job_id}
                yield "1-1", {"event": "completed", "jobId": job_id}
            raise AssertionError("read on after the last end")

    async def run_of(view):
        return {**RUN, "job_id": view["id"]}

    told: list[str] = []
    ended = await follow(Queue(), Queue(), run_of, ["1", "2", "3", "4"], lambda each: told.append(each.view["id"]))
    assert told == ["3", "1", "4", "2"]
    assert [each.view["id"] for each in ended] == ["1", "2", "3", "4"]


async def test_work_that_can_no_longer_succeed_is_given_up_with_the_reason():
    with pytest.raises(OxherdError, match="the worker ended"):
        await unless(lambda: "the worker ended", asyncio.Event().wait())


async def test_work_that_succeeds_or_fails_does_so():
    async def fail():
        raise KeyError("own")

    assert await unless(lambda: None, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError, match="own"):
        await unless(lambda: None, fail())


@pytest.mark.parametrize(
    ("view", "text"),
    [
        ({"state": "completed", "returnvalue": {"output": "an\nanswer"}}, "an answer"),
        ({"state": "completed", "returnvalue": {"output": {"a": 1}}}, '{"a":1}'),
        ({"state": "completed", "returnvalue": {"other": 1}}, '{"other":1}'),
        ({"state": "completed", "returnvalue": None}, "null"),
        ({"state": "failed", "failed_reason": "broken"}, "broken"),
    ],
)
def test_an_answer_on_one_line(view, text):
    assert answer(view) == text


def test_a_run_as_a_row_without_what_did_not_happen():
    run = {**RUN, "job_id": "1", "name": "x", "attempt": 2, "model_calls": 1, "error": None}
    assert run_row(run) == ("1", "x", "completed", 2, 1, 30, 12, None)


def test_nohup_is_respected_and_other_signals_end_it_as_ctrl_c_does():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        tidy_up_on_any_signal()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
