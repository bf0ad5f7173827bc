"""Taking jobs off the queue and settling them: the hot path.

One pipelined connection carries all scripts; a second one blocks on the queue's marker. Finishing a job and fetching
the next is one script call. What every settle does when its reply is lost stands in `_was_applied`.
Source: BullMQ `src/classes/worker.ts`, and the scripts' own headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgpack
import orjson

from oxherd.clock import wall_ms
from oxherd.errors import LeaseLost, RedisRefused, RedisUnreachable
from oxherd.job import Delay, Done, Fail, HandBack, Job, Outcome, Park, Retry, Wait
from oxherd.queue.connection import PASSING, Connection, Link
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.queue.turns import LOOK_ON, OVER_LIMIT, TurnOptions, Turns
from oxherd.settings import RedisTarget
from oxherd.telemetry.events import JobsPutAside, emit

PRELOAD = (
    "moveToActive",
    "moveToFinished",
    "moveToDelayed",
    "retryJob",
    "moveJobFromActiveToWait",
    "renewLeases",
    "publish",
)
DEFAULT_STACKS = 10  # stack traces kept on a job whose producer set no stackTraceLimit
METRICS_KEPT = 20_160  # minutes of finished-job counts that BullMQ's `getMetrics` and Bull Board can show: two weeks
PARKED, READY_AT = b"oxherdParked", b"oxherdReadyAt"  # our fields of a job's hash, of which BullMQ takes no notice
STALLED_TOO_OFTEN = "job stalled more than allowable limit"  # what the scripts write into `defa`


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch brought.

    Attributes:
        job: the job, or None.
        limited_ms: how long the queue's rate limiter holds all workers back; 0 for not at all.
        due_ms: wall ms at which the next delayed job is due; 0 for none.
        over_limit: whether all that waits is of tenants that have as many jobs running as they may.
        look_on: whether jobs wait that nobody has looked at yet, to see whose turn it is.
    """

    job: Job | None
    limited_ms: int = 0
    due_ms: int = 0
    over_limit: bool = False
    look_on: bool = False


NOTHING = Fetched(None)


class Consumer:
    """The consuming side of one queue.

    Parameters:
        target: where Redis is.
        keys: the queue's key names.
        worker: this worker's unique id, the first part of every lease's token.
        name: what BullMQ shows as "processed by".
        lock_ms: how long a lease lasts without renewal.
        holds: tells whether a job runs here under that token; found leases of ours that do not get adopted.
        adopt: gets the jobs that were fetched for us while the reply was lost.
        on_back: called when the connection was lost and is about to be up again.
        turns: how tenants take turns; None where jobs run in the order in which they came.
    """

    def __init__(  # noqa: PLR0913  it is told everything, it looks up nothing
        self,
        target: RedisTarget,
        keys: Keys,
        *,
        worker: str,
        name: str,
        lock_ms: int,
        holds: Callable[[str, str], bool],
        adopt: Callable[[Job], None],
        on_back: Callable[[], None],
        turns: Turns | None = None,
    ) -> None:
        self.keys = keys
        self.worker = worker
        self._lock_ms = lock_ms
        self._holds = holds
        self._adopt = adopt
        self._on_back = on_back
        self._turns = TurnOptions(keys, turns)
        self._options = {"lockDuration": lock_ms, "name": name}
        self._pack = lru_cache(maxsize=4096)(self._fetch_options)  # a token serves many fetches
        self.link = Link(target, "worker", on_up=self._reconcile, preload=PRELOAD, patience=lock_ms / 3000)
        self._blocking = Link(target, "marker", client_name=keys.client_name(name))
        k = keys
        self._active_keys = (
            k.wait,
            k.active,
            k.prioritized,
            k.events,
            k.stalled,
            k.limiter,
            k.delayed,
            k.paused,
            k.meta,
            k.pc,
            k.marker,
        )
        self._finish_keys = (
            k.wait,
            k.active,
            k.prioritized,
            k.events,
            k.stalled,
            k.limiter,
            k.delayed,
            k.paused,
            k.meta,
            k.pc,
        )
        self._finished = {
            "completed": (k.completed, k.base + b"metrics:completed"),
            "failed": (k.failed, k.base + b"metrics:failed"),
        }

    async def start(self) -> None:
        """Connect. Raises RedisUnreachable or RedisRefused."""
        await self.link.start()
        await self._blocking.start()

    async def stop(self) -> None:
        """Close both connections."""
        await self._blocking.stop()
        await self.link.stop()

    # -- fetching

    async def fetch(self, token: str) -> Fetched:
        """Move the next job to active and lock it with `token`.

        Raises:
            RedisUnreachable: the reply was lost; a job that was fetched all the same is adopted on reconnection.
        """
        reply = await self.link.run(
            script("moveToActive"), *self._active_keys, self.keys.base, wall_ms(), self._pack(token)
        )
        return self._fetched(reply, token)

    async def look_on(self) -> bool:
        """Look at more of the jobs that wait, to see whose turn it is, without taking one; whether some are left."""
        reply = await self.link.run(
            script("moveToActive"), *self._active_keys, self.keys.base, wall_ms(),
            _packed({"token": "", **self._turns(look=True)}),
        )  # fmt: skip
        return self._fetched(reply, "").look_on

    async def wait_for_work(self, seconds: float) -> int | None:
        """Block on the marker: its score (0 for work now, or wall ms when a delayed job is due), None on time-out.

        The deadline on our side is a little longer than Redis's: past it the connection is dead and is made again.
        """
        try:
            async with asyncio.timeout(seconds + 10):
                reply = await self._blocking.call(b"BZPOPMIN", self.keys.marker, seconds)
        except TimeoutError:
            self._blocking.drop()
            return 0
        except asyncio.CancelledError:
            self._blocking.drop(quietly=True)  # Redis would go on serving the old call and swallow a marker
            raise
        except (RedisUnreachable, RedisRefused):
            await asyncio.sleep(0.1)
            return 0
        return None if reply is None else int(float(reply[2]))

    async def held_back(self) -> tuple[bool, bool]:
        """Whether jobs wait although a fetch brought none, and if so whether the queue is paused (else: maxed out)."""
        wait, prioritized, paused = await asyncio.gather(
            self.link.call(b"LLEN", self.keys.wait),
            self.link.call(b"ZCARD", self.keys.prioritized),
            self.link.call(b"HEXISTS", self.keys.meta, b"paused"),
        )
        return bool(wait or prioritized), bool(paused)

    # -- settling

    async def settle(self, job: Job, outcome: Outcome, *, fetch: bool) -> Fetched:
        """Tell the queue how the job ended and, where `fetch`, take the next one in the same call.

        Redis being away or refusing for now delays this, it does not lose it. A lost reply is resolved by reading the
        lock and the sets.

        Raises:
            LeaseLost: the job is no longer ours; nothing was written.
        """
        pause = 0.05
        while True:
            try:
                settled = self._settled(job, await self._send(job, outcome, fetch=fetch))
                if self._turns.limited and (not fetch or isinstance(outcome, Park)):
                    self.link.post(b"ZADD", self.keys.marker, 0, b"0")  # its tenant's next job waited for this
                return settled
            except RedisUnreachable:
                if await self._was_applied(job):
                    return NOTHING
            except RedisRefused as error:
                if error.code not in PASSING:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    def _send(self, job: Job, outcome: Outcome, *, fetch: bool) -> Any:  # noqa: PLR0911  one for each outcome
        match outcome:
            case Done(value):
                return self._finish(job, "completed", b"returnvalue", value, b"", fetch=fetch)
            case Fail(reason, stack):
                return self._finish(
                    job, "failed", b"failedReason", reason.encode(), _failure(job, reason, stack), fetch=fetch
                )
            case Retry(0, reason, stack):
                return self._retry_now(job, reason, stack)
            case Retry(delay_ms, reason, stack):
                return self._delay(job, delay_ms, _failure(job, reason, stack), fetch=fetch, skip_attempt=False)
            case Wait(delay_ms):
                return self._delay(job, delay_ms, _parking(job, delay_ms), fetch=fetch, skip_attempt=True)
            case Delay(delay_ms):
                return self._delay(job, max(delay_ms, 1), b"", fetch=fetch, skip_attempt=True)
            case HandBack():
                return self._hand_back(job)
            case Park():
                return self._park(job)
            case _:
                raise LeaseLost("a dropped job is not settled")

    def _finish(self, job: Job, target: str, field: bytes, value: bytes, update: bytes, *, fetch: bool) -> Any:
        opts = job.opts
        keep = opts.get("removeOnComplete" if target == "completed" else "removeOnFail")
        options = {
            "token": job.token,
            "keepJobs": _keep(keep),
            "attempts": job.attempts,
            "attemptsMade": job.attempts_made,
            "maxMetricsSize": METRICS_KEPT,
            "fpof": bool(opts.get("fpof")),
            "cpof": bool(opts.get("cpof")),
            "idof": bool(opts.get("idof")),
            "rdof": bool(opts.get("rdof")),
            **self._options,
            **self._turns(ended=job.id),
        }
        zset, metrics = self._finished[target]
        return self.link.run(
            script("moveToFinished"), *self._finish_keys, zset, self.keys.job(job.id), metrics, self.keys.marker,
            job.id, wall_ms(), field, value, target, b"1" if fetch else b"", self.keys.base, _packed(options), update,
        )  # fmt: skip

    def _retry_now(self, job: Job, reason: str, stack: str) -> Any:
        k = self.keys
        return self.link.run(
            script("retryJob"), k.active, k.wait, k.paused, k.job(job.id), k.meta, k.events, k.delayed, k.prioritized,
            k.pc, k.marker, k.stalled, k.base, wall_ms(), b"RPUSH" if job.opts.get("lifo") else b"LPUSH", job.id,
            job.token, _failure(job, reason, stack),
        )  # fmt: skip

    def _delay(self, job: Job, delay_ms: int, update: bytes, *, fetch: bool, skip_attempt: bool) -> Any:
        k = self.keys
        return self.link.run(
            script("moveToDelayed"), k.marker, k.active, k.prioritized, k.delayed, k.job(job.id), k.events, k.meta,
            k.stalled, k.wait, k.limiter, k.pc, k.base, wall_ms(), job.id, job.token, delay_ms,
            b"1" if skip_attempt else b"0", update, b"1" if fetch else b"0",
            self._fetch_options(job.token, ended=job.id),
        )  # fmt: skip

    async def _hand_back(self, job: Job) -> int:
        k = self.keys
        reply: int = await self.link.run(
            script("moveJobFromActiveToWait"), k.active, k.wait, k.stalled, k.paused, k.meta, k.limiter, k.prioritized,
            k.marker, k.events, job.id, job.token, k.job(job.id),
        )  # fmt: skip
        if job.priority:
            self.link.post(b"ZADD", k.marker, 0, b"0")  # the script wakes nobody for a prioritized job
        return min(reply, 0)  # what is above is the rate limiter's time to live

    def _park(self, job: Job) -> Any:
        k = self.keys
        key = k.job(job.id)
        return self.link.run(
            script("moveToWaitingChildren"), k.active, k.waiting_children, key, key + b":dependencies",
            key + b":unsuccessful", k.stalled, k.events, job.token, b"", wall_ms(), job.id, k.base,
        )  # fmt: skip

    def _settled(self, job: Job, reply: Any) -> Fetched:
        if isinstance(reply, list):
            return self._fetched(reply, job.token)
        if reply == 0:
            return NOTHING
        if reply == 1:
            raise NoChildren
        if reply == -4:
            raise PendingChildren
        if reply == -9:
            raise FailedChildren
        raise LeaseLost(f"job {job.id} is no longer ours (BullMQ code {reply})")

    async def _was_applied(self, job: Job) -> bool:
        """Whether a settle whose reply was lost took effect; if it did not and the job is still ours, False.

        `ats` grows with every fetch and `stc` with every stall, so they tell our own settle (and perhaps a later
        fetch) from somebody else taking the job over.

        Raises:
            LeaseLost: it did not, and the job is another worker's now.
        """
        lock, started, stalled, place = await self._trace(job)
        ours = started == job.attempts_started
        if ours and lock == job.token.encode():
            return False
        if ours and lock is None and place is not None:
            # The lease ran out while Redis was away and nobody has taken the job: take it back, then settle again.
            return await self._renew_one(job)
        if stalled > job.stalled:
            raise LeaseLost(f"job {job.id} was given to another worker while Redis was away")
        return True

    async def _trace(self, job: Job) -> tuple[bytes | None, int, int, int | None]:
        """The job's lock, its `ats` and `stc`, and its place in the active list, as soon as Redis tells."""
        while True:
            try:
                lock, (started, stalled), place = await asyncio.gather(
                    self.link.call(b"GET", self.keys.lock(job.id)),
                    self.link.call(b"HMGET", self.keys.job(job.id), b"ats", b"stc"),
                    self.link.call(b"LPOS", self.keys.active, job.id),
                )
            except (RedisUnreachable, RedisRefused):
                await asyncio.sleep(0.1)
            else:
                return lock, _int(started), _int(stalled), place

    async def _renew_one(self, job: Job) -> bool:
        k = self.keys
        lost = await self.link.insist(
            script("renewLeases"), k.stalled, k.active, k.base, self._lock_ms, job.id, job.token, job.attempts_started
        )
        if lost:
            raise LeaseLost(f"job {job.id} was given to another worker while Redis was away")
        return False

    def _fetch_options(self, token: str, ended: str | None = None) -> bytes:
        return _packed({"token": token, **self._options, **self._turns(ended=ended)})

    # -- reading replies

    def _fetched(self, reply: Any, token: str) -> Fetched:
        if not reply or not isinstance(reply, list):
            return NOTHING
        fields, job_id, limited, due, aside, verdict = [*reply, 0, 0, 0, 0][:6]
        job = parse(text_of(job_id), fields, token) if fields else None
        if aside:
            emit(JobsPutAside(count=aside))
        if job is not None and self._turns.learn(job):
            self._pack.cache_clear()
        return Fetched(job, int(limited or 0), int(float(due or 0)), verdict == OVER_LIMIT, verdict == LOOK_ON)

    async def _reconcile(self, connection: Connection) -> int:
        """After a reconnection: adopt the jobs that were fetched for us in replies that never arrived."""
        active: list[bytes] = await connection.send(b"LRANGE", self.keys.active, 0, -1)
        adopted = 0
        for job_id, token in await _locks(connection, self.keys, [text_of(job_id) for job_id in active]):
            # The token, not the id alone: a job we just put back may be ours again by a fetch that got no reply.
            if token.partition(":")[0] == self.worker and not self._holds(job_id, token):
                fields = await connection.send(b"HGETALL", self.keys.job(job_id))
                self._adopt(parse(job_id, fields, token))
                adopted += 1
        self._on_back()
        return adopted


class PendingChildren(Exception):
    """The job can't complete: children are still open."""


class NoChildren(Exception):
    """The job can't wait for children: none is open."""


class FailedChildren(Exception):
    """The job can't complete: a child that counts has failed."""


async def _locks(connection: Connection, keys: Keys, job_ids: Iterable[str]) -> list[tuple[str, str]]:
    wanted = list(job_ids)
    if not wanted:
        return []
    tokens = await connection.send(b"MGET", *[keys.lock(job_id) for job_id in wanted])
    return [(job_id, text_of(token)) for job_id, token in zip(wanted, tokens, strict=True) if token]


def parse(job_id: str, fields: list[bytes], token: str) -> Job:
    """Read a job's hash, as HGETALL returns it. Tolerates what a careless producer wrote: odd options count as none."""
    pairs = iter(fields)
    get = dict(zip(pairs, pairs, strict=True)).get
    opts = _object(get(b"opts"))
    telemetry = opts.get("tm")
    return Job(
        id=job_id,
        name=(get(b"name") or b"").decode("utf-8", "replace"),
        raw=get(b"data") or b"",
        opts=opts,
        token=token,
        timestamp=_int(get(b"timestamp")),
        processed_on=_int(get(b"processedOn")),
        attempts_made=_int(get(b"atm") or get(b"attemptsMade")),
        attempts_started=_int(get(b"ats")) or 1,
        parked=_int(get(PARKED)),
        ready_at=_int(get(READY_AT)),
        stalled=_int(get(b"stc")),
        priority=_int(get(b"priority")),
        delay=_int(get(b"delay")),
        deferred_failure=_text(get(b"defa")),
        parent_key=_text(get(b"parentKey")),
        scheduler=_text(get(b"rjk")),
        telemetry=telemetry if isinstance(telemetry, str) else None,
        stacktrace=_list(get(b"stacktrace")),
    )


def _packed(options: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(options, unicode_errors="surrogateescape")  # as `text_of` has job ids
    return packed


def text_of(job_id: bytes) -> str:
    """A job id as text that `Keys` turns back into the very same bytes, also where they are no UTF-8."""
    return job_id.decode("utf-8", "surrogateescape")


def _int(raw: bytes | None) -> int:
    try:
        return int(raw) if raw else 0
    except ValueError:
        return 0


def _text(raw: bytes | None) -> str | None:
    return raw.decode("utf-8", "replace") if raw else None


def _object(raw: bytes | None) -> dict[str, Any]:
    try:
        value = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _list(raw: bytes | None) -> list[str]:
    if not raw:
        return []
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return []
    return [str(line) for line in value] if isinstance(value, list) else []


_ALL = {"count": -1}


def _keep(option: Any) -> dict[str, Any]:
    match option:
        case bool():
            return {"count": 0} if option else _ALL
        case int() if option >= 0:
            return {"count": option}
        case dict():
            # The script breaks off half-way on anything but whole numbers, with the job neither here nor there.
            return {key: option[key] for key in ("age", "count", "limit") if _is_count(option.get(key))} or _ALL
        case _:
            return _ALL


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _parking(job: Job, delay_ms: int) -> bytes:
    # Should nobody answer, it is ready when its time comes; an answer makes it ready earlier.
    fields = [PARKED.decode(), str(job.parked + 1), READY_AT.decode(), str(wall_ms() + delay_ms)]  # Lua reads no bytes
    packed: bytes = msgpack.packb(fields)
    return packed


def _failure(job: Job, reason: str, stack: str) -> bytes:
    limit = job.opts.get("stackTraceLimit")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        limit = DEFAULT_STACKS
    stacks = [*job.stacktrace, stack][-limit:] if limit else []
    packed: bytes = msgpack.packb(["failedReason", reason, "stacktrace", orjson.dumps(stacks).decode()])
    return packed
