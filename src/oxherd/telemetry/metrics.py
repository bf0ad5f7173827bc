"""Metrics: events counted and timed for Prometheus, on a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from oxherd.telemetry import events
from oxherd.telemetry.events import Event, attach

SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800)
QUICK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
UNKNOWN = "_unknown"
_FINAL = frozenset({"completed", "failed"})


class Metrics:
    """All series of one worker, kept up to date by events from `attach` on.

    Parameters:
        handlers: the job names that get series of their own; all others share `_unknown`: whoever can add
            jobs could otherwise make up series without end.
    """

    def __init__(self, handlers: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the page, nothing reads them
        self._known = frozenset(handlers)
        self._ended: dict[tuple[str, str, str], Counter] = {}
        self._timed: dict[str, tuple[Histogram, Histogram, Histogram]] = {}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._declare_jobs()
        self._declare_redis()
        self._declare_store()
        self._declare_worker()

    def _declare_jobs(self) -> None:
        self._jobs = self._counter("jobs", "Attempts that ended, by how.", "name", "outcome", "kind")
        self._retries = self._counter("job_retries", "Attempts that failed and will be repeated.", "name")
        self._wait = self._histogram("job_wait_seconds", "From being ready to being fetched.", "name")
        self._run = self._histogram("job_run_seconds", "One attempt, from fetch to outcome.", "name")
        self._total = self._histogram("job_total_seconds", "From being added to the final outcome.", "name")
        self._in_flight = self._gauge("jobs_in_flight", "Jobs that run in this worker now.")
        self._queued = self._gauge("queue_jobs", "Jobs on the queue by state, at the last scrape.", "state")
        self._stalled = self._counter("jobs_stalled", "Jobs put back because their worker was gone.")
        self._cancels = self._counter("job_cancel_requests", "Requests to cancel a job that runs here.")
        self._schedules = self._counter("schedule_failures", "Next iterations that could not be made.")

    def _declare_redis(self) -> None:
        self._redis_lost = self._counter("redis_lost", "Connections to Redis that broke.", "purpose")
        self._redis_back = self._counter("redis_reconnects", "Connections to Redis made again.", "purpose")
        self._redis_refused = self._counter("redis_refusals", "Errors that Redis answered with.", "code")
        self._leases_lost = self._counter("leases_lost", "Jobs that another worker took over.")
        self._leases_late = self._counter("leases_late", "Rounds in which leases could not be renewed.")
        self._lease_lag = self._gauge("lease_renewal_lag_seconds", "By how much the oldest renewal is overdue.")

    def _declare_store(self) -> None:
        self._store_rows = self._counter("store_rows", "Rows written by group commits.")
        self._store_flush = self._histogram("store_flush_seconds", "One group commit.", buckets=QUICK_SECONDS)
        self._store_failures = self._counter("store_failures", "Writes that the database did not take.")
        self._store_up = self._gauge("store_up", "Whether the database took the last write.")
        self._store_waiting = self._gauge("store_waiting", "Writes that wait for the database.")
        self._store_up.set(1)

    def _declare_worker(self) -> None:
        self._build = Info("oxherd_build", "What runs here.", registry=self.registry)
        self._concurrency = self._gauge("concurrency", "How many jobs this worker runs at once.")
        self._draining = self._gauge("draining", "Whether the worker takes no new jobs because it stops.")
        self._warnings = self._counter("warnings", "Things about the surroundings that deserve attention.")
        self._faults = self._counter("faults", "Faults in Oxherd itself.")
        self._loop_lag = self._gauge("loop_lag_seconds", "How long the event loop has been standing still.")
        self._blocks = self._counter("loop_blocks", "Times the event loop stood still.")
        self._gate = self._gauge("gate_closed", "Whether the intake gate is closed.")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"oxherd_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"oxherd_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"oxherd_{name}", about, labels, buckets=buckets, registry=self.registry)

    def attach(self) -> Callable[[], None]:
        """Listen for events. Returns a function that stops listening."""
        detach = [attach(count, kind) for kind, count in self.subscriptions().items()]

        def stop() -> None:
            for each in detach:
                each()

        return stop

    def watch(
        self,
        *,
        in_flight: Callable[[], float] | None = None,
        loop_lag: Callable[[], float] | None = None,
        lease_lag: Callable[[], float] | None = None,
        store_waiting: Callable[[], float] | None = None,
    ) -> None:
        """Read these at each scrape. They must be quick and must not raise.

        Parameters:
            in_flight: jobs that run now.
            loop_lag: seconds since the event loop's sign of life was due.
            lease_lag: seconds by which the oldest renewal is overdue.
            store_waiting: writes that wait for the database.
        """
        gauges = (self._in_flight, self._loop_lag, self._lease_lag, self._store_waiting)
        for gauge, read in zip(gauges, (in_flight, loop_lag, lease_lag, store_waiting), strict=True):
            if read is not None:
                gauge.set_function(read)

    def set_depths(self, depths: Mapping[str, int]) -> None:
        """Take over how many jobs the queue holds in each state, as just read from Redis."""
        for state, count in depths.items():
            self._queued.labels(state).set(count)

    def render(self) -> bytes:
        """The page that Prometheus scrapes, in its text format."""
        return generate_latest(self.registry)

    def subscriptions(self) -> dict[type[Event], Callable[[Any], None]]:
        """Which event changes which series."""
        return {
            events.WorkerStarted: self._worker_started,
            events.WorkerWarned: lambda _: self._warnings.inc(),
            events.WorkerDraining: lambda _: self._draining.set(1),
            events.JobEnded: self._job_ended,
            events.JobCancelRequested: lambda _: self._cancels.inc(),
            events.JobStalled: lambda _: self._stalled.inc(),
            events.LeaseWasLost: lambda _: self._leases_lost.inc(),
            events.LeasesLate: lambda _: self._leases_late.inc(),
            events.RedisLost: lambda event: self._redis_lost.labels(event.purpose).inc(),
            events.RedisBack: lambda event: self._redis_back.labels(event.purpose).inc(),
            events.RedisRefusedCommand: lambda event: self._redis_refused.labels(_code(event.code)).inc(),
            events.StoreLost: self._store_failed,
            events.StoreBack: lambda _: self._store_up.set(1),
            events.StoreFlushed: self._flushed,
            events.LoopBlocked: lambda _: self._blocks.inc(),
            events.GateChanged: lambda event: self._gate.set(event.closed),
            events.ScheduleFailed: lambda _: self._schedules.inc(),
            events.InternalFault: lambda _: self._faults.inc(),
        }

    def _job_ended(self, event: events.JobEnded) -> None:
        name = event.job if event.job in self._known else UNKNOWN
        key = (name, event.outcome, event.kind)
        ended = self._ended.get(key) or self._ended.setdefault(key, self._jobs.labels(*key))
        wait, run, total = self._timed.get(name) or self._timed_children(name)
        ended.inc()
        wait.observe(event.wait_ms / 1000)
        run.observe(event.run_ms / 1000)
        if event.outcome in _FINAL:
            total.observe(event.total_ms / 1000)
        elif event.outcome == "retried":
            self._retries.labels(name).inc()

    def _timed_children(self, name: str) -> tuple[Histogram, Histogram, Histogram]:
        children = (self._wait.labels(name), self._run.labels(name), self._total.labels(name))
        return self._timed.setdefault(name, children)

    def _worker_started(self, event: events.WorkerStarted) -> None:
        self._concurrency.set(event.concurrency)
        self._build.info(
            {"version": event.version, "commit": event.commit, "redis_version": event.redis_version}
            | {"queue": event.queue, "store": event.store}
        )

    def _store_failed(self, _: events.StoreLost) -> None:
        self._store_failures.inc()
        self._store_up.set(0)

    def _flushed(self, event: events.StoreFlushed) -> None:
        self._store_rows.inc(event.rows)
        self._store_flush.observe(event.seconds)


def _code(code: str) -> str:
    """Redis's own codes are single upper-case words; what a script or a proxy says could be anything."""
    return code if code.isascii() and code.isalpha() and code.isupper() else "other"
