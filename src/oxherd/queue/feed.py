"""A job's stream: what a run says while it runs, for those who follow it. The format on the wire, and the reader.

An entry of the Redis stream has one field, `entry`: a JSON object with a `type`. docs/streams.md lists the types.
Text comes in numbered pieces, so that a piece that comes again, or a step that begins anew, is never shown twice.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxherd.clock import mono, wall_ms
from oxherd.codec import decode
from oxherd.errors import JobNotFound, RedisUnreachable, UsageError
from oxherd.job import Job, State
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script

KEPT_MS = 3_600_000  # a stream is deleted so long after its last entry
READER_MS = 60_000  # a reader that says nothing for so long has gone
RENEW = 20.0  # seconds between a reader's signs of life
LOOK = 10.0  # seconds of silence after which a reader looks whether the job has ended without a word
OVER = frozenset({State.COMPLETED, State.FAILED, "unknown"})
_ID = re.compile(r"\d{1,20}(-\d{1,20})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a job's stream.

    Attributes:
        id: Redis's, such as `1764000000000-0`: reading goes on after it.
        type: attempt, step, text, reasoning, call, result, whole, reset, progress, log, data, gap or end.
        data: all of the object, `type` included.
    """

    id: str
    type: str
    data: dict[str, Any]


def publish(link: Link, keys: Keys, job: Job, entries: Sequence[bytes], *, keep: int) -> asyncio.Future[Any]:
    """Add entries to the job's stream, at once and in one command.

    Parameters:
        link: the worker's own: what is sent before the job is settled is there before it is settled.
        keys, job: whose stream.
        entries: JSON objects.
        keep: how many entries of the stream stay, about.

    Returns:
        How many were added: 0 where another attempt has the job. Fails with RedisUnreachable or RedisRefused.
    """
    publishing = script("publish")
    return link.send(
        b"EVALSHA", publishing.sha, publishing.numkeys, keys.stream(job.id), keys.lock(job.id), job.token, keep,
        KEPT_MS, *entries,
    )  # fmt: skip


async def follow(link: Link, keys: Keys, job_id: str, *, since: str = "0") -> AsyncIterator[Entry]:
    """A job's stream to its end, through outages of Redis and the death of its workers.

    While this runs, whoever runs the job publishes; what came before is caught up on. The last entry is an `end`, also
    where the worker could not say so any more: then it has the id of the last one there was.

    Parameters:
        link: it is blocked: give it one of its own.
        keys, job_id: which job.
        since: the id of the last entry that was seen; `0` is from the beginning.

    Raises:
        UsageError: `since` is no id.
        JobNotFound: there is no such job, and nothing is kept of its stream.
    """
    if not _ID.fullmatch(since):
        raise UsageError(f"{since!r} is no id of an entry", hint="such as 1764000000000-0, or 0 for the beginning")
    reader, over, last = _Reader(link, keys, job_id, since), None, ""
    while True:
        try:
            if over is None:
                over = await reader.is_over()
            entries = await reader.read(wait=not over)
            if not over and (not entries or entries[-1].type == "end"):
                over = await reader.is_over()  # silent for long, or an end, which a retry by hand may follow
                if over and not entries:
                    continue  # what was said since
        except RedisUnreachable:
            over = None
            continue
        for entry in entries:
            last = entry.type
            yield entry
        if over and not entries:
            if last != "end":
                yield await reader.end(known=bool(last) or since != "0")
            return


class _Reader:
    """A reader's place in a stream."""

    def __init__(self, link: Link, keys: Keys, job_id: str, position: str) -> None:
        self._link = link
        self._keys = keys
        self._job_id = job_id
        self._position = position
        self._admin = Admin(link, keys)
        self._renew_at = 0.0
        self._was_there = False

    async def is_over(self) -> bool:
        state = await self._admin.state(self._job_id)
        self._was_there = self._was_there or state != "unknown"
        return state in OVER

    async def read(self, *, wait: bool) -> list[Entry]:
        """The next entries; none after a while in which there were none, or where it does not `wait`."""
        if wait and mono() >= self._renew_at:
            await attend(self._link, self._keys, self._job_id)
            self._renew_at = mono() + RENEW
        block = (b"BLOCK", round(LOOK * 1000)) if wait else ()
        try:
            async with asyncio.timeout(LOOK + 10):
                reply = await self._link.call(
                    b"XREAD", b"COUNT", 500, *block, b"STREAMS", self._keys.stream(self._job_id), self._position
                )
        except RedisUnreachable:
            self._renew_at = 0.0  # whoever runs the job may not have heard us
            raise
        except TimeoutError:
            self._link.drop()  # a blocking call that is never answered: the connection is dead
            raise RedisUnreachable("Redis does not answer") from None
        return list(self._parsed(reply[0][1] if reply else ()))

    def _parsed(self, listed: Sequence[Any]) -> Any:
        for entry_id, fields in listed:
            self._position = entry_id.decode()
            try:
                data = decode(fields[1])
                yield Entry(self._position, data["type"], data)
            except (ValueError, KeyError, TypeError):
                continue  # none of ours

    async def end(self, *, known: bool) -> Entry:
        """The end that nobody told. Raises JobNotFound where nothing is known of the job."""
        try:
            job = await self._admin.job(self._job_id)
        except JobNotFound:
            if not (known or self._was_there):
                raise
            return Entry(self._position, "end", {"type": "end", "outcome": "removed"})
        told = {"type": "end", "outcome": job["state"]}
        if job["failed_reason"]:
            told["reason"] = job["failed_reason"]
        return Entry(self._position, "end", told)


async def attend(link: Link, keys: Keys, job_id: str) -> None:
    """Say that somebody reads the job's stream, for a minute from now: whoever runs it publishes, or will."""
    now = wall_ms()
    await asyncio.gather(
        link.send(b"ZADD", keys.readers, now + READER_MS, job_id),
        link.send(b"ZREMRANGEBYSCORE", keys.readers, b"-inf", now),
        link.send(b"PEXPIRE", keys.readers, READER_MS),
        link.send(b"PUBLISH", keys.control, f"reader {job_id}"),
    )


@dataclass(slots=True)
class Transcript:
    """The text of a run's steps, put together from the entries of its stream in order.

    Entries may come again, and a step's text may begin anew or be replaced by the whole of it; once a step is finished,
    what is here is what it said.
    """

    _pieces: dict[str, list[str]] = field(default_factory=dict)
    _whole: dict[str, list[str]] = field(default_factory=dict)
    _latest: str = ""
    _is_live: bool = False  # whether `_latest` has said something in this attempt, not an earlier one

    def of(self, step: str) -> str:
        """The text of a step so far."""
        return "".join(self._pieces.get(step, ()))

    @property
    def text(self) -> str:
        """The text of the step that spoke last, which in the end is the reply."""
        return self.of(self._latest)

    def add(self, entry: Entry) -> tuple[str, bool]:
        """Take the next entry.

        Returns:
            The text to show, if any, and whether it takes the place of what was shown of the step instead of being
            appended to it.
        """
        match entry.data:
            case {"type": "attempt", "state": "started"}:
                self._is_live = False
            case {"type": "text", "step": step, "n": n, "text": text}:
                return self._append(step, n, text)
            case {"type": "whole", "step": step, "n": n, "text": text}:
                self._take_whole(step, n, text)
            case {"type": "reset", "step": step} | {"type": "step", "state": "started", "step": step}:
                return "", bool(self._clear(step))
            case {"type": "step", "state": "finished" | "replayed" as state, "step": step} if step in self._whole:
                return self._replace(step, self._whole.pop(step), live=state == "finished")
        return "", False

    def _take_whole(self, step: str, n: int, text: str) -> None:
        whole = self._whole.setdefault(step, [])
        if n > len(whole):
            del self._whole[step]  # a gap: better what there is than a text with a hole
        else:
            whole[n:] = [text]

    def _append(self, step: str, n: int, text: str) -> tuple[str, bool]:
        self._latest, self._is_live = step, True
        pieces = self._pieces.setdefault(step, [])
        if n < len(pieces) and pieces[n] == text:
            return "", False  # it came again
        again = n < len(pieces)
        pieces[n:] = [text]
        return ("".join(pieces), True) if again else (text, False)

    def _replace(self, step: str, whole: list[str], *, live: bool) -> tuple[str, bool]:
        if live or not self._is_live:  # to a reader that comes late, earlier steps may be told after what goes on
            self._latest, self._is_live = step, live
        shown, full = self.of(step), "".join(whole)
        self._pieces[step] = whole
        return (full[len(shown) :], False) if full.startswith(shown) else (full, True)

    def _clear(self, step: str) -> list[str]:
        self._whole.pop(step, None)
        return self._pieces.pop(step, [])
