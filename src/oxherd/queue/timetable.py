"""Job schedulers for people: list them, add, pause, resume and remove them, run one now.

BullMQ has no way to pause a scheduler. A paused one is kept under a key of ours and taken off BullMQ's list, so that
nothing of BullMQ's, of whatever version, fires it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from oxherd.errors import JobStateError, ScheduleNotFound
from oxherd.queue.connection import Link
from oxherd.queue.consumer import text_of
from oxherd.queue.keys import Keys
from oxherd.queue.producer import SHORT, NewJob, Producer
from oxherd.queue.schedule import Repeat

MOST = 1_000  # schedulers in one list
_LONG: dict[str, str] = {short: long for long, short in SHORT.items()}
_TELEMETRY = frozenset({"tm", "omc"})


class Timetable:
    """The job schedulers of one queue, over a link it is given."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._producer = Producer(link, keys)

    async def all(self) -> list[dict[str, Any]]:
        """The next to fire first, then the paused ones; at most MOST of each.

        A scheduler is its id, name, every (ms), pattern, tz, limit, start, end, count (of its runs), next (wall ms,
        None while it is paused), paused, data and opts of the jobs it makes.
        """
        active, kept = await asyncio.gather(
            self._link.call(b"ZRANGE", self._keys.repeat, 0, MOST - 1, b"WITHSCORES"),
            self._link.call(b"HGETALL", self._keys.paused_schedules),
        )
        ids = [text_of(each) for each in active[::2]]
        hashes = await asyncio.gather(*(self._link.call(b"HGETALL", self._hash(each)) for each in ids))
        found = [
            _view(each, dict(zip(fields[::2], fields[1::2], strict=True)), next_ms=int(float(score)))
            for each, score, fields in zip(ids, active[1::2], hashes, strict=True)
        ]
        paused = {text_of(each): orjson.loads(raw) for each, raw in zip(kept[::2], kept[1::2], strict=True)}
        return found + [paused[each] for each in sorted(paused.keys() - set(ids))][:MOST]

    async def one(self, schedule_id: str) -> dict[str, Any]:
        """One scheduler. Raises ScheduleNotFound."""
        score, fields, kept = await asyncio.gather(
            self._link.call(b"ZSCORE", self._keys.repeat, schedule_id),
            self._link.call(b"HGETALL", self._hash(schedule_id)),
            self._link.call(b"HGET", self._keys.paused_schedules, schedule_id),
        )
        if score is not None:
            raw = dict(zip(fields[::2], fields[1::2], strict=True))
            return _view(schedule_id, raw, next_ms=int(float(score)))
        if kept is None:
            raise ScheduleNotFound(f"no schedule {schedule_id!r} on queue {self._keys.queue}")
        found: dict[str, Any] = orjson.loads(kept)
        return found

    async def put(self, schedule_id: str, repeat: Repeat, job: NewJob) -> str:
        """Create or change one; a paused one goes on. Returns the id of its next job; errors as `Producer.schedule`."""
        next_id = await self._producer.schedule(schedule_id, repeat, job)
        await self._link.call(b"HDEL", self._keys.paused_schedules, schedule_id)
        return next_id

    async def remove(self, schedule_id: str) -> None:
        """Remove one with its next job. Raises ScheduleNotFound."""
        await self.one(schedule_id)
        await self._producer.unschedule(schedule_id)
        await self._link.call(b"HDEL", self._keys.paused_schedules, schedule_id)

    async def pause(self, schedule_id: str) -> dict[str, Any]:
        """Stop one from firing; its next job is removed. Raises ScheduleNotFound, JobStateError."""
        found = await self.one(schedule_id)
        if found["paused"]:
            raise JobStateError(f"schedule {schedule_id!r} is paused")
        kept = {**found, "paused": True, "next": None}
        # Kept first: cut off in between, it is on both lists, and BullMQ's counts.
        await self._link.call(b"HSET", self._keys.paused_schedules, schedule_id, orjson.dumps(kept))
        await self._producer.unschedule(schedule_id)
        return kept

    async def resume(self, schedule_id: str) -> dict[str, Any]:
        """Let a paused one fire again, from now on. Raises ScheduleNotFound, JobStateError."""
        found = await self.one(schedule_id)
        if not found["paused"]:
            raise JobStateError(f"schedule {schedule_id!r} is not paused")
        repeat = Repeat(**{name: found[name] for name in ("every", "pattern", "tz", "limit", "start", "end")})
        await self.put(schedule_id, repeat, NewJob(found["name"], found["data"], found["opts"]))
        return await self.one(schedule_id)

    async def run_now(self, schedule_id: str) -> str:
        """Add a job as the scheduler would make it, beside its own; its id. Raises ScheduleNotFound."""
        found = await self.one(schedule_id)
        return await self._producer.add(found["name"], found["data"], **found["opts"])

    def _hash(self, schedule_id: str) -> bytes:
        return self._keys.repeat + b":" + schedule_id.encode("utf-8", "surrogateescape")


def _view(schedule_id: str, raw: dict[bytes, bytes], *, next_ms: int) -> dict[str, Any]:
    return {
        "id": schedule_id,
        "name": raw.get(b"name", b"").decode("utf-8", "replace"),
        "every": _number(raw.get(b"every")),
        "pattern": _text(raw.get(b"pattern")),
        "tz": _text(raw.get(b"tz")),
        "limit": _number(raw.get(b"limit")),
        "start": _number(raw.get(b"startDate")),
        "end": _number(raw.get(b"endDate")),
        "count": _number(raw.get(b"ic")) or 0,
        "next": next_ms,
        "paused": False,
        "data": _json(raw.get(b"data")),
        "opts": _long(_json(raw.get(b"opts"))),
    }


def _long(opts: Any) -> dict[str, Any]:
    """Options as `Producer.add` takes them."""
    if not isinstance(opts, dict):
        return {}
    return {_LONG.get(str(name), str(name)): value for name, value in opts.items() if name not in _TELEMETRY}


def _text(raw: bytes | None) -> str | None:
    return raw.decode("utf-8", "replace") if raw else None


def _number(raw: bytes | None) -> int | None:
    try:
        return int(float(raw)) if raw else None
    except ValueError:
        return None


def _json(raw: bytes | None) -> Any:
    try:
        return orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError:
        return {}
