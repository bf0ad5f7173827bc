"""Dead letters: jobs that failed for good, by what they have in common, and putting them back or away in bulk."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from oxherd.errors import OxherdError
from oxherd.job import State
from oxherd.queue.admin import Admin
from oxherd.queue.pages import Place

BATCH = 500  # jobs that are acted on at once


@dataclass(frozen=True, slots=True)
class Pick:
    """Which dead letters.

    Attributes:
        ids: these; where left out, all of this `name` and this `kind` (see `fingerprint`), None for any.
        limit: how many at most.
        after: where the last call ended.
        until: those that had failed before, wall ms: one that is put back and fails again is another one.
    """

    ids: Sequence[str] | None = None
    name: str | None = None
    kind: str | None = None
    limit: int = 1_000
    after: Place | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Bulk:
    """What came of acting on many dead letters.

    Attributes:
        done: their ids.
        gone: ids of those that had left the dead letters meanwhile.
        next: where to go on, as not all were looked at; None where all were.
    """

    done: list[str]
    gone: list[str]
    next: Place | None


def fingerprint(name: str, reason: str | None) -> str:
    """What failures of the same kind share: the job's name and the reason's first line, numbers in it aside."""
    shape = re.sub(r"\d+", "0", (reason or "").strip().partition("\n")[0][:300])
    return hashlib.sha256(f"{name}\n{shape}".encode()).hexdigest()[:16]


def grouped(jobs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failed jobs with the same fingerprint together; the largest group first."""
    groups: dict[str, dict[str, Any]] = {}
    for job in jobs:
        kind = fingerprint(job["name"], job["failed_reason"])
        reason = (job["failed_reason"] or "").strip()
        group = groups.setdefault(
            kind, {"fingerprint": kind, "name": job["name"], "reason": reason, "count": 0, "newest": 0, "ids": []}
        )
        group["count"] += 1
        group["newest"] = max(group["newest"], job["finished_on"] or 0)
        group["ids"].append(job["id"])
    return sorted(groups.values(), key=lambda group: -group["count"])


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    async def groups(self, *, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` of them, grouped."""
        found: list[dict[str, Any]] = []
        place: Place | None = None
        while len(found) < limit:
            page = await self._admin.pages.page([State.FAILED], limit=limit - len(found), after=place)
            found += page.jobs
            place = page.next
            if place is None:
                break
        return grouped(found)

    async def absent(self, ids: Sequence[str]) -> list[str]:
        """Which of these are no dead letters."""
        states = [state for batch in _batches(ids) for state in await asyncio.gather(*map(self._admin.state, batch))]
        return [job_id for job_id, state in zip(ids, states, strict=True) if state != State.FAILED]

    async def replay(self, pick: Pick) -> Bulk:
        """Put some back on the queue, the oldest first, each with all its attempts anew.

        Raises:
            RedisUnreachable, RedisRefused: some may have been put back.
        """
        return await self._each(self._admin.retry, pick)

    async def remove(self, pick: Pick) -> Bulk:
        """Remove some for good, with all the queue knows of them. Errors as for `replay`."""
        return await self._each(self._admin.remove, pick)

    async def _each(self, act: Callable[[str], Awaitable[object]], pick: Pick) -> Bulk:
        ids, absent, place = await self._picked(pick)
        results: list[object] = []
        for batch in _batches(ids):
            results += await asyncio.gather(*map(act, batch), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not (isinstance(result, OxherdError) and result.exit_code == 1):
                raise result
        done = [job_id for job_id, result in zip(ids, results, strict=True) if not isinstance(result, OxherdError)]
        return Bulk(done, [*absent, *sorted(set(ids) - set(done))], place)

    async def _picked(self, pick: Pick) -> tuple[list[str], list[str], Place | None]:
        if pick.ids is not None:
            absent = await self.absent(pick.ids)
            return [job_id for job_id in pick.ids if job_id not in absent], absent, None
        page = await self._admin.pages.page(
            [State.FAILED], limit=pick.limit, after=pick.after, until=pick.until, oldest_first=True, keep=_wanted(pick)
        )
        return [job["id"] for job in page.jobs], [], page.next


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))


def _wanted(pick: Pick) -> Callable[[dict[str, Any]], bool] | None:
    if pick.name is None and pick.kind is None:
        return None

    def wanted(job: dict[str, Any]) -> bool:
        kind = fingerprint(job["name"], job["failed_reason"])
        return pick.name in {None, job["name"]} and pick.kind in {None, kind}

    return wanted
