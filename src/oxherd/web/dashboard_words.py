"""How the dashboard writes numbers, times and money. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000  # ms
NOTHING = "–"  # noqa: RUF001  a dash, as in tables
MOST_SHOWN = 20_000  # characters of one payload or result


def span(ms: float | None) -> str:
    """A duration, in two units at most: `840 ms`, `2.4 s`, `3 min 5 s`."""
    if ms is None:
        return NOTHING
    if ms == 0:
        return "0"
    for limit, unit, digits in ((1, "ms", 1), (SECOND, "ms", 0)):
        if ms < limit:
            return f"{ms:.{digits}f} {unit}"
    if ms < MINUTE:
        return f"{ms / SECOND:.1f} s" if ms < 10 * SECOND else f"{ms / SECOND:.0f} s"
    for size, unit, part, small in ((HOUR, "min", MINUTE, "s"), (DAY, "h", HOUR, "min"), (float("inf"), "d", DAY, "h")):
        if ms < size:
            whole, rest = divmod(int(ms), part)
            below = rest // {MINUTE: SECOND, HOUR: MINUTE, DAY: HOUR}[part]
            return f"{whole} {unit} {below} {small}" if below else f"{whole} {unit}"
    raise AssertionError(ms)


def ago(then_ms: float | None, now_ms: float) -> str:
    """How long ago, or in how long."""
    if not then_ms:
        return NOTHING
    away = now_ms - then_ms
    if abs(away) < 2 * SECOND:
        return "now"
    words = _rough(abs(away))
    return f"{words} ago" if away > 0 else f"in {words}"


def _rough(ms: float) -> str:
    for size, part, unit in ((MINUTE, SECOND, "s"), (HOUR, MINUTE, "min"), (2 * DAY, HOUR, "h")):
        if ms < size:
            return f"{int(ms // part)} {unit}"
    return f"{int(ms // DAY)} d"


def moment(wall_ms: float | None) -> str:
    """A moment in UTC, to the second."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if wall_ms else NOTHING


def iso(wall_ms: float) -> str:
    """The same for programs."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="seconds")


def number(value: float | None) -> str:
    """A number with its thousands apart; in short from a hundred thousand on."""
    if value is None:
        return NOTHING
    for size, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (100_000, " k")):
        if abs(value) >= size:
            return f"{value / (1_000 if unit == ' k' else size):.3g}{unit}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def money(dollars: Decimal | float | str | None) -> str:
    """US dollars: cents where there are some, more digits where there are not."""
    if dollars is None:
        return NOTHING
    value = Decimal(str(dollars))
    if value == 0:
        return "$0"
    if abs(value) >= 1:
        return f"${value:,.2f}"
    return f"${value:.{max(2, 1 - value.adjusted())}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage, without needless zeros. What is not quite all is never written as all."""
    if share is None:
        return NOTHING
    text = f"{100 * share:.{digits}f}"
    if text == f"{100:.{digits}f}" and share < 1:
        text = f"{99.99 if digits < 3 else 99.999}"
    if share == 0:
        return "0 %"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def size(count: float | None) -> str:
    """A number of bytes."""
    if count is None:
        return NOTHING
    for limit, unit in ((1024**2, "KiB"), (1024**3, "MiB")):
        if 1024 <= count < limit:
            return f"{count / (limit / 1024):.1f} {unit}"
    return f"{count:.0f} B"


def pretty(value: Any) -> str:
    """Any data as text for people: words as they are, all else as JSON; its beginning where it is long."""
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}\n… {len(text) - MOST_SHOWN:,} more characters"


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str).decode()
    except TypeError:  # half a surrogate pair
        return repr(value)


STATES = {
    "wait": "waiting", "prioritized": "prioritized", "waiting-children": "for children", "handed_back": "handed back",
    "parked": "for children", "unknown": "not on the queue",
}  # fmt: skip


def state(name: str) -> str:
    """A job's or a run's state in a word or two."""
    return STATES.get(name, name)
