"""Prometheus rules made from the table of series: what to record, when to alert, how fast error budgets burn. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oxherd.telemetry.metrics import SERIES, Series
from oxherd.telemetry.slo import BURNS, DAY, HOUR, Burn, Objective, Sli

Rule = dict[str, Any]
_TABLE: Mapping[str, Series] = {row.name: row for row in SERIES}
QUANTILES = (0.5, 0.95, 0.99)
_ERRORS = "oxherd:slo_errors:ratio"  # the share of bad events of an objective; the window follows


def series(name: str, part: str = "", /, **labels: str) -> str:
    """A selector of a declared series.

    Parameters:
        name: as in the table.
        part: bucket, count or sum, of histograms.
        labels: what they must be; a value with | in it is a choice.

    Raises:
        KeyError: there is no such series, or it has no such label.
    """
    row = _TABLE[name]
    if unknown := set(labels) - {*row.labels, "le"}:
        raise KeyError(f"oxherd_{name} has no label {min(unknown)!r}")
    wanted = ",".join(f"{label}{'=~' if '|' in value else '='}{json.dumps(value)}" for label, value in labels.items())
    return f"{row.full_name}{'_' + part if part else ''}{f'{{{wanted}}}' if wanted else ''}"


def _grew(selector: str, span: str) -> str:
    # `increase` can't see the step from no series to 1, which is what the first of its kind is.
    first = f"sum by (job) ({selector} unless {selector} offset {span})"
    return f"sum by (job) (increase({selector}[{span}])) > 0 or {first} > 0"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: in Prometheus.
        expr: what is wrong, in PromQL.
        lasting: for how long it must be so.
        severity: `page` for now, `ticket` for working hours.
        summary: one sentence.
        look: where to look first.
        runbook: the page in `docs/runbooks/` about it, or empty.
    """

    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    look: str
    runbook: str = ""

    def rule(self, runbooks: str) -> Rule:
        """As Prometheus reads it; `runbooks` is where the runbooks are read."""
        annotations = {"summary": self.summary, "description": self.look, **_linked(runbooks, self.runbook)}
        lasting = {"for": self.lasting} if self.lasting != "0s" else {}
        return {
            "alert": self.name, "expr": self.expr, **lasting, "labels": {"severity": self.severity},
            "annotations": annotations,
        }  # fmt: skip


def _linked(runbooks: str, name: str) -> dict[str, str]:
    return {"runbook": f"{runbooks}/{name}.md"} if name else {}


_BACKLOG = f"max by (job) ({series('queue_jobs', state='wait|prioritized')}) > 0"
_BUSY = f"sum by (job) ({series('jobs_in_flight')}) >= sum by (job) ({series('concurrency')})"
_OVER = series("jobs", outcome="completed|failed")
_FAILED = series("jobs", outcome="failed")
_CALLS = series("model_calls")
_BAD_CALLS = series("model_calls", outcome="failed|delayed")

ALERTS: tuple[Alert, ...] = (
    Alert(
        "OxherdDown", f"absent({series('build')})", "5m", "page",
        "No worker is scraped: none runs, or Prometheus does not reach it.", "The platform's logs of the last worker.",
    ),
    Alert(
        "OxherdUnhealthy", f"{series('healthy')} == 0 and {series('draining')} == 0", "2m", "page",
        "A worker says of itself that it is not well.", "Its /health names the check that fails.",
    ),
    Alert(
        "OxherdNoProgress",
        f"{_BACKLOG} unless on (job) (sum by (job) (increase({series('jobs')}[10m])) > 0) unless on (job) ({_BUSY}) "
        f"unless on (job) (max by (job) ({series('gate_closed')}) > 0)",
        "10m", "page", "Jobs wait, workers have room, and none has ended for ten minutes.",
        "A paused queue, the queue's own limits, another prefix: the start-up lines and /health.", "no-progress",
    ),
    Alert(
        "OxherdFailures",
        f"sum by (job) (rate({_FAILED}[15m])) / sum by (job) (rate({_OVER}[15m])) > 0.2 "
        f"and sum by (job) (increase({_FAILED}[15m])) > 5",
        "5m", "page", "More than a fifth of the jobs fail.", "oxherd jobs dead; the label kind of oxherd_jobs_total.",
        "failure-spike",
    ),
    Alert(
        "OxherdQuarantined", _grew(series("jobs", kind="quarantined"), "15m"), "0s", "ticket",
        "A job keeps killing its workers and was taken out of circulation.", "Their memory and logs at that time.",
        "quarantined",
    ),
    Alert(
        "OxherdLongWaits", "max by (job) (oxherd:job_wait_seconds:p95_5m) > 600", "10m", "ticket",
        "Jobs wait longer than ten minutes for a slot.", "More workers, or JOB_CONCURRENCY; is the gate closed?",
        "queue-age",
    ),
    Alert(
        "OxherdStalledJobs", f"sum by (job) (increase({series('jobs_stalled')}[30m])) > 3", "0s", "ticket",
        "Jobs are put back because their workers die.", "Out of memory, or SIGKILL before the draining time is over.",
    ),
    Alert(
        "OxherdLeasesLost", f"sum by (job) (increase({series('leases_lost')}[30m])) > 3", "0s", "ticket",
        "Jobs that run are given to other workers.", "Was Redis away for longer than a lease?",
    ),
    Alert(
        "OxherdLeasesOverdue", f"{series('lease_renewal_lag_seconds')} > 10", "1m", "page",
        "Leases are not renewed: jobs are about to be lost to other workers.", "The lease connection to Redis.",
    ),
    Alert(
        "OxherdLoopBlocked", f"increase({series('loop_blocks')}[15m]) > 3", "0s", "ticket",
        "A handler blocks the event loop again and again.", "Log lines loop.blocked have the stack.",
    ),
    Alert(
        "OxherdStoreAway", f"{series('store_up')} == 0", "1m", "page",
        "The database takes no writes, and finished jobs wait for it.", "The database; nothing is lost meanwhile.",
        "store-away",
    ),
    Alert(
        "OxherdRedisFull", _grew(series("redis_refusals", code="OOM"), "15m"), "0s", "page",
        "Redis is out of memory and refuses writes.", "Its maxmemory, and removeOnComplete of the producers.",
    ),
    Alert(
        "OxherdGateClosed", f"max by (job) ({series('gate_closed')}) == 1", "30m", "ticket",
        "The intake gate has been closed for half an hour.", "oxherd gate status says why.", "gate-closed",
    ),
    Alert(
        "OxherdStuckDrain", f"{series('draining')} == 1", "15m", "ticket",
        "A worker has been stopping for a quarter of an hour.", "A handler that ignores its cancellation.",
    ),
    Alert(
        "OxherdModelsFail",
        f"sum by (job, model) (rate({_BAD_CALLS}[10m])) / sum by (job, model) (rate({_CALLS}[10m])) > 0.5 "
        f"and sum by (job, model) (increase({_BAD_CALLS}[10m])) > 5",
        "5m", "page", "More than half of the calls of a model fail or are put off.",
        "The label status of oxherd_model_faults_total; the provider's status page; credit.",
    ),
    Alert(
        "OxherdCapReached", _grew(series("budget_refusals", scope="global"), "15m"), "0s", "page",
        "The day's cap on money is reached, and workers take no more jobs.", "oxherd spend report; BUDGET_DAILY_USD.",
        "intake-stopped",
    ),
    Alert(
        "OxherdSpendUnknown", _grew(series("spend_unknown"), "1h"), "0s", "ticket",
        "There are model calls whose cost nobody will ever know.", "oxherd spend report --by model.",
    ),
    Alert(
        "OxherdSchedulesFail", f"sum by (job) (increase({series('schedule_failures')}[1h])) > 0", "0s", "ticket",
        "A schedule could not make its next job.", "Log lines schedule.failed.",
    ),
    Alert(
        "OxherdFaults", f"sum by (job) (increase({series('faults')}[1h])) > 0", "0s", "ticket",
        "A fault in Oxherd itself.", "Please report it with its log line worker.fault.",
    ),
)  # fmt: skip


def groups(objectives: Sequence[Objective] = (), *, runbooks: str = "docs/runbooks") -> list[dict[str, Any]]:
    """All groups of rules.

    Parameters:
        objectives: each gets its error ratios recorded and two alerts, on fast and on slow burning.
        runbooks: where the runbooks are read, for links.
    """
    found = [
        {"name": "oxherd-quantiles", "rules": list(_quantiles())},
        {"name": "oxherd-alerts", "rules": [alert.rule(runbooks) for alert in ALERTS]},
    ]
    found += [{"name": f"oxherd-slo-{each.name}", "rules": list(_slo_rules(each, runbooks))} for each in objectives]
    return found


def _quantiles() -> Iterator[Rule]:
    for row in SERIES:
        if row.kind == "histogram":
            for share in QUANTILES:
                yield {"record": f"oxherd:{row.name}:p{share * 100:g}_5m", "expr": quantile(row, share, "5m")}


def quantile(row: Series, share: float, span: str) -> str:
    """PromQL for a histogram's quantile over some time, by its own labels."""
    kept = ", ".join(("job", *row.labels, "le"))
    return f"histogram_quantile({share:g}, sum by ({kept}) (rate({series(row.name, 'bucket')}[{span}])))"


def _slo_rules(objective: Objective, runbooks: str) -> Iterator[Rule]:
    burns = [burn for burn in BURNS if burn.long <= objective.window]
    for window in sorted({window for burn in burns for window in (burn.short, burn.long)}):
        yield {
            "record": f"{_ERRORS}_{_span(window)}",
            "expr": f"1 - {_good_share(objective, _span(window))}",
            "labels": {"slo": objective.name},
        }
    for severity, name, speed in (("page", "OxherdBudgetBurnsFast", "fast"), ("ticket", "OxherdBudgetBurns", "slow")):
        pairs = [_burning(objective, burn) for burn in burns if burn.severity == severity]
        if pairs:
            yield {
                "alert": name,
                "expr": " or ".join(pairs),
                "labels": {"severity": severity, "slo": objective.name},
                "annotations": {
                    "summary": f"The error budget of {objective.name} burns too fast: {objective.words}.",
                    "description": "oxherd slo status says what is left of it.",
                    **_linked(runbooks, f"slo-burn-{speed}"),
                },
            }


def _burning(objective: Objective, burn: Burn) -> str:
    limit = f"{burn.factor(objective.window) * objective.budget:.6g}"
    both = (f'{_ERRORS}_{_span(window)}{{slo="{objective.name}"}} > {limit}' for window in (burn.long, burn.short))
    return f"({' and '.join(both)})"


def _good_share(objective: Objective, span: str) -> str:
    """PromQL for the share of good events over some time; nothing where there was no event."""
    if objective.sli is Sli.AVAILABILITY:
        # Where no worker is left there is no series: within a day of the last one that is unhealthy, before the first
        # one it is nothing.
        now, ever = series("healthy"), f"last_over_time({series('healthy')}[1d])"
        return f"avg_over_time((max by (job) ({now}) or 0 * max by (job) ({ever}))[{span}:1m])"
    good, every = (f"sum by (job) (rate({events}[{span}]))" for events in _events(objective))
    return f"({good} or 0 * {every}) / ({every} > 0)"  # where all were bad, there is no series of good ones


def _events(objective: Objective) -> tuple[str, str]:
    job = {} if objective.job is None else {"name": objective.job}
    match objective.sli:
        case Sli.SUCCESS:
            return series("jobs", outcome="completed", **job), series("jobs", outcome="completed|failed", **job)
        case Sli.ATTEMPTS:
            good = "completed|delayed|handed_back|parked|lease_lost"
            return series("jobs", outcome=good, **job), series("jobs", **job)
        case Sli.FIRST_TOKEN:
            timer, job = "model_first_token_seconds", {}
        case Sli.WAIT:
            timer = "job_wait_seconds"
        case _:
            timer = "job_run_seconds"
    bound = _bucket(timer, objective.threshold or 0.0)
    return series(timer, "bucket", le=bound, **job), series(timer, "count", **job)


def _bucket(timer: str, threshold: float) -> str:
    """The bucket that decides whether something was in time: the last one that promises no more than was promised."""
    buckets = _TABLE[timer].buckets
    return f"{float(max((bound for bound in buckets if bound <= threshold), default=buckets[0]))}"


def _span(seconds: float) -> str:
    for unit, size in (("d", DAY), ("h", HOUR), ("m", 60.0)):
        if seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """Groups of rules as the YAML that Prometheus reads."""
    lines = ["# Made by `oxherd slo rules`; write your own into another file.", "groups:"]
    for group in found:
        lines += [f"  - name: {group['name']}", "    rules:"]
        for rule in group["rules"]:
            lines += _yaml(rule)
    return "\n".join(lines) + "\n"


def _yaml(rule: Rule) -> Iterator[str]:
    mark = "- "
    for key, value in rule.items():
        if isinstance(value, dict):
            yield f"      {mark}{key}:"
            yield from (f"          {name}: {json.dumps(text)}" for name, text in value.items())
        else:
            yield f"      {mark}{key}: {json.dumps(value)}"  # JSON's strings are YAML's
        mark = "  "
