"""The report on a month: each promise, whether it was kept, day by day, and what went wrong. Pure."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from oxherd.telemetry.alerts import Alert
from oxherd.telemetry.slo import Count, Objective, budget_left


@dataclass(frozen=True, slots=True)
class Month:
    """What a report is made from.

    Attributes:
        queue: whose.
        first, last: the days it is about, UTC, both included.
        made: when it was made.
        counted_since: the first day that was counted at all, or None.
        whole: events by objective.
        days: the same, day by day.
        incidents: alerts that began in it.
    """

    queue: str
    first: date
    last: date
    made: datetime
    counted_since: date | None
    whole: Mapping[Objective, Count]
    days: Mapping[date, Mapping[Objective, Count]]
    incidents: Sequence[Alert]


def kept(objective: Objective, count: Count) -> bool | None:
    """Whether a promise was kept; None where nothing happened."""
    return None if count.ratio is None else budget_left(objective, count) >= 0


def data(month: Month) -> dict[str, object]:
    """The report for programs."""
    return {
        "queue": month.queue, "from": month.first.isoformat(), "to": month.last.isoformat(),
        "made": month.made.isoformat(timespec="seconds"),
        "counted_since": None if month.counted_since is None else month.counted_since.isoformat(),
        "objectives": [
            {
                "name": objective.name, "promise": objective.words, "target": objective.target, "ratio": count.ratio,
                "events": count.total, "bad": count.bad, "budget_left": budget_left(objective, count),
                "kept": kept(objective, count),
                "days": {day.isoformat(): counts[objective].ratio for day, counts in month.days.items()},
            }
            for objective, count in month.whole.items()
        ],
        "incidents": [alert.dump() for alert in month.incidents],
    }  # fmt: skip


def markdown(month: Month) -> str:
    """The report as Markdown."""
    lines = [f"# Service levels of {month.queue}, {month.first} to {month.last}", "", _preface(month), ""]
    lines += ["| promise | kept | reached | events | broke it | budget left |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(month)]
    lines += ["", "## Day by day", "", f"| day | {' | '.join(each.name for each in month.whole)} |"]
    lines += [f"|---|{'---|' * len(month.whole)}"]
    lines += [
        f"| {day} | {' | '.join(_reached(counts[each]) for each in month.whole)} |"
        for day, counts in month.days.items()
    ]
    lines += ["", "## What went wrong", ""]
    lines += [f"- {line}" for line in _incidents(month)] or ["Nobody had to be told of anything."]
    return "\n".join(lines) + "\n"


def page(month: Month) -> str:
    """The report as one HTML file that needs nothing else."""
    title = html.escape(f"Service levels of {month.queue}, {month.first} to {month.last}")
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in _rows(month))
    heads = "".join(f"<th>{head}</th>" for head in ("promise", "kept", "reached", "events", "broke it", "budget left"))
    names = "".join(f"<th>{html.escape(each.name)}</th>" for each in month.whole)
    days = "".join(
        f"<tr><td>{day}</td>{''.join(_cell(each, counts[each]) for each in month.whole)}</tr>"
        for day, counts in month.days.items()
    )
    incidents = "".join(f"<li>{html.escape(line)}</li>" for line in _incidents(month))
    told = f"<ul>{incidents}</ul>" if incidents else "<p>Nobody had to be told of anything.</p>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><p>{html.escape(_preface(month))}</p>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><h2>Day by day</h2>"
        f"<table><thead><tr><th>day</th>{names}</tr></thead><tbody>{days}</tbody></table>"
        f"<h2>What went wrong</h2>{told}\n"
    )


_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;"
    "border-bottom:1px solid #8885}.broken{color:#b3261e;font-weight:600}@media(prefers-color-scheme:dark)"
    "{.broken{color:#ff8a80}}@media print{body{margin:0}}"
)


def _preface(month: Month) -> str:
    made = month.made.strftime("%Y-%m-%d %H:%M UTC")
    if month.counted_since is None:
        return f"Made on {made}. Nothing was counted in this time."
    late = f" Counting began on {month.counted_since}." if month.counted_since > month.first else ""
    return f"Made on {made}; days are those of UTC.{late}"


def _rows(month: Month) -> list[tuple[str, ...]]:
    words = {None: "no events", True: "yes", False: "NO"}
    return [
        (
            each.words, words[kept(each, count)], _reached(count), f"{count.total:,.0f}", f"{count.bad:,.0f}",
            f"{budget_left(each, count):.0%}",
        )
        for each, count in month.whole.items()
    ]  # fmt: skip


def _reached(count: Count) -> str:
    # Cut, not rounded: 99.996 % is not 100 %.
    return "-" if count.ratio is None else f"{int(count.ratio * 10_000) / 100:.2f} %"


def _cell(objective: Objective, count: Count) -> str:
    broken = ' class="broken"' if kept(objective, count) is False else ""
    return f"<td{broken}>{_reached(count)}</td>"


def _incidents(month: Month) -> list[str]:
    return [
        f"{datetime.fromtimestamp(alert.since, UTC):%Y-%m-%d %H:%M}, {max(alert.seen - alert.since, 0) / 60:.0f} min: "
        f"{alert.key} ({alert.severity}). {alert.summary}"
        for alert in month.incidents
    ]
