from __future__ import annotations

from typing import Annotated

import typer

from oxherd.cli.printing import Json, print_json

app = typer.Typer(
    no_args_is_help=True,
    help="Stop and let go on: the workers' intake gate.\n\n"
    "While it is closed, Oxherd workers finish what they have and take nothing new. Producers may go on adding jobs. "
    "Unlike BullMQ's pause it touches none of BullMQ's keys: Node workers of any version are neither disturbed nor "
    "stopped.",
)


@app.command("close", epilog="\b\nExample:\n  oxherd gate close --reason 'restoring the database'")
def close_gate(
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why: shown by the workers, in /health and by `oxherd gate status`.")
    ],
    as_json: Json = False,
) -> None:
    """Stop the workers of this queue from taking jobs."""
    from oxherd.cli.asking import ask_queue

    ask_queue(lambda _, admin: admin.close_gate(reason))
    _show(reason, as_json)


@app.command("open")
def open_gate(as_json: Json = False) -> None:
    """Let them take jobs again."""
    from oxherd.cli.asking import ask_queue

    ask_queue(lambda _, admin: admin.open_gate())
    _show(None, as_json)


@app.command()
def status(as_json: Json = False) -> None:
    """Say whether the gate is open, or why it is closed."""
    from oxherd.cli.asking import ask_queue

    _show(ask_queue(lambda _, admin: admin.gate()), as_json)


def _show(reason: str | None, as_json: bool) -> None:
    if as_json:
        print_json({"gate": "open" if reason is None else "closed", "reason": reason})
    else:
        print("open" if reason is None else f"closed: {reason}")
