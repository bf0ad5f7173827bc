"""Metrics: events counted and timed for Prometheus, on a registry of their own.

Every series is a row of one table. The page that is scraped, the dashboard, the alerting rules and the docs are made
from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from oxherd.telemetry import events
from oxherd.telemetry.events import Event, attach

SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800)
PEOPLES_SECONDS = (10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86_400, 3 * 86_400, 7 * 86_400)
QUICK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
ROWS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)
UNKNOWN = "_unknown"
OTHER = "_other"
MOST_NAMES = 50  # agents, and models, and tools, that get series of their own
_SUFFIXES = {"counter": "_total", "info": "_info"}
_FINAL = frozenset({"completed", "failed"})


@dataclass(frozen=True, slots=True)
class Series:
    """One row of the table.

    Attributes:
        name: without the prefix `oxherd_`, and without what Prometheus appends (`_total`, `_bucket`, …).
        kind: counter, gauge, histogram or info.
        about: what it counts, one sentence.
        labels: their names.
        group: the row of the dashboard that it belongs to.
        unit: seconds, usd, tokens, rows or empty, for axes.
        buckets: upper bounds, of histograms.
    """

    name: str
    kind: str
    about: str
    labels: tuple[str, ...] = ()
    group: str = ""
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus calls it; a histogram's parts begin with this."""
        return f"oxherd_{self.name}{_SUFFIXES.get(self.kind, '')}"


def _counter(name: str, about: str, *labels: str, group: str, unit: str = "") -> Series:
    return Series(name, "counter", about, labels, group, unit)


def _gauge(name: str, about: str, *labels: str, group: str, unit: str = "") -> Series:
    return Series(name, "gauge", about, labels, group, unit)


def _timer(
    name: str, about: str, *labels: str, group: str, unit: str = "seconds", buckets: tuple[float, ...] = SECONDS
) -> Series:
    return Series(name, "histogram", about, labels, group, unit, buckets)


SERIES: tuple[Series, ...] = (
    _counter("jobs_added", "Jobs that were put on a queue from here, by how that went.", "outcome", group="Jobs"),
    _counter("jobs", "Attempts that ended, by how.", "name", "outcome", "kind", group="Jobs"),
    _counter("job_retries", "Attempts that failed and will be repeated.", "name", group="Jobs"),
    _timer("job_wait_seconds", "From being ready to being fetched.", "name", group="Jobs"),
    _timer("job_run_seconds", "One attempt, from fetch to outcome.", "name", group="Jobs"),
    _timer("job_total_seconds", "From being added to the final outcome.", "name", group="Jobs"),
    _gauge("jobs_in_flight", "Jobs that run in this worker now.", group="Jobs"),
    _gauge("queue_jobs", "Jobs on the queue by state, at the last scrape.", "state", group="Jobs"),
    _counter("jobs_stalled", "Jobs put back because their worker was gone.", group="Jobs"),
    _counter("jobs_put_aside", "Waiting jobs put aside because it was another tenant's turn.", group="Jobs"),
    _counter("job_cancel_requests", "Requests to cancel a job that runs here.", group="Jobs"),
    _counter("schedule_failures", "Next iterations that could not be made.", group="Jobs"),
    _counter("approvals_requested", "Questions that jobs asked people.", "name", group="Jobs"),
    _counter("approvals", "Questions that are over: approved, denied or expired.", "name", "outcome", group="Jobs"),
    _timer("approval_wait_seconds", "From a question to its answer.", "name", group="Jobs", buckets=PEOPLES_SECONDS),
    _counter("agent_runs", "Runs of agents that ended in this attempt, by how.", "agent", "outcome", group="Agents"),
    _timer("agent_run_seconds", "One run of an agent, in one attempt.", "agent", group="Agents"),
    _counter("model_calls", "Calls of models, by how they ended.", "agent", "model", "outcome", group="Agents"),
    _timer("model_seconds", "One call of a model, with its waits and tries.", "model", group="Agents"),
    _timer("model_first_token_seconds", "From sending a try to its answer's first piece.", "model", group="Agents"),
    _counter("model_faults", "Tries of model calls that failed, by HTTP status.", "model", "status", group="Agents"),
    _counter(
        "model_tokens", "Tokens: input, of it cached by the provider; output, of it reasoning.",
        "agent", "model", "kind", group="Agents", unit="tokens",
    ),
    _counter(
        "model_cost_usd", "What model calls cost, as far as it is known.", "agent", "model", group="Agents", unit="usd"
    ),
    _counter("tool_calls", "Calls of tools, by how they ended.", "agent", "tool", "outcome", group="Agents"),
    _timer("tool_seconds", "One call of a tool.", "tool", group="Agents"),
    _counter("mcp_connects", "Connections to servers of tools (MCP) that were made.", "server", group="Agents"),
    _counter("mcp_lost", "Servers of tools (MCP) that died, or could not be reached.", "server", group="Agents"),
    _counter("steps", "Steps that ran, by how they ended.", "kind", "outcome", group="Agents"),
    _counter("steps_replayed", "Steps that were in the journal already.", "kind", group="Agents"),
    _timer("limiter_wait_seconds", "Waits for the limits that all workers share.", "model", group="Limits and money"),
    _counter("limiter_refusals", "Calls put off because the limits left no room.", "model", group="Limits and money"),
    _counter("budget_refusals", "Model calls not made because of a cap on money.", "scope", group="Limits and money"),
    _counter("spend_unknown", "Model calls whose cost can't be found out.", "model", group="Limits and money"),
    _counter("redis_lost", "Connections to Redis that broke.", "purpose", group="Redis"),
    _counter("redis_reconnects", "Connections to Redis made again.", "purpose", group="Redis"),
    _counter("redis_refusals", "Errors that Redis answered with.", "code", group="Redis"),
    _counter("leases_lost", "Jobs that another worker took over.", group="Redis"),
    _counter("leases_late", "Rounds in which leases could not be renewed.", group="Redis"),
    _gauge("lease_renewal_lag_seconds", "By how much the oldest renewal is overdue.", group="Redis", unit="seconds"),
    _counter("streams", "Attempts that somebody followed.", group="Streams"),
    _counter("stream_entries", "Entries published for those who follow jobs.", group="Streams"),
    _counter("stream_writes", "Commands that this took.", group="Streams"),
    _counter("stream_dropped_entries", "Entries that Redis did not take in time.", group="Streams"),
    _counter("store_rows", "Rows written by group commits.", group="Journal", unit="rows"),
    _timer("store_batch_rows", "Rows of one group commit.", group="Journal", unit="rows", buckets=ROWS),
    _timer("store_flush_seconds", "One group commit.", group="Journal", buckets=QUICK_SECONDS),
    _timer("journal_seconds", "From a step's end until it is durable.", "kind", group="Journal", buckets=QUICK_SECONDS),
    _counter("store_failures", "Writes that the database did not take.", group="Journal"),
    _gauge("store_up", "Whether the database took the last write.", group="Journal"),
    _gauge("store_waiting", "Writes that wait for the database.", group="Journal", unit="rows"),
    _counter("alerts_fired", "Alerts that people were told of, repeats included.", "alert", group="Alerts"),
    _counter("alerts_resolved", "Alerts that people were told the end of.", "alert", group="Alerts"),
    _counter("alerts_undelivered", "Messages of alerts that a channel did not take.", "channel", group="Alerts"),
    _counter("api_actions", "Actions through the HTTP API, by HTTP status.", "action", "status", group="HTTP API"),
    _counter("api_login_failures", "Wrong tokens at the HTTP API.", group="HTTP API"),
    _counter("audit_losses", "Actions that are not in the audit log.", group="HTTP API"),
    _counter("tasks", "Tasks of operations that ended, by how.", "task", "outcome", group="Worker"),
    Series("build", "info", "What runs here.", group="Worker"),
    _gauge("concurrency", "How many jobs this worker runs at once.", group="Worker"),
    _gauge("healthy", "Whether /health answers 200.", group="Worker"),
    _gauge("draining", "Whether the worker takes no new jobs because it stops.", group="Worker"),
    _counter("warnings", "Things about the surroundings that deserve attention.", group="Worker"),
    _counter("faults", "Faults in Oxherd itself.", group="Worker"),
    _gauge("loop_lag_seconds", "How long the event loop has been standing still.", group="Worker", unit="seconds"),
    _counter("loop_blocks", "Times the event loop stood still.", group="Worker"),
    _gauge("gate_closed", "Whether the intake gate is closed.", group="Worker"),
)  # fmt: skip
_KINDS: dict[str, Callable[..., Counter | Gauge | Info]] = {"counter": Counter, "gauge": Gauge, "info": Info}


class Timer(Collector):
    """A histogram that costs a fifth of the client library's.

    Only the event loop's thread observes and is scraped, so it needs no locks; and it finds its bucket by halving.

    Parameters:
        row: what it is called, and its buckets.
        registry: that it is scraped with.
    """

    def __init__(self, row: Series, registry: CollectorRegistry) -> None:
        self._row = row
        self._children: dict[tuple[str, ...], Times] = {}
        if not row.labels:
            self.observe = self.labels().observe
        registry.register(self)

    def labels(self, *values: str) -> Times:
        """The histogram of these values of its labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = Times(self._row.buckets)
        return child

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What Prometheus scrapes."""
        family = HistogramMetricFamily(f"oxherd_{self._row.name}", self._row.about, labels=self._row.labels)
        for values, child in self._children.items():
            family.add_metric(values, child.cumulated(), child.sum)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """What it will be, without values."""
        yield HistogramMetricFamily(f"oxherd_{self._row.name}", self._row.about, labels=self._row.labels)


class Times:
    """Values counted by bucket."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> list[tuple[str, float]]:
        """How many values are at most each bound, as Prometheus wants it."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class Metrics:
    """All series of one worker, kept up to date by events from `attach` on.

    Parameters:
        handlers: the job names that get series of their own; all others share `_unknown`: whoever can add
            jobs could otherwise make up series without end.
    """

    def __init__(self, handlers: Iterable[str] = ()) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the page, nothing reads them
        self._known = frozenset(handlers)
        self._names: dict[str, set[str]] = {"agent": set(), "model": set(), "tool": set(), "server": set()}
        self._ended: dict[tuple[str, str, str], Counter] = {}
        self._timed: dict[str, tuple[Times, Times, Times]] = {}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series: dict[str, Any] = {row.name: self._made(row) for row in SERIES}
        self._series["store_up"].set(1)

    def _made(self, row: Series) -> Any:
        if row.kind == "histogram":
            return Timer(row, self.registry)
        return _KINDS[row.kind](f"oxherd_{row.name}", row.about, row.labels, registry=self.registry)

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
        healthy: Callable[[], float] | None = None,
    ) -> None:
        """Read these at each scrape. They must be quick and must not raise.

        Parameters:
            in_flight: jobs that run now.
            loop_lag: seconds since the event loop's sign of life was due.
            lease_lag: seconds by which the oldest renewal is overdue.
            store_waiting: writes that wait for the database.
            healthy: whether all is well.
        """
        watched = {
            "jobs_in_flight": in_flight,
            "loop_lag_seconds": loop_lag,
            "lease_renewal_lag_seconds": lease_lag,
            "store_waiting": store_waiting,
            "healthy": healthy,
        }
        for name, read in watched.items():
            if read is not None:
                self._series[name].set_function(read)

    def set_depths(self, depths: Mapping[str, int]) -> None:
        """Take over how many jobs the queue holds in each state, as just read from Redis."""
        for state, count in depths.items():
            self._series["queue_jobs"].labels(state).set(count)

    def render(self) -> bytes:
        """The page that Prometheus scrapes, in its text format."""
        return generate_latest(self.registry)

    def subscriptions(self) -> dict[type[Event], Callable[[Any], None]]:
        """Which event changes which series."""
        of = self._series
        return {
            events.WorkerStarted: self._worker_started,
            events.WorkerWarned: lambda _: of["warnings"].inc(),
            events.WorkerDraining: lambda _: of["draining"].set(1),
            events.JobsAdded: lambda event: of["jobs_added"].labels(event.outcome).inc(event.count),
            events.JobEnded: self._job_ended,
            events.JobCancelRequested: lambda _: of["job_cancel_requests"].inc(),
            events.JobStalled: lambda _: of["jobs_stalled"].inc(),
            events.JobsPutAside: lambda event: of["jobs_put_aside"].inc(event.count),
            events.ApprovalRequested: lambda event: of["approvals_requested"].labels(self._job_name(event.job)).inc(),
            events.ApprovalAnswered: self._answered,
            events.ApprovalExpired: lambda event: of["approvals"].labels(self._job_name(event.job), "expired").inc(),
            events.StepEnded: self._step_ended,
            events.StepReplayed: lambda event: of["steps_replayed"].labels(event.kind).inc(),
            events.AgentEnded: self._agent_ended,
            events.ModelCalled: self._model_called,
            events.ModelFaulted: self._model_faulted,
            events.ToolCalled: self._tool_called,
            events.McpConnected: lambda event: of["mcp_connects"].labels(self._named("server", event.server)).inc(),
            events.McpLost: lambda event: of["mcp_lost"].labels(self._named("server", event.server)).inc(),
            events.LimiterWaited: self._limiter_waited,
            events.LeaseWasLost: lambda _: of["leases_lost"].inc(),
            events.LeasesLate: lambda _: of["leases_late"].inc(),
            events.RedisLost: lambda event: of["redis_lost"].labels(event.purpose).inc(),
            events.RedisBack: lambda event: of["redis_reconnects"].labels(event.purpose).inc(),
            events.RedisRefusedCommand: lambda event: of["redis_refusals"].labels(_code(event.code)).inc(),
            events.StoreLost: self._store_failed,
            events.StoreBack: lambda _: of["store_up"].set(1),
            events.StoreFlushed: self._flushed,
            events.LoopBlocked: lambda _: of["loop_blocks"].inc(),
            events.GateChanged: lambda event: of["gate_closed"].set(event.closed),
            events.BudgetReached: lambda event: of["budget_refusals"].labels(event.scope).inc(),
            events.SpendUnknown: lambda event: of["spend_unknown"].labels(self._named("model", event.model)).inc(),
            events.TaskEnded: lambda event: of["tasks"].labels(event.task, event.outcome).inc(),
            events.ScheduleFailed: lambda _: of["schedule_failures"].inc(),
            events.AlertFired: lambda event: of["alerts_fired"].labels(event.alert).inc(),
            events.AlertResolved: lambda event: of["alerts_resolved"].labels(event.alert).inc(),
            events.AlertUndelivered: lambda event: of["alerts_undelivered"].labels(event.channel).inc(),
            events.StreamEnded: self._stream_ended,
            events.ApiActed: lambda event: of["api_actions"].labels(event.action, str(event.outcome)).inc(),
            events.ApiLoginFailed: lambda _: of["api_login_failures"].inc(),
            events.AuditLost: lambda _: of["audit_losses"].inc(),
            events.InternalFault: lambda _: of["faults"].inc(),
        }

    def _named(self, what: str, name: str) -> str:
        """The name as a label. Definitions come with jobs, so only so many names get series of their own."""
        names = self._names[what]
        if name in names:
            return name
        if len(names) >= MOST_NAMES:
            return OTHER
        names.add(name)
        return name

    def _job_name(self, job: str) -> str:
        return job if job in self._known else UNKNOWN

    def _answered(self, event: events.ApprovalAnswered) -> None:
        name = self._job_name(event.job)
        self._series["approvals"].labels(name, "approved" if event.approved else "denied").inc()
        self._series["approval_wait_seconds"].labels(name).observe(event.waited_s)

    def _job_ended(self, event: events.JobEnded) -> None:
        name = self._job_name(event.job)
        key = (name, event.outcome, event.kind)
        ended = self._ended.get(key) or self._ended.setdefault(key, self._series["jobs"].labels(*key))
        wait, run, total = self._timed.get(name) or self._timed_children(name)
        ended.inc()
        wait.observe(event.wait_ms / 1000)
        run.observe(event.run_ms / 1000)
        if event.outcome in _FINAL:
            total.observe(event.total_ms / 1000)
        elif event.outcome == "retried":
            self._series["job_retries"].labels(name).inc()

    def _timed_children(self, name: str) -> tuple[Times, Times, Times]:
        of = self._series
        children = tuple(
            of[timer].labels(name) for timer in ("job_wait_seconds", "job_run_seconds", "job_total_seconds")
        )
        return self._timed.setdefault(name, children)

    def _step_ended(self, event: events.StepEnded) -> None:
        self._series["steps"].labels(event.kind, event.outcome).inc()
        if event.outcome == "ok":
            self._series["journal_seconds"].labels(event.kind).observe(event.journal_s)

    def _agent_ended(self, event: events.AgentEnded) -> None:
        agent = self._named("agent", event.agent)
        self._series["agent_runs"].labels(agent, event.outcome).inc()
        self._series["agent_run_seconds"].labels(agent).observe(event.seconds)

    def _model_called(self, event: events.ModelCalled) -> None:
        of, agent, model = self._series, self._named("agent", event.agent), self._named("model", event.model)
        of["model_calls"].labels(agent, model, event.outcome).inc()
        of["model_seconds"].labels(model).observe(event.seconds)
        if event.first_token_s is not None:
            of["model_first_token_seconds"].labels(model).observe(event.first_token_s)
        for kind in ("input", "cached", "output", "reasoning"):
            if tokens := getattr(event, f"{kind}_tokens"):
                of["model_tokens"].labels(agent, model, kind).inc(tokens)
        if event.cost_usd is not None:
            of["model_cost_usd"].labels(agent, model).inc(event.cost_usd)

    def _model_faulted(self, event: events.ModelFaulted) -> None:
        self._series["model_faults"].labels(self._named("model", event.model), str(event.status)).inc()

    def _tool_called(self, event: events.ToolCalled) -> None:
        agent, tool = self._named("agent", event.agent), self._named("tool", event.tool)
        self._series["tool_calls"].labels(agent, tool, event.outcome).inc()
        self._series["tool_seconds"].labels(tool).observe(event.seconds)

    def _limiter_waited(self, event: events.LimiterWaited) -> None:
        model = self._named("model", event.model)
        self._series["limiter_wait_seconds"].labels(model).observe(event.seconds)
        if not event.passed:
            self._series["limiter_refusals"].labels(model).inc()

    def _worker_started(self, event: events.WorkerStarted) -> None:
        self._series["concurrency"].set(event.concurrency)
        self._series["build"].info(
            {"version": event.version, "commit": event.commit, "redis_version": event.redis_version}
            | {"queue": event.queue, "store": event.store}
        )

    def _store_failed(self, _: events.StoreLost) -> None:
        self._series["store_failures"].inc()
        self._series["store_up"].set(0)

    def _stream_ended(self, event: events.StreamEnded) -> None:
        self._series["streams"].inc()
        self._series["stream_entries"].inc(event.entries)
        self._series["stream_writes"].inc(event.writes)
        self._series["stream_dropped_entries"].inc(event.dropped)

    def _flushed(self, event: events.StoreFlushed) -> None:
        self._series["store_rows"].inc(event.rows)
        self._series["store_batch_rows"].observe(event.rows)
        self._series["store_flush_seconds"].observe(event.seconds)


def _code(code: str) -> str:
    """Redis's own codes are single upper-case words; what a script or a proxy says could be anything."""
    return code if code.isascii() and code.isalpha() and code.isupper() else "other"
