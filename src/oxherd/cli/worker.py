from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  REDIS_URL=… DATABASE_URL=… oxherd worker --app myapp.jobs:herd
  REDIS_URL=… oxherd worker --no-store     the built-in jobs only, nothing is recorded

SIGTERM or Ctrl-C: take nothing new, let jobs finish for SHUTDOWN_GRACE, hand the rest back. A second one hands back at
once, a third leaves at once. SIGUSR1 prints the stack of every task."""

App = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:HERD", help="Where your Herd is; only the built-in jobs without it."),
]


def worker(
    app: App = None,
    no_store: Annotated[
        bool, typer.Option("--no-store", help="Run without a database: runs are not recorded, steps not replayed.")
    ] = False,
) -> None:
    """Take jobs off the queue and run them, until a signal stops it.

    Reads the variables (docs/settings.md), serves /health and /metrics on PORT.
    """
    from oxherd import settings as variables

    settings = variables.load(needs=("REDIS_URL",) if no_store else ("REDIS_URL", "STORE"))

    from oxherd.app import listen_to_logs, load_herd, run_loop, serve

    herd = load_herd(app)
    listen_to_logs(settings)
    run_loop(serve(settings, herd, no_store=no_store))
