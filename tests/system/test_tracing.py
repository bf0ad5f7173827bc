"""Traces as a collector receives them: OTLP over HTTP, decoded, from a producer to the last call of a tool."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.util._once import Once

import oxherd.telemetry
from fakes.openrouter import KEY, FakeOpenRouter, Refuses, calls, says
from oxherd import settings
from oxherd.agents import tool
from oxherd.app import Service, queue_client
from oxherd.context import Context
from oxherd.herd import Herd
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat
from oxherd.telemetry.events import JobEnded, WorkerWarned, attach

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "the-collector-s-key"


class Collector:
    """An OTLP receiver: keeps the spans it is sent and the headers they came with."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.headers: list[Any] = []
        self.resources: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert request.content_type == "application/x-protobuf"
        self.headers.append(request.headers)
        sent = ExportTraceServiceRequest.FromString(body)
        for each in sent.resource_spans:
            self.resources.append(read(each.resource.attributes))
            self.spans += [span for scope in each.scope_spans for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    def named(self, name: str) -> Any:
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, [span.name for span in self.spans]
        return found[0]


def read(attributes: Any) -> dict[str, Any]:
    return {each.key: value(each.value) for each in attributes}


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(each) for each in any_value.array_value.values]
    return getattr(any_value, kind)


def about(span: Any) -> dict[str, Any]:
    return read(span.attributes)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as server:
        yield server


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture(autouse=True)
def no_provider() -> Iterator[None]:
    """OpenTelemetry lets a process have one provider for good; each test gets its own."""
    yield
    trace._TRACER_PROVIDER = None
    trace._TRACER_PROVIDER_SET_ONCE = Once()


@pytest.fixture
def environ(redis_url: str, queue_name: str, fake: FakeOpenRouter, collector: Collector) -> dict[str, str]:
    variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    variables |= {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY}
    return variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}


@tool
async def weather(ctx: Context, city: str) -> str:
    """Tell the weather.

    Args:
        city: where.
    """
    trace.get_tracer("the product's own").start_span("ask the sky").end()
    return f"rain in {city}"


def a_herd() -> Herd:
    herd = Herd()
    herd.agent("forecaster", model="m", instructions="Be short.", tools=[weather])

    @herd.job("forecast")
    async def forecast(ctx: Context, payload: dict[str, Any]) -> Any:
        await ctx.step("look-up", look_up)
        return (await ctx.run("forecaster", payload["ask"])).output

    @herd.job("parent")
    async def parent(ctx: Context, payload: dict[str, Any]) -> str:
        return await ctx.spawn("child")

    @herd.job("child")
    def child(ctx: Context, payload: dict[str, Any]) -> str:
        trace.get_tracer("the product's own").start_span("in a thread").end()
        return "ok"

    @herd.job("breaks")
    async def breaks(ctx: Context, payload: dict[str, Any]) -> None:
        raise ValueError(f"no entry with {KEY}")

    return herd


async def look_up() -> str:
    return "found"


@asynccontextmanager
async def serving(variables: dict[str, str]) -> AsyncIterator[Any]:
    """A whole worker in this process; gives what waits for so many jobs to end."""
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
        yield wait
    finally:
        await service.close()
        detach()


async def run(variables: dict[str, str], name: str, data: Any = None, *, jobs: int = 1, **opts: Any) -> None:
    known = settings.load(variables)
    async with serving(variables) as wait, queue_client(known) as (producer, _):
        await producer.add(name, data, **opts)
        await wait(jobs)


async def test_a_trace_joins_producer_job_step_agent_model_and_tool(environ, collector, fake, queue_name):
    fake.script(calls(("weather", {"city": "Oslo"})), says("Rain."))
    await run(environ, "forecast", {"ask": "Oslo?"})
    spans = {span.span_id: span for span in collector.spans}
    assert len({span.trace_id for span in collector.spans}) == 1

    def path(span: Any) -> list[str]:
        return [*(path(spans[span.parent_span_id]) if span.parent_span_id else []), span.name]

    root = [f"add {queue_name}", f"process {queue_name}"]
    agent = [*root, "invoke_agent forecaster"]
    chat, used = [*agent, "chat m"], [*agent, "execute_tool weather"]
    assert sorted(path(span) for span in collector.spans) == sorted(
        [root[:1], root, [*root, "step look-up"], agent, chat, chat, used, [*used, "ask the sky"]]
    )


async def test_spans_follow_the_conventions_for_messaging_and_generative_ai(environ, collector, fake, queue_name):
    fake.script(says("Rain."))
    await run(environ, "forecast", {"ask": "Oslo?"}, jobId="j1")
    job, agent, chat = (
        collector.named(name) for name in (f"process {queue_name}", "invoke_agent forecaster", "chat m")
    )
    kinds = [collector.named(f"add {queue_name}").kind, job.kind, agent.kind, chat.kind]
    assert kinds == [4, 5, 1, 3]  # producer, consumer, internal, client
    assert about(job) | {"messaging.system": "bullmq", "messaging.message.id": "j1"} == about(job)
    assert about(job)["messaging.destination.name"] == queue_name
    assert about(job)["oxherd.job.outcome"] == "completed"
    assert about(agent)["gen_ai.operation.name"] == "invoke_agent"
    said = about(chat)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "m"
    assert said["gen_ai.conversation.id"] == f"{queue_name}/j1"
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert said["gen_ai.usage.input_tokens"] > 0
    assert said["gen_ai.response.time_to_first_chunk"] > 0
    assert said["oxherd.cost_usd"] > 0
    assert said["server.address"] == "127.0.0.1"
    (resource, *_) = collector.resources
    assert resource["service.name"] == "oxherd"


async def test_no_content_is_in_a_trace_unless_it_is_asked_for(environ, collector, fake):
    fake.script(calls(("weather", {"city": "Oslo"})), says("Drizzle."))
    await run(environ, "forecast", {"ask": "Umbrella?"})
    text = "".join(str(about(span)) for span in collector.spans)
    assert not any(word in text for word in ("Umbrella", "Oslo", "Drizzle", "Be short"))


async def test_content_that_is_asked_for_is_in_the_conventions_form(environ, collector, fake):
    fake.script(calls(("weather", {"city": "Oslo"})), says(f"Drizzle, {KEY}."))
    await run(
        environ | {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}, "forecast", {"ask": "Umbrella?"}
    )
    first, second = sorted((s for s in collector.spans if s.name == "chat m"), key=lambda s: s.start_time_unix_nano)
    asked = json.loads(about(first)["gen_ai.input.messages"])
    assert asked[-1] == {"role": "user", "parts": [{"type": "text", "content": "Umbrella?"}]}
    (called,) = json.loads(about(first)["gen_ai.output.messages"])
    assert called["parts"][0]["type"] == "tool_call"
    assert called["finish_reason"] == "tool_calls"
    told = json.loads(about(second)["gen_ai.input.messages"])[-1]
    assert told["parts"][0]["type"] == "tool_call_response"
    assert json.loads(about(second)["gen_ai.output.messages"])[0]["parts"] == [
        {"type": "text", "content": "Drizzle, ***."}
    ]
    ran = about(collector.named("execute_tool weather"))
    assert json.loads(ran["gen_ai.tool.call.arguments"]) == {"city": "Oslo"}
    assert ran["gen_ai.tool.call.result"] == "rain in Oslo"


async def test_a_failed_call_is_an_error_of_all_that_contain_it(environ, collector, fake, queue_name):
    fake.script(Refuses(401))
    await run(environ, "forecast", {"ask": "?"})
    assert [about(collector.named(name))["error.type"] for name in ("chat m", f"process {queue_name}")] == [
        "ModelRefused"
    ] * 2
    collector.spans.clear()
    trace._TRACER_PROVIDER = None
    trace._TRACER_PROVIDER_SET_ONCE = Once()
    await run(environ, "breaks")
    job = collector.named(f"process {queue_name}")
    assert job.status.code == 2
    assert job.status.message == "ValueError: no entry with ***"


async def test_a_job_joins_the_trace_that_its_producer_sent(environ, collector, queue_name):
    await run(environ, "child", telemetry={"metadata": json.dumps({"traceparent": TRACEPARENT})})
    job = collector.named(f"process {queue_name}")
    assert job.trace_id.hex() == TRACEPARENT.split("-")[1]
    assert job.parent_span_id.hex() == TRACEPARENT.split("-")[2]
    assert collector.named("in a thread").parent_span_id == job.span_id


@pytest.mark.parametrize("sent", ["no json", "[1]", '{"traceparent": 5}', '{"traceparent": "00-x"}'])
async def test_a_trace_that_can_t_be_read_costs_nothing_but_itself(environ, collector, queue_name, sent):
    await run(environ, "child", telemetry={"metadata": sent})
    assert not collector.named(f"process {queue_name}").parent_span_id


async def test_a_child_that_a_job_adds_is_in_its_trace(environ, collector, queue_name):
    await run(environ, "parent", jobs=2)
    jobs = {about(span)["bullmq.job.name"]: span for span in collector.spans if span.name == f"process {queue_name}"}
    added = [span for span in collector.spans if span.name == f"add {queue_name}"]
    assert jobs["child"].parent_span_id in {span.span_id for span in added}
    assert jobs["child"].trace_id == jobs["parent"].trace_id


async def test_a_producer_may_leave_the_trace_out(environ, collector, queue_name):
    await run(environ, "child", telemetry={"omitContext": True})
    assert not collector.named(f"process {queue_name}").parent_span_id


async def test_jobs_of_a_schedule_are_linked_to_who_made_it_and_begin_traces_of_their_own(
    environ, collector, queue_name
):
    async with serving(environ) as wait, queue_client(settings.load(environ)) as (producer, _):
        sent = {"telemetry": {"metadata": json.dumps({"traceparent": TRACEPARENT})}}
        await producer.schedule("often", Repeat(every=60_000), NewJob("child", {}, sent))
        await wait()
    job = collector.named(f"process {queue_name}")
    assert not job.parent_span_id
    assert [link.trace_id.hex() for link in job.links] == [TRACEPARENT.split("-")[1]]


async def test_what_is_sampled_out_is_not_sent_and_tells_workers_so(environ, collector, monkeypatch, queue_name):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    known = settings.load(environ)
    async with queue_client(known) as (producer, admin):
        job_id = await producer.add("child")
        sent = json.loads((await admin.job(job_id))["opts"]["tm"])
    assert int(sent["traceparent"].rpartition("-")[2], 16) & 1 == 0
    assert collector.spans == []


async def test_headers_reach_the_collector_and_are_known_as_secrets(environ, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={SECRET}")
    variables = environ | {"OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={SECRET}"}
    await run(variables, "child")
    assert collector.headers[0]["x-api-key"] == SECRET
    assert SECRET in {secret.reveal() for secret in settings.load(variables).secrets}


async def test_a_collector_that_is_away_holds_neither_jobs_nor_the_stop(environ):
    async with asyncio.timeout(10):
        await run(environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "child")


@pytest.mark.parametrize("without", [{"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {"OTEL_SDK_DISABLED": "true"}])
async def test_nothing_is_traced_unless_it_is_configured(environ, collector, without):
    async with queue_client(settings.load(environ | without)) as (producer, admin):
        job_id = await producer.add("child")
        assert "tm" not in (await admin.job(job_id))["opts"]
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert collector.spans == []


async def test_a_missing_extra_is_said_at_the_start_and_is_no_reason_not_to_work(environ, monkeypatch):
    monkeypatch.setitem(sys.modules, "oxherd.telemetry.tracing", None)
    monkeypatch.delattr(oxherd.telemetry, "tracing", raising=False)
    warned: list[str] = []
    detach = attach(lambda event: warned.append(event.message), WorkerWarned)
    await run(environ, "child")
    detach()
    assert any("oxherd[otel]" in message for message in warned)
