"""Lists of jobs, page by page: by ranges of Redis's lists and sorted sets, never by walking all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from oxherd.codec import tenant_of
from oxherd.job import State
from oxherd.queue.connection import Link
from oxherd.queue.consumer import parse, text_of
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script

MOST_EXAMINED = 1_000  # jobs that one page looks at
CHUNK = 100  # jobs that one script call reads
LARGEST_PAYLOAD = 65_536  # bytes; who has larger ones gets a list without their tenants
DEEPEST = 100_000  # entries of a list that are searched for the job that a page goes on from

# What runs and what will run comes first.
ORDER = (
    State.ACTIVE, State.PRIORITIZED, State.WAIT, State.DELAYED, State.WAITING_CHILDREN, State.FAILED, State.COMPLETED,
)  # fmt: skip
ENDED = (State.FAILED, State.COMPLETED)
_LISTS = ("wait", "paused", "active")
_RUNS_NEXT_FIRST = (State.PRIORITIZED, State.DELAYED)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended, so that the next one can go on.

    Attributes:
        key: BullMQ's name of the list or sorted set.
        id: the last job that was looked at there.
        score: its score, or its distance from the list's end.
    """

    key: str
    id: str
    score: str


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list.

    Attributes:
        jobs: see `Pages.page`.
        next: where to go on; None at the end. A page can be empty and have one: only so many jobs are looked at.
    """

    jobs: list[dict[str, Any]]
    next: Place | None


class Pages:
    """Lists the jobs of one queue over a link it is given."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def page(
        self,
        states: Sequence[str] = ORDER,
        *,
        limit: int = 50,
        after: Place | None = None,
        keep: Callable[[dict[str, Any]], bool] | None = None,
        since: int | None = None,
        until: int | None = None,
        oldest_first: bool = False,
    ) -> Page:
        """Jobs of some states: what runs next comes first where they wait, what ended last where they have ended.

        A job is its id, name, state, tenant, attempts_made, attempts, stalled, priority, delay, timestamp,
        processed_on, finished_on, failed_reason (its beginning), parent and scheduler.

        Parameters:
            states: in this order.
            limit: how many at most.
            after: where the page before ended.
            keep: which ones to list; asked of at most MOST_EXAMINED jobs.
            since, until: of those that ended, only those that did so from `since` on and before `until`, wall ms.
            oldest_first: of those that ended, those that ended first.
        """
        found: list[dict[str, Any]] = []
        examined, place = 0, after
        for key in _left(_keys_of(states), after):
            place = place if place is not None and place.key == key else None
            while True:
                size = min(limit - len(found) if keep is None else CHUNK, CHUNK, MOST_EXAMINED - examined)
                chunk = await self._chunk(key, place, size, since, until, oldest_first=oldest_first)
                for job, place in chunk:
                    examined += 1
                    if keep is None or keep(job):
                        found.append(job)
                    if len(found) == limit or examined == MOST_EXAMINED:
                        return Page(found, place)
                if len(chunk) < size:
                    break
        return Page(found, None)

    async def _chunk(
        self, key: str, after: Place | None, size: int, since: int | None, until: int | None, *, oldest_first: bool
    ) -> list[tuple[dict[str, Any], Place]]:
        ended = key in ENDED
        ascending = key in _RUNS_NEXT_FIRST or (ended and oldest_first)
        reply = await self._link.run(
            script("pageJobs"), self._keys.state(key), self._keys.base,
            "list" if key in _LISTS else "up" if ascending else "down",
            after.id if after else "", after.score if after else "0", size,
            "-inf" if since is None or not ended else since, "+inf" if until is None or not ended else until - 1,
            LARGEST_PAYLOAD, DEEPEST,
        )  # fmt: skip
        state = "wait" if key == "paused" else key
        return [
            (summary(text_of(job_id), state, fields), Place(key, text_of(job_id), score.decode()))
            for job_id, score, fields in reply
        ]


def summary(job_id: str, state: str, fields: list[bytes]) -> dict[str, Any]:
    """A job as lists show it, from fields of its hash."""
    raw = dict(zip(fields[::2], fields[1::2], strict=True))
    job = parse(job_id, fields, "")
    return {
        "id": job_id,
        "name": job.name,
        "state": state,
        "tenant": tenant_of(job.raw),
        "attempts_made": job.attempts_made,
        "attempts": job.attempts,
        "stalled": job.stalled,
        "priority": job.priority,
        "delay": job.delay,
        "timestamp": job.timestamp,
        "processed_on": job.processed_on or None,
        "finished_on": int(raw.get(b"finishedOn") or 0) or None,
        "failed_reason": (raw.get(b"failedReason") or b"").decode("utf-8", "replace") or None,
        "parent": job.parent_key,
        "scheduler": job.scheduler,
    }


def _keys_of(states: Sequence[str]) -> list[str]:
    # A BullMQ v5 pause parks what waits in `paused`.
    return [key for state in states for key in (("wait", "paused") if state == State.WAIT else (str(state),))]


def _left(keys: list[str], after: Place | None) -> list[str]:
    return keys if after is None or after.key not in keys else keys[keys.index(after.key) :]
