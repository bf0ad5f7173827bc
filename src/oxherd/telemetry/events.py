"""The catalogue: everything Oxherd says about itself is one of these events.

Code emits; subscribers (logs, metrics) listen and know nobody. An event's class docstring is its
documentation, its fields are its payload. A test compares what is declared, emitted and documented.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. `name` is what logs and docs call it, `level` how loud it is."""

    name: ClassVar[str]
    level: ClassVar[str] = "info"


Subscriber = Callable[[Any], None]
_subscribers: defaultdict[type[Event], list[Subscriber]] = defaultdict(list)


def emit(event: Event) -> None:
    """Hand the event to everyone who listens for its type. Costs one look-up when nobody does.

    Never raises: a listener's fault is printed, and is no reason to lose a job.
    """
    for subscriber in _subscribers[type(event)]:
        try:
            subscriber(event)
        except Exception:  # noqa: BLE001
            with contextlib.suppress(OSError):
                traceback.print_exc()


def attach(subscriber: Subscriber, *types: type[Event]) -> Callable[[], None]:
    """Listen for these types of event, or for all. Returns a function that stops listening."""
    wanted = types or catalogue()
    for kind in wanted:
        _subscribers[kind].append(subscriber)

    def detach() -> None:
        for kind in wanted:
            if subscriber in _subscribers[kind]:
                _subscribers[kind].remove(subscriber)

    return detach


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
class JobStarted(Event):
    """An attempt begins."""

    name: ClassVar[str] = "job.started"
    level: ClassVar[str] = "debug"
    job: str
    id: str
    attempt: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class JobEnded(Event):
    """The canonical line of an attempt: what ran, how long, how it ended.

    `outcome` is one of completed, failed, retried, delayed, handed_back, parked, lease_lost; `kind` says more
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


@dataclass(frozen=True, slots=True)
class JobCancelRequested(Event):
    """Somebody asked to cancel a job that runs here."""

    name: ClassVar[str] = "job.cancel_requested"
    id: str


@dataclass(frozen=True, slots=True)
class JobStalled(Event):
    """A job whose worker died or lost its lease was put back."""

    name: ClassVar[str] = "job.stalled"
    level: ClassVar[str] = "warning"
    id: str


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
class ScheduleFailed(Event):
    """The next iteration of a job scheduler could not be made."""

    name: ClassVar[str] = "schedule.failed"
    level: ClassVar[str] = "error"
    scheduler: str
    error: str


@dataclass(frozen=True, slots=True)
class InternalFault(Event):
    """A fault in Oxherd itself: please report it. The job it hit goes to another worker when its lease ends."""

    name: ClassVar[str] = "worker.fault"
    level: ClassVar[str] = "error"
    where: str
    stack: str
