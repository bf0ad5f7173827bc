from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oxherd.cli.printing import Json, note, print_json, print_table, writable
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.ops.plan import Plan
    from oxherd.queue.alertbook import AlertBook
    from oxherd.queue.indicators import Indicators
    from oxherd.telemetry.sla import Month
    from oxherd.telemetry.slo import Count, Objective, Standing

app = typer.Typer(no_args_is_help=True, help="What was promised, and whether it is kept.")


@app.command()
def status(as_json: Json = False) -> None:
    """Say how each objective stands. Exit code 1 where one is broken or its budget burns too fast."""
    from oxherd import settings as variables
    from oxherd.app import run_loop, watch_client
    from oxherd.telemetry.slo import load_promises, worst_first

    settings = variables.load()
    objectives = load_promises(Path(settings.oxherd_config)).objectives

    async def ask() -> list[Standing]:
        async with watch_client(settings) as (_, indicators):
            return await indicators.standings(objectives)

    standings = worst_first(run_loop(ask()))
    if as_json:
        print_json({"objectives": [each.dump() for each in standings]})
    else:
        rows = [
            (each.objective.name, each.objective.words, _percent(each.count.ratio), f"{each.left:.0%}", _burning(each))
            for each in standings
        ]
        print_table(("name", "promise", "reached", "budget left", "burning"), rows)
        note("" if any(each.count.total for each in standings) else "nothing was counted yet")
    if any(each.left < 0 or each.severity for each in standings):
        raise typer.Exit(1)


@app.command(epilog="\b\nExamples:\n  oxherd slo report\n  oxherd slo report --month 2026-10 --output october.html")
def report(
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="Which month; the last 30 days when left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there: Markdown, or HTML where it ends with .html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a report on service levels: each promise, kept or not, day by day, and what went wrong."""
    from oxherd import settings as variables
    from oxherd.app import run_loop, watch_client
    from oxherd.telemetry import sla
    from oxherd.telemetry.slo import load_promises

    writable(output)
    first, last = _days(month, datetime.now(UTC).date())
    settings = variables.load()
    objectives = load_promises(Path(settings.oxherd_config)).objectives

    async def ask() -> Month:
        async with watch_client(settings) as (book, indicators):
            return await _month(settings.job_queue_name, first, last, objectives, book, indicators)

    found = run_loop(ask())
    if as_json:
        print_json(sla.data(found))
    elif output is None:
        print(sla.markdown(found), end="")
    else:
        output.write_text(sla.page(found) if output.suffix == ".html" else sla.markdown(found), "utf-8")
        note(f"written: {output}")


@app.command(
    epilog="\b\nExamples:\n  oxherd slo rules > /etc/prometheus/oxherd.rules.yml\n"
    "  oxherd slo rules | promtool check rules /dev/stdin"
)
def rules(as_json: Json = False) -> None:
    """Print rules for Prometheus: quantiles to record, alerts, and how fast the objectives' error budgets burn.

    They are made from the table of metrics, so they fit this version's worker.
    """
    from oxherd import settings as variables
    from oxherd.telemetry.rules import groups, page
    from oxherd.telemetry.slo import load_promises

    settings = variables.load(needs=())
    made = groups(load_promises(Path(settings.oxherd_config)).objectives, runbooks=settings.runbooks_url)
    if as_json:
        print_json({"groups": made})
    else:
        print(page(made), end="")


@app.command(epilog="\b\nExample:\n  oxherd slo dashboard > oxherd.json   # Grafana: Dashboards, New, Import")
def dashboard() -> None:
    """Print a dashboard for Grafana, as JSON: an overview, and a panel for each metric."""
    from oxherd.telemetry.grafana import dashboard as made

    print_json(made())


@app.command(epilog="\b\nExamples:\n  oxherd slo push --dry-run\n  oxherd slo push --yes --json")
def push(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    environment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only events of this environment; all when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a dashboard, monitors and an alert in Sentry from the objectives, or bring them up to date.

    What is there under the same names is compared first; the plan says what would change.
    """
    from oxherd import settings as variables
    from oxherd.app import run_loop
    from oxherd.cloud.sentry_api import SentryApi
    from oxherd.ops import sentry
    from oxherd.telemetry.slo import load_promises

    settings = variables.load(needs=("SENTRY_AUTH_TOKEN", "SENTRY_ORG", "SENTRY_PROJECT"))
    assert settings.sentry_auth_token is not None
    token = settings.sentry_auth_token
    objectives = load_promises(Path(settings.oxherd_config)).objectives

    async def act() -> Plan:
        async with SentryApi(settings.sentry_url, token, settings.sentry_org) as api:
            project_id = int((await api.project(settings.sentry_project))["id"])
            target = sentry.wanted(settings.job_queue_name, objectives, project_id=project_id, environment=environment)
            made = await sentry.plan(api, settings.sentry_project, target)
            if not as_json:
                print_table(
                    ("action", "what", "detail"), [(step.action, step.what, step.detail) for step in made.steps]
                )
            if not dry_run and not made.is_empty and (yes or typer.confirm("Go on?", err=True)):
                await made.run(lambda step: note(f"{step.action}d: {step.what}"))
            return made

    made = run_loop(act())
    if as_json:
        steps = [{"action": step.action, "what": step.what, "detail": step.detail} for step in made.steps]
        print_json({"dry_run": dry_run, "steps": steps})


def _days(month: str | None, today: date) -> tuple[date, date]:
    if month is None:
        return today - timedelta(days=29), today
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise UsageError("--month must be a year and a month, such as 2026-10")
    first = date.fromisoformat(f"{month}-01")
    last = min((first + timedelta(days=31)).replace(day=1) - timedelta(days=1), today)
    if first > today:
        raise UsageError(f"--month {month} has not begun")
    if last < today - timedelta(days=31):
        raise UsageError(f"--month {month} is too long ago: indicators are kept for 31 days")
    return first, last


async def _month(
    queue: str, first: date, last: date, objectives: tuple[Objective, ...], book: AlertBook, indicators: Indicators
) -> Month:
    from oxherd.telemetry.sla import Month

    now = datetime.now(UTC)
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    since = await indicators.since()
    begun = None if since is None else datetime.fromtimestamp(since, UTC).date()

    async def counts(start: date, end: date) -> dict[Objective, Count]:
        begin = datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()
        over = min(datetime(end.year, end.month, end.day, tzinfo=UTC).timestamp() + 86400, now.timestamp())
        tally, _ = await indicators.tally(over - begin, until=over)
        return {objective: tally.count(objective) for objective in objectives}

    told = [*await book.past(), *(alert for alert in await book.alerts() if alert.told is not None)]
    incidents = [alert for alert in told if first <= datetime.fromtimestamp(alert.since, UTC).date() <= last]
    return Month(
        queue, first, last, now, begun, await counts(first, last), {day: await counts(day, day) for day in days},
        sorted(incidents, key=lambda alert: alert.since),
    )  # fmt: skip


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio * 100:.3f} %"


def _burning(each: Standing) -> str:
    if not each.burning:
        return ""
    burn = each.burning[0]
    return f"{burn.severity}: {each.rates[burn.long] or 0:.1f}x over {burn.long / 3600:g} h"
