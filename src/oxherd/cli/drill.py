from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.cli.printing import Json, age, duration, note, print_json, print_table, writable
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.ops.drill import Result
    from oxherd.settings import RedisTarget, Settings
    from oxherd.store import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Rehearse disasters: something breaks, the runbook's commands mend it, the figures are kept.\n\n"
    "On a scratch stack of this machine unless told otherwise. docs/disaster-recovery.md has the runbooks.",
)

MOST = 500  # results that a report looks at


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the drills, and what each came to when it was last run."""
    from oxherd.ops.drill_report import newest
    from oxherd.ops.drills import DRILLS

    last = newest(_history("drill")["drill"])
    rows = [
        {
            "name": name, "title": drill.disaster.title, "production": drill.disaster.production,
            "last": last.get(name, {}).get("at"), "outcome": last.get(name, {}).get("outcome"),
            "rto_seconds": last.get(name, {}).get("summary", {}).get("rto_seconds"),
        }
        for name, drill in DRILLS.items()
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    cells = [
        (row["name"], row["title"], age(row["last"]) if row["last"] else "never", row["outcome"],
         duration(row["rto_seconds"]))
        for row in rows
    ]  # fmt: skip
    print_table(("name", "what", "last run", "outcome", "RTO"), cells)


@app.command(
    epilog="\b\nExamples:\n  oxherd drill run database-lost redis-lost\n  oxherd drill run all --report drills.html\n"
    "  oxherd drill run prove-backup --in production"
)
def run(
    which: Annotated[list[str], typer.Argument(metavar="NAME|all", help="Which, by `oxherd drill list`.")],
    place: Annotated[
        str, typer.Option("--in", metavar="scratch|production", help="Production only where nothing is broken by it.")
    ] = "scratch",
    report_file: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write a report there: .md, .html or .json.")
    ] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="So many drills side by side.")] = 1,
    as_json: Json = False,
) -> None:
    """Run drills. Exit code 1 where one did not work.

    On a scratch stack: real Valkey, real Postgres and real workers, started here and thrown away. What comes of each is
    kept in the database of the variables, where one is configured, for `oxherd drill report` and the dashboard.
    """
    from oxherd.app import run_loop
    from oxherd.ops.drills import DRILLS

    unknown = [each for each in which if each != "all" and each not in DRILLS]
    if unknown:
        raise UsageError(f"there is no drill {unknown[0]!r}", hint="oxherd drill list")
    names = [each for each in DRILLS if "all" in which or each in which]
    if place == "production":
        names = _harmless(names, every="all" in which)
    elif place != "scratch":
        raise UsageError(f"--in takes scratch or production, not {place!r}")
    if report_file is not None:
        _check_report(report_file)  # before a quarter of an hour of drills, not after it
    results: list[Result] = run_loop(_run(names, place, at_once))
    if report_file is not None:
        _write(report_file, [_row(each) for each in results])
    if as_json:
        print_json([{"name": each.name, "ok": each.ok, **each.summary()} for each in results])
    if not all(each.ok for each in results):
        raise typer.Exit(1)


def _harmless(names: Sequence[str], *, every: bool) -> list[str]:
    from oxherd.ops.drills import DRILLS

    harmless = [name for name, drill in DRILLS.items() if drill.disaster.production]
    left = [name for name in harmless if name in names]
    if not every and left != names:
        raise UsageError(
            f"{next(name for name in names if name not in left)} breaks things: it is only run on a scratch stack",
            hint=f"in production: {', '.join(harmless)}",
        )
    if every:
        note(f"in production only those that break nothing: {', '.join(left)}")
    return left


async def _run(names: Sequence[str], place: str, at_once: int) -> list[Result]:
    from oxherd import settings as variables
    from oxherd.ops.drill import in_production, rehearse
    from oxherd.ops.drills import DRILLS
    from oxherd.ops.recording import optional_store

    turns = asyncio.Semaphore(at_once)

    async def one(name: str, store: Store | None) -> Result:
        async with turns:
            drill = DRILLS[name]
            result = await (
                in_production(drill.disaster, variables.child_environ({})) if place == "production" else rehearse(drill)
            )
        _tell(result)
        if store is not None:
            kept = result.operation
            await store.write_operation(replace(kept, summary={**kept.summary, "in": place}))
        return result

    async with optional_store(_settings(), note) as store:
        return await asyncio.gather(*(one(name, store) for name in names))


def _tell(result: Result) -> None:
    state = "works" if result.ok else "DOES NOT"
    note(
        f"{result.name:<16}{state:<10}RTO {duration(result.rto_seconds)}, RPO {duration(result.rpo_seconds) or '-'}, "
        f"{result.jobs} jobs, {len(result.lost)} lost, {result.doubled} done twice, {result.paid_again} paid again"
    )
    if result.fault:
        note(f"  {result.fault}")


@app.command(epilog="\b\nExamples:\n  oxherd drill report > drills.md\n  oxherd drill report --output drills.html")
def report(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write it there: .md, .html or .json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report on the drills that were run, with the history of each."""
    from oxherd.ops.drill_report import markdown

    if output is not None:
        _check_report(output)
    rows = _history("drill", needed=True)["drill"]
    if output is not None:
        _write(output, rows)
    elif as_json:
        print_json(rows)
    else:
        print(markdown(rows), end="")


@app.command(
    epilog="\b\nExample:\n  oxherd drill plan > recovery.md   # keep a copy where you can read it when all is gone"
)
def plan() -> None:
    """Print the recovery plan of this installation: what there is, what was measured, who is told, the runbooks.

    No secret is in it.
    """
    from oxherd.ops import drill_report
    from oxherd.telemetry.channels import channels_of

    settings = _settings()
    contacts = [each.name for each in channels_of(settings)]
    print(drill_report.plan(_inventory(settings), _history("backup", "verify", "drill"), contacts), end="")


def _inventory(settings: Settings) -> list[tuple[str, str]]:
    from oxherd.store.address import parse

    redis: RedisTarget | None = settings.redis_url  # None, as nobody needed it when the settings were read
    queue_at = redis.shown if redis is not None else "a Redis that is NOT CONFIGURED: set REDIS_URL"
    database = parse(settings.database_url.reveal()).shown if settings.database_url else settings.supabase_url
    return [
        ("queue", f"{settings.job_queue_name} at {queue_at}"),
        ("database", database or "NOT CONFIGURED: set DATABASE_URL"),
        ("model service", settings.openrouter_base_url),
        ("backups", settings.backup_url or "NOT CONFIGURED: set BACKUP_URL"),
        ("key of credentials", "ENCRYPTION_KEY is set" if settings.encryption_key else "ENCRYPTION_KEY is not set"),
    ]


def _settings() -> Settings:
    from oxherd import settings as variables

    return variables.load(needs=())


def _history(*kinds: str, needed: bool = False) -> dict[str, list[dict[str, Any]]]:
    from oxherd.app import run_loop
    from oxherd.ops.recording import optional_store

    async def ask() -> dict[str, list[dict[str, Any]]]:
        async with optional_store(_settings(), note) as store:
            if store is None and needed:
                raise UsageError("no database is configured, so no drills are kept", hint="set DATABASE_URL")
            return {kind: [] if store is None else await store.operations(kind, limit=MOST) for kind in kinds}

    found: dict[str, list[dict[str, Any]]] = run_loop(ask())
    return found


def _row(result: Result) -> dict[str, Any]:
    """A result as the store would have it."""
    from oxherd.clock import wall_ms

    return {"at": wall_ms(), **asdict(result.operation)}


def _check_report(path: Path) -> None:
    if path.suffix not in {".md", ".html", ".json"}:
        raise UsageError(f"{path}: a report ends in .md, .html or .json")
    writable(path)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import orjson

    from oxherd.ops import drill_report

    match path.suffix:
        case ".md":
            path.write_text(drill_report.markdown(rows))
        case ".html":
            path.write_text(drill_report.page(rows))
        case _:
            path.write_bytes(orjson.dumps(rows, default=str, option=orjson.OPT_INDENT_2))
