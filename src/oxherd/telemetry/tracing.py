"""OpenTelemetry traces: producer, job, steps, agents, calls of models and tools, joined over processes.

The only file that imports OpenTelemetry, which costs half a second: it is loaded where traces are wanted.

Source: OpenTelemetry's semantic conventions for messaging (1.44); BullMQ's own package for OpenTelemetry, whose form of
`tm` in a job's options is W3C's headers as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from oxherd.codec import decode
from oxherd.job import Job
from oxherd.telemetry import conventions, events
from oxherd.telemetry.conventions import Attributes
from oxherd.telemetry.events import Event, Subscriber, carry
from oxherd.telemetry.events import trace as follow

_UNHAPPY = frozenset({"failed", "retried", "lease_lost"})
_active: list[Tracing] = []  # at most one in a process: every event would have two spans


class Service(NamedTuple):
    """Who sends the traces.

    Attributes:
        queue: the queue it serves, or adds to.
        version: Oxherd's.
        instance: unique to this process.
    """

    queue: str
    version: str
    instance: str


def start(endpoint: str, service: Service, *, content: bool, hide: Callable[[str], str]) -> Callable[[], None]:
    """Send traces from now on.

    Where the program has set up a provider of its own, spans go there, and `endpoint` is not used. Where this process
    sends traces already, such as a worker that also adds jobs, nothing is changed.

    Parameters:
        endpoint: where to, the whole address. Headers, sampling and the rest are the SDK's `OTEL_*` variables.
        service: who sends them.
        content: whether prompts, replies, and what tools were given and gave, are part of them.
        hide: takes secrets out of a text.

    Returns:
        Sends what is left, which may take seconds, and stops.
    """
    if _active:
        return lambda: None
    provider = trace.get_tracer_provider()
    own = None
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = own = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
        own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        trace.set_tracer_provider(own)  # what handlers trace themselves goes there, too
    tracing = Tracing(provider.get_tracer("oxherd", service.version), service.queue, content=content, hide=hide)
    detach = tracing.attach()
    _active.append(tracing)

    def stop() -> None:
        detach()
        _active.clear()
        if own is not None:
            own.shutdown()

    return stop


def _resource(service: Service) -> Resource:
    told = Resource.create()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    ours = {SERVICE_VERSION: service.version, SERVICE_INSTANCE_ID: service.instance}
    if str(told.attributes[SERVICE_NAME]).startswith("unknown_service"):
        ours[SERVICE_NAME] = "oxherd"
    return told.merge(Resource(ours))


class Tracing:
    """Makes spans of what begins and ends.

    Parameters:
        tracer: OpenTelemetry's.
        queue: the queue that this process serves.
        content: whether prompts, replies, and what tools were given and gave, are part of spans.
        hide: takes secrets out of a text.
    """

    def __init__(self, tracer: trace.Tracer, queue: str, *, content: bool, hide: Callable[[str], str]) -> None:
        self._tracer = tracer
        self._queue = queue
        self._content = content
        self._hide = hide

    def attach(self) -> Callable[[], None]:
        """Follow events. Returns a function that stops it."""
        stops = [follow(tracer, kind) for kind, tracer in self.tracers().items()]
        stops.append(carry(_headers))

        def stop() -> None:
            for each in stops:
                each()

        return stop

    def tracers(self) -> dict[type[Event], Callable[[Any], Subscriber | None]]:
        """What begins which span."""
        return {
            events.JobsAdding: self._adding,
            events.JobStarted: self._job,
            events.StepStarted: self._step,
            events.AgentStarted: self._agent,
            events.ModelAsked: self._model,
            events.ToolAsked: self._tool,
        }

    def _adding(self, event: events.JobsAdding) -> Subscriber:
        about = {**_messaging("add", "send", event.queue), "bullmq.job.name": event.job}
        if event.count > 1:
            about["messaging.batch.message_count"] = event.count
        return self._inside(f"add {event.queue}", SpanKind.PRODUCER, about, _nothing_more)

    def _job(self, event: events.JobStarted) -> Subscriber | None:
        job = event.work
        if job is None:
            return None
        sent = _sent_with(job)
        caller = trace.get_current_span(sent).get_span_context()
        # A schedule would make one trace without end of all its jobs: these are linked to who made it instead.
        linked = job.scheduler is not None and caller.is_valid
        span = self._tracer.start_span(
            f"process {self._queue}",
            Context() if linked else sent,
            SpanKind.CONSUMER,
            links=[Link(caller)] if linked else None,
        )
        if span.is_recording():  # what is sampled out must not cost more than it has to
            span.set_attributes(self._hidden(_about_job(self._queue, event, job)))
        # Never detached: the next job of the slot takes the place, and where a job ends in another task it can't be.
        context.attach(trace.set_span_in_context(span, sent))
        return lambda ending: self._end_job(span, ending)

    def _end_job(self, span: Span, event: events.JobEnded) -> None:
        if span.is_recording():
            span.set_attributes(self._hidden({"oxherd.job.outcome": event.outcome, "oxherd.job.kind": event.kind}))
            if event.outcome in _UNHAPPY:
                self._fail(span, type(event.error).__name__ if event.error else event.kind, event.reason)
        span.end()

    def _step(self, event: events.StepStarted) -> Subscriber | None:
        if event.kind != "step":
            return None  # calls of models and tools say more themselves
        return self._inside(f"step {event.step}", SpanKind.INTERNAL, {"oxherd.step": event.step}, _about_step)

    def _agent(self, event: events.AgentStarted) -> Subscriber:
        about = conventions.agent_begins(event, self._conversation(event.id))
        return self._inside(f"invoke_agent {event.agent}", SpanKind.INTERNAL, about, conventions.agent_ends)

    def _model(self, event: events.ModelAsked) -> Subscriber:
        about = conventions.model_begins(event, self._conversation(event.id), content=self._content)
        ends = partial(conventions.model_ends, content=self._content)
        return self._inside(f"chat {event.model}", SpanKind.CLIENT, about, ends)

    def _tool(self, event: events.ToolAsked) -> Subscriber:
        about = conventions.tool_begins(event, content=self._content)
        ends = partial(conventions.tool_ends, content=self._content)
        return self._inside(f"execute_tool {event.tool}", SpanKind.INTERNAL, about, ends)

    def _conversation(self, job_id: str) -> str:
        return f"{self._queue}/{job_id}"

    def _inside(
        self, name: str, kind: SpanKind, about: Attributes, more: Callable[[Any], Attributes]
    ) -> Callable[[Any], None]:
        """A span in the one that is current in this task, and current itself until it ends."""
        span = self._tracer.start_span(name, kind=kind)
        if span.is_recording():
            span.update_name(self._hide(name))
            span.set_attributes(self._hidden(about))
        token = context.attach(trace.set_span_in_context(span))

        def end(event: Any) -> None:
            context.detach(token)
            if span.is_recording():
                span.set_attributes(self._hidden(more(event)))
                if event.outcome in {"failed", "cancelled", "delayed"}:
                    self._fail(span, event.error, "")
            span.end()

        return end

    def _fail(self, span: Span, kind: str, reason: str) -> None:
        span.set_attribute("error.type", kind or "_OTHER")
        span.set_status(Status(StatusCode.ERROR, self._hide(reason) or kind))

    def _hidden(self, about: Mapping[str, Any]) -> Attributes:
        """The attributes that have a value, without secrets."""
        known = {name: value for name, value in about.items() if value is not None and value != ""}
        return {name: self._hide(value) if isinstance(value, str) else value for name, value in known.items()}


def _headers() -> dict[str, str]:
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def _sent_with(job: Job) -> Context:
    """The context that a job's producer sent with it; an empty one where it sent none that can be read."""
    try:
        headers = decode(job.telemetry) if job.telemetry else None
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        return Context()
    return propagate.extract({name: value for name, value in headers.items() if isinstance(value, str)}, Context())


def _messaging(name: str, kind: str, queue: str) -> Attributes:
    return {
        "messaging.system": "bullmq",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
    }


def _about_job(queue: str, event: events.JobStarted, job: Job) -> Attributes:
    return {
        **_messaging("process", "process", queue),
        "messaging.message.id": job.id,
        "messaging.message.body.size": len(job.raw),
        "bullmq.job.name": job.name,
        "bullmq.job.attempts.made": job.attempts_made,
        "oxherd.job.attempt": event.attempt,
        "oxherd.job.wait_ms": event.wait_ms,
        "oxherd.job.scheduler": job.scheduler,
    }


def _nothing_more(_: Any) -> Attributes:
    return {}


def _about_step(event: events.StepEnded) -> Attributes:
    return {"oxherd.outcome": event.outcome, "oxherd.journal_s": event.journal_s}
