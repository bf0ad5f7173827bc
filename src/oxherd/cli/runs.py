from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from oxherd.cli.printing import Json, clock, duration, note, print_json, print_table, shortened
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.settings import Settings
    from oxherd.store import Store

T = TypeVar("T")
BAR = (8, 40)  # characters of the waterfall, at least and at most: on a narrow terminal there is none

app = typer.Typer(
    no_args_is_help=True,
    help="What jobs did, step by step, and doing it again from a step.\n\n"
    "ID is a job's id (its newest run is meant), or a run's as `oxherd runs list --json` shows it.",
)

Id = Annotated[str, typer.Argument(metavar="ID", show_default=False)]


@app.command(
    "list", epilog="\b\nExamples:\n  oxherd runs list --status failed\n  oxherd runs list --json | jq '.[].cost_usd'"
)
def list_runs(
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="Only runs in it, such as `failed`.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List the newest runs with what they used."""
    from oxherd.store import RunFilter

    wanted = RunFilter(status=status)
    runs = _ask(lambda settings, store: store.runs(queue=settings.job_queue_name, limit=limit, wanted=wanted)).runs
    if as_json:
        print_json(runs)
        return
    columns = ("job", "name", "status", "attempt", "started", "took", "calls", "tokens", "cost", "reason")
    print_table(columns, [_run_row(run) for run in runs])
    if not runs:
        note("no runs")


@app.command(epilog="\b\nExamples:\n  oxherd runs show 42\n  oxherd runs show 42 --json | jq '.steps[] | {key, ms}'")
def show(run_id: Id, as_json: Json = False) -> None:
    """Show a run and its finished steps, in the order in which they finished.

    On a terminal each has a bar: when it ran, and how long. With --json, results are there, too.
    """
    from oxherd.actions import find_run

    async def ask(settings: Settings, store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        run = await find_run(store, settings.job_queue_name, run_id)
        return run, await store.steps(run["id"], outputs=as_json)

    run, steps = _ask(ask)
    if as_json:
        print_json({**run, "steps": steps})
        return
    _print_run(run)
    print()
    print_steps(steps)


@app.command(epilog="\b\nExamples:\n  oxherd runs replay 42\n  oxherd runs replay 42 --fork-from support/model-3")
def replay(
    run_id: Id,
    fork_from: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="Run this step and what finished after it anew; `runs show` lists them."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a completed or failed run's job again, with its finished steps from the journal.

    What was paid for is not paid again, except from --fork-from on. A job that was removed from the queue meanwhile is
    put back under its id, with its payload and attempts, without its other options.
    """
    from oxherd.actions import find_run, replay_run
    from oxherd.app import queue_client

    async def ask(settings: Settings, store: Store) -> dict[str, Any]:
        queue = settings.job_queue_name
        run = await find_run(store, queue, run_id)
        async with queue_client(settings) as (producer, admin):
            return await replay_run(store, producer, admin, run, queue=queue, fork_from=fork_from)

    done = _ask(ask)
    if as_json:
        print_json(done)
        return
    dropped = f", {len(done['dropped'])} run anew" if done["dropped"] else ""
    print(f"job {done['job_id']} waits: {done['kept']} steps from the journal{dropped}")


def _ask(question: Callable[[Settings, Store], Awaitable[T]]) -> T:
    """Connect to the configured store, ask, disconnect. Raises UsageError, StoreUnreachable."""
    from oxherd import settings as variables
    from oxherd.app import build_store, run_loop

    settings = variables.load()
    store = build_store(settings)
    if store is None:
        raise UsageError("no store is configured, so no runs are kept", hint="set DATABASE_URL")

    async def ask() -> T:
        await store.start()
        try:
            return await question(settings, store)
        finally:
            await store.stop()

    return cast(T, run_loop(ask()))


def _run_row(run: dict[str, Any]) -> tuple[object, ...]:
    reason = shortened(run["error"]) if run["error"] else None
    tokens = run["input_tokens"] + run["output_tokens"]
    return (
        run["job_id"], run["name"], run["status"], f"{run['attempt']}/{run['attempts']}", clock(run["started_at"]),
        _took(run), run["model_calls"] or None, tokens or None, _cost(run), reason,
    )  # fmt: skip


def _took(run: dict[str, Any]) -> str | None:
    started, finished = run["started_at"], run["finished_at"]
    return duration((finished - started) / 1000) if started and finished else None


def _cost(row: dict[str, Any]) -> str | None:
    """What it cost; `?` where that is unknown, nothing where no model was called."""
    if not row["model_calls"]:
        return None
    return "?" if row["cost_usd"] is None else f"${row['cost_usd']:.6f}".rstrip("0").rstrip(".")


def _print_run(run: dict[str, Any]) -> None:
    told = {
        "run": run["id"],
        "name": run["name"],
        "tenant": run["tenant"],
        "status": run["status"],
        "reason": run["error"],
        "kind": run["kind"],
        "attempt": f"{run['attempt']} of {run['attempts']}",
        "worker": run["worker"],
        "added": clock(run["enqueued_at"]),
        "started": clock(run["started_at"]),
        "took": _took(run),
        "model calls": run["model_calls"] or None,
        "tokens": run["model_calls"] and f"{run['input_tokens']} in, {run['output_tokens']} out",
        "cost": _cost(run),
        "output" if run["status"] == "completed" else "partial": run["output"] and shortened(_text(run["output"]), 200),
    }
    for name, value in told.items():
        if value:
            print(f"{name.ljust(11)}  {value}")


def _text(value: object) -> str:
    import orjson

    return orjson.dumps(value).decode()


def print_steps(steps: Sequence[dict[str, Any]]) -> None:
    """A line per step; on a terminal with bars that show which ran when."""
    if not steps:
        note("no finished steps")
        return
    first = min(step["started_at"] for step in steps)
    columns = ["place", "step", "kind", "attempt", "after", "took", "tokens", "cost"]
    rows = [_step_row(step, first) for step in steps]
    if sys.stdout.isatty() and (width := _left_over([columns, *rows])) >= BAR[0]:
        columns.append("")
        rows = [(*row, bar) for row, bar in zip(rows, waterfall(steps, width), strict=True)]
    print_table(columns, rows)


def _left_over(rows: Sequence[Sequence[object]]) -> int:
    """How many characters a table of these rows leaves on a line of the terminal for one more column."""
    import shutil

    widths = [max(len(str(cell or "")) for cell in column) + 3 for column in zip(*rows, strict=True)]
    return min(shutil.get_terminal_size().columns - sum(widths) - 2, BAR[1])


def _step_row(step: dict[str, Any], first: int) -> tuple[object, ...]:
    tokens = (step["input_tokens"] or 0) + (step["output_tokens"] or 0)
    return (
        step["place"], step["key"], step["kind"], step["attempt"],
        duration((step["started_at"] - first) / 1000), duration(step["ms"] / 1000), tokens or None, _cost(step),
    )  # fmt: skip


def waterfall(steps: Sequence[dict[str, Any]], width: int) -> list[str]:
    """A bar per step on one common time line, at least one character long.

    Parameters:
        steps: rows with `started_at` (wall ms) and `ms`.
        width: of the time line, in characters.
    """
    first = min(step["started_at"] for step in steps)
    total = max(step["started_at"] + step["ms"] for step in steps) - first or 1
    bars = []
    for step in steps:
        length = min(max(round(step["ms"] / total * width), 1), width)
        offset = min(round((step["started_at"] - first) / total * width), width - length)
        bars.append(" " * offset + "█" * length)
    return bars
