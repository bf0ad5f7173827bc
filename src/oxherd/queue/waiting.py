"""Waiting for a job's end from outside, without missing it and without polling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from oxherd.errors import JobNotFound, RedisUnreachable
from oxherd.job import State
from oxherd.queue.admin import Admin

LOOK_AGAIN = 30.0  # seconds between looks at the job itself: a long outage can outlast the event stream's memory


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended.

    Attributes:
        state: completed, failed or removed.
        value: its result, when completed.
        reason: why it failed.
    """

    state: str
    value: Any = None
    reason: str | None = None


async def wait_for_end(
    admin: Admin,
    watcher: Admin,
    job_id: str,
    *,
    since: str,
    on_event: Callable[[dict[str, str]], None] = lambda _: None,
) -> Ending:
    """Wait until the job completed, failed for good or was removed; through outages of Redis, too.

    Parameters:
        admin: to look at the job.
        watcher: to follow the events, which blocks its link.
        job_id: which job.
        since: the stream's newest event before the job was added: its own events all come later.
        on_event: called with each of the job's other events.
    """
    missing_before = False
    while True:
        with contextlib.suppress(TimeoutError, RedisUnreachable):  # its links reconnect
            ending = await _look(admin, job_id)
            # A job that its producer had removed when it ended is missing too: its events still tell.
            if ending is not None and (ending.state != "removed" or missing_before):
                return ending
            missing_before = ending is not None
            async with asyncio.timeout(LOOK_AGAIN):
                async for position, event in watcher.events(since):
                    since = position
                    if event.get("jobId") != job_id:
                        continue
                    if (ending := _ending_of(event)) is not None:
                        return ending
                    on_event(event)


async def _look(admin: Admin, job_id: str) -> Ending | None:
    try:
        job = await admin.job(job_id)
    except JobNotFound:
        return Ending("removed")
    if job["state"] == State.COMPLETED:
        return Ending("completed", value=job["returnvalue"])
    return Ending("failed", reason=job["failed_reason"]) if job["state"] == State.FAILED else None


def _ending_of(event: dict[str, str]) -> Ending | None:
    match event["event"]:
        case "completed":
            return Ending("completed", value=as_json(event.get("returnvalue")))
        case "failed":
            return Ending("failed", reason=event.get("failedReason"))
        case "removed":
            return Ending("removed")
    return None


def as_json(text: str | None) -> Any:
    """The JSON value in a field of an event, or the text where it is none."""
    try:
        return None if text is None else orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
