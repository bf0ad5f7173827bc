"""Logs: every event as one line, pretty for people or JSON for collectors, never with a secret in it.

All wording is in this file. The lines go to stdout in both forms, because hosts such as Railway take whatever
is on stderr for an error. Python's own logging, and so every library's, comes out through the same renderer.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import quote

import orjson

from oxherd.clock import mono
from oxherd.settings import Secret
from oxherd.telemetry import events
from oxherd.telemetry.events import Event, attach, catalogue, logged_fields

_RANKS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_UNHAPPY = frozenset({"failed", "lease_lost"})
_CHATTY = ("uvicorn", "httpx2", "mcp")  # say at info level what our own lines say better, or each request
_REFUSALS_EVERY = 1.0  # seconds
_LONGEST_TEXT = 8_000  # characters of one field; a model's whole answer in an error is no log line
_LONGEST_LINE = 4 * _LONGEST_TEXT
_AT_ONCE = 4_096  # bytes, Linux's PIPE_BUF: so many are not torn apart by others who write to the same pipe
_SHORTEST_SECRET = 4  # characters; a shorter one is only hidden where it is the whole value
_SHORTEST_LINE = 12  # characters of one line of a secret, such as of a certificate, that is hidden by itself


class Redactor:
    """Puts `***` where a known secret's value stands in a text.

    Parameters:
        secrets: the values to hide, and what they look like percent-encoded, as a literal, in JSON, or line by line.
        most: how many are known at once; the one that was learned longest ago is forgotten first.
    """

    def __init__(self, secrets: Iterable[Secret] = (), *, most: int | None = None) -> None:
        self._most = most
        self._known: dict[str, _Forms] = {}
        self._hidden = _Hidden(())
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: Secret) -> None:
        """Hide this one, too, from now on."""
        value = secret.reveal()
        known = self._known.pop(value, None)
        self._known[value] = known or _Forms.of(value)  # the last one is the newest
        if known is None:
            if self._most is not None and len(self._known) > self._most:
                del self._known[next(iter(self._known))]
            self._hidden = _Hidden(tuple(self._known.values()))

    def suspects(self, line: bytes) -> bool:
        """Whether a finished line may hold a secret. Quick, and wrong only by being too careful."""
        for needle in self._hidden.needles:  # noqa: SIM110  `any` costs every line twice as much
            if needle in line:
                return True
        return False

    def text(self, text: str) -> str:
        """The text without secrets."""
        if text in self._hidden.whole:
            return "***"
        for part in self._hidden.parts:
            text = text.replace(part, "***")
        return text

    def split(self, text: str) -> tuple[str, str]:
        """The beginning of a text that goes on, without secrets, and the rest, which may be the beginning of one.

        Prepend the rest to what comes next. Where secrets overlap, the first one is hidden.
        """
        hidden, at = self._hidden, 0
        clean: list[str] = []
        held = hidden.start_of_one(text, 0)
        for found in hidden.pattern.finditer(text) if hidden.parts else ():
            if found.start() >= held:
                break  # it may be the beginning of a longer one
            clean += (text[at : found.start()], "***")
            at = found.end()
            if at > held:
                held = hidden.start_of_one(text, at)
        return "".join((*clean, text[at:held])), text[held:]


class _Forms(NamedTuple):
    """What one secret looks like in texts, and in the bytes of finished lines."""

    texts: frozenset[str]
    needles: frozenset[bytes]

    @classmethod
    def of(cls, value: str) -> Self:
        lines = (line for line in value.splitlines() if len(line) >= _SHORTEST_LINE) if "\n" in value else ()
        literals = (repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False))
        texts = {value, quote(value, safe="", errors="backslashreplace"), *(text[1:-1] for text in literals), *lines}
        texts -= {""}
        return cls(frozenset(texts), frozenset(needle for text in texts for needle in (_bytes(text), _escaped(text))))


class _Hidden:
    """All forms of all secrets, ready to be looked for; made when first needed, as many are learned and few met."""

    def __init__(self, forms: tuple[_Forms, ...]) -> None:
        self._forms = forms

    @cached_property
    def whole(self) -> frozenset[str]:
        return frozenset(text for forms in self._forms for text in forms.texts)

    @cached_property
    def parts(self) -> list[str]:
        return sorted((form for form in self.whole if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the first form, and of those that begin there the longest."""
        return re.compile("|".join(map(re.escape, self.parts)))

    @cached_property
    def letters(self) -> frozenset[str]:
        """With which forms begin."""
        return frozenset(part[0] for part in self.parts)

    def start_of_one(self, text: str, least: int) -> int:
        """Where the longest end of a text that may be the beginning of a form starts, at `least` or later."""
        longest = len(self.parts[0]) - 1 if self.parts else 0
        for at in range(max(len(text) - longest, least), len(text)):
            if text[at] in self.letters:
                end = text[at:]
                if any(len(part) > len(end) and part.startswith(end) for part in self.parts):
                    return at
        return len(text)

    @cached_property
    def needles(self) -> tuple[bytes, ...]:
        return tuple(needle for forms in self._forms for needle in forms.needles)


_learned = Redactor(most=500)  # each costs every line some 0.2 µs


def hide(secret: Secret) -> None:
    """Hide a value that came to be known while running, such as a customer's key, in all lines from now on.

    The 500 that were last used are hidden. What handlers raise is cleared of theirs before it comes here.
    """
    _learned.learn(secret)


def cleaner(secrets: Iterable[Secret]) -> Callable[[str], str]:
    """Takes these secrets out of texts, and those that came to be known while running: for what leaves otherwise."""
    redactor = Redactor(secrets)
    return lambda text: _learned.text(redactor.text(text))


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # as the renderers write text that is no Unicode


def _escaped(text: str) -> bytes:
    return orjson.dumps(_bytes(text).decode())[1:-1]


class _Line(NamedTuple):
    """How an event reads: its words, and the fields they already tell, which a pretty line leaves out."""

    words: Callable[[Any], str]
    told: frozenset[str] = frozenset()


def _told(*fields: str) -> frozenset[str]:
    return frozenset(fields)


def _took(ms: float) -> str:
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms // 60_000:.0f} min {ms % 60_000 / 1000:.0f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _job_ended(event: events.JobEnded) -> str:
    text = f"{event.job} {event.id} {event.outcome.replace('_', ' ')} in {_took(event.run_ms)}"
    return f"{text}: {event.reason}" if event.reason else text


def _alert(event: events.AlertFired | events.AlertResolved) -> str:
    return f"{event.alert} of {event.subject}" if event.subject else event.alert


def _facts(event: events.WorkerStarted) -> str:
    commit = f" ({event.commit[:7]})" if event.commit else ""
    return (
        f"[worker] Oxherd {event.version}{commit} ready in {event.seconds:.2f} s: Redis "
        f"{event.redis_version} at {event.redis}, store {event.store}, handlers {', '.join(event.handlers)}"
    )


LINES: dict[type[Event], _Line] = {
    events.WorkerStarted: _Line(lambda e: f"Started processing jobs from queue: {e.queue}", _told("queue")),
    events.WorkerWarned: _Line(lambda e: e.message),
    events.WorkerDraining: _Line(
        lambda e: f"Draining ({e.reason}): {_count(e.in_flight, 'job')} running, {e.grace_s:g} s to finish",
        _told("reason", "in_flight", "grace_s"),
    ),
    events.WorkerStopped: _Line(
        lambda e: f"Stopped: {_count(e.finished, 'job')} finished, {e.handed_back} handed back",
        _told("finished", "handed_back"),
    ),
    events.JobsAdding: _Line(
        lambda e: f"Adding {_count(e.count, 'job')}, {e.job}, to {e.queue}", _told("queue", "job", "count")
    ),
    events.JobsAdded: _Line(
        lambda e: f"Adding {_count(e.count, 'job')}, {e.job}: {e.outcome}", _told("job", "count", "outcome")
    ),
    events.JobStarted: _Line(lambda e: f"{e.job} {e.id} started", _told("job", "id")),
    events.JobEnded: _Line(_job_ended, _told("job", "id", "outcome", "run_ms", "reason")),
    events.JobCancelRequested: _Line(lambda e: f"{e.id} is asked to stop", _told("id")),
    events.ApprovalRequested: _Line(
        lambda e: (
            f"{e.job} {e.id} asks {e.wait}, for {_took(e.expires_in_s * 1000)}; oxherd approvals show {e.approval}"
        ),
        _told("job", "id", "approval", "wait", "expires_in_s"),
    ),
    events.ApprovalAnswered: _Line(
        lambda e: f"{e.job} {e.id}: {e.wait} was {'approved' if e.approved else 'denied'} by {e.by}",
        _told("job", "id", "wait", "approved", "by"),
    ),
    events.ApprovalExpired: _Line(
        lambda e: f"{e.job} {e.id}: nobody answered {e.wait} in {_took(e.waited_s * 1000)}",
        _told("job", "id", "wait", "waited_s"),
    ),
    events.JobStalled: _Line(lambda e: f"{e.id} stalled: its worker is gone, the job was put back", _told("id")),
    events.JobsPutAside: _Line(lambda e: f"{_count(e.count, 'job')} put aside: other tenants first", _told("count")),
    events.StepStarted: _Line(lambda e: f"{e.id} {e.step} begins", _told("id", "step")),
    events.StepEnded: _Line(
        lambda e: f"{e.id} {e.step} {e.outcome} in {_took(e.seconds * 1000)}", _told("id", "step", "outcome", "seconds")
    ),
    events.StepReplayed: _Line(lambda e: f"{e.id} {e.step} is in the journal already", _told("id", "step")),
    events.AgentStarted: _Line(lambda e: f"{e.agent} begins, for job {e.id}", _told("id", "agent")),
    events.AgentEnded: _Line(
        lambda e: f"{e.agent} {e.outcome} in {_took(e.seconds * 1000)}, for job {e.id}",
        _told("id", "agent", "outcome", "seconds"),
    ),
    events.ModelAsked: _Line(lambda e: f"{e.agent} asks {e.model}, for job {e.id}", _told("id", "agent", "model")),
    events.ModelCalled: _Line(
        lambda e: f"{e.model} {e.outcome} in {_took(e.seconds * 1000)}, for job {e.id}",
        _told("id", "model", "outcome", "seconds"),
    ),
    events.ModelFaulted: _Line(lambda e: f"{e.model}: {e.error}; {e.verdict}", _told("model", "error", "verdict")),
    events.ToolAsked: _Line(lambda e: f"{e.agent} calls {e.tool}, for job {e.id}", _told("id", "agent", "tool")),
    events.ToolCalled: _Line(
        lambda e: f"{e.tool} {e.outcome} in {_took(e.seconds * 1000)}, for job {e.id}",
        _told("id", "tool", "outcome", "seconds"),
    ),
    events.McpConnected: _Line(lambda e: f"MCP server {e.server} is connected", _told("server")),
    events.McpLost: _Line(lambda e: f"MCP server {e.server} is away: {e.error}", _told("server", "error")),
    events.LimiterWaited: _Line(
        lambda e: f"{'Waited' if e.passed else 'No place after'} {_took(e.seconds * 1000)} for {e.model}",
        _told("model", "seconds", "passed"),
    ),
    events.LeaseWasLost: _Line(lambda e: f"{e.id} belongs to another worker now; cancelled here", _told("id")),
    events.LeasesLate: _Line(lambda e: f"Not renewed for {e.seconds:.1f} s: {e.error}", _told("seconds", "error")),
    events.RedisLost: _Line(lambda e: f"Connection for {e.purpose} lost: {e.error}", _told("purpose", "error")),
    events.RedisBack: _Line(
        lambda e: f"Connection for {e.purpose} is back after {e.seconds:.1f} s", _told("purpose", "seconds")
    ),
    events.RedisRefusedCommand: _Line(
        lambda e: f"Refused, will be tried again: {e.message}{f' ({e.hint})' if e.hint else ''}",
        _told("hint"),
    ),
    events.StoreLost: _Line(lambda e: f"Write failed, trying again: {e.error}", _told("error")),
    events.StoreBack: _Line(lambda e: f"Takes writes again after {e.seconds:.1f} s", _told("seconds")),
    events.StoreFlushed: _Line(
        lambda e: f"{_count(e.rows, 'row')} written in {_took(e.seconds * 1000)}", _told("rows", "seconds")
    ),
    events.LoopBlocked: _Line(lambda e: f"Event loop blocked, so far for {e.seconds:.2f} s, by:", _told("seconds")),
    events.GateChanged: _Line(
        lambda e: f"Intake {'closed' if e.closed else 'open'}{f': {e.reason}' if e.reason else ''}",
        _told("closed", "reason"),
    ),
    events.BudgetReached: _Line(
        lambda e: f"Cap of the {e.scope} reached: ${e.used_usd:g} of ${e.cap_usd:g} by {e.agent}",
        _told("scope", "agent", "cap_usd", "used_usd"),
    ),
    events.SpendUnknown: _Line(
        lambda e: f"Nobody knows what {e.step} of {e.run} cost at {e.model}", _told("run", "step", "model")
    ),
    events.TaskStarted: _Line(lambda e: f"{e.task} begins", _told("task")),
    events.TaskEnded: _Line(
        lambda e: f"{e.task}: {e.outcome} after {_took(e.seconds * 1000)}", _told("task", "outcome", "seconds")
    ),
    events.ScheduleFailed: _Line(
        lambda e: f"No next job for scheduler {e.scheduler}: {e.error}", _told("scheduler", "error")
    ),
    events.AlertFired: _Line(
        lambda e: f"{_alert(e)} {'goes on' if e.again else 'fired'}: {e.summary} (see {e.runbook})",
        _told("alert", "subject", "summary", "runbook", "again"),
    ),
    events.AlertResolved: _Line(
        lambda e: f"{_alert(e)} is over after {_took(e.seconds * 1000)}", _told("alert", "subject", "seconds")
    ),
    events.AlertUndelivered: _Line(lambda e: f"Not told by {e.channel}: {e.error}", _told("channel", "error")),
    events.StreamEnded: _Line(
        lambda e: f"{e.id} was told in {_count(e.writes, 'write')}" + (f", {e.dropped} lost" if e.dropped else ""),
        _told("id", "writes"),
    ),
    events.WebStarted: _Line(
        lambda e: f"Serving the HTTP API of queue {e.queue} at {e.host}:{e.port}", _told("queue", "host", "port")
    ),
    events.ApiActed: _Line(
        lambda e: f"{e.action} {e.target}: {e.outcome}, by {e.actor} from {e.source}",
        _told("actor", "source", "action", "target", "outcome"),
    ),
    events.ApiLoginFailed: _Line(lambda e: f"Wrong token from {e.source}", _told("source")),
    events.AuditLost: _Line(lambda e: f"{e.action} is not in the audit log: {e.error}", _told("action", "error")),
    events.InternalFault: _Line(lambda e: f"Fault in {e.where}; please report it", _told("where")),
}


class Sink(Protocol):
    """Where lines go: a raw file, or an `io.BytesIO` in tests."""

    def write(self, line: bytes, /) -> int | None:
        """Write what fits and say how many bytes that was."""

    def isatty(self) -> bool:
        """Whether a person is watching."""


def configure(
    level: str = "info",
    format: str = "auto",  # noqa: A002  the variable is LOG_FORMAT
    *,
    secrets: Iterable[Secret] = (),
    sink: Sink | None = None,
) -> Callable[[], None]:
    """Write a line for every event at least as severe as `level`, and for what libraries log.

    Parameters:
        level: debug, info, warning or error.
        format: pretty, json, or auto: pretty where the sink is a terminal.
        secrets: values that must not appear in any line, whoever put them there.
        sink: stdout when left out.

    Returns:
        A function that stops it all and puts Python's logging back as it was.
    """
    out = sink or io.FileIO(sys.stdout.fileno(), "w", closefd=False)
    pretty = format == "pretty" or (format == "auto" and out.isatty())
    logs = _Logs(out, _pretty(colour=out.isatty()) if pretty else _json, Redactor(secrets), _RANKS[level])
    special: dict[type[Event], Callable[[Any], None]]
    special = {events.WorkerStarted: logs.started, events.RedisRefusedCommand: logs.refused}
    detach = [attach(_guarded(logs, special.get(kind, logs.event)), kind) for kind in _heard(level)]
    return _stack_up([*detach, logs.flush], _route_libraries(logs, _RANKS[level]))


def _heard(level: str) -> list[type[Event]]:
    return [kind for kind in catalogue() if _RANKS[_loudest(kind)] >= _RANKS[level]]


def _loudest(kind: type[Event]) -> str:
    return "warning" if kind is events.JobEnded else kind.level


def _level(event: Event) -> str:
    if isinstance(event, events.JobEnded) and event.outcome in _UNHAPPY:
        return "warning"
    return event.level


def _guarded(logs: _Logs, write: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same, but a line that can't be made, such as for an odd value, is no reason to end whoever emitted it."""

    def subscriber(event: Any) -> None:
        try:
            write(event)
        except Exception as fault:  # noqa: BLE001
            logs.unwritable(event, fault)

    return subscriber


def _stack_up(detach: list[Callable[[], None]], restore: Callable[[], None]) -> Callable[[], None]:
    def stop() -> None:
        for each in detach:
            each()
        restore()

    return stop


def _route_libraries(logs: _Logs, rank: int) -> Callable[[], None]:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    root.handlers = [_Handler(logs)]
    root.setLevel(rank)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(rank, logging.WARNING) if rank > logging.DEBUG else logging.NOTSET)
    logging.captureWarnings(capture=True)

    def restore() -> None:
        logging.captureWarnings(capture=False)
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.NOTSET)
        root.handlers = before
        root.setLevel(level)

    return restore


Record = dict[str, Any]
Renderer = Callable[[Record, frozenset[str]], bytes]


class _Logs:
    def __init__(self, sink: Sink, render: Renderer, redactor: Redactor, rank: int) -> None:
        self._sink = sink
        self._render = render
        self._redactor = redactor
        self._rank = rank
        self._refusals: dict[str, tuple[float, int]] = {}
        self._gathered = b""
        self._lock = threading.RLock()  # reentrant: a finaliser may log while its own thread is writing

    def event(self, event: Event, **more: Any) -> None:
        """Write an event's line."""
        level = _level(event)
        if _RANKS[level] < self._rank:
            return
        line = self._render(_record(event, level, more), LINES[type(event)].told)
        if len(line) > _LONGEST_LINE or self._redactor.suspects(line) or _learned.suspects(line):
            line = self._render(_record(self._tidied(event), level, more), LINES[type(event)].told)
        if isinstance(event, events.JobEnded) and level == "info":
            self._write_soon(line)
        else:
            self._write(line)

    def refused(self, event: events.RedisRefusedCommand) -> None:
        """Write one line a second for each code: while Redis is full or busy it refuses every command of every job."""
        now = mono()
        at, unlogged = self._refusals.get(event.code, (now - _REFUSALS_EVERY, 0))
        if now - at < _REFUSALS_EVERY:
            self._refusals[event.code] = (at, unlogged + 1)
            return
        self._refusals[event.code] = (now, 0)
        self.event(event, unlogged=unlogged)

    def unwritable(self, event: Event, fault: Exception) -> None:
        """Say that an event's line could not be made."""
        text = self._clean(f"[log] No line for {event.name}: {type(fault).__name__}: {fault}")
        record = {"message": text, "level": "error", "time": datetime.now(UTC), "event": "log", "logger": __name__}
        self._write(self._render(record, frozenset()))

    def started(self, event: events.WorkerStarted) -> None:
        """Write the start-up facts, then the line that deploys wait for."""
        event = self._tidied(event)
        facts = _record(event, event.level, {})
        line = {key: facts[key] for key in ("message", "level", "time", "event", "queue", "concurrency")}
        facts.update(message=_facts(event), event="worker.facts")
        self._write(self._render(facts, frozenset(facts)))
        self._write(self._render(line, LINES[events.WorkerStarted].told))

    def library(self, logged: logging.LogRecord) -> None:
        """Write what a library logged."""
        record: Record = {"message": self._clean(_text(logged)), "level": _library_level(logged.levelno)}
        record.update(time=datetime.now(UTC), event="log", logger=logged.name)
        if logged.exc_info and logged.exc_info[0]:
            record["stack"] = self._clean("".join(traceback.format_exception(*logged.exc_info)))
        self._write(self._render(record, frozenset()))

    def _tidied(self, event: Any) -> Any:
        values = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        return dataclasses.replace(event, **{name: self._tidied_value(values[name]) for name in values})

    def _tidied_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._clean(value)
        return tuple(self._clean(part) for part in value) if isinstance(value, tuple) else value

    def _clean(self, text: str) -> str:
        text = _learned.text(self._redactor.text(text))
        return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"

    def _write_soon(self, line: bytes) -> None:
        """Write a line with those of other jobs that end in this turn of the loop: a write to a pipe takes 10 µs."""
        import asyncio  # who logs without a loop does without it

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(line)
            return
        with self._lock:
            if len(self._gathered) + len(line) > _AT_ONCE:
                self.flush()
            if not self._gathered:
                loop.call_soon(self.flush)
            self._gathered += line

    def _write(self, line: bytes) -> None:
        with self._lock:
            self.flush()
            self._put(line)

    def flush(self) -> None:
        """Write what was gathered."""
        with self._lock:
            gathered, self._gathered = self._gathered, b""
            self._put(gathered)

    def _put(self, text: bytes) -> None:
        try:
            while text:
                text = text[self._sink.write(text) or len(text) :]
        except OSError:
            pass  # a full disk or a reader that went away costs lines, never jobs


class _Handler(logging.Handler):
    def __init__(self, logs: _Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._logs.library(record)
        except Exception:  # noqa: BLE001  as every handler of the standard library
            self.handleError(record)


def _text(logged: logging.LogRecord) -> str:
    try:
        return logged.getMessage()
    except Exception:  # noqa: BLE001  a library's broken format string is not worth a job
        return f"{logged.msg} {logged.args}"


def _library_level(rank: int) -> str:
    return next((name for name, least in reversed(_RANKS.items()) if rank >= least), "debug")


def _record(event: Event, level: str, more: Record) -> Record:
    kind = type(event)
    area, name = _AREAS[kind], event.name
    record: Record = {
        "message": f"[{area}] {LINES[kind].words(event)}",
        "level": level,
        "time": datetime.now(UTC),
        "event": name,
    }
    record.update(zip(FIELDS[kind], _VALUES[kind](event), strict=False), **more)  # attrgetter may get one more
    return record


FIELDS = {kind: tuple(name for name in logged_fields(kind) if name != "message") for kind in catalogue()}
# Of at least two, as it would else not give a tuple: two classes of events have fewer fields.
_VALUES = {kind: attrgetter(*names, "name", "level") for kind, names in FIELDS.items()}
_AREAS = {kind: kind.name.partition(".")[0] for kind in catalogue()}


def _json(record: Record, told: frozenset[str]) -> bytes:  # noqa: ARG001  collectors get every field
    try:
        return orjson.dumps(record, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # text that is no Unicode, or a number past 64 bits
        plain = {key: _bytes(str(value)).decode() for key, value in record.items()}
        return orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)


_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    10: "\\n",
    13: "\\r",
    9: "\\t",
}
_HEAD = frozenset({"message", "level", "time", "event", "stack"})


def _pretty(*, colour: bool) -> Renderer:
    def paint(code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour else text

    def render(record: Record, told: frozenset[str]) -> bytes:
        time = record["time"].astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = paint(_COLOURS[record["level"]], f"{record['level']:7}")
        shown = [
            f"{paint('2', f'{key}=')}{_value(value)}"
            for key, value in record.items()
            if value and key not in _HEAD and key not in told
        ]
        text = f"{paint('2', time)} {level} {record['message'].translate(_CONTROLS)}"
        text = "  ".join([text, " ".join(shown)]) if shown else text
        stack = "".join(f"\n    {line.translate(_CONTROLS)}" for line in record.get("stack", "").splitlines())
        return _bytes(f"{text}{stack}\n")

    return render


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value).translate(_CONTROLS)
    return f'"{text}"' if " " in text else text
