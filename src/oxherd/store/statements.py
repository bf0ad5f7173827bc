"""The SQL statements, one per file in `sql/`, each named like the method that runs it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> str:
    """The text of `sql/<name>.sql`."""
    return (files("oxherd.store") / "sql" / f"{name}.sql").read_text()
