"""Turns the results of the agents' bench into Markdown tables, and the goals into verdicts."""

from typing import Any

from tables import cell, grid

US = "oxherd_worker"
LABELS = {
    "oxherd_worker": "**Oxherd**, the worker",
    "oxherd_run": "Oxherd, its loop alone",
    "bare": "bare aiohttp + orjson",
    "openai_sdk": "openai SDK",
    "openai_agents_run": "OpenAI Agents SDK",
    "pydantic_ai_run": "pydantic-ai",
    "langgraph_run": "LangGraph",
    "ai_sdk": "Vercel AI SDK (Node)",
}
Part = dict[str, dict[str, Any]]


def blocks(everything: dict[str, Any]) -> dict[str, str]:
    """The tables by the names of their places in the README."""
    made = {
        name: f"{make(everything[name]['results'])}\n\n{source(everything[name])}"
        for name, make in TABLES.items()
        if name in everything
    }
    return {**made, "goals": goals({name: entry["results"] for name, entry in everything.items()})}


def source(entry: dict[str, Any]) -> str:
    return (
        f"<sub>{entry['measured_at'][:10]} · commit {entry['commit']} · {entry['cpu']}, {entry['cores']} cores · "
        f"Linux {entry['kernel']} · Python {entry['python']} · Node {entry['node']}</sub>"
    )


def entrants(*parts: Part) -> list[str]:
    return [name for name in LABELS if any(part.get(name) for part in parts)]


def cpu(results: dict[str, Part]) -> str:
    paced, burst = results["paced"], results["burst"]
    head = ["CPU ms per run · ÷ Oxherd's", "chunks 5 ms apart", "all in one piece", "runs/s, all in one piece"]
    rows = [
        [LABELS[name], times(paced, name), times(burst, name), cell(burst.get(name), "runs_s")]
        for name in entrants(paced, burst)
    ]
    return grid(head, rows)


def times(part: Part, name: str) -> str:
    ratio = (
        f"{part[name]['cpu_ms'] / part[US]['cpu_ms']:.1f}x" if "cpu_ms" in part.get(name, {}) and name != US else "-"
    )
    return f"{cell(part.get(name), 'cpu_ms', '.2f')} · {ratio}"


def streams(results: dict[str, Part]) -> str:
    part = results["most"]
    head = ["50 tokens a second each", "streams at once", "p50 ms", "p99 ms", "CPU µs per chunk", "of the core"]
    forms = {"streams": ",.0f", "p50_ms": ".1f", "p99_ms": ".0f", "us_per_chunk": ".0f", "busy": ".0%"}
    rows = [[LABELS[name], *(cell(part[name], key, form) for key, form in forms.items())] for name in entrants(part)]
    return grid(head, rows)


def memory(results: dict[str, Part]) -> str:
    part = results["held"]
    rows = [
        [
            LABELS[name],
            cell(part[name], "one_mb", ".0f"),
            cell(part[name], "kb_per_run", ".0f"),
            cell(part[name], "import_s", ".2f"),
        ]
        for name in entrants(part)
    ]
    return grid(["memory (PSS)", "one run, MB", "KB for each further run", "seconds to import and connect"], rows)


TABLES = {"cpu": cpu, "streams": streams, "memory": memory}


def goals(answers: dict[str, dict[str, Part]]) -> str:
    """Each goal, what was measured, and whether it is met; goals without results are left out."""
    rows = []
    for text, least, figure, form in GOALS:
        try:
            value = figure(answers)
        except KeyError:
            continue
        met = value >= least if least > 0 else value <= -least
        rows.append([text, form.format(value), "yes" if met else "**no**"])
    return grid(["goal", "measured", "met"], rows)


def over(part: str, peer: str):
    return lambda answers: answers["cpu"][part][peer]["cpu_ms"] / answers["cpu"][part][US]["cpu_ms"]


GOALS = [  # the text, at least (or, below zero, at most), the figure and its form
    ("≤ 1/10 of pydantic-ai's CPU, chunks apart", 10, over("paced", "pydantic_ai_run"), "1/{:.1f}"),
    ("≤ 1/10 of pydantic-ai's CPU, in one piece", 10, over("burst", "pydantic_ai_run"), "1/{:.1f}"),
    ("≤ 1/5 of the openai SDK's CPU, chunks apart", 5, over("paced", "openai_sdk"), "1/{:.1f}"),
    ("≤ 1/5 of the openai SDK's CPU, in one piece", 5, over("burst", "openai_sdk"), "1/{:.1f}"),
    ("≥ 200 streams of 50 tokens a second per core", 200, lambda found: found["streams"]["most"][US]["streams"], "{}"),
    ("≤ 150 KB for each run in flight", -150, lambda found: found["memory"]["held"][US]["kb_per_run"], "{:.0f} KB"),
]  # fmt: skip
