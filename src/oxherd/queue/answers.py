"""Waking jobs that wait for an answer. An answer is in the store; this is how its job hears of it.

Whoever answers leaves a note in Redis before the answer is stored, and takes it away when the job has been promoted.
So a note outlives an answerer that dies in between; the queue's watcher finds it, in the look it takes anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

from oxherd.clock import wall_ms
from oxherd.errors import JobStateError
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.consumer import READY_AT
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script

GRACE_MS = 5_000  # for storing an answer; after that its job is woken to look for itself


class Answers:
    """The notes of one queue.

    Parameters:
        link: a connection; the worker's own, or a command's.
        keys: the queue's keys.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._admin = Admin(link, keys)

    async def announce(self, wait_id: str, job_id: str) -> None:
        """Note that an answer is about to be stored."""
        await self._link.call(b"ZADD", self._keys.answers, wall_ms() + GRACE_MS, _note(wait_id, job_id))

    async def wake(self, wait_id: str, job_id: str) -> None:
        """Run the job now, if it is parked; if it runs, it finds the note when it parks. Safe to repeat.

        A job that is delayed for another reason, such as a failed attempt, is run early.
        """
        k, note = self._keys, _note(wait_id, job_id)
        parked = await self._link.run(
            script("wakeWaiting"), k.answers, k.delayed, k.active, k.job(job_id), note, job_id, READY_AT, wall_ms()
        )
        if parked == 1:
            with contextlib.suppress(JobStateError):  # its time came meanwhile
                await self._admin.promote(job_id)
            await self._link.call(b"ZREM", k.answers, note)

    async def alive(self, jobs: Sequence[tuple[str, int]]) -> list[bool]:
        """Which of these jobs are on the queue and have not ended; each is an id and the wall ms when it was added."""
        return await asyncio.gather(*(self._is_alive(job_id, added_at) for job_id, added_at in jobs))

    async def _is_alive(self, job_id: str, added_at: int) -> bool:
        link, k = self._link, self._keys
        timestamp, completed, failed = await asyncio.gather(
            link.call(b"HGET", k.job(job_id), b"timestamp"),
            link.call(b"ZSCORE", k.completed, job_id),
            link.call(b"ZSCORE", k.failed, job_id),
        )
        return timestamp == str(added_at).encode() and completed is None and failed is None

    async def catch_up(self, job_id: str, wait_ids: Sequence[str]) -> None:
        """Wake a job that was parked just now, if one of these questions was answered before it was."""
        notes = [_note(wait_id, job_id) for wait_id in wait_ids]
        scores = await self._link.call(b"ZMSCORE", self._keys.answers, *notes)
        await self.wake_all(note for note, score in zip(notes, scores, strict=True) if score == b"0")

    async def wake_all(self, notes: Iterable[bytes]) -> None:
        """Wake the jobs of these notes."""
        for note in notes:
            wait_id, _, job_id = note.decode("utf-8", "surrogateescape").partition(":")
            await self.wake(wait_id, job_id)


def _note(wait_id: str, job_id: str) -> bytes:
    return f"{wait_id}:{job_id}".encode("utf-8", "surrogateescape")
