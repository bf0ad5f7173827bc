"""A Grafana dashboard made from the table of series: an overview, then a panel for each. Pure.

Source: Grafana's dashboard JSON model, schema version 39 (Grafana 11 and later).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from oxherd.telemetry.metrics import SERIES, Series
from oxherd.telemetry.rules import QUANTILES, series

Panel = dict[str, Any]
WIDTH, HEIGHT = 8, 7  # of a panel, in a grid of 24 columns
STAT_WIDTH, STAT_HEIGHT = 4, 4
RATE = "$__rate_interval"
SOURCE = {"type": "prometheus", "uid": "${source}"}
UNITS = {"seconds": "s", "usd": "currencyUSD", "tokens": "short", "rows": "short", "": "short"}
PER_SECOND = {"usd": "currencyUSD", "": "ops", "tokens": "ops", "rows": "ops", "seconds": "s"}


def dashboard() -> dict[str, Any]:
    """The dashboard, ready to be imported. It asks for the Prometheus that it reads and the jobs it shows."""
    panels = list(_placed([("Overview", _overview()), *_groups()]))
    return {
        "title": "Oxherd",
        "uid": "oxherd",
        "tags": ["oxherd"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source(), _job()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _job() -> dict[str, Any]:
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({series('build')}, job)",
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _overview() -> list[Panel]:
    over = _of(series("jobs", outcome="completed|failed"))
    failed = _of(series("jobs", outcome="failed"))
    cached, read = (_of(series("model_tokens", kind=kind)) for kind in ("cached", "input"))
    # A share of nothing is no number: `> 0` leaves the panel empty then.
    return [
        _stat("Jobs per second", f"sum(rate({over}[{RATE}]))", "ops"),
        _stat("Failed", f"sum(rate({failed}[1h])) / (sum(rate({over}[1h])) > 0)", "percentunit"),
        _stat("Running", f"sum({_of(series('jobs_in_flight'))})", "short"),
        _stat("Waiting", f"sum(max by (state) ({_of(series('queue_jobs', state='wait|prioritized'))}))", "short"),
        _stat("Spent in 24 h", f"sum(increase({_of(series('model_cost_usd'))}[24h]))", "currencyUSD"),
        _stat("Prompts cached", f"sum(rate({cached}[1h])) / (sum(rate({read}[1h])) > 0)", "percentunit"),
    ]


def _groups() -> Iterator[tuple[str, list[Panel]]]:
    for group, rows in groupby(SERIES, key=lambda row: row.group):
        yield group, [_panel(row) for row in rows if row.kind != "info"]


def _panel(row: Series) -> Panel:
    by = ", ".join(row.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in row.labels)
    match row.kind:
        case "histogram":
            kept = ", ".join((*row.labels, "le"))
            rate = f"sum by ({kept}) (rate({_of(series(row.name, 'bucket'))}[{RATE}]))"
            queries = [(f"histogram_quantile({share}, {rate})", f"p{share * 100:g} {legend}") for share in QUANTILES]
            unit = UNITS[row.unit]
        case "counter":
            summed = f"sum by ({by})" if by else "sum"
            queries = [(f"{summed} (rate({_of(series(row.name))}[{RATE}]))", legend or "all workers")]
            unit = PER_SECOND[row.unit]
        case _:
            # Every worker tells the same of the queue's states, and its own of the rest.
            queries = [(f"max by ({by or 'instance'}) ({_of(series(row.name))})", legend or "{{instance}}")]
            unit = UNITS[row.unit]
    return _graph(row.full_name, row.about, queries, unit)


def _of(selector: str) -> str:
    """The selector, for the jobs that were chosen."""
    head, brace, rest = selector.partition("{")
    return f'{head}{{job=~"$job"{"," + rest if brace else "}"}'


def _graph(title: str, about: str, queries: Sequence[tuple[str, str]], unit: str) -> Panel:
    targets = [
        {"refId": "ABC"[place], "expr": expr, "legendFormat": legend.strip(), "datasource": SOURCE}
        for place, (expr, legend) in enumerate(queries)
    ]
    return {
        "type": "timeseries",
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}},
        "targets": targets,
    }


def _stat(title: str, expr: str, unit: str) -> Panel:
    panel = _graph(title, "", [(expr, "")], unit)
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    return {**panel, "type": "stat", "options": options}


def _placed(groups: Sequence[tuple[str, Sequence[Panel]]]) -> Iterator[Panel]:
    """The panels in the grid, each group under a row of its name."""
    y = 0
    for name, panels in groups:
        yield {"type": "row", "title": name, "collapsed": False, "panels": [], "gridPos": _place(0, y, 24, 1)}
        small = panels[0]["type"] == "stat"
        width, height = (STAT_WIDTH, STAT_HEIGHT) if small else (WIDTH, HEIGHT)
        columns = 24 // width
        for place, panel in enumerate(panels):
            x, line = place % columns * width, place // columns
            yield {**panel, "gridPos": _place(x, y + 1 + line * height, width, height)}
        y += 1 + -(-len(panels) // columns) * height


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}
