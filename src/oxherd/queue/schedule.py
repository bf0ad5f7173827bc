"""Job schedulers: when the next iteration of a repeated job is due.

Source: BullMQ `src/classes/job-scheduler.ts`; cron patterns by croniter, with the seconds first when there are six
fields, as in cron-parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack

from oxherd.clock import wall_ms
from oxherd.errors import PayloadInvalid
from oxherd.job import Job
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script

_LAST_WEEKDAY = re.compile(r"\b([0-7])L\b", re.IGNORECASE)  # the last Friday: 5L to cron-parser, L5 to croniter
_LONGEST_CHANGE = timedelta(hours=3)  # more than any clock is ever set back by


@dataclass(frozen=True, slots=True)
class Repeat:
    """How often a scheduler fires. Exactly one of `every` (ms) and `pattern` (cron) is set.

    Attributes:
        every: milliseconds between runs.
        pattern: five or six fields (seconds first).
        tz: the pattern's IANA time zone; UTC when None.
        limit: at most so many runs.
        start, end: wall ms.
    """

    every: int | None = None
    pattern: str | None = None
    tz: str | None = None
    limit: int | None = None
    start: int | None = None
    end: int | None = None

    def stored(self) -> dict[str, Any]:
        """The fields as BullMQ stores them, without the unset ones."""
        fields = {
            "every": self.every,
            "pattern": self.pattern,
            "tz": self.tz,
            "limit": self.limit,
            "startDate": self.start,
            "endDate": self.end,
        }
        return {key: value for key, value in fields.items() if value is not None}


def first_run(repeat: Repeat, now: int) -> int:
    """When a new scheduler fires first, wall ms. Raises PayloadInvalid for a malformed one."""
    if bool(repeat.every) == bool(repeat.pattern):
        raise PayloadInvalid("a schedule needs exactly one of every (ms) and pattern (cron)")
    first = next_match(repeat.pattern, repeat.tz, max(now, repeat.start or 0)) if repeat.pattern else now
    if repeat.end is not None and first > repeat.end:
        raise PayloadInvalid("the schedule ends before it fires for the first time")
    return first


def next_match(pattern: str, tz: str | None, after: int) -> int:
    """The first moment after `after` (wall ms) that the cron pattern matches, wall ms.

    Raises:
        PayloadInvalid: the pattern or the time zone is malformed.
    """
    from zoneinfo import ZoneInfo

    try:
        zone = ZoneInfo(tz) if tz else UTC
        local = datetime.fromtimestamp(after / 1000, tz=zone)
        found = _next_local(_LAST_WEEKDAY.sub(r"L\1", pattern), local)
    except (ValueError, KeyError, OSError) as error:
        raise PayloadInvalid(f"the schedule {pattern!r} ({tz or 'UTC'}) can't be read: {error}") from None
    return int(found.timestamp() * 1000)


def _next_local(pattern: str, after: datetime) -> datetime:
    # As cron-parser has it across a clock change: a local time that is skipped runs as if the clock had not changed;
    # one that comes twice runs the first time, except for patterns of every hour, which go on through both.
    found = _next_by_the_clock(pattern, after)
    if _comes_twice(found) and after.fold and found - after < _LONGEST_CHANGE:
        if _every_hour(pattern):
            return found.replace(fold=1)
        while _comes_twice(found):
            found = _next_by_the_clock(pattern, found)
    elif _comes_twice(after) and not after.fold and not _comes_twice(found) and _every_hour(pattern):
        again = _next_by_the_clock(pattern, _first_twice(after) - timedelta(seconds=1))
        return again.replace(fold=1) if _comes_twice(again) else found
    return found


def _next_by_the_clock(pattern: str, after: datetime) -> datetime:
    # croniter is an hour off across a clock change, so it only ever sees a clock that does not change.
    from croniter import croniter

    found: datetime = croniter(pattern, after.replace(tzinfo=UTC), second_at_beginning=True).get_next(datetime)
    return found.replace(tzinfo=after.tzinfo, fold=0)


def _every_hour(pattern: str) -> bool:
    from croniter import croniter

    return bool(croniter.expand(pattern, second_at_beginning=True)[0][1] == ["*"])


def _comes_twice(local: datetime) -> bool:
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    return first is not None and second is not None and first > second


def _first_twice(local: datetime) -> datetime:
    minute = local.replace(second=0, microsecond=0)
    while _comes_twice(minute - timedelta(minutes=1)):
        minute -= timedelta(minutes=1)
    return minute


async def make_next(link: Link, k: Keys, job: Job) -> str | None:
    """Make the next iteration of the scheduler that made `job`. Returns its id, or None where there is none to make.

    Safe to repeat: the script does nothing when the next job exists.

    Raises:
        PayloadInvalid: the stored pattern is malformed.
    """
    repeat = job.opts.get("repeat")
    if job.scheduler is None or not isinstance(repeat, dict):
        return None
    if not job.id.startswith(f"repeat:{job.scheduler}:"):
        raise PayloadInvalid("it was made by a BullMQ before version 5: make a job scheduler in its place")
    now = max(wall_ms(), int(job.opts.get("prevMillis") or 0))
    count = int(repeat.get("count") or 0) + 1
    pattern = repeat.get("pattern")
    next_ms = next_match(pattern, repeat.get("tz"), max(now, _ms(repeat.get("startDate"), 0))) if pattern else now
    if count > int(repeat.get("limit") or count) or next_ms > _ms(repeat.get("endDate"), next_ms):
        return None
    opts = {
        **job.opts,
        "repeat": {**repeat, "count": count},
        "jobId": f"repeat:{job.scheduler}:{next_ms}",
        "delay": max(next_ms - wall_ms(), 0),
        "timestamp": wall_ms(),
        "prevMillis": next_ms,
        "repeatJobKey": job.scheduler,
    }
    await link.insist(script("keepTemplate"), k.repeat + b":" + job.scheduler.encode(), job.raw)
    made = await link.insist(
        script("updateJobScheduler"), k.repeat, k.delayed, k.wait, k.paused, k.meta, k.prioritized, k.marker, k.id,
        k.events, k.pc, k.job(job.id), k.active, next_ms, job.scheduler, job.raw or b"{}", msgpack.packb(opts),
        wall_ms(), k.base, job.id,
    )  # fmt: skip
    return made.decode() if made else None


def _ms(value: Any, default: int) -> int:
    if isinstance(value, int | float):
        return int(value)
    if isinstance(value, str) and value:
        return int(datetime.fromisoformat(value).timestamp() * 1000)
    return default
