"""Service level indicators: what the workers of a queue did, counted compactly in Redis for 30 days.

Each worker adds up its own events and writes them once a minute, or once in five while nothing happens. Counters of all
workers merge, since they only ever grow. Two sizes of bucket are kept: five minutes for half a day, hours for a month.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from oxherd.clock import mono, wall_ms
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.telemetry.events import JobEnded, ModelCalled, attach
from oxherd.telemetry.slo import BURNS, DAY, HOUR, Count, Objective, Sli, Standing, standing

MINUTE = 60
FINE, COARSE = 300, 3600  # seconds of a bucket
FINE_KEPT, COARSE_KEPT = int(DAY / 2), int(31 * DAY)  # seconds
FINE_REACH = 6 * HOUR  # windows up to this are read from the fine buckets
BUSY_PAUSE, IDLE_PAUSE, LOOK = 60.0, 300.0, 15.0  # seconds between writes, and between looks at our own health
LATE = IDLE_PAUSE + MINUTE  # seconds after which all minutes in which a worker was healthy have been written
FRESH = 5.0  # seconds for which what was read is not read again: one look asks for many windows
LAST_WORD = 2.0  # seconds that the last write may take
STEPS = 20  # buckets of a histogram per factor of ten: a bucket's ends are 12 % apart
MOST = 8 * STEPS  # the last one has all above 100,000 s
UNKNOWN = "_unknown"  # names no handler has share one, as in the metrics
MOST_AGENTS = 50  # that are counted apart: definitions come with jobs, so there is no end to their names
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


class Indicators:
    """Writes what this worker did, and reads what all have done.

    Parameters:
        link: a connection to Redis.
        keys: the queue's keys.
    """

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._pending: Counter[str] = Counter()
        self._minutes: set[int] = set()
        self._known: frozenset[str] = frozenset()
        self._healthy: Callable[[], bool] = bool
        self._expiring: set[bytes] = set()
        self._written_at = 0.0
        self._detach: list[Callable[[], None]] = []
        self._agents: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed: dict[bytes, dict[str, int]] = {}
        self._fresh: dict[bytes, tuple[float, dict[str, int]]] = {}
        self._since: int | None = None

    # -- writing

    async def start(self, handlers: Iterable[str], healthy: Callable[[], bool]) -> None:
        """Begin to count.

        Parameters:
            handlers: the job names that are counted apart; all others share `_unknown`.
            healthy: whether this worker is, now; quick.
        """
        self._known = frozenset(handlers)
        self._healthy = healthy
        self._detach = [attach(self._job_ended, JobEnded), attach(self._model_called, ModelCalled)]
        self._written_at = mono()
        self._task = asyncio.create_task(self._keep_writing(), name="indicators")

    async def stop(self) -> None:
        """Write what is left, and end. Twice is fine."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for detach in self._detach:
            detach()
        with contextlib.suppress(TimeoutError):  # a connection may hang without our knowing
            async with asyncio.timeout(LAST_WORD):
                await self._write_or_keep()

    def _job_ended(self, event: JobEnded) -> None:
        job = event.job if event.job in self._known else UNKNOWN
        add = self._pending
        add[f"{job}|a"] += 1
        add[f"{job}|r{bucket_of(event.run_ms)}"] += 1
        if event.attempt == 1:
            add[f"{job}|w{bucket_of(event.wait_ms)}"] += 1
        if event.outcome == "completed":
            add[f"{job}|c"] += 1
        elif event.outcome == "failed":
            add[f"{job}|f"] += 1
            add[f"{job}|e"] += 1
            if event.kind == "quarantined":
                add[f"{job}|q"] += 1
        elif event.outcome == "retried":
            add[f"{job}|e"] += 1

    def _model_called(self, event: ModelCalled) -> None:
        if event.first_token_s is None:
            return
        if len(self._agents) < MOST_AGENTS:
            self._agents.add(event.agent)
        agent = event.agent if event.agent in self._agents else UNKNOWN
        self._pending[f"{agent}|t{bucket_of(event.first_token_s * 1000)}"] += 1

    async def _keep_writing(self) -> None:
        while True:
            if self._healthy():
                self._minutes.add(wall_ms() // 60_000)
            waited = mono() - self._written_at
            if waited >= (BUSY_PAUSE if self._pending else IDLE_PAUSE):
                await self._write_or_keep()
            await asyncio.sleep(LOOK)

    async def _write_or_keep(self) -> None:
        """Write; while Redis is away all is kept for the next time. A lost reply may count a minute's events twice."""
        self._written_at = mono()
        pending, self._pending = self._pending, Counter()
        minutes, self._minutes = self._minutes, set()
        try:
            await self.write(pending, minutes)
        except (RedisUnreachable, RedisRefused):
            self._pending.update(pending)
            self._minutes |= minutes

    async def write(self, counted: Mapping[str, int], minutes: Iterable[int] = ()) -> None:
        """Add counters to the buckets of this moment, and minutes (since the epoch) in which a worker was healthy."""
        now = wall_ms() // 1000
        sends = [
            self._link.call(b"HINCRBY", key, name, number)
            for size in (FINE, COARSE)
            for key in [self._bucket(size, now)]
            for name, number in counted.items()
        ]
        touched = {self._bucket(size, now) for size in (FINE, COARSE)} if counted else set()
        for minute in minutes:
            key = self._bucket(COARSE, minute * MINUTE)
            sends.append(self._link.call(b"HSET", key, f"up{minute % 60}", 1))
            touched.add(key)
        fresh = touched - self._expiring
        sends += [self._link.call(b"EXPIRE", key, self._kept(key)) for key in fresh]
        if fresh:
            sends.append(self._link.call(b"SET", self._keys.indicators + b"since", now, b"NX"))
        await asyncio.gather(*sends)
        self._expiring = (self._expiring & touched) | fresh

    def _bucket(self, size: int, at: int) -> bytes:
        return self._keys.indicators + b"%d:%d" % (size, at // size)

    def _kept(self, key: bytes) -> int:
        return FINE_KEPT if b":%d:" % FINE in key else COARSE_KEPT

    # -- reading

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
        key = self._keys.indicators + b"%d:%d" % (size, place)
        if key in self._closed:
            return self._closed[key]
        read_at, fields = self._fresh.get(key, (-math.inf, {}))
        if mono() - read_at < FRESH:
            return fields
        flat = iter(await self._link.call(b"HGETALL", key))
        fields = {name.decode("utf-8", "replace"): int(number) for name, number in zip(flat, flat, strict=True)}
        if (place + 1) * size + LATE < wall_ms() / 1000:  # nobody adds to it any more
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
