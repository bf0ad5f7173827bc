"""Putting jobs on the queue: single, in bulk, as flows of parents and children, on a schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgpack

from oxherd.clock import wall_ms
from oxherd.codec import encode
from oxherd.errors import JobStateError, PayloadInvalid, RedisRefused
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys, check_job_id
from oxherd.queue.schedule import Repeat, first_run
from oxherd.queue.scripts import script
from oxherd.telemetry.events import JobsAdded, JobsAdding, carried, spanning

MAX_PRIORITY = 2**21 - 1
SHORT = {
    "failParentOnFailure": "fpof",
    "continueParentOnFailure": "cpof",
    "ignoreDependencyOnFailure": "idof",
    "removeDependencyOnFailure": "rdof",
    "keepLogs": "kl",
    "deduplication": "de",
}
TELEMETRY = {"metadata": "tm", "omitContext": "omc"}
OBJECTS = ("backoff", "deduplication", "telemetry", "parent", "repeat")
ON_CHILD_FAILURE = (
    "failParentOnFailure",
    "continueParentOnFailure",
    "ignoreDependencyOnFailure",
    "removeDependencyOnFailure",
)
OPTIONS = frozenset(
    {
        "jobId", "priority", "delay", "lifo", "attempts", "backoff", "removeOnComplete", "removeOnFail", "sizeLimit",
        "stackTraceLimit", "timestamp", "parent", "repeat", "repeatJobKey", "prevMillis", "telemetry", *SHORT,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to add.

    Attributes:
        name: the job's name.
        data: the payload: anything `codec.encode` takes.
        opts: BullMQ's job options by their long names.
        children: jobs that must finish before this one runs (a flow).
        queue: where it goes; the producer's own queue when None.
    """

    name: str
    data: Any = None
    opts: Mapping[str, Any] = field(default_factory=dict)
    children: Sequence[NewJob] = ()
    queue: str | None = None


class Producer:
    """Adds jobs to a queue over a link it is given."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def add(self, name: str, data: Any = None, **opts: Any) -> str:
        """Add one job and return its id (an existing one's where jobId or deduplication says so).

        Parameters:
            name: which handler runs it.
            data: its payload.
            opts: BullMQ's job options by their long names, such as `delay=5000` (ms) or `priority=3`.

        Raises:
            PayloadInvalid: an option is unknown or malformed; nothing was added.
            RedisUnreachable: the reply was lost; give a jobId to be able to repeat safely.
        """
        with self._saying(name):
            return _added(await self._link.run(*self._command(NewJob(name, data, opts), self._keys)), name)

    async def add_bulk(self, jobs: Sequence[NewJob]) -> list[str]:
        """Add many jobs in one pipeline and return their ids in order."""
        with self._saying(jobs[0].name if jobs else "", len(jobs)):
            commands = [self._command(job, self._keys) for job in jobs]
            await self._load(commands)  # else a Redis that does not know the script is sent it once a job
            replies = await asyncio.gather(*(self._link.run(*command) for command in commands))
            return [_added(reply, job.name) for reply, job in zip(replies, jobs, strict=True)]

    async def add_flow(self, root: NewJob) -> str:
        """Add a tree of jobs in one transaction and return the root's id; a parent runs when all its children have."""
        with self._saying(root.name, _size(root)):
            return await self._add_flow(root)

    async def _add_flow(self, root: NewJob) -> str:
        commands, root_id = self._flow(root, parent=None)
        await self._load(commands)
        sent = [self._link.send(b"MULTI")]
        sent += [self._link.send(b"EVALSHA", loaded.sha, loaded.numkeys, *args) for loaded, *args in commands]
        replies = (await asyncio.gather(*sent, self._link.send(b"EXEC")))[-1]
        for reply in replies:
            if isinstance(reply, Exception):
                raise RedisRefused(f"Redis refused the flow: {reply}", code=str(reply).split(" ", 1)[0])
            _added(reply, root.name)
        return root_id

    async def restore(
        self,
        job_id: str,
        name: str,
        data: bytes,
        *,
        timestamp: int,
        attempts: int,
        attempts_started: int,
        attempts_made: int,
    ) -> None:
        """Put a job that was removed back on the queue as it was, so that its next attempt goes on with its run.

        Parameters:
            job_id, name, data: its id, name and payload.
            timestamp: when it was first added, wall ms.
            attempts: how many it may have.
            attempts_started, attempts_made: where its counters were; see `Job`.

        Raises:
            JobStateError: a job with that id is there.
        """
        k = self._keys
        if await self._link.call(b"EXISTS", k.job(job_id)):
            raise JobStateError(f"job {job_id} is on the queue", hint=f"oxherd jobs show {job_id}")
        if job_id.isdecimal():
            await self._outnumber(int(job_id))
        opts = {"jobId": job_id, "timestamp": timestamp, "attempts": attempts, "delay": 0}
        added, *args = _add_standard(k, (_arguments(name, opts, k, timestamp), data, msgpack.packb(opts)), timestamp)
        await self._link.call(b"SCRIPT", b"LOAD", added.body)
        replies = await asyncio.gather(
            self._link.send(b"MULTI"),
            self._link.send(b"EVALSHA", added.sha, added.numkeys, *args),
            self._link.send(b"HSET", k.job(job_id), b"ats", attempts_started, b"atm", attempts_made),
            self._link.send(b"EXEC"),
        )
        for reply in replies[-1]:
            if isinstance(reply, Exception):
                raise RedisRefused(f"Redis refused the job: {reply}", code=str(reply).split(" ", 1)[0])

    async def _outnumber(self, number: int) -> None:
        # A queue that lost its counter would give the number out again, over the job that has it.
        behind = number - int(await self._link.call(b"GET", self._keys.id) or 0)
        if behind > 0:
            await self._link.call(b"INCRBY", self._keys.id, behind)

    async def schedule(self, scheduler_id: str, repeat: Repeat, job: NewJob) -> str:
        """Create or change a job scheduler and return the id of its next job.

        Parameters:
            scheduler_id: its name; the same name again changes it.
            repeat: every so many ms, or a cron pattern with a time zone.
            job: the template of the jobs it makes.

        Raises:
            PayloadInvalid: the pattern, time zone or interval is malformed.
            JobStateError: the next slot is taken by a job that can't be replaced.
        """
        k, now = self._keys, wall_ms()
        opts = _encoded(_checked(job.opts))
        next_ms = first_run(repeat, now)
        template = encode({} if job.data is None else job.data, what="the payload")
        merged = {
            **opts,
            "repeat": {**repeat.stored(), "count": 1},
            "jobId": f"repeat:{scheduler_id}:{next_ms}",
            "delay": max(next_ms - now, 0),
            "timestamp": now,
            "prevMillis": next_ms,
            "repeatJobKey": scheduler_id,
        }
        reply = await self._link.run(
            script("addJobScheduler"), k.repeat, k.delayed, k.wait, k.paused, k.meta, k.prioritized, k.marker, k.id,
            k.events, k.pc, k.active, next_ms, msgpack.packb({"name": job.name, **repeat.stored()}), scheduler_id,
            template, msgpack.packb(opts), msgpack.packb(merged), now, k.base, b"",
        )  # fmt: skip
        if isinstance(reply, int):
            raise JobStateError(
                f"scheduler {scheduler_id!r}: its next slot holds a job that can't be replaced (BullMQ code {reply})"
            )
        return str(reply[0].decode())

    async def unschedule(self, scheduler_id: str) -> bool:
        """Remove a job scheduler and its pending job. False: there was none."""
        k = self._keys
        removed: int = await self._link.run(
            script("removeJobScheduler"), k.repeat, k.delayed, k.events, scheduler_id, k.base
        )
        return removed == 0

    def _saying(self, name: str, count: int = 1) -> spanning:
        about = (self._keys.queue, name, count)
        return spanning(JobsAdding(*about), lambda how: JobsAdded(*about, how.outcome, how.seconds, how.error))

    async def _load(self, commands: Sequence[tuple[Any, ...]]) -> None:
        for name in {command[0].name for command in commands}:
            await self._link.call(b"SCRIPT", b"LOAD", script(name).body)

    def _flow(self, node: NewJob, parent: tuple[Keys, str] | None) -> tuple[list[tuple[Any, ...]], str]:
        keys = self._keys if node.queue is None else self._keys.sibling(node.queue)
        opts = {**node.opts, "jobId": node.opts.get("jobId") or str(uuid4())}
        if parent is not None:
            opts["parent"] = {"id": parent[1], "queue": parent[0].qualified}
        commands = [self._command(NewJob(node.name, node.data, opts), keys, is_parent=bool(node.children))]
        for child in node.children:
            commands += self._flow(child, (keys, opts["jobId"]))[0]
        if node.children:
            commands.append(_park(keys, opts["jobId"]))
        return commands, opts["jobId"]

    def _command(self, job: NewJob, k: Keys, *, is_parent: bool = False) -> tuple[Any, ...]:
        opts = {"attempts": 0, **_checked(job.opts)}
        now = opts.get("timestamp") or wall_ms()
        data = encode({} if job.data is None else job.data, what="the payload")
        limit = opts.get("sizeLimit")
        if limit is not None and len(data) > limit:
            raise PayloadInvalid(f"the payload of {job.name!r} has {len(data)} bytes, its sizeLimit is {limit}")
        args = (_arguments(job.name, opts, k, now), data, msgpack.packb(_traced(_encoded(opts))))
        if is_parent:
            return (script("addParentJob"), k.meta, k.id, k.delayed, k.waiting_children, k.completed, k.events, *args)
        if opts.get("delay"):
            return (script("addDelayedJob"), k.marker, k.meta, k.id, k.delayed, k.completed, k.events, *args, now)
        if opts.get("priority"):
            return (
                script("addPrioritizedJob"),
                k.marker,
                k.meta,
                k.id,
                k.prioritized,
                k.delayed,
                k.completed,
                k.active,
                k.events,
                k.pc,
                *args,
                now,
            )
        return _add_standard(k, args, now)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    opts = {key: value for key, value in given.items() if value is not None}
    unknown = sorted(set(opts) - OPTIONS)
    if unknown:
        raise PayloadInvalid(f"unknown job option {unknown[0]!r}", hint=f"known are {', '.join(sorted(OPTIONS))}")
    for name, low, high in (
        ("priority", 0, MAX_PRIORITY),
        ("delay", 0, 2**41),
        ("attempts", 0, 10**6),
        ("sizeLimit", 0, 2**53),
    ):
        value = opts.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise PayloadInvalid(f"{name} must be a whole number from {low} to {high} (got {value!r})")
    if isinstance(opts.get("backoff"), int):
        opts["backoff"] = {"type": "fixed", "delay": opts["backoff"]}
    if "jobId" in opts:
        check_job_id(opts["jobId"])
    if sum(bool(opts.get(name)) for name in ON_CHILD_FAILURE) > 1:
        raise PayloadInvalid(f"only one of {', '.join(ON_CHILD_FAILURE)} may be set")
    _check_objects(opts)
    return opts


def _add_standard(k: Keys, args: tuple[Any, ...], now: int) -> tuple[Any, ...]:
    return (
        script("addStandardJob"), k.wait, k.paused, k.meta, k.id, k.completed, k.delayed, k.active, k.events, k.marker,
        *args, now,
    )  # fmt: skip


def _is_uuid(text: Any) -> bool:
    return isinstance(text, str) and len(text) == 36 and text.count("-") == 4


def _check_objects(opts: Mapping[str, Any]) -> None:
    for name in OBJECTS:
        if not isinstance(opts.get(name, {}), Mapping):
            raise PayloadInvalid(f"{name} must be an object (got {opts[name]!r})")
    jitter = opts.get("backoff", {}).get("jitter", 0)
    if not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise PayloadInvalid(f"the jitter of backoff must be from 0 to 1 (got {jitter!r})")
    if "deduplication" in opts and not opts["deduplication"].get("id"):
        raise PayloadInvalid("deduplication needs an id")
    if "deduplication" in opts and "parent" in opts:
        raise PayloadInvalid("a child of a flow can't have deduplication")


def _encoded(opts: Mapping[str, Any]) -> dict[str, Any]:
    encoded = {SHORT.get(key, key): value for key, value in opts.items() if key != "telemetry"}
    telemetry = {TELEMETRY[key]: value for key, value in opts.get("telemetry", {}).items() if key in TELEMETRY}
    return encoded | telemetry


def _traced(encoded: dict[str, Any]) -> dict[str, Any]:
    """The options with the trace that is under way here, as BullMQ's OpenTelemetry package writes it."""
    if "tm" in encoded or encoded.get("omc") or not (headers := carried()):
        return encoded
    return {**encoded, "tm": encode(headers).decode()}


def _size(root: NewJob) -> int:
    return 1 + sum(map(_size, root.children))


def _arguments(name: str, opts: Mapping[str, Any], keys: Keys, now: int) -> bytes:
    parent = opts.get("parent")
    parent_key = f"{parent['queue']}:{parent['id']}" if parent else None
    parent_field = {"id": parent["id"], "queueKey": parent["queue"]} if parent else None
    if parent_field is not None:
        parent_field |= {SHORT[option]: True for option in ON_CHILD_FAILURE if opts.get(option)}
    dedup = opts.get("deduplication")
    packed: bytes = msgpack.packb(
        [
            keys.base.decode(),
            opts.get("jobId", ""),
            name,
            now,
            parent_key,
            f"{parent_key}:dependencies" if parent_key else None,
            parent_field,
            None,
            f"{keys.base.decode()}de:{dedup['id']}" if dedup else None,
        ]
    )
    return packed


def _park(k: Keys, job_id: str) -> tuple[Any, ...]:
    open_children = k.job(job_id) + b":dependencies"
    return (
        script("parkParent"), open_children, k.wait, k.paused, k.prioritized, k.delayed, k.waiting_children, job_id,
        wall_ms(),
    )  # fmt: skip


def _added(reply: Any, name: str) -> str:
    if isinstance(reply, bytes):
        return reply.decode()
    if reply == -5:
        raise JobStateError(f"job {name!r} was not added: its parent does not exist")
    if reply == -7:
        raise JobStateError(f"job {name!r} was not added: a job with that id has another parent")
    return str(reply)
