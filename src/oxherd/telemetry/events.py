"""The catalogue: everything Oxherd says about itself is one of these events.

Code emits; subscribers (logs, metrics, traces, Sentry) listen and know nobody. An event's class docstring is its
documentation, its fields are its payload. A test compares what is declared, emitted and documented.

What takes time is two events: one begins it, another ends it. `begin` joins them for tracers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

from oxherd.clock import mono
from oxherd.errors import JobCancelled, JobTimeout, LeaseLost, RetryLater, Waiting
from oxherd.job import Job

_UNLOGGED = {"logged": False}  # of fields for tracers and error reporters, which no log line shows


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. `name` is what logs and docs call it, `level` how loud it is."""

    name: ClassVar[str]
    level: ClassVar[str] = "info"


Subscriber = Callable[[Any], None]
Tracer = Callable[[Any], Subscriber | None]
Carrier = Callable[[], Mapping[str, str]]
_subscribers: defaultdict[type[Event], list[Subscriber]] = defaultdict(list)
_tracers: defaultdict[type[Event], list[Tracer]] = defaultdict(list)
_carriers: list[Carrier] = []


def emit(event: Event) -> None:
    """Hand the event to everyone who listens for its type. Costs one look-up when nobody does.

    Never raises: a listener's fault is printed, and is no reason to lose a job.
    """
    for subscriber in _subscribers[type(event)]:
        try:
            subscriber(event)
        except Exception:  # noqa: BLE001
            _print_fault()


def begin(event: Event) -> Subscriber:
    """Emit the event that begins something which takes time, and tell the tracers of its type.

    Returns:
        Takes the event that ends it, tells the tracers and emits it. Call it in the task that called this. It is
        `emit` itself where nobody traces.
    """
    emit(event)
    tracers = _tracers[type(event)]
    if not tracers:
        return emit
    enders = [ender for tracer in tracers if (ender := _traced(tracer, event)) is not None]

    def end(ending: Event) -> None:
        for ender in reversed(enders):
            try:
                ender(ending)
            except Exception:  # noqa: BLE001
                _print_fault()
        emit(ending)

    return end


def _traced(tracer: Tracer, event: Event) -> Subscriber | None:
    try:
        return tracer(event)
    except Exception:  # noqa: BLE001
        _print_fault()
        return None


def _print_fault() -> None:
    with contextlib.suppress(OSError):
        traceback.print_exc()


def attach(subscriber: Subscriber, *types: type[Event]) -> Callable[[], None]:
    """Listen for these types of event, or for all. Returns a function that stops listening."""
    return _attach(_subscribers, subscriber, types or catalogue())


def trace(tracer: Tracer, *types: type[Event]) -> Callable[[], None]:
    """Follow what these types of event begin: the tracer is given the event and returns what takes its end.

    Returns:
        A function that stops it.
    """
    return _attach(_tracers, tracer, types)


def carry(carrier: Carrier) -> Callable[[], None]:
    """Give these headers to jobs that are added, so that their workers join the trace.

    Returns:
        A function that stops it.
    """
    _carriers.append(carrier)
    return lambda: _carriers.remove(carrier) if carrier in _carriers else None


def carried() -> dict[str, str]:
    """What a job that is added now shall carry; empty where nobody traces. Never raises."""
    headers: dict[str, str] = {}
    for carrier in _carriers:
        try:
            headers.update(carrier())
        except Exception:  # noqa: BLE001
            _print_fault()
    return headers


def _attach(
    listeners: defaultdict[type[Event], list[Any]], listener: Any, types: tuple[type[Event], ...]
) -> Callable[[], None]:
    for kind in types:
        listeners[kind].append(listener)

    def detach() -> None:
        for kind in types:
            if listener in listeners[kind]:
                listeners[kind].remove(listener)

    return detach


class Ending(NamedTuple):
    """How something ended that took time.

    Attributes:
        seconds: how long it took.
        outcome: ok, failed, delayed or cancelled.
        error: the type of what was raised, or empty.
    """

    seconds: float
    outcome: str
    error: str


class spanning:  # noqa: N801  it is used like a function
    """Emit two events around the block, joined for tracers.

    Parameters:
        beginning: emitted on entering.
        ending: makes the event that is emitted on leaving, whether or not the block raised.
    """

    __slots__ = ("_beginning", "_begun", "_end", "_ending")

    def __init__(self, beginning: Event, ending: Callable[[Ending], Event]) -> None:
        self._beginning = beginning
        self._ending = ending

    def __enter__(self) -> None:
        """Begin."""
        self._begun = mono()
        self._end = begin(self._beginning)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._end(self._ending(Ending(mono() - self._begun, _outcome(error), kind.__name__ if kind else "")))


def watched(task: str, schedule: str = "") -> spanning:
    """Tell that a task of operations runs, and how it ended; Sentry is told as a check-in, so that it misses the next.

    Parameters:
        task: its name, such as `backup`.
        schedule: its cron pattern in UTC, five fields, where it has one.
    """
    return spanning(TaskStarted(task, schedule), lambda how: TaskEnded(task, how.outcome, how.seconds, how.error))


def _outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "ok"
        case JobCancelled() | JobTimeout() | LeaseLost():
            return "cancelled"
        case RetryLater() | Waiting():
            return "delayed"
        case Exception():
            return "failed"
        case _:  # asyncio's cancellation is none
            return "cancelled"


def logged_fields(kind: type[Event]) -> tuple[str, ...]:
    """The names of an event's fields that log lines and the docs show."""
    return tuple(each.name for each in dataclasses.fields(kind) if each.metadata.get("logged", True))


def catalogue() -> tuple[type[Event], ...]:
    """Every declared event, in the order of declaration."""
    # `slots=True` makes each class twice, the first stays listed until it is collected: the last one counts.
    return tuple({kind.name: kind for kind in Event.__subclasses__()}.values())


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """The worker is ready and has begun to take jobs."""

    name: ClassVar[str] = "worker.started"
    queue: str
    concurrency: int
    version: str
    commit: str
    redis: str
    redis_version: str
    store: str
    handlers: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerWarned(Event):
    """Something about the surroundings deserves attention, such as Redis's eviction policy."""

    name: ClassVar[str] = "worker.warned"
    level: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True)
class WorkerDraining(Event):
    """The worker takes no new jobs and lets the running ones finish."""

    name: ClassVar[str] = "worker.draining"
    reason: str
    in_flight: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class WorkerStopped(Event):
    """The worker has ended: how many jobs it finished in its life, and how many it handed back."""

    name: ClassVar[str] = "worker.stopped"
    finished: int
    handed_back: int


@dataclass(frozen=True, slots=True)
class JobsAdding(Event):
    """Jobs are about to be put on a queue from here."""

    name: ClassVar[str] = "jobs.adding"
    level: ClassVar[str] = "debug"
    queue: str
    job: str
    count: int


@dataclass(frozen=True, slots=True)
class JobsAdded(Event):
    """Jobs were put on a queue, or could not be; `job` is the name of the first. `outcome` is as in `step.ended`."""

    name: ClassVar[str] = "jobs.added"
    level: ClassVar[str] = "debug"
    queue: str
    job: str
    count: int
    outcome: str
    seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class JobStarted(Event):
    """An attempt begins."""

    name: ClassVar[str] = "job.started"
    level: ClassVar[str] = "debug"
    job: str
    id: str
    attempt: int
    wait_ms: int
    work: Job | None = field(default=None, repr=False, compare=False, metadata=_UNLOGGED)


@dataclass(frozen=True, slots=True)
class JobEnded(Event):
    """The canonical line of an attempt: what ran, how long, how it ended.

    `outcome` is one of completed, failed, retried, delayed, handed_back, parked, waiting, lease_lost; `kind` says more
    about a failure (failed, timeout, cancelled, quarantined, invalid, unknown_job, budget, child_failed).
    """

    name: ClassVar[str] = "job.ended"
    job: str
    id: str
    attempt: int
    attempts: int
    outcome: str
    kind: str
    wait_ms: int
    run_ms: float
    total_ms: int
    tokens: int
    cost_usd: float | None
    reason: str
    work: Job | None = field(default=None, repr=False, compare=False, metadata=_UNLOGGED)
    error: BaseException | None = field(default=None, repr=False, compare=False, metadata=_UNLOGGED)


@dataclass(frozen=True, slots=True)
class JobCancelRequested(Event):
    """Somebody asked to cancel a job that runs here."""

    name: ClassVar[str] = "job.cancel_requested"
    id: str


@dataclass(frozen=True, slots=True)
class ApprovalRequested(Event):
    """A job asks a person something, and waits for the answer without a slot.

    `approval` is the question's id, `wait` the step that the answer will be.
    """

    name: ClassVar[str] = "approval.requested"
    job: str
    id: str
    approval: str
    wait: str
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class ApprovalAnswered(Event):
    """A job goes on with a person's answer; `waited_s` is from the question to the answer."""

    name: ClassVar[str] = "approval.answered"
    job: str
    id: str
    approval: str
    wait: str
    approved: bool
    by: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class ApprovalExpired(Event):
    """A job goes on without an answer, since its question's time is over."""

    name: ClassVar[str] = "approval.expired"
    level: ClassVar[str] = "warning"
    job: str
    id: str
    approval: str
    wait: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class JobStalled(Event):
    """A job whose worker died or lost its lease was put back."""

    name: ClassVar[str] = "job.stalled"
    level: ClassVar[str] = "warning"
    id: str


@dataclass(frozen=True, slots=True)
class StepStarted(Event):
    """A step of a run begins; `kind` is step, model, tool or agent."""

    name: ClassVar[str] = "step.started"
    level: ClassVar[str] = "debug"
    id: str
    step: str
    kind: str


@dataclass(frozen=True, slots=True)
class StepEnded(Event):
    """A step of a run has ended; where it is ok it is in the journal, which took `journal_s` of its `seconds`.

    `outcome` is one of ok, failed, delayed, cancelled; `error` is the type of what was raised.
    """

    name: ClassVar[str] = "step.ended"
    level: ClassVar[str] = "debug"
    id: str
    step: str
    kind: str
    outcome: str
    seconds: float
    journal_s: float
    error: str


@dataclass(frozen=True, slots=True)
class StepReplayed(Event):
    """A step that an earlier attempt had finished was taken from the journal: nothing was paid again."""

    name: ClassVar[str] = "step.replayed"
    level: ClassVar[str] = "debug"
    id: str
    step: str
    kind: str


@dataclass(frozen=True, slots=True)
class AgentStarted(Event):
    """A run of an agent begins, or goes on in a later attempt."""

    name: ClassVar[str] = "agent.started"
    level: ClassVar[str] = "debug"
    id: str
    agent: str
    model: str


@dataclass(frozen=True, slots=True)
class AgentEnded(Event):
    """A run of an agent has ended: how, after how many calls of the model, and what it used, replayed calls included.

    `outcome` and `error` are as in `step.ended`.
    """

    name: ClassVar[str] = "agent.ended"
    level: ClassVar[str] = "debug"
    id: str
    agent: str
    model: str
    outcome: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class ModelAsked(Event):
    """A model is about to be called; calls that are in the journal already are not made."""

    name: ClassVar[str] = "model.asked"
    level: ClassVar[str] = "debug"
    id: str
    agent: str
    model: str
    request: Any = field(default=None, repr=False, compare=False, metadata=_UNLOGGED)
    service: str = field(default="", repr=False, compare=False, metadata=_UNLOGGED)


@dataclass(frozen=True, slots=True)
class ModelCalled(Event):
    """A call of a model has ended, after all its tries.

    `model` is what was asked for, `answered_by` who answered, through which `provider`. `seconds` has waiting for
    limits and the pauses between tries in it; `first_token_s` counts from sending the last try to the first piece of
    its answer. `input_tokens` include those the provider had cached. `outcome` and `error` are as in `step.ended`.
    """

    name: ClassVar[str] = "model.called"
    level: ClassVar[str] = "debug"
    id: str
    agent: str
    model: str
    outcome: str
    answered_by: str
    provider: str
    finish_reason: str
    tries: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    seconds: float
    first_token_s: float | None
    error: str
    reply: Any = field(default=None, repr=False, compare=False, metadata=_UNLOGGED)


@dataclass(frozen=True, slots=True)
class ModelFaulted(Event):
    """One try of a call of a model failed; passing faults are tried again. `status` is 0 where there was no answer."""

    name: ClassVar[str] = "model.faulted"
    model: str
    status: int
    verdict: str
    error: str


@dataclass(frozen=True, slots=True)
class ToolAsked(Event):
    """A tool is about to be called for a model."""

    name: ClassVar[str] = "tool.asked"
    level: ClassVar[str] = "debug"
    id: str
    agent: str
    tool: str
    call: str
    arguments: str = field(default="", repr=False, compare=False, metadata=_UNLOGGED)


@dataclass(frozen=True, slots=True)
class ToolCalled(Event):
    """A call of a tool has ended. `outcome` is as in `step.ended`, or told where the model was told of an error."""

    name: ClassVar[str] = "tool.called"
    level: ClassVar[str] = "debug"
    id: str
    agent: str
    tool: str
    call: str
    outcome: str
    seconds: float
    error: str
    result: str = field(default="", repr=False, compare=False, metadata=_UNLOGGED)


@dataclass(frozen=True, slots=True)
class McpConnected(Event):
    """A server of tools (MCP) is connected to; it stays so until it dies or the worker stops."""

    name: ClassVar[str] = "mcp.connected"
    server: str
    seconds: float


@dataclass(frozen=True, slots=True)
class McpLost(Event):
    """A server of tools (MCP) died, or can't be reached. It is connected to again when it is next needed."""

    name: ClassVar[str] = "mcp.lost"
    level: ClassVar[str] = "warning"
    server: str
    error: str


@dataclass(frozen=True, slots=True)
class LimiterWaited(Event):
    """A call of a model waited for the limits that all workers share; `passed` tells whether it may be sent now."""

    name: ClassVar[str] = "limiter.waited"
    level: ClassVar[str] = "debug"
    model: str
    seconds: float
    passed: bool


@dataclass(frozen=True, slots=True)
class JobsPutAside(Event):
    """Waiting jobs were put aside, because other tenants have fewer running or theirs has as many as it may."""

    name: ClassVar[str] = "jobs.put_aside"
    level: ClassVar[str] = "debug"
    count: int


@dataclass(frozen=True, slots=True)
class LeaseWasLost(Event):
    """Another worker owns a job that ran here; it was cancelled and its writes are refused."""

    name: ClassVar[str] = "lease.lost"
    level: ClassVar[str] = "warning"
    id: str


@dataclass(frozen=True, slots=True)
class LeasesLate(Event):
    """Leases could not be renewed for a while."""

    name: ClassVar[str] = "lease.late"
    level: ClassVar[str] = "warning"
    seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class RedisLost(Event):
    """A connection to Redis broke; it is being made again."""

    name: ClassVar[str] = "redis.lost"
    level: ClassVar[str] = "warning"
    purpose: str
    error: str


@dataclass(frozen=True, slots=True)
class RedisBack(Event):
    """A connection to Redis is up again."""

    name: ClassVar[str] = "redis.back"
    purpose: str
    seconds: float
    adopted: int


@dataclass(frozen=True, slots=True)
class RedisRefusedCommand(Event):
    """Redis answered with an error that will be tried again, such as OOM or BUSY."""

    name: ClassVar[str] = "redis.refused"
    level: ClassVar[str] = "warning"
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class StoreLost(Event):
    """The database did not take a write; it is tried again and finishes wait for it."""

    name: ClassVar[str] = "store.lost"
    level: ClassVar[str] = "warning"
    error: str
    waiting: int


@dataclass(frozen=True, slots=True)
class StoreBack(Event):
    """The database takes writes again."""

    name: ClassVar[str] = "store.back"
    seconds: float


@dataclass(frozen=True, slots=True)
class StoreFlushed(Event):
    """One group commit: how many rows, how long it took."""

    name: ClassVar[str] = "store.flushed"
    level: ClassVar[str] = "debug"
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoopBlocked(Event):
    """The event loop stood still; `stack` shows the code that held it."""

    name: ClassVar[str] = "loop.blocked"
    level: ClassVar[str] = "warning"
    seconds: float
    stack: str


@dataclass(frozen=True, slots=True)
class GateChanged(Event):
    """Our intake gate closed or opened: workers finish what they have and take nothing new."""

    name: ClassVar[str] = "gate.changed"
    level: ClassVar[str] = "warning"
    closed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BudgetReached(Event):
    """A call of a model was not made because a cap on money is in the way.

    `scope` is one of run, tenant, agent, global; the last three are a day's. What is set aside for calls that have
    not ended yet counts as used.
    """

    name: ClassVar[str] = "budget.reached"
    level: ClassVar[str] = "warning"
    scope: str
    agent: str
    tenant: str
    cap_usd: float
    used_usd: float


@dataclass(frozen=True, slots=True)
class SpendUnknown(Event):
    """What a model call cost can't be found out: the ledger says so, and the day's caps count what was set aside."""

    name: ClassVar[str] = "spend.unknown"
    level: ClassVar[str] = "warning"
    run: str
    step: str
    model: str


@dataclass(frozen=True, slots=True)
class TaskStarted(Event):
    """A task of operations that has to run on time begins, such as a backup; `schedule` is its cron pattern, if any."""

    name: ClassVar[str] = "task.started"
    level: ClassVar[str] = "debug"
    task: str
    schedule: str


@dataclass(frozen=True, slots=True)
class TaskEnded(Event):
    """Such a task has ended. `outcome` and `error` are as in `step.ended`."""

    name: ClassVar[str] = "task.ended"
    task: str
    outcome: str
    seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class ScheduleFailed(Event):
    """The next iteration of a job scheduler could not be made."""

    name: ClassVar[str] = "schedule.failed"
    level: ClassVar[str] = "error"
    scheduler: str
    error: str


@dataclass(frozen=True, slots=True)
class AlertFired(Event):
    """Something is wrong and people are told, for the first time or (`again`) because it goes on."""

    name: ClassVar[str] = "alert.fired"
    level: ClassVar[str] = "error"
    alert: str
    subject: str
    severity: str
    summary: str
    runbook: str
    again: bool


@dataclass(frozen=True, slots=True)
class AlertResolved(Event):
    """What an alert told of is over."""

    name: ClassVar[str] = "alert.resolved"
    alert: str
    subject: str
    severity: str
    seconds: float


@dataclass(frozen=True, slots=True)
class AlertUndelivered(Event):
    """A channel did not take a message of an alert; the others may have."""

    name: ClassVar[str] = "alert.undelivered"
    level: ClassVar[str] = "error"
    channel: str
    error: str


@dataclass(frozen=True, slots=True)
class WebStarted(Event):
    """The HTTP API is served by a process of its own."""

    name: ClassVar[str] = "web.started"
    queue: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ApiActed(Event):
    """Somebody acted through the HTTP API; the audit log has the same line. `outcome` is the HTTP status."""

    name: ClassVar[str] = "api.acted"
    actor: str
    source: str
    action: str
    target: str
    outcome: int


@dataclass(frozen=True, slots=True)
class ApiLoginFailed(Event):
    """Somebody came to the HTTP API with a token that is not the right one."""

    name: ClassVar[str] = "api.login_failed"
    level: ClassVar[str] = "warning"
    source: str


@dataclass(frozen=True, slots=True)
class AuditLost(Event):
    """An action could not be written to the audit log in the store; its `api.acted` line is all there is of it."""

    name: ClassVar[str] = "audit.lost"
    level: ClassVar[str] = "warning"
    action: str
    error: str


@dataclass(frozen=True, slots=True)
class StreamEnded(Event):
    """An attempt of a job that somebody followed has been told: in how many entries, bytes and writes to Redis.

    `dropped` counts entries that Redis did not take in time; readers are told of the gap.
    """

    name: ClassVar[str] = "stream.ended"
    level: ClassVar[str] = "debug"
    id: str
    entries: int
    bytes: int
    writes: int
    dropped: int


@dataclass(frozen=True, slots=True)
class InternalFault(Event):
    """A fault in Oxherd itself: please report it. The job it hit goes to another worker when its lease ends."""

    name: ClassVar[str] = "worker.fault"
    level: ClassVar[str] = "error"
    where: str
    stack: str
