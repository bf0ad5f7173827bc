"""JSON for answers: whatever is stored can be shown, also text that is no valid Unicode."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson


def dump(value: Any) -> bytes:
    """A value as JSON; decimals as text, to the last digit."""
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # half a surrogate pair, such as in a job id that is no UTF-8
        return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
