"""Service level indicators: what the workers of a queue did, kept compactly in Redis for 31 days.

Counters of all workers merge, since they only ever grow. Two sizes of bucket are kept: minutes for half a day and
hours for a month.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from oxherd.clock import mono, wall_ms
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.telemetry.slo import BURNS, DAY, HOUR, Count, Objective, Sli, Standing, standing

MINUTE = 60
FINE, COARSE = MINUTE, 3600  # seconds of a bucket
FINE_KEPT, COARSE_KEPT = int(DAY / 2), int(31 * DAY)  # seconds
FINE_REACH = 6 * HOUR  # windows up to this are read from the fine buckets
WRITTEN = {FINE: 90, COARSE: 360}  # seconds after a bucket's end by which all workers have written theirs
LATE = WRITTEN[COARSE]  # minutes in which a worker was healthy are written that late
FRESH = 5.0  # seconds for which what was read is not read again: one look asks for many windows
MOST_POINTS = 5_000  # of charts, that are kept once nothing changes them any more
STEPS = 20  # buckets of a histogram per factor of ten: a bucket's ends are 12 % apart
MOST = 8 * STEPS  # the last one has all above 100,000 s
COUNTED = frozenset("aecfq")
TIMES = {Sli.WAIT: "w", Sli.RUN: "r", Sli.FIRST_TOKEN: "t"}


def bucket_of(ms: float) -> int:
    """Which bucket of a histogram a duration counts in: 0 is below 1 ms, then 20 for each factor of ten."""
    return 0 if ms < 1 else min(1 + int(STEPS * math.log10(ms)), MOST)


def upper_ms(bucket: int) -> float:
    """Where a bucket ends, in ms. The last one has no end: it counts as ending where it begins, tenfold."""
    return float(10 ** (bucket / STEPS))


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, see `bucket_of`. Merging two is adding them."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self.counts.values())

    def within(self, ms: float) -> float:
        """How many took at most so long; inside one bucket they count as spread evenly."""
        limit = bucket_of(ms)
        low = upper_ms(limit - 1) if limit else 0.0
        share = (ms - low) / (upper_ms(limit) - low)
        inside = self.counts[limit] * min(max(share, 0.0), 1.0)
        return sum(count for bucket, count in self.counts.items() if bucket < limit) + inside

    def quantile(self, share: float) -> float | None:
        """The duration in ms that this share (0 to 1) does not exceed, to 12 %; None of nothing."""
        left = share * self.total
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return upper_ms(bucket)
        return None


@dataclass(slots=True)
class Tally:
    """What happened in some span of time, by job name.

    Attributes:
        counts: by job name and kind: `a` attempts, `e` those that ended in an error, `c` jobs completed, `f` failed,
            `q` of these quarantined.
        times: histograms by job name and `w` (wait), `r` (run) or `t` (first token).
        minutes: minutes in which some worker was healthy.
        of_minutes: of so many.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    times: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    minutes: int = 0
    of_minutes: int = 0

    def add(self, fields: Mapping[str, int], weight: float = 1.0) -> None:
        """Add a bucket's counters as Redis has them; `weight` below 1 takes a share of them."""
        for name, number in fields.items():
            job, mark, kind = name.rpartition("|")
            if not mark:
                continue
            count = number if weight == 1.0 else round(number * weight)
            if kind in COUNTED:
                self.counts[job, kind] += count
            else:
                self.times.setdefault((job, kind[0]), Histogram()).counts[int(kind[1:])] += count

    def number(self, kind: str, job: str | None = None) -> int:
        """How many of a kind, of one job name or of all."""
        return sum(count for (name, what), count in self.counts.items() if what == kind and job in (None, name))

    def histogram(self, kind: str, job: str | None = None) -> Histogram:
        """The durations of a kind, of one job name or of all."""
        merged = Histogram()
        for (name, what), each in self.times.items():
            if what == kind and job in (None, name):
                merged.counts.update(each.counts)
        return merged

    def count(self, objective: Objective) -> Count:
        """Good events and all of them, as an objective counts them."""
        job = objective.job
        match objective.sli:
            case Sli.AVAILABILITY:
                return Count(self.minutes, self.of_minutes)
            case Sli.SUCCESS:
                done = self.number("c", job)
                return Count(done, done + self.number("f", job))
            case Sli.ATTEMPTS:
                every = self.number("a", job)
                return Count(every - self.number("e", job), every)
            case timed:
                times = self.histogram(TIMES[timed], job)
                return Count(times.within((objective.threshold or 0.0) * 1000), times.total)


@dataclass(frozen=True, slots=True)
class Point:
    """What happened in one step of a chart.

    Attributes:
        at: when it begins, seconds since the epoch.
        seconds: how long it is; the newest one is not over yet.
        attempts, errors: attempts that ended, and those of them that ended in an error.
        completed, failed: jobs.
        wait, run: ms that 50, 95 and 99 % of them do not exceed, to 12 %; None where nothing happened.
    """

    at: int
    seconds: float
    attempts: int
    errors: int
    completed: int
    failed: int
    wait: tuple[float | None, ...]
    run: tuple[float | None, ...]

    @classmethod
    def of(cls, tally: Tally, at: int, seconds: float, job: str | None) -> Point:
        """The point of a tally, of one job name or of all."""
        wait, run = tally.histogram("w", job), tally.histogram("r", job)
        attempts, errors, completed, failed = (tally.number(kind, job) for kind in "aecf")
        return cls(
            at, seconds, attempts, errors, completed, failed,
            tuple(wait.quantile(share) for share in QUANTILES), tuple(run.quantile(share) for share in QUANTILES),
        )  # fmt: skip


QUANTILES = (0.5, 0.95, 0.99)


class Indicators:
    """The buckets of one queue, over a link it is given.

    Parameters:
        link: a connection to Redis.
        keys: the queue's keys.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._closed: dict[bytes, dict[str, int]] = {}
        self._fresh: dict[bytes, tuple[float, dict[str, int]]] = {}
        self._points: dict[tuple[int, int, str | None], Point] = {}
        self._since: int | None = None

    async def write(
        self, counted: Mapping[str, int], minutes: Iterable[int] = (), *, minute: int | None = None
    ) -> None:
        """Add counters to the buckets of a minute, and minutes in which a worker was healthy.

        A lost reply is no reason to write again: then what was counted may be counted twice.

        Parameters:
            counted: by name, see `Tally.add`.
            minutes: since the epoch.
            minute: the one in which it was counted; this one when left out.
        """
        at = wall_ms() // 1000 if minute is None else minute * MINUTE
        hours: dict[int, list[int]] = {at // COARSE: []} if counted else {}
        for each in minutes:
            hours.setdefault(each // 60, []).append(each)
        began = min([at, *(up * MINUTE for ups in hours.values() for up in ups)])
        pairs = [part for pair in counted.items() for part in pair]
        for hour, ups in hours.items():
            await self._link.run(
                script("countEvents"), self._bucket(FINE, at // FINE), self._bucket(COARSE, hour),
                self._keys.indicators + b"since", began, FINE_KEPT, COARSE_KEPT, len(ups), *(up % 60 for up in ups),
                *(pairs if hour == at // COARSE else ()),
            )  # fmt: skip

    def _bucket(self, size: int, place: int) -> bytes:
        return self._keys.indicators + b"%d:%d" % (size, place)

    async def since(self) -> int | None:
        """Since when this queue is counted, seconds since the epoch; None where nothing was yet."""
        if self._since is None:
            raw = await self._link.call(b"GET", self._keys.indicators + b"since")
            self._since = int(raw) if raw else None
        return self._since

    async def tally(self, seconds: float, *, until: float | None = None) -> tuple[Tally, float]:
        """What all workers did in the `seconds` before `until` (seconds since the epoch; now when left out).

        Buckets that the window cuts count by the share of them that is inside.

        Returns:
            The tally, and how many of those seconds are counted at all: less where the first worker came later.
        """
        end = until if until is not None else wall_ms() / 1000
        since = await self.since()
        begin = max(end - seconds, float(since)) if since is not None else end
        size = FINE if end - begin <= FINE_REACH and end > wall_ms() / 1000 - FINE_KEPT + FINE_REACH else COARSE
        found = Tally()
        late = max(end - (wall_ms() / 1000 - LATE), 0.0)  # minutes are written late: that part ends a little earlier
        found.minutes, found.of_minutes = await self._up_minutes(max(begin - late, since or end), end - late)
        places = range(int(begin) // size, int(end) // size + 1)
        buckets = await asyncio.gather(*(self._read(size, place) for place in places))
        for place, fields in zip(places, buckets, strict=True):
            over = min(end, (place + 1) * size)  # the newest one is not over yet
            inside, whole = over - max(begin, place * size), over - max(since or 0, place * size)
            found.add(fields, 1.0 if inside >= whole else inside / whole)
        return found, max(end - begin, 0.0)

    async def standings(self, objectives: Sequence[Objective]) -> list[Standing]:
        """How objectives stand now."""
        spans = {span for burn in BURNS for span in (burn.long, burn.short)} | {each.window for each in objectives}
        tallies = {span: await self.tally(span) for span in sorted(spans)}

        def measure(objective: Objective, seconds: float) -> Count:
            tally, _ = tallies[seconds]
            return tally.count(objective)

        return [standing(objective, measure) for objective in objectives]

    async def series(self, seconds: float, step: int, *, job: str | None = None) -> list[Point]:
        """What happened step by step until now, the oldest first; nothing from before this queue was counted.

        Parameters:
            seconds: of how long a time.
            step: seconds of one point: a number of whole minutes up to six hours back, of whole hours up to 31 days.
            job: of one job name only.
        """
        now, since = wall_ms() / 1000, await self.since()
        if since is None:
            return []
        first = int(max(now - seconds, since)) // step
        return list(
            await asyncio.gather(*(self._point(place, step, now, job) for place in range(first, int(now) // step + 1)))
        )

    async def _point(self, place: int, step: int, now: float, job: str | None) -> Point:
        known = self._points.get((step, place, job))
        if known is not None:
            return known
        size = COARSE if step % COARSE == 0 else FINE
        places = range(place * step // size, (place + 1) * step // size)
        tally = Tally()
        for fields in await asyncio.gather(*(self._read(size, each) for each in places)):
            tally.add(fields)
        point = Point.of(tally, place * step, min(now - place * step, step), job)
        if _is_closed(size, places[-1], now):
            if len(self._points) >= MOST_POINTS:
                self._points.clear()
            self._points[step, place, job] = point
        return point

    async def _up_minutes(self, begin: float, end: float) -> tuple[int, int]:
        hours = range(int(begin) // COARSE, int(end) // COARSE + 1)
        buckets = await asyncio.gather(*(self._read(COARSE, hour) for hour in hours))
        first, last = math.ceil(begin / MINUTE), int(end) // MINUTE
        up = sum(
            first <= hour * 60 + int(name[2:]) < last
            for hour, fields in zip(hours, buckets, strict=True)
            for name in fields
            if name.startswith("up") and "|" not in name
        )
        return up, max(last - first, 0)

    async def _read(self, size: int, place: int) -> dict[str, int]:
        key = self._bucket(size, place)
        if key in self._closed:
            return self._closed[key]
        read_at, fields = self._fresh.get(key, (-math.inf, {}))
        now = wall_ms() / 1000
        if mono() - read_at < FRESH or place * size > now:
            return fields
        flat = iter(await self._link.call(b"HGETALL", key))
        fields = {name.decode("utf-8", "replace"): int(number) for name, number in zip(flat, flat, strict=True)}
        if _is_closed(size, place, now):
            self._closed[key] = fields
            self._fresh.pop(key, None)
        else:
            self._fresh[key] = (mono(), fields)
        return fields

    def forget(self) -> None:
        """Begin a new look: read what may have changed again, and drop what no window reaches any more."""
        now = wall_ms() // 1000
        for key in list(self._closed):
            size, place = (int(part) for part in key.rsplit(b":", 2)[-2:])
            if place * size < now - (FINE_KEPT if size == FINE else COARSE_KEPT):
                del self._closed[key]
        self._fresh.clear()


def _is_closed(size: int, place: int, now: float) -> bool:
    """Whether nobody adds to a bucket any more."""
    return (place + 1) * size + WRITTEN[size] < now
