"""Charts as numbers that a template draws: paths of an SVG, ticks, and the same as a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oxherd.web.dashboard_words import NOTHING

WIDTH, HEIGHT = 600, 150  # of the drawing; a page stretches it
TICKS = 5  # below the time axis


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend.
        tone: of its colour: good, bad, calm, warm or deep.
        values: from left to right; None where nothing is known.
        filled: whether the area below it is coloured.
    """

    name: str
    tone: str
    values: Sequence[float | None]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """A line as SVG has it: `path`, `area` (empty where it is not filled), and lone points as `dots`."""

    name: str
    tone: str
    path: str
    area: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, ready to be drawn.

    Attributes:
        title: above it.
        summary: what it shows, in a sentence, for those who can't see it.
        lines: in the order in which they are drawn.
        scale: words beside the value axis, from the top.
        ticks: words below the time axis, evenly spread.
        rows: for the table: when, and each line's value in words.
        data: for the script that shows values under the pointer.
        empty: whether there is nothing to draw.
    """

    title: str
    summary: str
    lines: list[Drawn]
    scale: list[str]
    ticks: list[str]
    rows: list[list[str]]
    data: dict[str, Any]
    empty: bool


def chart(title: str, moments: Sequence[float], lines: Sequence[Line], words: Callable[[float], str]) -> Chart:
    """Draw lines over time.

    Parameters:
        title: what they are.
        moments: seconds since the epoch, one for each value; two at least.
        lines: as many values each.
        words: a value, for people.
    """
    known = [value for line in lines for value in line.values if value is not None]
    top = nice(max(known, default=0.0))
    labels = [_when(each, moments) for each in moments]
    columns = [[NOTHING if value is None else words(value) for value in line.values] for line in lines]
    rows = [[label, *cells] for label, *cells in zip(labels, *columns, strict=True)]
    return Chart(
        title=title,
        summary=_summary(title, lines, words),
        lines=[_drawn(line, top) for line in lines],
        scale=[words(top), words(top / 2), words(0.0)],
        ticks=_ticks(labels),
        rows=rows[::-1],
        data={"labels": labels, "lines": [[line.name, cells] for line, cells in zip(lines, columns, strict=True)]},
        empty=not any(known),
    )  # fmt: skip


def nice(most: float) -> float:
    """Where a value axis ends: a round number that is not below `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= most * 0.999)


def _drawn(line: Line, top: float) -> Drawn:
    last = max(len(line.values) - 1, 1)
    points = [
        None if value is None else (round(at * WIDTH / last, 1), round(HEIGHT - value / top * (HEIGHT - 4), 1))
        for at, value in enumerate(line.values)
    ]
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    runs = [piece for piece in pieces if len(piece) > 1]
    path = " ".join("M" + " L".join(f"{x} {y}" for x, y in piece) for piece in runs)
    area = " ".join(
        f"M{piece[0][0]} {HEIGHT} L" + " L".join(f"{x} {y}" for x, y in piece) + f" L{piece[-1][0]} {HEIGHT} Z"
        for piece in runs
    )
    return Drawn(
        line.name, line.tone, path, area if line.filled else "", [each[0] for each in pieces if len(each) == 1]
    )


def _when(moment: float, moments: Sequence[float]) -> str:
    length, step = moments[-1] - moments[0], moments[-1] - moments[-2]
    form = "%H:%M" if length <= 90_000 else "%d %b %H:%M" if step < 86_400 else "%d %b"
    return datetime.fromtimestamp(moment, UTC).strftime(form)


def _ticks(labels: Sequence[str]) -> list[str]:
    if len(labels) <= TICKS:
        return list(labels)
    last = len(labels) - 1
    return [labels[round(place * last / (TICKS - 1))] for place in range(TICKS)]


def _summary(title: str, lines: Sequence[Line], words: Callable[[float], str]) -> str:
    parts = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        if known:
            parts.append(f"{line.name}: newest {words(known[-1])}, most {words(max(known))}")
    return f"{title}. {'; '.join(parts) or 'Nothing yet'}."


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart: `share` is its length, 0 to 100."""

    name: str
    share: float
    row: Any


def bars(rows: Sequence[Any], name: Callable[[Any], str], value: Callable[[Any], float]) -> list[Bar]:
    """Rows with bars, the longest of which fills all the width."""
    most = max(map(value, rows), default=0.0) or 1.0
    return [Bar(name(row), round(100 * value(row) / most, 2), row) for row in rows]
