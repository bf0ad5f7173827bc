"""How commands print: tables on a terminal, aligned columns when piped, JSON on request; notes go to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oxherd.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

STYLES = {
    "completed": "green",
    "applied": "green",
    "failed": "red",
    "active": "cyan",
    "running": "cyan",
    "delayed": "yellow",
    "pending": "yellow",
    "retrying": "yellow",
}
WIDEST = 60  # characters of a cell that holds free text


def writable(path: Path | None) -> None:
    """Raises UsageError where a file could not be written there: before the work that fills it, not after."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a file's name is wanted")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} can't be written: its folder has to be there, and open to this user")


def print_json(value: Any, *, on_one_line: bool = False) -> None:
    """One JSON value on stdout: indented on a terminal unless it has to be on one line."""
    import orjson

    indent = orjson.OPT_INDENT_2 if sys.stdout.isatty() and not on_one_line else 0
    print(orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | indent).decode(), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under column names; None is an empty cell."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich_table(columns, cells)
    else:
        _print_columns(columns, cells)


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A terminal, or a pipe, for rich to print on. It leaves a broken pipe to the command, which has to tidy up."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  rich calls this while it handles the BrokenPipeError

    return Terminal(stderr=stderr, quiet=quiet, highlight=False)


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    console().print(table)


def _print_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [[name.upper() for name in columns], *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def note(text: str) -> None:
    """A line for people on stderr, where it is no part of the result."""
    typer.echo(text, err=True)


def one_line(text: str) -> str:
    """The text with its line breaks and tabs as spaces."""
    return " ".join(text.split())


def shortened(text: str, width: int = WIDEST) -> str:
    """The text on one line of at most `width` characters."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def clock(wall_ms: int | None) -> str:
    """A wall time for people, in the local time zone: the time today, date and time otherwise."""
    if not wall_ms:
        return ""
    moment = time.localtime(wall_ms / 1000)
    today = moment[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", moment)


def age(wall_ms: int) -> str:
    """How long ago a wall time was, in its largest unit, such as `3 d`."""
    seconds = max(time.time() - wall_ms / 1000, 0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(seconds: float | None) -> str:
    """Such as `250 ms`, `3.2 s` or `5 m 10 s`."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} m {int(seconds) % 60} s"
