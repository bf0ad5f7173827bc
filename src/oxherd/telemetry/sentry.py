"""Sentry: errors of jobs, traces of jobs with their calls of models and tools, check-ins of schedules and tasks.

The only file that imports Sentry's SDK, which costs 0.4 s: it is loaded where SENTRY_DSN is set.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import sentry_sdk
from sentry_sdk.crons import capture_checkin
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.scope import use_isolation_scope
from sentry_sdk.scrubber import DEFAULT_DENYLIST, EventScrubber
from sentry_sdk.tracing import Span
from sentry_sdk.transport import HttpTransport
from sentry_sdk.utils import event_from_exception

from oxherd.clock import mono
from oxherd.codec import decode
from oxherd.job import Job
from oxherd.settings import Secret
from oxherd.telemetry import conventions, events
from oxherd.telemetry.channels import PATIENCE, Undelivered, Wording
from oxherd.telemetry.conventions import Attributes
from oxherd.telemetry.events import Event, Subscriber, attach, carry, trace

LAST_WORDS = 2.0  # seconds that the SDK may take to send what is left
MARGIN = 5  # minutes by which a check-in may be late
MINUTE_MS = 60_000
_FILTERED = "[Filtered]"
_NAMES = frozenset(name.lower() for name in DEFAULT_DENYLIST)
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_parent: ContextVar[Span | None] = ContextVar("oxherd_sentry_span", default=None)


def start(
    dsn: Secret,
    queue: str,
    *,
    release: str,
    environment: str,
    traces: float,
    content: bool,
    hide: Callable[[str], str],
) -> Callable[[], None]:
    """Report to Sentry from now on; what handlers tell the SDK themselves goes the same way.

    Parameters:
        dsn: the project's.
        queue: the queue that this process serves.
        release, environment: what Sentry calls this version and this deployment.
        traces: the share of jobs whose traces are sent.
        content: whether prompts, replies, and what tools were given and gave, are part of them.
        hide: takes secrets out of a text.

    Returns:
        Sends what is left, within two seconds, and stops.
    """
    sentry_sdk.init(
        dsn.reveal(),
        release=release,
        environment=environment,
        traces_sample_rate=traces or None,
        transport=scrubbing(hide),
        event_scrubber=EventScrubber(recursive=True),
        # Whatever else is installed would hook itself in, and send what nobody has looked at.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[DedupeIntegration()],
        include_local_variables=False,
        max_request_body_size="never",
        auto_session_tracking=False,
        shutdown_timeout=LAST_WORDS,
    )
    detach = Reporter(queue, traces=traces > 0, content=content).attach()

    def stop() -> None:
        detach()
        sentry_sdk.get_client().close(timeout=LAST_WORDS)
        sentry_sdk.get_global_scope().set_client(None)

    return stop


def scrubbing(hide: Callable[[str], str]) -> type[HttpTransport]:
    """A transport that lets no secret out, whatever it is part of.

    All that the SDK sends passes here: errors, traces, logs, metrics, check-ins, and the spans of AI calls, which none
    of its hooks sees.
    """

    class Scrubbed(HttpTransport):
        def capture_envelope(self, envelope: Any) -> None:
            envelope.headers = scrubbed(envelope.headers, hide)
            for item in envelope.items:
                payload = item.payload
                if payload.json is not None and payload.bytes is None:
                    payload.json = scrubbed(payload.json, hide)
                else:
                    payload.bytes = hide(payload.get_bytes().decode("utf-8", "surrogateescape")).encode(
                        "utf-8", "surrogateescape"
                    )
            super().capture_envelope(envelope)

    return Scrubbed


def scrubbed(value: Any, hide: Callable[[str], str]) -> Any:
    """JSON-able data without secrets: those that are known, and what has the name of one."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {
            key: _FILTERED if str(key).lower() in _NAMES and part else scrubbed(part, hide)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrubbed(part, hide) for part in value]
    return value


class Reporter:
    """Tells Sentry what happens.

    Parameters:
        queue: the queue that this process serves.
        traces: whether any traces are sent.
        content: whether prompts, replies, and what tools were given and gave, are part of them.
    """

    def __init__(self, queue: str, *, traces: bool, content: bool) -> None:
        self._queue = queue
        self._traces = traces
        self._content = content

    def attach(self) -> Callable[[], None]:
        """Follow events. Returns a function that stops it."""
        stops = [trace(tracer, kind) for kind, tracer in self._tracers().items()]
        stops += [attach(tell, kind) for kind, tell in self._subscriptions().items()]
        if self._traces:
            stops.append(carry(_headers))

        def stop() -> None:
            for each in stops:
                each()

        return stop

    def _tracers(self) -> dict[type[Event], Callable[[Any], Subscriber | None]]:
        always: dict[type[Event], Callable[[Any], Subscriber | None]]
        always = {events.JobStarted: self._job, events.TaskStarted: _task}
        if not self._traces:
            return always
        return {
            **always,
            events.JobsAdding: self._adding,
            events.StepStarted: _step,
            events.AgentStarted: self._agent,
            events.ModelAsked: self._model,
            events.ToolAsked: self._tool,
        }

    def _subscriptions(self) -> dict[type[Event], Subscriber]:
        return {
            events.InternalFault: _fault,
            events.ScheduleFailed: _schedule_failed,
            events.AlertFired: _alert,
            events.AlertResolved: _alert_over,
        }

    # -- jobs

    def _job(self, event: events.JobStarted) -> Subscriber | None:
        job = event.work
        if job is None:
            return None
        # What a handler tells Sentry itself belongs to this job alone.
        scope = sentry_sdk.get_isolation_scope().fork()
        scopes = use_isolation_scope(scope)
        scopes.__enter__()
        scope.set_tags({"job": job.name, "queue": self._queue})
        scope.set_context("job", {"id": job.id, "name": job.name, "queue": self._queue, "attempt": event.attempt})
        transaction = self._transaction(event, job) if self._traces else None
        _parent.set(transaction)
        seen = _check_in_of(job, self._queue)

        def end(ending: events.JobEnded) -> None:
            if ending.outcome == "failed" and ending.kind != "cancelled":
                self._failed(ending)
            if transaction is not None:
                transaction.set_status("ok" if ending.outcome == "completed" else _status(ending))
                transaction.set_data("oxherd.job.outcome", ending.outcome)
                transaction.finish()
            if seen is not None:
                seen(ending)
            scopes.__exit__(None, None, None)  # harmless where the job ends in another task

        return end

    def _transaction(self, event: events.JobStarted, job: Job) -> Any:
        scope = sentry_sdk.get_isolation_scope()
        # A schedule would make one trace without end of all its jobs.
        headers = {} if job.scheduler is not None else _sent_with(job)
        transaction = scope.continue_trace(headers, op="queue.process", name=job.name, source="task")
        started: Any = scope.start_transaction(transaction)
        sentry_sdk.get_current_scope().span = started  # what a handler measures itself goes below it
        _set(
            started,
            {
                "messaging.system": "bullmq",
                "messaging.destination.name": self._queue,
                "messaging.message.id": job.id,
                "messaging.message.receive.latency": event.wait_ms,
                "messaging.message.retry.count": job.attempts_made,
                "messaging.message.body.size": len(job.raw),
            },
        )
        return started

    def _failed(self, ending: events.JobEnded) -> None:
        names = ("attempts", "kind", "wait_ms", "run_ms", "total_ms", "tokens", "cost_usd")
        about = {name: getattr(ending, name) for name in names}
        job = {"id": ending.id, "name": ending.job, "queue": self._queue, "attempt": ending.attempt, **about}
        sentry_sdk.get_isolation_scope().set_context("job", job)
        kind = fingerprint(ending.job, ending.kind, ending.error)
        _report(ending.error, ending.reason, {"tags": {"kind": ending.kind}, "fingerprint": kind})

    # -- what a job does

    def _adding(self, event: events.JobsAdding) -> Subscriber | None:
        about: Attributes = {"messaging.system": "bullmq", "messaging.destination.name": event.queue}
        about["messaging.batch.message_count"] = event.count
        return _inside("queue.publish", event.queue, about, lambda _: {})

    def _agent(self, event: events.AgentStarted) -> Subscriber | None:
        about = conventions.agent_begins(event, f"{self._queue}/{event.id}")
        return _inside("gen_ai.invoke_agent", f"invoke_agent {event.agent}", about, _agent_ends)

    def _model(self, event: events.ModelAsked) -> Subscriber | None:
        about = conventions.model_begins(event, f"{self._queue}/{event.id}", content=self._content)
        ends = partial(_model_ends, content=self._content)
        return _inside("gen_ai.chat", f"chat {event.model}", about, ends)

    def _tool(self, event: events.ToolAsked) -> Subscriber | None:
        about = conventions.tool_begins(event, content=self._content)
        ends = partial(conventions.tool_ends, content=self._content)
        return _inside("gen_ai.execute_tool", f"execute_tool {event.tool}", about, ends)


def fingerprint(job: str, kind: str, error: BaseException | None) -> list[str]:
    """What makes two failures the same one: the job's name, the error's type, and where in the product it was raised.

    Not its words: they tell ids and times.
    """
    return [job, kind, type(error).__name__ if error is not None else "", _place(error)]


def _place(error: BaseException | None) -> str:
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code) for frame, _ in _walk(error)]
    own = [
        (name, code)
        for name, code in frames
        if not name.startswith(("oxherd.", "asyncio")) and "site-packages" not in code.co_filename
    ]
    name, code = (own or frames or [("", None)])[-1]
    return f"{name}:{code.co_name}" if code is not None else ""


def _walk(error: BaseException | None) -> Iterator[Any]:
    return traceback.walk_tb(error.__traceback__) if error is not None else iter(())


def _report(error: BaseException | None, words: str, more: Attributes) -> None:
    event, hint = _told(error)
    if not event:
        event = {"message": words, "level": "error"}
    sentry_sdk.capture_event({**event, **more}, hint=hint)  # type: ignore[typeddict-item]


def _told(error: BaseException | None) -> tuple[Any, Any]:
    if error is None:
        return {}, {}
    options = sentry_sdk.get_client().options
    how = {"type": "oxherd", "handled": False}
    return event_from_exception((type(error), error, error.__traceback__), client_options=options, mechanism=how)


def _fault(event: events.InternalFault) -> None:
    error = sys.exc_info()[1]
    more: Attributes = {"tags": {"where": event.where}, "fingerprint": fingerprint("oxherd", "fault", error)}
    if error is None:
        more["extra"] = {"stack": event.stack}
    _report(error, f"a fault in {event.where}", more)


def _schedule_failed(event: events.ScheduleFailed) -> None:
    words = f"no next job for scheduler {event.scheduler}: {event.error}"
    _report(None, words, {"fingerprint": ["schedule", event.scheduler]})


def _alert(event: events.AlertFired) -> None:
    level = "error" if event.severity == "page" else "warning"
    _report_alert(event, event.summary, level, "again" if event.again else "fired", {"runbook": event.runbook})


def _alert_over(event: events.AlertResolved) -> None:
    # In the same group. Only Sentry's API closes an issue; its next event opens it again by itself.
    words = f"over: {event.alert} {event.subject}".strip()
    _report_alert(event, words, "info", "resolved", {"seconds": event.seconds})


def _report_alert(
    event: events.AlertFired | events.AlertResolved, words: str, level: str, state: str, extra: Attributes
) -> None:
    tags = {"alert": event.alert, "severity": event.severity, "alert.state": state}
    group = ["alert", event.alert, event.subject]
    _report(None, words, {"level": level, "tags": tags, "extra": extra, "fingerprint": group})


@dataclass(frozen=True, slots=True)
class Trial:
    """Sentry as a channel of alerts, for trying it. Watchdogs need none: `start` made Sentry hear of their events."""

    name: str = "sentry"

    async def send(self, words: Wording) -> None:
        """See Channel."""
        lost: list[str] = []
        transport: Any = sentry_sdk.get_client().transport
        transport.on_dropped_event = lost.append  # the SDK tells nobody else
        begun = mono()
        words.announce()
        await asyncio.to_thread(sentry_sdk.flush, PATIENCE)
        if mono() - begun >= PATIENCE:
            lost.append("no answer")
        if lost:
            raise Undelivered(lost[0].replace("status_", "HTTP ").replace("network", "no answer"))


# -- spans


def _inside(op: str, name: str, about: Attributes, more: Callable[[Any], Attributes]) -> Callable[[Any], None] | None:
    """A span in the one that is current in this task, and current itself until it ends; None where none is recorded."""
    parent = _parent.get()
    if parent is None or not parent.sampled:
        return None
    span = parent.start_child(op=op, name=name)
    _set(span, about)
    token = _parent.set(span)

    def end(event: Any) -> None:
        _parent.reset(token)
        _set(span, more(event))
        span.set_status("ok" if event.outcome in {"ok", "told"} else _status(event))
        span.finish()

    return end


def _step(event: events.StepStarted) -> Subscriber | None:
    if event.kind != "step":
        return None  # calls of models and tools say more themselves
    return _inside("function", f"step {event.step}", {}, lambda _: {})


def _agent_ends(event: events.AgentEnded) -> Attributes:
    return _with_total(conventions.agent_ends(event))


def _model_ends(event: events.ModelCalled, *, content: bool) -> Attributes:
    about = conventions.model_ends(event, content=content)
    # Sentry's own names for these two
    about["gen_ai.usage.input_tokens.cached"] = event.cached_tokens
    about["gen_ai.usage.output_tokens.reasoning"] = event.reasoning_tokens
    return _with_total(about)


def _with_total(about: Attributes) -> Attributes:
    total = about["gen_ai.usage.input_tokens"] + about["gen_ai.usage.output_tokens"]
    return {**about, "gen_ai.usage.total_tokens": total}


def _set(span: Any, about: Attributes) -> None:
    for name, value in about.items():
        if value is not None and value != "":
            span.set_data(name, value)


def _status(event: Any) -> str:
    outcome = event.outcome
    return "cancelled" if outcome in {"cancelled", "handed_back", "lease_lost"} else "internal_error"


def _headers() -> dict[str, str]:
    span = _parent.get()
    if span is None:
        return {}
    # Sentry's own header, and W3C's for those who read nothing else.
    headers = {"sentry-trace": span.to_traceparent()}
    headers["traceparent"] = f"00-{span.trace_id}-{span.span_id}-{'01' if span.sampled else '00'}"
    baggage = span.to_baggage()
    return headers if baggage is None else {**headers, "baggage": baggage.serialize()}


def _sent_with(job: Job) -> dict[str, str]:
    """The trace that a job's producer sent with it, as Sentry's headers; empty where it sent none that can be read."""
    try:
        headers = decode(job.telemetry) if job.telemetry else None
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        return {}
    told = {name: headers[name] for name in ("sentry-trace", "baggage") if isinstance(headers.get(name), str)}
    if "sentry-trace" in told:
        return told
    found = _TRACEPARENT.fullmatch(str(headers.get("traceparent")))
    return {"sentry-trace": f"{found[1]}-{found[2]}"} if found else {}  # whether to sample it is for us to say


# -- check-ins


def _task(event: events.TaskStarted) -> Subscriber:
    schedule = {"type": "crontab", "value": event.schedule} if event.schedule else None
    config = _config(schedule, "UTC")
    slug, check_in = _slug(event.task), capture_checkin(_slug(event.task), status="in_progress", monitor_config=config)

    def end(ending: events.TaskEnded) -> None:
        status = "ok" if ending.outcome == "ok" else "error"
        capture_checkin(slug, check_in, status, ending.seconds, config)

    return end


def _check_in_of(job: Job, queue: str) -> Callable[[events.JobEnded], None] | None:
    """Say that a schedule's job runs. All attempts of a job are one check-in: it fails when the job does."""
    schedule = _schedule_of(job)
    if schedule is None or job.scheduler is None:
        return None
    zone = str(job.opts["repeat"].get("tz") or "UTC")
    config, slug = _config(schedule, zone), _slug(f"{queue}-{job.scheduler}")
    check_in = hashlib.blake2b(f"{queue}/{job.id}@{job.timestamp}".encode(), digest_size=16).hexdigest()
    if job.attempts_started == 1:
        capture_checkin(slug, check_in, "in_progress", None, config)

    def end(ending: events.JobEnded) -> None:
        if ending.outcome in {"completed", "failed"}:
            status = "ok" if ending.outcome == "completed" else "error"
            capture_checkin(slug, check_in, status, ending.run_ms / 1000, config)

    return end


def _schedule_of(job: Job) -> Attributes | None:
    """A schedule as Sentry takes it; None for what it can't watch: less than a minute apart, or at certain seconds."""
    repeat = job.opts.get("repeat")
    if not isinstance(repeat, dict):
        return None
    every, pattern = repeat.get("every"), repeat.get("pattern")
    if isinstance(every, int | float) and every >= MINUTE_MS:
        return {"type": "interval", "value": round(every / MINUTE_MS), "unit": "minute"}
    fields = pattern.split() if isinstance(pattern, str) else []
    if len(fields) == 6 and fields[0] == "0":
        fields = fields[1:]
    return {"type": "crontab", "value": " ".join(fields)} if len(fields) == 5 else None


def _config(schedule: Attributes | None, zone: str) -> Any:
    return {"schedule": schedule, "timezone": zone, "checkin_margin": MARGIN} if schedule else None


def _slug(name: str) -> str:
    """A monitor's name in Sentry: at most 50 small letters, digits, _ and -."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:50]
