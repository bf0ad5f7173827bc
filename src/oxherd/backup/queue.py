"""The queue's keys, read through the protocol type by type, so that any Redis can give and take them; and put back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from oxherd.errors import LeaseLost, PayloadInvalid, UsageError
from oxherd.job import Done, Fail
from oxherd.queue.connection import Link
from oxherd.queue.consumer import Consumer, FailedChildren, PendingChildren, parse, text_of
from oxherd.queue.keys import Keys
from oxherd.queue.schedule import make_next

BATCH = 200  # keys that are asked for at once
PAGE = 1_000  # elements of one key in one reply
CHUNK = 1 << 20  # bytes that are handed on at once
RUNNING = ("wait", "paused", "active", "prioritized", "delayed", "waiting-children")
ENDED = ("completed", "failed")
UNLOCKED = "0"  # BullMQ's token for a job that is ended without a lease
# What belongs to workers that are alive, or is made anew.
FLEETING = re.compile(rb"(:lock|:stalled|:stalled-check|:marker|:limiter)$")
OURS_FLEETING = re.compile(
    rb"^(control|cancels|watch|sweep|workers|workers-seen|readers|running|counts|counted|stream:.*)$"
)


@dataclass
class Copy:
    """What was read.

    Attributes:
        keys: how many.
        jobs: job hashes.
        counts: jobs by state.
    """

    keys: int = 0
    jobs: int = 0
    counts: dict[str, int] = field(default_factory=dict)


async def export(link: Link, keys: Keys, copy: Copy) -> AsyncIterator[bytes]:
    """Read every key of the queue, BullMQ's and ours; as MessagePack, `[key, type, ttl in ms, elements]` each.

    Workers go on meanwhile, so this is no single moment: places of jobs are read before the jobs, and `placed` puts
    right what moved in between.

    Parameters:
        link: to Redis.
        keys: of the queue.
        copy: is filled in.

    Raises:
        RedisUnreachable, RedisRefused: the copy is not complete.
    """
    packer, ready = msgpack.Packer(), bytearray()
    places = [keys.state(name) for name in (*RUNNING, *ENDED)]
    async for batch in _batches(link, keys, places):
        types = await asyncio.gather(*(link.call(b"TYPE", key) for key in batch))
        ttls = await asyncio.gather(*(link.call(b"PTTL", key) for key in batch))
        for key, kind, ttl in zip(batch, types, ttls, strict=True):
            if ttl == -2 or _word(kind) == "none":
                continue
            copy.keys += 1
            async for elements in _elements(link, key, _word(kind)):
                _count(copy, keys, key, _word(kind), elements)
                ready += packer.pack([key, _word(kind), max(ttl, 0), elements])
                if len(ready) > CHUNK:
                    yield bytes(ready)
                    ready.clear()
    yield bytes(ready)


def records(raw: Iterable[bytes]) -> Iterator[tuple[bytes, str, int, list[Any]]]:
    """The records of an export."""
    unpacker = msgpack.Unpacker(raw=True, max_buffer_size=0)
    for chunk in raw:
        unpacker.feed(chunk)
        for key, kind, ttl, elements in unpacker:
            yield key, kind.decode(), ttl, elements


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, by the journal: completed or failed, when (wall ms), and its result as JSON or its error."""

    status: str
    at: int
    result: bytes


@dataclass(frozen=True, slots=True)
class Placed:
    """Where each job goes.

    Attributes:
        wait: ids, the next to run last, as BullMQ keeps them.
        scored: (id, score) by sorted set.
        finished: jobs that ended after the backup, which have no other place: they are not run again.
        interrupted: those that were running; they run again.
        lost: ids that have a place and no job.
    """

    wait: list[bytes]
    scored: dict[str, list[tuple[bytes, bytes]]]
    finished: dict[bytes, Ended]
    interrupted: list[bytes]
    lost: list[bytes]


def placed(places: Mapping[str, Sequence[Any]], jobs: Mapping[bytes, int], ended: Mapping[bytes, Ended]) -> Placed:
    """Give each job one place.

    Parameters:
        places: elements of the lists and sorted sets by state, as exported.
        jobs: every job, and when it finished (wall ms, 0 for not).
        ended: jobs that the journal has as ended.
    """
    scored: dict[str, list[tuple[bytes, bytes]]] = {}
    taken: set[bytes] = set()
    lost: list[bytes] = []

    def wanted(job_id: bytes) -> bool:
        if job_id not in jobs:
            lost.append(job_id)
        fresh = job_id in jobs and job_id not in taken
        taken.add(job_id)
        return fresh

    for state in ENDED:
        scored[state] = [(each, score) for each, score in _pairs(places.get(state, ())) if wanted(each)]
    finished = {each: how for each, how in ended.items() if each in jobs and each not in taken}
    taken.update(finished)
    interrupted = [each for each in places.get("active", ()) if wanted(each)]
    for state in ("prioritized", "delayed", "waiting-children"):
        scored[state] = [(each, score) for each, score in _pairs(places.get(state, ())) if wanted(each)]
    waiting = [each for state in ("wait", "paused") for each in places.get(state, ()) if wanted(each)]
    astray = [each for each, at in jobs.items() if not at and each not in taken]
    return Placed([*astray, *waiting, *interrupted], scored, finished, interrupted, lost)


async def put_back(consumer: Consumer, raw: Iterable[bytes], ended: Mapping[bytes, Ended]) -> Placed:
    """Write an export into an empty queue. Jobs get their places last, so that workers see all or nothing of one.

    Parameters:
        consumer: of the queue, started.
        raw: the export.
        ended: jobs, by id, that the journal has as ended.

    Raises:
        UsageError: the queue has keys already.
        RedisUnreachable, RedisRefused: only a part was written; empty the queue and do it again.
    """
    link, keys = consumer.link, consumer.keys
    await refuse_full(link, keys)
    places: dict[str, list[Any]] = {}
    jobs: dict[bytes, int] = {}
    states = {keys.state(name): name for name in (*RUNNING, *ENDED)}
    fresh: set[bytes] = set()
    paused = False
    for key, kind, ttl, elements in records(raw):
        if key in states:
            places.setdefault(states[key], []).extend(elements)
            continue
        if kind == "hash" and (at := _job(key, keys, elements)) is not None:
            jobs[key.removeprefix(keys.base)] = at
        paused = paused or (key == keys.meta and b"paused" in elements[::2])
        await _write(link, key, kind, ttl, elements, first=key not in fresh)
        fresh.add(key)
    result = placed(places, jobs, ended)
    for state, pairs in result.scored.items():
        for some in _slices(pairs):
            flat = [word for each, score in some for word in (score, each)]
            await link.call(b"ZADD", keys.state(state), *flat)
    for some in _slices(result.wait):
        # BullMQ 5 resumes a queue by renaming `paused`, over what `wait` has.
        await link.call(b"RPUSH", keys.paused if paused else keys.wait, *some)
    for job_id, how in sorted(result.finished.items(), key=lambda each: each[1].at):
        await _end(consumer, job_id, how)
    await _wake(link, keys, result)
    return result


async def _end(consumer: Consumer, job_id: bytes, how: Ended) -> None:
    """End a job as its worker did: its parent goes on, its scheduler makes the next one, whoever waits is told."""
    link, key = consumer.link, consumer.keys.base + job_id
    job = parse(text_of(job_id), await link.call(b"HGETALL", key), UNLOCKED)
    with contextlib.suppress(PayloadInvalid):
        await make_next(link, consumer.keys, job)
    done = how.status == "completed"
    outcome = Done(how.result) if done else Fail(how.result.decode(errors="replace"), "")
    await link.call(b"RPUSH", consumer.keys.active, job_id)
    try:
        await consumer.settle(job, outcome, fetch=False)
    except (LeaseLost, PendingChildren, FailedChildren):  # children of it that the journal does not have as ended
        await link.call(b"LREM", consumer.keys.active, 1, job_id)
        await link.call(b"HSET", key, b"returnvalue" if done else b"failedReason", how.result)
        await link.call(b"ZADD", consumer.keys.state(how.status), how.at, job_id)
    if await link.call(b"EXISTS", key):  # its producer may have wanted it removed
        await link.call(b"HSET", key, b"finishedOn", how.at)
        await link.call(b"ZADD", consumer.keys.state(how.status), b"XX", how.at, job_id)


async def refuse_full(link: Link, keys: Keys) -> None:
    """Raises UsageError where the queue has a job, or anything else that a producer or worker made."""
    cursor = b"0"
    while True:
        cursor, found = await link.call(b"SCAN", cursor, b"MATCH", _glob(keys.base) + b"*", b"COUNT", PAGE)
        if found:
            raise UsageError(
                f"queue {keys.queue} is not empty: it has {found[0].decode(errors='replace')}",
                hint="a backup of the queue is put into an empty one only: name another with JOB_QUEUE_NAME, "
                "or empty it first (oxherd jobs drain, or BullMQ's obliterate)",
            )
        if cursor == b"0":
            return


async def _batches(link: Link, keys: Keys, places: Sequence[bytes]) -> AsyncIterator[list[bytes]]:
    yield list(places)
    seen = set(places)
    ours = keys.control.removesuffix(b"control")
    for base in (keys.base, ours, keys.money):
        cursor = b"0"
        while True:
            cursor, found = await link.call(b"SCAN", cursor, b"MATCH", _glob(base) + b"*", b"COUNT", PAGE)
            fresh = [key for key in found if key not in seen and not FLEETING.search(key)
                     and not (base == ours and OURS_FLEETING.match(key.removeprefix(ours)))]  # fmt: skip
            seen.update(fresh)
            for start in range(0, len(fresh), BATCH):
                yield fresh[start : start + BATCH]
            if cursor == b"0":
                break


async def _elements(link: Link, key: bytes, kind: str) -> AsyncIterator[list[Any]]:
    match kind:
        case "string":
            value = await link.call(b"GET", key)
            if value is not None:
                yield [value]
        case "list":
            start = 0
            while page := await link.call(b"LRANGE", key, start, start + PAGE - 1):
                yield list(page)
                start += PAGE
        case "stream":
            start_id = b"-"
            while page := await link.call(b"XRANGE", key, start_id, b"+", b"COUNT", PAGE):
                yield [[entry, *fields] for entry, fields in page]
                start_id = b"(" + page[-1][0]
        case _:
            scan = {"hash": b"HSCAN", "set": b"SSCAN", "zset": b"ZSCAN"}[kind]
            cursor = b"0"
            while True:
                cursor, page = await link.call(scan, key, cursor, b"COUNT", PAGE)
                if page:
                    yield list(page)
                if cursor == b"0":
                    return


async def _write(link: Link, key: bytes, kind: str, ttl: int, elements: list[Any], *, first: bool) -> None:
    match kind:
        case "string":
            await link.call(b"SET", key, elements[0])
        case "stream":
            await asyncio.gather(*(link.call(b"XADD", key, entry, *fields) for entry, *fields in elements))
        case "zset":
            flat = [word for member, score in _pairs(elements) for word in (score, member)]
            await link.call(b"ZADD", key, *flat)
        case _:
            command = {"list": b"RPUSH", "set": b"SADD", "hash": b"HSET"}[kind]
            await link.call(command, key, *elements)
    if ttl and first:
        await link.call(b"PEXPIRE", key, ttl)


async def _wake(link: Link, keys: Keys, result: Placed) -> None:
    if result.wait or result.scored["prioritized"]:
        await link.call(b"ZADD", keys.marker, 0, b"0")
    due = [float(score) for _, score in result.scored["delayed"]]
    if due:
        await link.call(b"ZADD", keys.marker, int(min(due) / 4096), b"1")


def _count(copy: Copy, keys: Keys, key: bytes, kind: str, elements: list[Any]) -> None:
    if kind == "hash" and _job(key, keys, elements) is not None:
        copy.jobs += 1
    state = key.removeprefix(keys.base).decode(errors="replace")
    if state in RUNNING or state in ENDED:
        copy.counts[state] = copy.counts.get(state, 0) + len(elements) // (2 if kind == "zset" else 1)


def _job(key: bytes, keys: Keys, elements: list[Any]) -> int | None:
    """When the job of this hash finished, wall ms, 0 for not yet; None where the hash is no job's."""
    fields = dict(_pairs(elements))
    if not key.startswith(keys.base) or not {b"timestamp", b"data"} <= fields.keys():
        return None
    with contextlib.suppress(ValueError):
        return int(fields.get(b"finishedOn", 0))
    return 0


def _pairs(elements: Sequence[Any]) -> Iterator[tuple[bytes, bytes]]:
    return zip(elements[::2], elements[1::2], strict=True)


def _slices(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + PAGE] for start in range(0, len(items), PAGE))


def _glob(text: bytes) -> bytes:
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", text)


def _word(kind: Any) -> str:
    return kind.decode() if isinstance(kind, bytes) else str(kind)
