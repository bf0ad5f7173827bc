from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from oxherd.cli.printing import Json, print_json, print_table
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.settings import Secret

app = typer.Typer(no_args_is_help=True, help="The tables in Postgres: bring them up to date, get their SQL.")


@app.command(epilog="\b\nExample:\n  DATABASE_URL=postgresql://… oxherd db migrate")
def migrate(as_json: Json = False) -> None:
    """Run the migrations that the database lacks.

    Running it again, or twice at once, does no harm.
    """
    url = _database_url()
    from oxherd.app import run_loop
    from oxherd.store import migrate as migrations

    names = [migration.name for migration in run_loop(migrations.migrate(url))]
    if as_json:
        print_json({"applied": names})
    else:
        print("\n".join(f"applied {name}" for name in names) or "nothing to do: the schema is up to date")


@app.command()
def status(as_json: Json = False) -> None:
    """List the migrations; exit code 1 where the database lacks one."""
    url = _database_url()
    from oxherd.app import run_loop
    from oxherd.store import migrate as migrations

    states = run_loop(migrations.status(url))
    if as_json:
        print_json([dataclasses.asdict(state) for state in states])
    else:
        rows = [
            (
                f"{state.number:03}",
                state.name,
                state.state,
                state.applied_at and f"{state.applied_at:%Y-%m-%d %H:%M:%S %Z}",
            )
            for state in states
        ]
        print_table(("number", "name", "state", "applied at"), rows)
    if any(state.state in {"pending", "edited"} for state in states):
        raise typer.Exit(1)


@app.command(epilog="\b\nExample:\n  oxherd db sql | psql $DATABASE_URL")
def sql() -> None:
    """Print all migrations as one text, for Supabase's SQL editor.

    It may be run again: only what is new then runs.
    """
    from oxherd.store import migrate as migrations

    print(migrations.sql(), end="")


def _database_url() -> Secret:
    from oxherd import settings as variables

    url = variables.load(needs=()).database_url
    if url is None:
        raise UsageError(
            "DATABASE_URL is missing; migrations need Postgres itself, not Supabase's REST",
            hint="set it, or paste the output of `oxherd db sql` into Supabase's SQL editor",
        )
    return url
