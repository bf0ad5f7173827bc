"""JSON schemas as models like them, and what did not fit one, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

Schema = dict[str, Any]

_ONE = ("items", "additionalProperties", "not", "contains")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions", "patternProperties")


def _each(schema: Mapping[str, Any], change: Callable[[Schema], Schema]) -> Schema:
    """A copy of a schema in which every schema directly inside it is changed."""
    copy = dict(schema)
    for key, value in schema.items():
        if key in _ONE and isinstance(value, dict):
            copy[key] = change(value)
        elif key in _MANY:
            copy[key] = [change(inner) for inner in value]
        elif key in _NAMED:
            copy[key] = {name: change(inner) for name, inner in value.items()}
    return copy


def trimmed(schema: Schema) -> Schema:
    """Without the titles that pydantic adds: every call pays for them again."""
    copy = _each(schema, trimmed)
    copy.pop("title", None)
    return copy


def closed(schema: Schema) -> Schema:
    """With every property required and no others allowed, which is what strict schema modes take.

    A property with a default loses it: the model fills in all of them.
    """
    copy = _each(schema, closed)
    copy.pop("default", None)
    if "properties" in copy:
        copy["required"] = list(copy["properties"])
        copy["additionalProperties"] = False
    return copy


def is_strict(schema: Schema) -> bool:
    """Whether strict schema modes take it: every object closed, every property required."""
    if schema.get("type") == "object" or "properties" in schema:
        names = set(schema.get("properties", {}))
        if schema.get("additionalProperties") is not False or names != set(schema.get("required", ())):
            return False
    inner: list[bool] = []

    def look(found: Schema) -> Schema:
        inner.append(is_strict(found))
        return found

    _each(schema, look)
    return all(inner)


def explain(error: ValidationError, *, what: str) -> str:
    """Which fields do not fit and what was expected there, without the values: they may be secret.

    Parameters:
        error: pydantic's.
        what: how the whole is called, such as "agent".
    """
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(_line(what, fault["loc"], fault["msg"]) for fault in faults[:10])


def _line(what: str, place: tuple[int | str, ...], words: str) -> str:
    path = ".".join(str(part) for part in (what, *place) if part != "")
    return f"{path}: {words}" if path else words
