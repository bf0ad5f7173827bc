"""What reaches Sentry: errors, traces and check-ins of a whole worker, each envelope parsed strictly."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from bugsink import Bugsink, install
from sentry_sdk import logger, metrics

import oxherd.telemetry
from fakes.openrouter import KEY, FakeOpenRouter, calls, says
from fakes.sentry import FakeSentry, check, parse
from oxherd import settings
from oxherd.agents import tool
from oxherd.app import Service, in_time, start_sentry
from oxherd.context import Context
from oxherd.herd import Herd
from oxherd.job import Job
from oxherd.queue.producer import NewJob, Producer
from oxherd.queue.schedule import Repeat
from oxherd.telemetry.events import (
    AlertFired,
    AlertResolved,
    InternalFault,
    JobEnded,
    WorkerWarned,
    attach,
    emit,
    watched,
)
from oxherd.telemetry.sentry import _schedule_of, fingerprint, scrubbed

CONTRACT = Path(__file__).resolve().parents[3] / "shared" / "contracts" / "sentry.envelopes.sample.json"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARD = "4000-1234-5678-9010"


@pytest.fixture
async def sentry() -> AsyncIterator[FakeSentry]:
    async with FakeSentry() as server:
        yield server


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def environ(redis_url: str, queue_name: str, fake: FakeOpenRouter, sentry: FakeSentry) -> dict[str, str]:
    variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    variables |= {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY, "SENTRY_DSN": sentry.dsn}
    return variables | {"SENTRY_TRACES_SAMPLE_RATE": "1", "SENTRY_ENVIRONMENT": "staging", "SENTRY_RELEASE": "app@1.2"}


@tool
async def weather(ctx: Context, city: str) -> str:
    """Tell the weather.

    Args:
        city: where.
    """
    return f"rain in {city}"


def a_herd() -> Herd:
    herd = Herd()
    herd.agent("forecaster", model="m", instructions="Be short.", tools=[weather])

    @herd.job("forecast")
    async def forecast(ctx: Context, payload: dict[str, Any]) -> Any:
        return (await ctx.run("forecaster", payload["ask"])).output

    @herd.job("breaks")
    async def breaks(ctx: Context, payload: dict[str, Any]) -> None:
        secret_local = f"{KEY} {payload.get('card')}"
        raise ValueError(f"order {payload.get('order')}: no entry with {secret_local.split(maxsplit=1)[0]}")

    @herd.job("tells")
    async def tells(ctx: Context, payload: dict[str, Any]) -> str:
        with sentry_sdk.start_span(op="db", name=f"read with {KEY}"):
            sentry_sdk.capture_message(f"the handler's own, {KEY}", level="warning")
        logger.info("a log line, {key}", key=KEY)
        metrics.count("handled", 1, attributes={"key": KEY})
        return "ok"

    @herd.job("tick")
    async def tick(ctx: Context, payload: dict[str, Any]) -> str:
        if payload.get("fail"):
            raise RuntimeError("no")
        return "tock"

    return herd


@asynccontextmanager
async def serving(variables: dict[str, str]) -> AsyncIterator[Any]:
    """A whole worker in this process; gives it, and what waits for so many jobs to end."""
    ended: asyncio.Queue = asyncio.Queue()
    detach = attach(ended.put_nowait, JobEnded)
    service = Service(settings.load(variables), a_herd(), store=None)
    service._agents.llm.openrouter = True  # whose dialect the fake speaks
    await service.start()

    async def wait(count: int = 1) -> None:
        async with asyncio.timeout(10):
            for _ in range(count):
                await ended.get()

    try:
        yield service, wait
    finally:
        await service.close()
        detach()


async def run(variables: dict[str, str], *jobs: NewJob) -> None:
    async with serving(variables) as (service, wait):
        producer = Producer(service.worker.consumer.link, service.worker.keys)
        for job in jobs:
            await producer.add(job.name, job.data, **job.opts)
        await wait(len(jobs))


@pytest.mark.skipif(not CONTRACT.exists(), reason="the contracts are not at hand")
def test_the_parser_takes_what_the_sdk_was_seen_to_send_and_nothing_broken():
    requests = json.loads(CONTRACT.read_text())["requests"]
    for request in requests:
        header, *pairs = request["envelope"]
        lines = [header]
        for about, payload in zip(pairs[::2], pairs[1::2], strict=True):
            lines += [{**about, "length": len(json.dumps(payload))}, payload]
        raw = b"\n".join(json.dumps(line).encode() for line in lines)
        assert [item["type"] for item, _ in parse(raw)[1]] == [about["type"] for about in pairs[::2]]
        with pytest.raises((AssertionError, ValueError)):
            parse(raw[:-5])
    with pytest.raises(AssertionError):
        check({"type": "check_in"}, {"check_in_id": "x", "monitor_slug": "a b", "status": "ok"})


async def test_a_failed_job_is_an_error_with_its_context_and_no_secret(environ, sentry, queue_name):
    await run(environ, NewJob("breaks", {"order": 17, "card": CARD}, {"jobId": "j1", "attempts": 1}))
    event = sentry.one("event")
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("ValueError", "order 17: no entry with ***")
    assert error["stacktrace"]["frames"][-1]["function"] == "breaks"
    assert (event["release"], event["environment"], event["level"]) == ("app@1.2", "staging", "error")
    assert event["tags"] == {"job": "breaks", "queue": queue_name, "kind": "failed"}
    job = event["contexts"]["job"]
    assert (job["id"], job["name"], job["attempt"], job["attempts"]) == ("j1", "breaks", 1, 1)
    assert event["contexts"]["trace"]["trace_id"] == sentry.one("transaction")["contexts"]["trace"]["trace_id"]
    assert KEY not in sentry.raw
    assert CARD not in sentry.raw  # it was in a local variable and in the payload


async def test_an_attempt_that_is_repeated_and_a_job_that_is_cancelled_are_no_errors(environ, sentry):
    opts = {"attempts": 2, "backoff": 60_000}
    await run(environ, NewJob("breaks", {}, opts))
    assert sentry.all("event") == []
    assert sentry.one("transaction")["contexts"]["trace"]["status"] == "internal_error"


async def test_errors_are_one_group_by_where_they_were_raised_not_by_their_words(environ, sentry):
    once = {"attempts": 1}
    await run(environ, *(NewJob("breaks", {"order": number}, once) for number in (1, 2)), NewJob("nobody", {}, once))
    prints = [tuple(event["fingerprint"]) for event in sentry.all("event")]
    assert len(prints) == 3
    assert len(set(prints)) == 2
    assert ("breaks", "failed", "ValueError", f"{__name__}:breaks") in prints


def test_an_error_without_a_stack_has_a_fingerprint_too():
    assert fingerprint("a", "child_failed", None) == ["a", "child_failed", "", ""]
    assert fingerprint("a", "failed", ValueError("no")) == ["a", "failed", "ValueError", ""]


async def test_a_trace_has_the_job_and_its_ai_spans_in_sentry_s_terms(environ, sentry, fake, queue_name):
    fake.script(calls(("weather", {"city": "Oslo"})), says("Rain."))
    await run(environ, NewJob("forecast", {"ask": "Umbrella?"}, {"jobId": "j1"}))
    transaction = sentry.one("transaction")
    trace = transaction["contexts"]["trace"]
    assert (transaction["transaction"], trace["op"], trace["status"]) == ("forecast", "queue.process", "ok")
    data = trace["data"]
    assert data["messaging.destination.name"] == queue_name
    assert data["messaging.message.id"] == "j1"
    assert data["messaging.message.receive.latency"] >= 0
    spans = sentry.spans()
    assert set(spans) == {"invoke_agent forecaster", "chat m", "execute_tool weather"}
    agent, chat, used = spans["invoke_agent forecaster"], spans["chat m"], spans["execute_tool weather"]
    assert agent["parent_span_id"] == trace["span_id"]
    assert chat["parent_span_id"] == used["parent_span_id"] == agent["span_id"]
    assert chat["sentry.op"] == "gen_ai.chat"
    assert chat["gen_ai.usage.total_tokens"] == chat["gen_ai.usage.input_tokens"] + chat["gen_ai.usage.output_tokens"]
    assert chat["gen_ai.conversation.id"] == f"{queue_name}/j1"
    assert not any(word in sentry.raw for word in ("Oslo", "Umbrella", "Be short"))


async def test_secrets_are_in_none_of_what_the_sdk_sends_prompts_included(environ, sentry, fake):
    fake.script(calls(("weather", {"city": f"Oslo {KEY}"})), says(f"Rain, {KEY}."))
    wanted = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    await run(environ | wanted, NewJob("forecast", {"ask": f"Umbrella? {KEY}"}), NewJob("tells"))
    assert "Umbrella" in sentry.spans()["chat m"]["gen_ai.input.messages"]
    assert "rain in Oslo ***" in sentry.spans()["execute_tool weather"]["gen_ai.tool.call.result"]
    assert set(sentry.items) >= {"event", "transaction", "span", "log", "trace_metric"}
    assert KEY not in sentry.raw


async def test_what_a_handler_tells_sentry_itself_has_the_job_s_context(environ, sentry):
    await run(environ, NewJob("tells", {}, {"jobId": "j9"}))
    event = sentry.one("event")
    assert event["message"] == "the handler's own, ***"
    assert event["tags"]["job"] == "tells"
    assert event["contexts"]["job"]["id"] == "j9"
    (span,) = sentry.one("transaction")["spans"]
    assert span["description"] == "read with ***"


def test_what_has_the_name_of_a_secret_is_filtered_whatever_its_value():
    told = {"api_key": "a", "list": [{"Password": "b", "text": "known secret"}], "gen_ai.usage.input_tokens": 5}
    assert scrubbed(told, lambda text: text.replace("secret", "***")) == {
        "api_key": "[Filtered]",
        "list": [{"Password": "[Filtered]", "text": "known ***"}],
        "gen_ai.usage.input_tokens": 5,
    }


@pytest.mark.parametrize("headers", [{"sentry-trace": f"{TRACE}-{SPAN}-1"}, {"traceparent": f"00-{TRACE}-{SPAN}-00"}])
async def test_a_job_joins_its_producer_s_trace(environ, sentry, headers):
    await run(environ, NewJob("tick", {}, {"telemetry": {"metadata": json.dumps(headers)}}))
    trace = sentry.one("transaction")["contexts"]["trace"]
    assert (trace["trace_id"], trace["parent_span_id"]) == (TRACE, SPAN)


@pytest.mark.parametrize(("fail", "ended"), [(False, "ok"), (True, "error")])
async def test_a_schedule_checks_in_with_its_own_timetable(environ, sentry, queue_name, fail, ended):
    async with serving(environ) as (service, wait):
        producer = Producer(service.worker.consumer.link, service.worker.keys)
        await producer.schedule("Nightly report", Repeat(every=600_000), NewJob("tick", {"fail": fail}))
        await wait()
    begun, over = sentry.all("check_in")
    assert begun["monitor_slug"] == f"{queue_name}-nightly-report"
    assert begun["monitor_config"]["schedule"] == {"type": "interval", "value": 10, "unit": "minute"}
    assert [begun["status"], over["status"]] == ["in_progress", ended]
    assert begun["check_in_id"] == over["check_in_id"]
    assert (over["environment"], over["release"]) == ("staging", "app@1.2")
    assert over["duration"] >= 0


@pytest.mark.parametrize(
    ("repeat", "schedule"),
    [
        ({"pattern": "0 3 * * *"}, {"type": "crontab", "value": "0 3 * * *"}),
        ({"pattern": "0 */5 * * * *"}, {"type": "crontab", "value": "*/5 * * * *"}),
        ({"pattern": "*/10 * * * * *"}, None),
        ({"every": 3_600_000}, {"type": "interval", "value": 60, "unit": "minute"}),
        ({"every": 5_000}, None),
        (None, None),
    ],
)
def test_schedules_that_sentry_can_t_watch_are_left_out(repeat, schedule):
    assert _schedule_of(Job("1", "a", b"{}", {"repeat": repeat}, "t")) == schedule


async def test_a_task_such_as_a_backup_checks_in(environ, sentry):
    stop = start_sentry(settings.load(environ))
    with watched("backup", "0 3 * * *"):
        pass
    with pytest.raises(OSError, match="full"), watched("backup", "0 3 * * *"):
        raise OSError("the disk is full")
    await in_time(stop)
    check_ins = sentry.all("check_in")
    assert [each["status"] for each in check_ins] == ["in_progress", "ok", "in_progress", "error"]
    assert {each["monitor_slug"] for each in check_ins} == {"backup"}
    assert check_ins[1]["check_in_id"] == check_ins[0]["check_in_id"] != check_ins[2]["check_in_id"]


async def test_a_fault_of_our_own_is_reported_with_its_stack(environ, sentry):
    stop = start_sentry(settings.load(environ))
    try:
        raise KeyError("oops")
    except KeyError:
        emit(InternalFault(where="take", stack="the stack"))
    await in_time(stop)
    event = sentry.one("event")
    assert event["exception"]["values"][0]["type"] == "KeyError"
    assert event["tags"]["where"] == "take"


ALERT = {"alert": "queue-age", "subject": "", "severity": "ticket"}


async def test_an_alert_and_its_end_are_one_group_with_the_runbook(environ, sentry):
    stop = start_sentry(settings.load(environ))
    for again in (False, True):
        emit(AlertFired(**ALERT, summary="3 jobs wait", runbook="runbooks/queue-age.md", again=again))
    emit(AlertFired(**ALERT | {"subject": "other", "severity": "page"}, summary="4 wait", runbook="", again=False))
    emit(AlertResolved(**ALERT, seconds=60.0))
    await in_time(stop)
    told = [(each["tags"]["alert.state"], each["level"], each["fingerprint"]) for each in sentry.all("event")]
    group = ["alert", "queue-age", ""]
    assert told == [
        ("fired", "warning", group), ("again", "warning", group),
        ("fired", "error", ["alert", "queue-age", "other"]), ("resolved", "info", group),
    ]  # fmt: skip
    assert sentry.all("event")[0]["extra"]["runbook"] == "runbooks/queue-age.md"


async def test_without_a_share_of_traces_errors_alone_are_sent(environ, sentry):
    await run(environ | {"SENTRY_TRACES_SAMPLE_RATE": "0"}, NewJob("tick"), NewJob("breaks", {}, {"attempts": 1}))
    assert set(sentry.items) <= {"event", "client_report"}


async def test_a_sentry_that_is_away_holds_neither_jobs_nor_the_stop(environ, sentry):
    async with asyncio.timeout(10):
        await run(environ | {"SENTRY_DSN": "http://key@127.0.0.1:9/1"}, NewJob("breaks", {}, {"attempts": 1}))


async def test_without_a_dsn_the_sdk_is_not_even_imported(environ):
    code = "import sys, oxherd.app as a, oxherd.settings as s; a.start_sentry(s.load()); a.start_tracing(s.load());"
    code += "print(*(name in sys.modules for name in ('sentry_sdk', 'opentelemetry')))"
    child = settings.child_environ({"REDIS_URL": "redis://localhost"}, inherit=False)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=child, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.split() == [b"False", b"False"]


async def test_a_missing_extra_of_sentry_is_said_and_is_no_reason_not_to_work(environ, monkeypatch):
    monkeypatch.setitem(sys.modules, "oxherd.telemetry.sentry", None)
    monkeypatch.delattr(oxherd.telemetry, "sentry", raising=False)
    warned: list[str] = []
    detach = attach(lambda event: warned.append(event.message), WorkerWarned)
    await run(environ, NewJob("tick"))
    detach()
    assert any("oxherd[sentry]" in message for message in warned)


@pytest.fixture
async def bugsink(tmp_path: Path) -> AsyncIterator[Bugsink]:
    reason = install()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    async with Bugsink(tmp_path) as server:
        yield server


async def test_a_real_receiver_takes_all_we_send_and_groups_errors_as_we_do(environ, fake, bugsink):
    fake.script(calls(("weather", {"city": "Oslo"})), says("Rain."))
    failing = [NewJob("breaks", {"order": number}, {"attempts": 1}) for number in (1, 2, 3)]
    async with serving(environ | {"SENTRY_DSN": bugsink.dsn}) as (service, wait):
        producer = Producer(service.worker.consumer.link, service.worker.keys)
        await producer.schedule("often", Repeat(every=600_000), NewJob("tick"))
        await producer.add("forecast", {"ask": "?"})
        for job in [*failing, NewJob("nobody", {}, {"attempts": 1})]:
            await producer.add(job.name, job.data, **job.opts)
        await wait(6)
        emit(AlertFired(**ALERT, summary="3 jobs wait", runbook="runbooks/queue-age.md", again=False))
        emit(AlertResolved(**ALERT, seconds=60.0))
        await asyncio.to_thread(sentry_sdk.flush, 30)  # it is slow, and the stop does not wait for it
    assert set(bugsink.answers()) == {200}
    issues = {name: (words[-19:], function, count) for name, words, function, count in bugsink.issues()}
    assert issues["ValueError"] == (": no entry with ***", "breaks", 3)
    assert sorted(name for name, *_ in bugsink.issues()) == ["Log Message", "UnknownJob", "ValueError"]
    assert issues["Log Message"][2] == 2  # an alert, and its end
    assert {(release, environment) for release, environment, _ in bugsink.events()} == {("app@1.2", "staging")}
    assert not any(KEY in data for _, _, data in bugsink.events())
