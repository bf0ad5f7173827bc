"""A job as BullMQ stores it, and the outcomes that running it can have.

Field names on the wire are BullMQ's (`atm`, `ats`, `stc`, …); the attributes here are the words behind them.
Source: BullMQ `src/classes/job.ts` and the key samples of Node 5.81 and 6.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a job is, in BullMQ's words."""

    WAIT = "wait"
    PRIORITIZED = "prioritized"
    DELAYED = "delayed"
    ACTIVE = "active"
    WAITING_CHILDREN = "waiting-children"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(slots=True)
class Job:
    """One job taken off the queue.

    Attributes:
        id: BullMQ's job id.
        name: which handler runs it.
        raw: the payload as the producer wrote it (JSON bytes, perhaps invalid).
        opts: the producer's options with BullMQ's short names (`attempts`, `backoff`, `fpof`, …).
        token: the lease's token: whoever holds it owns the job.
        timestamp: when it was added, wall ms.
        processed_on: when this attempt started, wall ms.
        attempts_made: attempts that ended in an error or in success before this one.
        attempts_started: times it was ever fetched, this one included. It only grows, so it is also the fencing number.
        parked: times it was parked to wait for somebody's answer.
        ready_at: when it became ready again after that, wall ms; 0 where it was not parked.
        stalled: times a worker died or lost its lease while running it.
        priority: 0 for none, 1 is the highest.
        deferred_failure: set when the job must be failed without running it.
        parent_key: the parent's Redis key in a flow, or None.
        scheduler: the job scheduler that made it, or None.
        telemetry: the producer's trace context, passed through untouched, or None.
        stacktrace: stack traces of earlier attempts.
    """

    id: str
    name: str
    raw: bytes
    opts: dict[str, Any]
    token: str
    timestamp: int = 0
    processed_on: int = 0
    attempts_made: int = 0
    attempts_started: int = 1
    parked: int = 0
    ready_at: int = 0
    stalled: int = 0
    priority: int = 0
    delay: int = 0
    deferred_failure: str | None = None
    parent_key: str | None = None
    scheduler: str | None = None
    telemetry: str | None = None
    stacktrace: list[str] = field(default_factory=list)

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1, counting only attempts that the job itself used up."""
        return self.attempts_made + 1

    @property
    def attempts(self) -> int:
        """How many attempts the producer allowed; BullMQ writes 0 for "one"."""
        allowed = self.opts.get("attempts") or 1
        return allowed if isinstance(allowed, int) and allowed > 0 else 1

    @property
    def waited_ms(self) -> int:
        """From being added to this fetch, in ms; its producer's delay, and waiting for people, are not counted."""
        asked = self.opts.get("delay")
        ready_at = self.ready_at or self.timestamp + (asked if isinstance(asked, int) else 0)
        return max(self.processed_on - ready_at, 0)

    @property
    def fence(self) -> int:
        """The fencing number of this attempt: a write with a lower one is refused by the store."""
        return self.attempts_started


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned; `value` is its result as JSON bytes."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Retry:
    """An attempt failed and others are left: run again after `delay_ms`."""

    delay_ms: int
    reason: str
    stack: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The job failed for good and goes to the dead letters.

    Attributes:
        reason, stack: what people are shown.
        kind: what sort of failure it was.
        output: what there was of a result as JSON bytes, for the record; None for nothing.
    """

    reason: str
    stack: str
    kind: str = "failed"
    output: bytes | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """Run again after `delay_ms`; no attempt is spent."""

    delay_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class HandBack:
    """A deploy interrupted the job: back to the front of the queue at once, attempt refunded."""


@dataclass(frozen=True, slots=True)
class Park:
    """Wait for the job's children."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for somebody's answer, at most for `delay_ms`; no attempt is spent.

    Attributes:
        delay_ms: until the first of its questions expires.
        waits: the ids of its open questions.
    """

    delay_ms: int
    reason: str
    waits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """The lease is lost: forget the job, another worker has it."""


Outcome = Done | Retry | Fail | Delay | HandBack | Park | Wait | Drop
