"""Make the pages that are made from code; with `--check`, say which are out of date instead.

docs/settings.md, docs/events.md, docs/cli.md, docs/api.md, docs/disaster-recovery.md and .env.example: run `make docs`
after changing a variable, an event, a metric, a command, an endpoint or a runbook of a disaster.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from oxherd import settings
from oxherd.cli import app
from oxherd.ops import drill_report
from oxherd.telemetry import events
from oxherd.telemetry.logs import FIELDS
from oxherd.telemetry.metrics import SERIES
from oxherd.web import reference

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
SHOWN = 20  # lines of difference per page


def pages() -> dict[str, str]:
    """Every made page: its path in the repository and its text."""
    made: dict[str, Callable[[], str]] = {
        ".env.example": settings.env_example,
        "docs/settings.md": settings.settings_page,
        "docs/events.md": events_page,
        "docs/cli.md": cli_page,
        "docs/api.md": api_page,
        "docs/disaster-recovery.md": recovery_page,
    }
    return {path: make() for path, make in made.items()}


def events_page() -> str:
    """The catalogue of events, then the series that Prometheus sees."""
    lines = [
        "# Events and metrics",
        "",
        "Made from `telemetry/events.py` and `telemetry/metrics.py` by `make docs`.",
        "",
        "Everything Oxherd says about itself is one of these events, and each is a log line with these fields.",
        "Beside them are `message`, `level`, `time` and `event`; [Operations](operations.md) shows lines as they look.",
        "",
        "| event | level | when | fields |",
        "|---|---|---|---|",
        *map(_event_row, events.catalogue()),
        "",
        "## Metrics",
        "",
        "Served at `/metrics` in Prometheus's text format, with `process_*` for memory, time and files.",
        "",
        "| series | type | labels | what it counts |",
        "|---|---|---|---|",
        *_metric_rows(),
    ]
    return "\n".join(lines) + "\n"


def _event_row(kind: type[events.Event]) -> str:
    about = " ".join(inspect.getdoc(kind).split())
    level = "info, or warning for failed and lease_lost" if kind is events.JobEnded else kind.level
    fields = ", ".join(f"`{name}`" for name in FIELDS[kind])
    return f"| `{kind.name}` | {level} | {about} | {fields or '(in the message)'} |"


def _metric_rows() -> Iterator[str]:
    for row in SERIES:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        yield f"| `{row.full_name}` | {row.kind} | {labels} | {row.about} |"


def api_page() -> str:
    """Every endpoint of the HTTP API."""
    lines = [
        "# HTTP API",
        "",
        "Made from `web/api.py` and `web/models.py` by `make docs`. [Over HTTP](http.md) says how to use it.",
        "",
        reference.markdown(),
    ]
    return "\n".join(lines)


def recovery_page() -> str:
    """The runbooks that drills follow."""
    lines = [
        "# Disaster recovery",
        "",
        "Made from `ops/disasters.py` by `make docs`: drills run the same commands, so what stands here was tried.",
        "",
        "`oxherd drill plan` prints this page for your installation, with where all is, who is told, and the RTO and",
        "RPO that were last measured: keep a copy where you can read it when all is gone. Alerts lead to the pages in",
        "[runbooks](runbooks), about one symptom each; a leaked key has [its own](incident/leaked-secret.md).",
        "",
        "```sh",
        "oxherd drill list",
        "oxherd drill run all --report drills.html   # on a scratch stack: breaks nothing of yours",
        "oxherd drill run prove-backup --in production",
        "oxherd drill report",
        "```",
        "",
        drill_report.ABOUT,
        "",
        "`$DATABASE` and `$QUEUE` are their names, which confirm that you mean them; `$OLDER` is a name of",
        "`oxherd backup list`, `$REPOSITORY` a folder with a repository, this one when it is not set.",
        "",
        drill_report.questions(),
        drill_report.runbooks(),
    ]
    return "\n".join(lines)


def cli_page() -> str:
    """The help text of every command."""
    command = typer.main.get_command(app)
    lines = ["# Command line", "", "Made from the commands' own help texts by `make docs`."]
    return "\n".join([*lines, *_command_lines(command, "oxherd", None)]) + "\n"


def _command_lines(command: Any, name: str, parent: Any) -> Iterator[str]:
    command.rich_markup_mode = None  # plain text: boxes and colours are for terminals
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=WIDTH, color=False)
    yield from ("", f"## {context.command_path}", "", "```", *command.get_help(context).splitlines(), "```")
    for inner in getattr(command, "commands", {}):
        yield from _command_lines(command.get_command(context, inner), inner, context)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is out of date")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if text != _kept(path)}
    for path, text in stale.items():
        if not check:
            (ROOT / path).write_text(text)
        print(f"{'out of date' if check else 'written'}: {path}{_changes(path, text) if check else ''}")
    if check and stale:
        print("run `make docs` and commit the result")
    return 1 if check and stale else 0


def _kept(path: str) -> str:
    file = ROOT / path
    return file.read_text() if file.exists() else ""


def _changes(path: str, text: str) -> str:
    lines = [line for line in difflib.ndiff(_kept(path).splitlines(), text.splitlines()) if line[0] in "+-"]
    more = [f"… and {len(lines) - SHOWN} more lines"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:SHOWN] + more)


if __name__ == "__main__":
    sys.exit(main())
