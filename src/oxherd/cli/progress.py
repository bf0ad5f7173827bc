"""What `demo` and `dev` say while they work: a line for each finished step, a spinner for the one that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from oxherd.cli.printing import console, duration


class Progress:
    """Lines for people.

    Parameters:
        quiet: say nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = console(quiet=quiet)

    def say(self, text: str = "", *, style: str = "") -> None:
        """A line."""
        self._console.print(text, style=style or None, markup=False, soft_wrap=True)

    def done(self, what: str, detail: str = "", *, seconds: float | None = None, good: bool = True) -> None:
        """A finished step with its outcome and how long it took."""
        from rich.text import Text

        mark = Text("  ✓ ", "green") if good else Text("  ✗ ", "red")
        took = f"  {duration(seconds)}" if seconds is not None else ""
        line = Text.assemble(mark, (what, "bold"), f"  {detail}" if detail else "", (took, "dim"))
        self._console.print(line, soft_wrap=True)

    @contextmanager
    def working(self, on: str) -> Iterator[None]:
        """Show a spinner meanwhile; nothing where this is no terminal."""
        with self._console.status(on):
            yield
