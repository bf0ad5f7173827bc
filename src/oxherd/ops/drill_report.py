"""What drills came to, for people and auditors: the newest of each, and how it went before. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oxherd.ops.disasters import DISASTERS, QUESTIONS, Disaster, Do

WIDTH, HEIGHT, DOT = 160, 32, 3  # of a history's drawing, and how large a measurement's dot is

Row = Mapping[str, Any]  # of `Store.operations("drill")`
_COLUMNS = ("drill", "when", "works", "RTO", "RPO", "jobs", "lost", "gone", "done twice", "paid again", "repeated")
_FIGURES = ("jobs", "lost", "gone", "doubled", "paid_again", "repeated")
ABOUT = (
    "RTO: from the damage until every job, and a new one, had ended. RPO: how old what was restored was. Lost "
    "jobs are those that a backup had; gone are those that came after it. Paid again: steps that were kept. Repeated: "
    "steps that ran at that moment, or were kept after the backup. In production nothing breaks: RTO there is how long "
    "the proof took."
)


def newest(rows: Sequence[Row]) -> dict[str, Row]:
    """The newest of each drill, by its name."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["target"], row)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """The report as Markdown.

    Parameters:
        rows: of the store, the newest first.
    """
    lines = ["# Drills", "", ABOUT, "", f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in newest(rows).values()]
    lines += ["", "## Before", "", "| drill | RTO, the oldest first |", "|---|---|"]
    lines += [f"| {name} | {', '.join(map(_seconds, values))} |" for name, values in _histories(rows)]
    faults = [(row["target"], row["summary"]["fault"]) for row in newest(rows).values() if row["summary"].get("fault")]
    if faults:
        lines += ["", "## What did not work", "", *(f"- {name}: {' '.join(fault.split())}" for name, fault in faults)]
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row]) -> str:
    """The report as one HTML file that needs nothing else, with a drawing of each drill's RTO over time."""
    heads = "".join(f"<th>{each}</th>" for each in (*_COLUMNS, "RTO before"))
    histories = dict(_histories(rows))
    body = "".join(
        f'<tr class="{html.escape(row["outcome"])}">{"".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))}'
        f"<td>{_drawn(histories[name])}</td></tr>"
        for name, row in newest(rows).items()
    )
    faults = "".join(
        f"<li><b>{html.escape(name)}</b> {html.escape(row['summary']['fault'])}</li>"
        for name, row in newest(rows).items()
        if row["summary"].get("fault")
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Drills</title><style>{_STYLE}</style><h1>Drills</h1><p>{html.escape(ABOUT)}</p>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{f'<h2>What did not work</h2><ul>{faults}</ul>' if faults else ''}\n"
    )


_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;"
    "padding:0 1rem}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{text-align:left;"
    "padding:.3rem .6rem;border-bottom:1px solid #8885;white-space:nowrap}.failed td:nth-child(3){font-weight:bold;"
    "color:light-dark(#b00020,#ff8a80)}li{overflow-wrap:anywhere}svg{display:block;fill:currentColor}"
    "polyline{fill:none;stroke:currentColor;stroke-width:2}"
)


def _cells(row: Row) -> list[str]:
    figures = row["summary"]
    when = datetime.fromtimestamp(row["at"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    works = "yes" if row["outcome"] == "ok" else "NO"
    times = [_seconds(figures.get(name)) for name in ("rto_seconds", "rpo_seconds")]
    return [row["target"], when, works, *times, *(str(figures.get(name, "-")) for name in _FIGURES)]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, size in (("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _histories(rows: Sequence[Row]) -> Iterator[tuple[str, list[float]]]:
    for name in newest(rows):
        yield name, [row["summary"].get("rto_seconds", 0.0) for row in reversed(rows) if row["target"] == name]


def _drawn(values: Sequence[float]) -> str:
    top, across = max(values) or 1.0, (WIDTH - 2 * DOT) / max(len(values) - 1, 1)
    points = [
        (f"{DOT + number * across:.1f}", f"{HEIGHT - DOT - value / top * (HEIGHT - 2 * DOT):.1f}")
        for number, value in enumerate(values)
    ]
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="{DOT}"/>' for x, y in points)
    words = ", ".join(map(_seconds, values))
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="RTO, the oldest first: {words}">'
        f'<polyline points="{" ".join(map(",".join, points))}"/>{dots}</svg>'
    )


# -- the runbooks


def runbooks() -> str:
    """All runbooks, as Markdown below a page's introduction."""
    return "\n\n".join(map(_runbook, DISASTERS)) + "\n"


def questions() -> str:
    """The way to the right runbook, as Markdown."""
    headings = {each.name: _heading(each) for each in DISASTERS}
    lines = ["## Which runbook", "", "The first answer that fits is where to go; else on to the next question.", ""]
    for number, question in enumerate(QUESTIONS, 1):
        lines.append(f"{number}. {question.words}")
        lines += [f"   - {words}: [{name}](#{_anchor(headings[name])})" for words, name in question.answers]
    return "\n".join(lines) + "\n"


def _heading(disaster: Disaster) -> str:
    return f"{disaster.name}: {disaster.title[0].lower()}{disaster.title[1:]}"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _runbook(disaster: Disaster) -> str:
    lines = [
        f"## {_heading(disaster)}", "",
        f"**It shows**: {disaster.shows}", "", f"**What is gone**: {disaster.lost}", "",
    ]  # fmt: skip
    for number, step in enumerate(disaster.steps, 1):
        lines += [f"{number}. {step.words}{_where(step)}", *_block(step)]
    return "\n".join(lines).rstrip()


def _where(step: Do) -> str:
    if step.elsewhere:
        return " *(at the platform: no drill does this)*"
    return f" *(ends with exit code {' or '.join(map(str, step.codes))})*" if step.codes != (0,) else ""


def _block(step: Do) -> list[str]:
    return ["", "   ```sh", *(f"   {command}" for command in step.commands), "   ```", ""] if step.commands else [""]


def plan(inventory: Sequence[tuple[str, str]], rows: Mapping[str, Sequence[Row]], contacts: Sequence[str]) -> str:
    """The plan of an installation: what there is, what was last measured, who is told, what to do.

    Parameters:
        inventory: each component and where it is, without secrets.
        rows: operations of the kinds `backup`, `verify` and `drill`, the newest first.
        contacts: where people are told.
    """
    lines = ["# Disaster recovery", "", "## What there is", "", "| component | where |", "|---|---|"]
    lines += [f"| {name} | {where} |" for name, where in inventory]
    lines += ["", "## What was last measured", "", "| component | by | when | RTO | RPO |", "|---|---|---|---|---|"]
    lines += sorted(_measured(rows)) or ["| nothing yet: `oxherd drill run all`, `oxherd backup verify` | | | | |"]
    lines += ["", "## Who is told", "", *([f"- {each}" for each in contacts] or ["- nobody: docs/alerts.md"])]
    return "\n".join([*lines, "", questions(), runbooks()])


def _measured(rows: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    components = {each.name: each.component for each in DISASTERS}
    for kind in ("backup", "verify", "drill"):
        for name, row in newest(rows.get(kind, ())).items() if kind == "drill" else _first(rows.get(kind, ())):
            when = datetime.fromtimestamp(row["at"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
            figures, component = row["summary"], components.get(name, "backups")
            bad = "" if row["outcome"] == "ok" else ", FAILED"
            times = [_seconds(figures.get(each)) for each in ("rto_seconds", "rpo_seconds")]
            yield f"| {component} | {kind} {name}{bad} | {when} | {' | '.join(times)} |"


def _first(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    yield from ((row["target"], row) for row in rows[:1])
