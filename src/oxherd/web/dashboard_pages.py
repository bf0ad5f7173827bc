"""What each page of the dashboard shows, found through the API's own endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote, urlencode

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from oxherd.errors import OxherdError
from oxherd.queue.pages import ORDER
from oxherd.settings import TABLE
from oxherd.web import dashboard_run as runs_of
from oxherd.web.api import ENDPOINTS
from oxherd.web.auth import Identity, Scope
from oxherd.web.dashboard_charts import Bar, Chart, Line, bars, chart
from oxherd.web.dashboard_masks import Masks
from oxherd.web.dashboard_words import money, number, percent, span, state
from oxherd.web.desk import Desk
from oxherd.web.endpoint import Ask
from oxherd.web.levels import SPANS
from oxherd.web.problems import Problem

LIMIT = 50  # rows of a list
MOST_OUTPUT = 2 * 1024 * 1024  # bytes of steps' outputs that one page shows
LAST_OPERATIONS = 8
RUN_STATES = ("running", "completed", "failed", "retrying", "delayed", "handed_back", "parked")
Shown = dict[str, Any] | Response
Tab = tuple[str, str, bool, int | None]  # title, address, whether it is the one that is shown, how many
_ENDPOINTS = {endpoint.name: endpoint for endpoint in ENDPOINTS}


class View:
    """Somebody who looks at a page.

    Parameters:
        desk: what it is made from.
        request: theirs.
        identity: who they are.
    """

    def __init__(self, desk: Desk, request: Request, identity: Identity) -> None:
        self.desk = desk
        self.request = request
        self.identity = identity
        self.masks = Masks(desk.hide)

    @property
    def may_act(self) -> bool:
        """Whether they may do more than read."""
        return self.identity.scope is Scope.ACT

    @property
    def csrf(self) -> str:
        """What their forms carry."""
        return self.identity.csrf or ""

    def query(self, name: str) -> str:
        """A parameter of the address, or an empty string."""
        return self.request.query_params.get(name, "").strip()

    def link(self, **changes: object) -> str:
        """This page's address with some parameters changed; None takes one away."""
        kept = {**self.request.query_params, **changes}
        query = urlencode([(name, value) for name, value in kept.items() if value not in (None, "")])
        return f"{self.request.scope['path']}?{query}" if query else str(self.request.scope["path"])

    async def ask(self, operation: str, /, **params: Any) -> Any:
        """What an endpoint of the API answers, as data. Raises Problem, OxherdError."""
        endpoint = _ENDPOINTS[operation]
        given = {key: value for key, value in params.items() if value not in (None, "")}
        try:
            checked = None if endpoint.params is None else endpoint.params.model_validate(given)
        except ValidationError as error:
            raise Problem.of_fields("query", error) from None
        return await endpoint.handler(Ask(self.desk, checked, None, self.identity, self.request))

    async def attempt(self, look: Awaitable[Any]) -> Any:
        """What was looked for, or the Problem that there was: the rest of the page is shown all the same."""
        try:
            return await look
        except Problem as problem:
            return problem
        except OxherdError as error:
            return Problem.of(error)


# -- overview


async def overview(view: View) -> Shown:
    """How the queue is doing."""
    levels = view.desk.levels
    picked = view.query("span") if view.query("span") in SPANS else "1h"
    counts, gate = await asyncio.gather(view.desk.admin.counts(), view.desk.admin.gate())
    points, standings, alerts, workers, spent = await asyncio.gather(
        *map(view.attempt, (levels.series(picked), levels.standings(), levels.alerts(), levels.workers(),
                            levels.spent_today()))
    )  # fmt: skip
    done = points[:-1] if isinstance(points, list) else []  # the newest one is not over
    return {
        "counts": counts,
        "gate": gate,
        "workers": workers,
        "standings": standings,
        "alerts": alerts,
        "spent": spent,
        "span_name": picked,
        "spans_items": [(each, view.link(span=each), each == picked, None) for each in SPANS],
        "charts": _charts(done),
        "totals": _totals(done),
        "has_store": view.desk.store is not None,
    }


def _charts(points: list[Any]) -> list[Chart]:
    if len(points) < 2:
        return []  # no line to draw
    moments = [point.at for point in points]

    def per_minute(value: int, seconds: float) -> float:
        return 60 * value / max(seconds, 1.0)

    done = [per_minute(point.completed, point.seconds) for point in points]
    failed = [per_minute(point.failed, point.seconds) for point in points]
    errors = [point.errors / point.attempts if point.attempts else None for point in points]
    return [
        chart("Throughput", moments, [Line("completed per minute", "good", done, filled=True),
                                      Line("failed per minute", "bad", failed)], number),
        chart("Errors", moments, [Line("attempts that ended in an error", "bad", errors, filled=True)], percent),
        chart("Waiting time", moments, _quantiles([point.wait for point in points]), span),
        chart("Run time", moments, _quantiles([point.run for point in points]), span),
    ]  # fmt: skip


def _quantiles(found: list[tuple[float | None, ...]]) -> list[Line]:
    tones = (("p99", "warm"), ("p95", "deep"), ("p50", "calm"))
    return [Line(name, tone, [each[2 - at] for each in found], filled=at == 2) for at, (name, tone) in enumerate(tones)]


def _totals(points: list[Any]) -> dict[str, Any]:
    attempts, errors = sum(point.attempts for point in points), sum(point.errors for point in points)
    seconds = sum(point.seconds for point in points)
    completed = sum(point.completed for point in points)
    return {
        "per_minute": 60 * completed / seconds if seconds else None,
        "completed": completed,
        "failed": sum(point.failed for point in points),
        "error_rate": errors / attempts if attempts else None,
        "wait": next((point.wait for point in reversed(points) if point.wait[0] is not None), (None, None, None)),
        "run": next((point.run for point in reversed(points) if point.run[0] is not None), (None, None, None)),
    }


# -- jobs and runs


async def jobs(view: View) -> Shown:
    """A list of jobs, by state."""
    if job_id := view.query("id"):
        return RedirectResponse(f"/jobs/{quote(job_id, safe='')}", 303)
    filters = {name: view.query(name) for name in ("state", "name", "tenant", "cursor")}
    found, counts = await asyncio.gather(view.ask("listJobs", limit=LIMIT, **filters), view.desk.admin.counts())
    tabs: list[Tab] = [("all", view.link(state=None, cursor=None), not filters["state"], None)]
    tabs += [
        (state(each), view.link(state=each, cursor=None), filters["state"] == each, counts[each]) for each in ORDER
    ]
    return {**found, "tabs": tabs, "filters": filters, "masks": view.masks}


async def runs(view: View) -> Shown:
    """A list of runs."""
    filters = {name: view.query(name) for name in ("status", "name", "tenant", "cursor")}
    found = await view.ask("listRuns", limit=LIMIT, **filters)
    states = ("", *RUN_STATES)
    tabs = [
        (state(each) or "all", view.link(status=each, cursor=None), filters["status"] == each, None) for each in states
    ]
    return {**found, "tabs": tabs, "filters": filters, "masks": view.masks}


async def run(view: View) -> Shown:
    """A job and its run, whichever of them there is."""
    given = _id_of(view.request)
    found, problem = await _run(view, given)
    job_id = found["job_id"] if found else given.rpartition("/")[2].rpartition("@")[0] or given
    job, gone = await _job(view, job_id)
    if found is None and gone is not None:
        raise problem or gone
    if job is not None and found is not None and job["timestamp"] != found["enqueued_at"]:
        job = None  # the id was used again since
    steps = await _steps(view, found)
    line, total = runs_of.time_line(steps)
    others = await _others(view, found)
    return {
        "job": job,
        "run": found,
        "job_id": job_id,
        "problem": problem,
        "line": line,
        "total": total,
        "attempts": runs_of.attempts(found, steps, job["stacktrace"] if job else []) if found else [],
        "talk": runs_of.conversation(steps, view.masks.data),
        "payload": view.masks.data(_decoded(found["input"]) if found else job["data"] if job else None),
        "output": view.masks.data(found["output"] if found else job["returnvalue"] if job else None),
        "others": others,
        "masks": view.masks,
        "live": job is not None and job["state"] not in {"completed", "failed"},
        "has_store": view.desk.store is not None,
    }


async def _run(view: View, run_id: str) -> tuple[dict[str, Any] | None, Problem | None]:
    """A run, or None; and why it can't be known."""
    if view.desk.store is None:
        return None, None
    found = await view.attempt(view.ask("getRun", id=run_id))
    if isinstance(found, Problem):
        return None, None if found.status == 404 else found
    return found, None


async def _job(view: View, job_id: str) -> tuple[dict[str, Any] | None, Problem | None]:
    found = await view.attempt(view.ask("getJob", id=job_id))
    return (None, found) if isinstance(found, Problem) else (found, None)


async def _steps(view: View, found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    steps: list[dict[str, Any]] = found["steps"]
    if steps and sum(step["size"] for step in steps) <= MOST_OUTPUT:
        steps = (await view.ask("getRun", id=found["id"], outputs="true"))["steps"]
    return steps


async def _others(view: View, found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    page = await view.ask("listRuns", job_id=found["job_id"], limit=6)
    return [each for each in page["runs"] if each["id"] != found["id"]]


def _id_of(request: Request) -> str:
    # As it was sent: an id may hold a slash, percent-encoded.
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    return unquote(path.split("/", 2)[2], errors="surrogateescape")


def _decoded(text: str) -> Any:
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


async def dead(view: View) -> Shown:
    """Dead letters, grouped."""
    found, counts = await asyncio.gather(view.ask("listDeadLetters"), view.desk.admin.counts())
    return {"groups": found["groups"], "failed": counts["failed"], "masks": view.masks}


# -- agents and money


async def agents(view: View) -> Shown:
    """Agents, with what they cost."""
    found, spent = await asyncio.gather(
        view.ask("listAgents", limit=LIMIT, cursor=view.query("cursor")), view.attempt(_spend(view, "agent", 7))
    )
    lines = None if isinstance(spent, Problem) else {line["key"]: line for line in spent}
    shown = [{**each, "definition": view.masks.data(each["definition"])} for each in found["agents"]]
    return {"agents": shown, "next": found["next"], "spent": lines}


async def spend(view: View) -> Shown:
    """What model calls cost."""
    days = int(view.query("days")) if view.query("days") in {"7", "30", "90"} else 7
    by = view.query("by") if view.query("by") in {"agent", "model", "tenant"} else "agent"
    daily, lines = await asyncio.gather(_spend(view, "day", days), _spend(view, by, days))
    return {
        "days": days,
        "by": by,
        "days_items": [(f"{each} days", view.link(days=each), each == days, None) for each in (7, 30, 90)],
        "by_items": [(each, view.link(by=each), each == by, None) for each in ("agent", "model", "tenant")],
        "sums": _sums(daily, lines, days),
    }


def _sums(daily: list[dict[str, Any]], lines: list[dict[str, Any]], days: int) -> dict[str, Any]:
    dearest = lines[:LIMIT]  # they come in this order
    found: list[Bar] = bars(dearest, lambda line: line["key"] or "none", lambda line: float(line["cost_usd"]))
    return {
        "total": sum((Decimal(line["cost_usd"]) for line in daily), Decimal(0)),
        "calls": sum(line["calls"] for line in daily),
        "tokens": sum(line["input_tokens"] + line["output_tokens"] for line in daily),
        "open": sum(line["open"] for line in daily),
        "unknown": sum(line["unknown"] for line in daily),
        "chart": _daily(daily, days),
        "bars": found,
        "others": len(lines) - len(dearest),
    }


async def _spend(view: View, by: str, days: int) -> list[dict[str, Any]]:
    """Sums of the ledger."""
    found: list[dict[str, Any]] = (await view.ask("getSpend", by=by, days=days))["lines"]
    return found


def _daily(lines: list[dict[str, Any]], days: int) -> Chart:
    from datetime import UTC, datetime, timedelta

    costs = {line["key"]: float(line["cost_usd"]) for line in lines}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    dates = [today - timedelta(days=back) for back in range(days - 1, -1, -1)]
    values = [costs.get(f"{each:%Y-%m-%d}", 0.0) for each in dates]
    return chart(
        "Spend per day", [each.timestamp() for each in dates], [Line("US dollars", "calm", values, filled=True)], money
    )


# -- the rest


async def schedules(view: View) -> Shown:
    """The job schedulers."""
    return {**(await view.ask("listSchedules")), "masks": view.masks}


async def approvals(view: View) -> Shown:
    """Questions that jobs ask people, and the last answers."""
    asked, answered = await asyncio.gather(
        view.ask("listApprovals", limit=LIMIT), view.ask("listApprovals", state="answered", limit=10)
    )
    return {"open": asked["approvals"], "answered": answered["approvals"], "masks": view.masks}


KINDS = {
    "backup": ("Backups", "oxherd backup create", "oxherd backup schedule"),
    "verify": ("Checks of backups", "oxherd backup verify", ""),
    "restore": ("Restores", "oxherd backup restore", ""),
    "drill": ("Drills", "oxherd drill run", ""),
    "rotation": ("Key rotations", "oxherd rotate", ""),
    "deploy": ("Deploys", "oxherd deploy watch", ""),
}  # fmt: skip


async def operations(view: View) -> Shown:
    """What operators and schedules did, by kind, and who did what through the API."""
    stored = view.desk.stored
    *found, audit = await asyncio.gather(
        *(stored.operations(kind, limit=LAST_OPERATIONS) for kind in KINDS), stored.audit(limit=20)
    )
    masked = [[{**row, "summary": view.masks.data(row["summary"])} for row in rows] for rows in found]
    kinds = zip(KINDS.items(), masked, strict=True)
    return {"kinds": [(kind, *about, rows) for (kind, about), rows in kinds], "audit": audit, "masks": view.masks}


FEATURES = (
    ("Runs, journal and money", ("DATABASE_URL", "SUPABASE_URL"), "Every run and paid step is kept."),
    ("Model calls", ("OPENROUTER_API_KEY", "OPENROUTER_BASE_URL"), "Agents can think."),
    ("Encryption", ("ENCRYPTION_KEY",), "Credentials and sealed fields can be kept."),
    ("Login", ("API_TOKEN",), "Others than this machine are let in."),
    ("Spending caps", ("BUDGET_DAILY_USD", "BUDGET_TENANT_DAILY_USD", "BUDGET_AGENT_DAILY_USD"), "A day has an end."),
    ("Alerts to people",
     ("ALERT_WEBHOOK_URL", "ALERT_SLACK_URL", "ALERT_TELEGRAM_TOKEN", "ALERT_SMTP_URL"), "Somebody hears of trouble."),
    ("Sentry", ("SENTRY_DSN",), "Errors and check-ins are reported."),
    ("Traces", ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), "Runs are traced."),
    ("Links to approvals", ("PUBLIC_URL", "RAILWAY_PUBLIC_DOMAIN"), "People can answer by a link."),
)  # fmt: skip


async def settings(view: View) -> Shown:
    """Which variables are set; never a value."""
    given = view.desk.variables
    rows = [
        {"name": each.name, "set": each.name in given, "secret": each.secret, "about": each.about,
         "default": each.default, "needed_by": each.needed_by}
        for each in TABLE
    ]  # fmt: skip
    features = [(name, bool(given.intersection(names)), names, about) for name, names, about in FEATURES]
    return {"rows": rows, "features": features}


PAGES: Mapping[str, Callable[[View], Awaitable[Shown]]] = {
    page.__name__: page
    for page in (overview, jobs, runs, run, dead, agents, spend, schedules, approvals, operations, settings)
}
