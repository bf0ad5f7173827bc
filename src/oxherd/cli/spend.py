from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from oxherd.cli.printing import Json, note, print_json, print_table
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from decimal import Decimal

    from oxherd.store import SpendSum

app = typer.Typer(no_args_is_help=True, help="What model calls cost.")


class By(StrEnum):
    """What a line of the report is about."""

    DAY = "day"
    TENANT = "tenant"
    AGENT = "agent"
    MODEL = "model"


@app.callback()
def spend() -> None:
    """What model calls cost, as the ledger has it."""


@app.command(
    epilog="\b\nExamples:\n  oxherd spend report --by tenant --days 7\n"
    "  oxherd spend report --by model --json | jq '.[0].cost_usd'"
)
def report(
    by: Annotated[By, typer.Option(help="A line for each.")] = By.DAY,
    days: Annotated[int, typer.Option(min=1, metavar="N", help="Of so many days (UTC), today included.")] = 30,
    as_json: Json = False,
) -> None:
    """Sum up what model calls cost.

    Every try of a call counts, also of failed and cancelled jobs. Those whose bill is not known are not in the cost:
    open ones will be settled, with what is set aside for them; of unknown ones nobody will ever know. In JSON, money
    is text, to the last digit.
    """
    lines = _ask(by, days)
    if as_json:
        print_json([dataclasses.asdict(line) for line in lines])
        return
    columns = (by.value, "calls", "input", "output", "cost", "open", "set aside", "unknown")
    print_table(columns, [_row(line) for line in lines])
    if not lines:
        note(f"no model calls in {days} days")


def _ask(by: By, days: int) -> Sequence[SpendSum]:
    from oxherd import settings as variables
    from oxherd.actions import spend_report
    from oxherd.app import build_store, run_loop

    store = build_store(variables.load(needs=("STORE",)))
    if store is None:
        raise UsageError("no store is configured, so there is no ledger", hint="set DATABASE_URL")

    async def ask() -> Sequence[SpendSum]:
        await store.start()
        try:
            return await spend_report(store, by=by.value, days=days)
        finally:
            await store.stop()

    found: Sequence[SpendSum] = run_loop(ask())
    return found


def _row(line: SpendSum) -> tuple[object, ...]:
    return (
        "(none)" if line.key is None else line.key,
        line.calls,
        line.input_tokens,
        line.output_tokens,
        _dollars(line.cost_usd),
        line.open or None,
        _dollars(line.reserved_usd) if line.reserved_usd else None,
        line.unknown or None,
    )


def _dollars(amount: Decimal) -> str:
    return f"${amount:.6f}" if amount < 1 else f"${amount:.2f}"
