"""Job schedulers: when the next iteration of a repeated job is due.

Source: BullMQ `src/classes/job-scheduler.ts`; cron patterns by croniter, with the seconds first when there are six
fields, as in cron-parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import msgpack

from oxherd.clock import wall_ms
from oxherd.errors import PayloadInvalid
from oxherd.job import Job
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script


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
    return next_match(repeat.pattern, repeat.tz, max(now, repeat.start or 0)) if repeat.pattern else now


def next_match(pattern: str, tz: str | None, after: int) -> int:
    """The first moment after `after` (wall ms) that the cron pattern matches, wall ms.

    Raises:
        PayloadInvalid: the pattern or the time zone is malformed.
    """
    from zoneinfo import ZoneInfo

    try:
        zone = ZoneInfo(tz) if tz else UTC
        moment = datetime.fromtimestamp(after / 1000, tz=UTC)
        found = _next_in_zone(pattern, zone, moment)
    except (ValueError, KeyError, OSError) as error:
        raise PayloadInvalid(f"the schedule {pattern!r} ({tz or 'UTC'}) can't be read: {error}") from None
    return int(found.timestamp() * 1000)


def _next_in_zone(pattern: str, zone: tzinfo, after: datetime) -> datetime:
    # croniter is an hour off across a clock change, so it is only ever asked in one fixed offset at a time.
    first = _next_at_offset(pattern, _offset(zone, after), after)
    if _offset(zone, first) == _offset(zone, after):
        return first
    second = _next_at_offset(pattern, _offset(zone, first), after)
    # Neither is right for a local time that the change skips: it runs as if the clock had not changed.
    return second if _offset(zone, second) == _offset(zone, first) else first


def _next_at_offset(pattern: str, offset: timezone, after: datetime) -> datetime:
    from croniter import croniter

    found: datetime = croniter(pattern, after.astimezone(offset), second_at_beginning=True).get_next(datetime)
    return found


def _offset(zone: tzinfo, moment: datetime) -> timezone:
    return timezone(moment.astimezone(zone).utcoffset() or timedelta())


async def make_next(link: Link, k: Keys, job: Job) -> str | None:
    """Make the next iteration of the scheduler that made `job`. Returns its id, or None where there is none to make.

    Safe to repeat: the script does nothing when the next job exists.

    Raises:
        PayloadInvalid: the stored pattern is malformed.
    """
    repeat = job.opts.get("repeat")
    if job.scheduler is None or not isinstance(repeat, dict):
        return None
    now = max(wall_ms(), int(job.opts.get("prevMillis") or 0))
    count = int(repeat.get("count") or 0) + 1
    if count > int(repeat.get("limit") or count) or now > _ms(repeat.get("endDate"), now):
        return None
    pattern = repeat.get("pattern")
    next_ms = next_match(pattern, repeat.get("tz"), max(now, _ms(repeat.get("startDate"), 0))) if pattern else now
    opts = {
        **job.opts,
        "repeat": {**repeat, "count": count},
        "jobId": f"repeat:{job.scheduler}:{next_ms}",
        "delay": max(next_ms - wall_ms(), 0),
        "timestamp": wall_ms(),
        "prevMillis": next_ms,
        "repeatJobKey": job.scheduler,
    }
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
