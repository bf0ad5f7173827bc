"""What Sentry should show and watch, made from the objectives: a dashboard, monitors and an alert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from oxherd.cloud.sentry_api import SentryApi
from oxherd.ops.plan import Plan, Step
from oxherd.telemetry.slo import Objective, Sli

HIGH, LOW, RESOLVED = 75, 50, 0  # Sentry's `conditionResult`
WINDOW = 3600  # seconds that a monitor looks at
EVERY = 30  # minutes between two messages about the same thing
QUEUE_SPAN = "span.op:queue.process"
SPIKE = 20  # errors in five minutes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be there, as Sentry's API takes it; `project_id` is Sentry's number of the project."""

    project_id: int
    dashboard: Mapping[str, Any]
    detectors: Sequence[Mapping[str, Any]]
    workflow: Mapping[str, Any]


def wanted(queue: str, objectives: Iterable[Objective], *, project_id: int, environment: str | None) -> Wanted:
    """A dashboard of the queue, a monitor for each objective that Sentry can see, one for errors, and their alert.

    Sentry sees spans, so it can watch how long jobs wait and run and how many fail; `availability` and `first_token`
    are ours alone. Its monitors compare an hour with a limit, ours burn budgets: the two don't fire at the same moment.

    Parameters:
        queue: its name; it is in all titles, by which they are found again.
        objectives: the promises.
        project_id: Sentry's number of the project.
        environment: only events of it; None for all.
    """
    made = [each for objective in objectives if (each := _detector(queue, objective, environment)) is not None]
    errors = _monitor(
        f"Oxherd {queue}: errors", f"More than {SPIKE} errors in five minutes.", "count()", "events",
        limit=SPIKE, window=300, environment=environment,
    )  # fmt: skip
    return Wanted(
        project_id, _dashboard(queue, project_id, environment), [*made, errors], _workflow(queue, environment)
    )


def _detector(queue: str, objective: Objective, environment: str | None) -> Mapping[str, Any] | None:
    query = f"{QUEUE_SPAN} messaging.destination.name:{queue}"
    if objective.job is not None:
        query += f' span.description:"{objective.job}"'
    percentile = next(
        (name for share, name in ((0.99, "p99"), (0.95, "p95"), (0.9, "p90")) if objective.target >= share), "p50"
    )
    limit_ms = round((objective.threshold or 0.0) * 1000)
    match objective.sli:
        case Sli.RUN:
            aggregate, limit = f"{percentile}(span.duration)", float(limit_ms)
        case Sli.WAIT:
            aggregate, limit = f"{percentile}(messaging.message.receive.latency)", float(limit_ms)
        case Sli.SUCCESS | Sli.ATTEMPTS:
            aggregate, limit = "failure_rate()", round(objective.budget, 6)
        case _:
            return None
    name = f"Oxherd {queue}: {objective.name}"
    return _monitor(name, objective.words, aggregate, query=query, limit=limit, environment=environment)


def _monitor(
    name: str,
    about: str,
    aggregate: str,
    dataset: str = "events_analytics_platform",
    *,
    limit: float,
    query: str = "",
    window: int = WINDOW,
    environment: str | None = None,
) -> Mapping[str, Any]:
    errors = dataset == "events"
    source: dict[str, Any] = {
        "aggregate": aggregate, "dataset": dataset, "query": query, "queryType": 0 if errors else 1,
        "timeWindow": window, "environment": environment,
        "eventTypes": ["default", "error"] if errors else ["trace_item_span"],
    }  # fmt: skip
    if not errors:
        source["extrapolationMode"] = "unknown"
    return {
        "name": name, "type": "metric_issue", "description": about, "enabled": True, "data_sources": [source],
        "config": {"detectionType": "static"},
        "condition_group": {
            "logic_type": "any",
            "conditions": [
                {"type": "gt", "comparison": limit, "conditionResult": HIGH if errors else LOW},
                {"type": "lte", "comparison": limit, "conditionResult": RESOLVED},
            ],
        },
    }  # fmt: skip


def _workflow(queue: str, environment: str | None) -> Mapping[str, Any]:
    triggers = ("first_seen_event", "issue_resolved_trigger", "reappeared_event", "regression_event")
    email = {
        "type": "email", "integrationId": None, "data": {"fallthroughType": "ActiveMembers"}, "status": "active",
        "config": {"targetType": "issue_owners", "targetIdentifier": None, "targetDisplay": None},
    }  # fmt: skip
    return {
        "name": f"Oxherd {queue}", "enabled": True, "environment": environment, "config": {"frequency": EVERY},
        "triggers": {
            "logic_type": "any-short",
            "conditions": [{"type": each, "comparison": True, "conditionResult": True} for each in triggers],
        },
        "action_filters": [{"logicType": "all", "conditions": [], "actions": [email]}],
    }  # fmt: skip


def _dashboard(queue: str, project_id: int, environment: str | None) -> Mapping[str, Any]:
    mine = f"{QUEUE_SPAN} messaging.destination.name:{queue}"
    widgets: tuple[tuple[str, str, str, str, list[str], list[str]], ...] = (
        ("Jobs", "line", "spans", mine, ["count(span.duration)"], []),
        ("How long they run", "line", "spans", mine, ["p50(span.duration)", "p95(span.duration)"], []),
        ("How long they wait", "line", "spans", mine, ["avg(messaging.message.receive.latency)"], []),
        ("Share that failed", "line", "spans", mine, ["failure_rate()"], []),
        ("Errors", "bar", "error-events", "", ["count()"], []),
        ("Jobs by name", "table", "spans", mine, ["count(span.duration)", "p95(span.duration)"], ["span.description"]),
        (
            "Tokens by model", "table", "spans", "gen_ai.operation.type:ai_client",
            ["sum(gen_ai.usage.total_tokens)", "count(span.duration)"], ["gen_ai.request.model"],
        ),
        (
            "Tools", "table", "spans", "gen_ai.operation.type:tool",
            ["count(span.duration)", "p95(span.duration)"], ["gen_ai.tool.name"],
        ),
    )  # fmt: skip
    return {
        "title": f"Oxherd {queue}",
        "widgets": [_widget(place, *each) for place, each in enumerate(widgets)],
        "projects": [project_id],
        "environment": [environment] if environment else [],
        "period": "24h",
    }


def _widget(
    place: int, title: str, display: str, dataset: str, conditions: str, aggregates: list[str], columns: list[str]
) -> Mapping[str, Any]:
    more = {"limit": 10} if columns else {}
    query = {
        "name": "", "fields": [*columns, *aggregates], "aggregates": aggregates, "columns": columns,
        "conditions": conditions, "orderby": f"-{aggregates[0]}" if columns else "",
    }  # fmt: skip
    return {
        "title": title, "display_type": display, "widget_type": dataset, "interval": "5m", "queries": [query],
        "layout": {"x": place % 2 * 3, "y": place // 2 * 2, "w": 3, "h": 2, "min_h": 2}, **more,
    }  # fmt: skip


async def plan(api: SentryApi, project: str, target: Wanted) -> Plan:
    """Compare what is there with what should be. Reads only.

    Parameters:
        api: of the organisation.
        project: its slug or id.
        target: what should be there.

    Raises:
        ServiceUnreachable, ServiceRefused: see SentryApi.
    """
    detectors = {each["name"]: each for each in await api.detectors(str(target.project_id))}
    ids: dict[str, int] = {name: int(each["id"]) for name, each in detectors.items()}

    async def make_detector(body: Mapping[str, Any]) -> None:
        ids[body["name"]] = int((await api.create_detector(project, body))["id"])

    async def change_detector(id: str, body: Mapping[str, Any]) -> None:  # noqa: A002
        await api.update_detector(id, body)

    steps = []
    for body in target.detectors:
        there = detectors.get(body["name"])
        steps.append(
            Step("create", f"monitor {body['name']!r}", body["description"], partial(make_detector, body))
            if there is None
            else _step(
                f"monitor {body['name']!r}", _changed(body, _flat(there)), partial(change_detector, there["id"], body)
            )
        )
    steps.append(await _dashboard_step(api, target.dashboard))
    steps.append(await _workflow_step(api, target, ids))
    return Plan(tuple(steps))


async def _dashboard_step(api: SentryApi, body: Mapping[str, Any]) -> Step:
    what = f"dashboard {body['title']!r}"
    there = next((each for each in await api.dashboards() if each["title"] == body["title"]), None)

    async def make() -> None:
        await api.create_dashboard(body)

    async def change() -> None:
        assert there is not None
        await api.update_dashboard(there["id"], body)

    if there is None:
        return Step("create", what, f"{len(body['widgets'])} widgets", make)
    return _step(what, _changed(body, await api.dashboard(there["id"])), change)


async def _workflow_step(api: SentryApi, target: Wanted, ids: Mapping[str, int]) -> Step:
    body, names = target.workflow, [each["name"] for each in target.detectors]
    what = f"alert {body['name']!r}"
    there = next((each for each in await api.workflows() if each["name"] == body["name"]), None)

    def whole() -> Mapping[str, Any]:
        return {**body, "detector_ids": sorted(ids[name] for name in names)}

    async def make() -> None:
        await api.create_workflow(whole())

    async def change() -> None:
        assert there is not None
        await api.update_workflow(there["id"], whole())

    if there is None:
        return Step("create", what, f"mails about {len(names)} monitors", make)
    connected = sorted(int(each) for each in there.get("detectorIds") or ())
    missing = connected != sorted(ids.get(name, 0) for name in names)
    return _step(what, [*_changed(body, there), *(["detector_ids"] if missing else [])], change)


def _step(what: str, changed: Sequence[str], apply: Any) -> Step:
    return Step("update", what, ", ".join(changed), apply) if changed else Step("keep", what)


def _flat(detector: Mapping[str, Any]) -> Mapping[str, Any]:
    """A monitor as it is answered, in the form in which it is sent: what it looks at is nested deep in answers."""
    sources = detector.get("dataSources") or ()
    queries = [(each.get("queryObj") or {}) for each in sources]
    return {**detector, "dataSources": [{**each, **(each.get("snubaQuery") or {})} for each in queries]}


def _changed(body: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The fields that differ. Answers have more than was sent, and camel case."""
    return [name for name, value in body.items() if not _covers(there.get(_camel(name)), value)]


def _covers(there: Any, value: Any) -> bool:
    match value:
        case Mapping():
            return isinstance(there, Mapping) and all(
                _covers(there.get(_camel(key)), each) for key, each in value.items()
            )
        case list() | tuple():
            return isinstance(there, list) and len(there) == len(value) and all(map(_covers, there, value))
        case _:
            return bool(there == value) or (value in (None, "") and there in (None, "")) or value == _UNTOLD


_UNTOLD = "unknown"  # what `extrapolationMode` is sent as; answers may leave it out


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
