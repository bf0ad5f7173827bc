"""JSON in and out: one encoder for results, steps and payloads, with errors that name what did not fit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
from pydantic import BaseModel

from oxherd.errors import ResultInvalid


def encode(value: Any, *, what: str = "the return value", ordered: bool = False) -> bytes:
    """Write a value as JSON.

    Parameters:
        value: plain data, dataclasses, named tuples, pydantic models, dates, UUIDs, enums, sets and decimals,
            nested at will. A Secret comes out as `***`.
        what: how an error names it.
        ordered: sort the keys of objects, so that equal values are equal bytes.

    Raises:
        ResultInvalid: naming the type that JSON has no word for.
    """
    options = orjson.OPT_NON_STR_KEYS | (orjson.OPT_SORT_KEYS if ordered else 0)
    try:
        return orjson.dumps(value, default=_plain, option=options)
    except TypeError as error:
        cause = error.__cause__ or error
        raise ResultInvalid(
            f"{what} can't be written as JSON: {cause}",
            hint="return plain data, a dataclass or a pydantic model",
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise TypeError("bytes have no JSON form; decode or base64 them")
    if isinstance(value, tuple):  # a named one; plain tuples need no help
        return list(value)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} has no JSON form")


def decode(raw: bytes | str) -> Any:
    """Read JSON. Raises ValueError where it is none."""
    return orjson.loads(raw)


def tenant_of(raw: bytes) -> str | None:
    """The `tenant` in a payload that nobody has validated yet."""
    try:
        return tenant_in(decode(raw))
    except ValueError:
        return None


def tenant_in(data: Any) -> str | None:
    """The `tenant` in a payload, where it is text."""
    tenant = data.get("tenant") if isinstance(data, dict) else None
    return tenant if isinstance(tenant, str) else None
