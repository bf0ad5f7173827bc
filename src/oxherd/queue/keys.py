"""Every Redis key name, BullMQ's and our own."""

from __future__ import annotations

import base64
from typing import Any

from oxherd.errors import PayloadInvalid

STRUCTURAL = frozenset(
    {
        "wait", "active", "paused", "prioritized", "delayed", "waiting-children", "completed", "failed", "stalled",
        "stalled-check", "marker", "meta", "id", "pc", "limiter", "events", "repeat",
    }
)  # fmt: skip


class Keys:
    """Key names of one queue, as bytes.

    BullMQ's live under `<prefix>:<queue>:`. Ours live under `oxherd:<prefix>:<queue>:`, so that BullMQ's clean-up
    scripts, which walk their own prefix, never meet them.
    """

    def __init__(self, queue: str, prefix: str = "bull") -> None:
        self.queue = queue
        self._prefix = prefix
        self.qualified = f"{prefix}:{queue}"
        self.base = f"{self.qualified}:".encode()
        self._ours = f"oxherd:{prefix}:{queue}:".encode()
        for name in STRUCTURAL:
            setattr(self, name.replace("-", "_"), self.base + name.encode())
        self.money = f"oxherd:{prefix}:money:".encode()  # all queues of a prefix share one purse
        self.calls = f"oxherd:{prefix}:calls:".encode()  # and the model service's limits
        self._operating = f"oxherd:{prefix}:operating:".encode()  # a service is one, whichever queue it serves
        self.control = self._ours + b"control"
        self.cancels = self._ours + b"cancels"
        self.gate = self._ours + b"gate"
        self.answers = self._ours + b"answers"
        self.watch = self._ours + b"watch"
        self.sweep = self._ours + b"sweep"
        self.workers = self._ours + b"workers"
        self.workers_seen = self._ours + b"workers-seen"
        self.paused_schedules = self._ours + b"paused-schedules"
        self.alerts = self._ours + b"alerts"
        self.past_alerts = self._ours + b"past-alerts"
        self.silences = self._ours + b"silences"
        self.indicators = self._ours + b"sli:"
        self.readers = self._ours + b"readers"
        self.turns = self._ours + b"turns"
        self.running = self._ours + b"running"
        self.counts = self._ours + b"counts"
        self.counted = self._ours + b"counted"

    wait: bytes
    active: bytes
    paused: bytes
    prioritized: bytes
    delayed: bytes
    waiting_children: bytes
    completed: bytes
    failed: bytes
    stalled: bytes
    stalled_check: bytes
    marker: bytes
    meta: bytes
    id: bytes
    pc: bytes
    limiter: bytes
    events: bytes
    repeat: bytes

    def sibling(self, queue: str) -> Keys:
        """The keys of another queue under the same prefix."""
        return Keys(queue, self._prefix)

    def job(self, job_id: str) -> bytes:
        """The job's hash."""
        return self.base + job_id.encode("utf-8", "surrogateescape")

    def idempotency(self, key: str) -> bytes:
        """What a request that carried this idempotency key brought about."""
        return self._ours + b"idempotency:" + key.encode()

    def operating(self, service: str) -> bytes:
        """The lock of whoever changes this service or its variables."""
        return self._operating + service.encode()

    def lock(self, job_id: str) -> bytes:
        """The job's lease."""
        return self.job(job_id) + b":lock"

    def stream(self, job_id: str) -> bytes:
        """The stream of what the job says while it runs."""
        return self._ours + b"stream:" + job_id.encode("utf-8", "surrogateescape")

    def client_name(self, worker: str) -> str:
        """The connection name by which BullMQ's `getWorkers`, and so Bull Board, knows a worker of this queue."""
        return f"{self._prefix}:{base64.b64encode(self.queue.encode()).decode()}:w:{worker}"

    def state(self, name: str) -> bytes:
        """The list or sorted set of a state, by BullMQ's name for it."""
        return self.base + name.encode()


def check_job_id(job_id: Any) -> str:
    """Refuse custom job ids that BullMQ refuses, or that would collide with a key of the queue.

    Source: BullMQ `Job.validateOptions`; colons separate key parts, whole numbers are the counter's.

    Raises:
        PayloadInvalid: naming what is wrong.
    """
    if not isinstance(job_id, str) or not job_id or job_id in STRUCTURAL:
        raise PayloadInvalid(f"jobId must not be empty or one of BullMQ's own key names (got {job_id!r})")
    if ":" in job_id:
        raise PayloadInvalid(f"jobId must not hold a colon (got {job_id!r})", hint="use - or . instead")
    if job_id.isdecimal():
        raise PayloadInvalid(f"jobId must not be a whole number (got {job_id!r})", hint=f"for example job-{job_id}")
    return job_id
