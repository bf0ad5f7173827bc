"""The command line. One file per group: parse, call, print. Exit codes are the table below."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from oxherd import __version__
from oxherd.cli import (
    alerts,
    approvals,
    audit,
    backup,
    credentials,
    db,
    demo,
    deploy,
    dev,
    drill,
    enqueue,
    env,
    gate,
    jobs,
    rotate,
    runs,
    slo,
    spend,
    verify,
    web,
    worker,
)
from oxherd.errors import OxherdError
from oxherd.ops.diagnosis import EXIT_CODES as DIAGNOSES

EXIT_CODES = {
    0: "fine",
    1: "found a problem: a job failed, was not found or is in another state",
    2: "wrong use: an argument, a variable or the --app module",
    3: "a service could not be reached, or refused",
    **{
        code: "deploy: " + " or ".join(cause for cause in DIAGNOSES if DIAGNOSES[cause] == code)
        for code in DIAGNOSES.values()
    },
    130: "stopped by Ctrl-C",
}


class ErrorsAsText(TyperGroup):
    """Prints Oxherd's errors as a sentence and a hint, and turns them into exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Called by typer to run the command."""
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()
            return done
        except BrokenPipeError:
            # Whoever read our output has seen enough. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OxherdError as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            _tell(error.message, error.hint)
            raise typer.Exit(error.exit_code) from None


def _tell(message: str, hint: str) -> None:
    typer.secho(f"Error: {message}", fg="red", err=True)
    if hint:
        typer.echo(f"Hint: {hint}", err=True)


app = typer.Typer(
    cls=ErrorsAsText,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items()),
)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.command(epilog=dev.EXAMPLES)(dev.dev)
app.command(epilog=worker.EXAMPLES)(worker.worker)
app.command(epilog=web.EXAMPLES)(web.web)
app.command(epilog=enqueue.EXAMPLES)(enqueue.enqueue)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.add_typer(jobs.app, name="jobs")
app.add_typer(runs.app, name="runs")
app.add_typer(approvals.app, name="approvals")
app.add_typer(gate.app, name="gate")
app.add_typer(deploy.app, name="deploy")
app.add_typer(env.app, name="env")
app.add_typer(alerts.app, name="alerts")
app.add_typer(slo.app, name="slo")
app.add_typer(spend.app, name="spend")
app.add_typer(db.app, name="db")
app.add_typer(credentials.app, name="credentials")
app.add_typer(drill.app, name="drill")
app.command(epilog=rotate.EXAMPLES)(rotate.rotate)
app.add_typer(backup.app, name="backup")
app.add_typer(audit.app, name="audit")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"oxherd {__version__}")
        raise typer.Exit


@app.callback()
def oxherd(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Runs AI agent jobs from a BullMQ queue: none lost, no finished step paid for twice.

    A machine with nothing on it: `oxherd demo`. A project: `oxherd dev --app myapp.jobs:herd`.
    """


def main() -> None:
    """The `oxherd` command."""
    try:
        app()
    except Exception as error:
        # A fault of ours. A person gets a line; a worker's log must have the stack.
        if {"--debug", "worker"} & set(sys.argv):
            raise
        _tell(f"{type(error).__name__}: {error}", "this is a fault in Oxherd; `oxherd --debug …` shows where")
        sys.exit(1)
