"""Turns results into Markdown tables, and the goals into verdicts."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from contestants import BY_NAME, CONTESTANTS

US = "oxherd"
END = "<!-- end -->"
NODE = "bullmq-node"
Results = dict[str, dict[str, Any]]
SCENARIOS = {"noop-5": "no-op, 5 at once", "noop-100": "no-op, 100 at once", "sleep-500": "50 ms sleep, 500 at once"}


def label(name: str) -> str:
    return BY_NAME[name].label


def grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(row: dict[str, Any] | None, key: str, form: str = ",.0f") -> str:
    return format(row[key], form) if row and key in row else "-"


def ratio(part: Results, over: str, under: str, key: str) -> str:
    """How many times the one's figure is the other's."""
    top, bottom = part.get(over, {}).get(key), part.get(under, {}).get(key)
    return f"{top / bottom:.1f}x" if top and bottom and over != under else "-"


def entrants(*parts: Results) -> list[str]:
    """Contestants with any result, in the order of the list."""
    return [one.name for one in CONTESTANTS if any(part.get(one.name) for part in parts)]


def throughput(results: dict[str, Results]) -> str:
    head = ["jobs/s · CPU ms/job · Oxherd ÷ it", *SCENARIOS.values()]
    parts = [results.get(name, {}) for name in SCENARIOS]
    rows = [[label(name), *(pace(part, name) for part in parts)] for name in entrants(*parts)]
    return grid(head, rows)


def pace(part: Results, name: str) -> str:
    row = part.get(name)
    return f"{cell(row, 'rate')} · {cell(row, 'cpu_ms', '.3f')} · {ratio(part, US, name, 'rate')}"


def backlog(results: dict[str, Results]) -> str:
    small, large = results.get("10k", {}), results.get("1M", {})
    rows = []
    for name in entrants(small, large):
        before, after = (part.get(name, {}).get("rate") for part in (small, large))
        cost = f"{(1 - after / before) * 100:+.1f} %" if before and after else "-"
        rows.append([label(name), *(cell(part.get(name), "rate") for part in (small, large)), cost])
    return grid(["jobs/s at concurrency 100", "10,000 behind", "1,000,000 behind", "cost"], rows)


def latency(results: dict[str, Results]) -> str:
    part = results.get("idle", {})
    rows = [
        [label(name)]
        + [cell(part.get(name), key, ".2f") for key in ("p50_ms", "p99_ms", "max_ms")]
        + [ratio(part, name, US, "p50_ms")]
        for name in entrants(part)
    ]
    return grid(["ms from add to handler", "p50", "p99", "max", "its p50 ÷ Oxherd's"], rows)


def memory(results: dict[str, Results]) -> str:
    part = results.get("in_flight", {})
    rows = [
        [
            label(name),
            cell(part[name], "total_mb_1", ".0f"),
            cell(part[name], "kb_per_job_1000", ".1f"),
            cell(part[name], "kb_per_job_5000", ".1f"),
        ]
        for name in entrants(part)
    ]
    return grid(["memory (PSS)", "1 in flight, MB", "KB per job at 1,000", "KB per job at 5,000"], rows)


def startup(results: dict[str, Results]) -> str:
    part = results.get("start", {})
    rows = [
        [label(name), cell(part[name], "health_s", ".2f"), cell(part[name], "first_job_s", ".2f")]
        for name in entrants(part)
    ]
    return grid(["seconds from process start", "to `/health` 200", "to the first job's handler"], rows)


def recovery(results: dict[str, Results]) -> str:
    part = results.get("kill", {})
    rows = []
    for name in entrants(part):
        row = part[name]
        seconds = [one["seconds"] for one in row.get("rounds", []) if "seconds" in one]
        capped = f"not within {row['not_within_s']:.0f}" if "not_within_s" in row else "-"
        rows.append([label(name), f"{median(seconds):.1f}" if seconds else capped, worst(row, seconds)])
    return grid(["kill -9 with default settings", "seconds until the job runs again", "worst"], rows)


def worst(row: dict[str, Any], seconds: list[float]) -> str:
    if "not_within_s" in row or not seconds:
        return "-"
    return f"{max(seconds):.1f} of {len(seconds)}"


def idle(results: dict[str, Results]) -> str:
    part = results.get("idle", {})
    rows = [
        [
            label(name),
            cell(part[name], "commands_per_hour"),
            cell(part[name], "cpu_s_per_hour", ".0f"),
            str(part[name].get("seen", "-")),
        ]
        for name in entrants(part)
    ]
    return grid(["an idle worker, per hour", "Redis commands", "CPU seconds", "seen in the window"], rows)


def fairness(results: dict[str, Results]) -> str:
    head = ["wait of other tenants' single jobs, median · longest, in s"]
    head += [f"behind 1,000 jobs of {takes}" for takes in results]
    rows = []
    for name in entrants(*results.values()):
        cells = [
            f"{cell(part.get(name), 'median_s', '.2f')} · {cell(part.get(name), 'max_s', '.2f')}"
            for part in results.values()
        ]
        rows.append([label(name), *cells])
    return grid(head, rows)


TABLES: dict[str, Callable[[dict[str, Results]], str]] = {
    "throughput": throughput,
    "backlog": backlog,
    "latency": latency,
    "memory": memory,
    "startup": startup,
    "recovery": recovery,
    "idle": idle,
    "fairness": fairness,
    "recorded": throughput,
}


def rendered(question: str, entry: dict[str, Any]) -> str:
    """One question's table with the line that says when and on what."""
    quick = "**quick run, not for comparison** · " if entry["quick"] else ""
    source = (
        f"{quick}{entry['measured_at'][:10]} · commit {entry['commit'] or 'unknown'} · {entry['cpu']}, "
        f"{entry['cores']} cores · Linux {entry['kernel']} · Python {entry['python']} · Node {entry['node']}"
    )
    if question == "recorded":
        source += f" · {entry['fdatasync_ms']} ms per fdatasync"
    return f"{TABLES[question](entry['results'])}\n\n<sub>{source}</sub>"


def best_python(part: Results) -> tuple[str, float]:
    peers = {name: row["rate"] for name, row in part.items() if name not in (US, NODE) and "rate" in row}
    name = max(peers, key=lambda one: peers[one])
    return label(name), peers[name]


def goals(everything: dict[str, Any]) -> str:
    """Each goal, what was measured, and whether it is met; goals without results are left out."""
    rows = []
    for text, verdict in GOALS:
        try:
            met, measured = verdict({name: entry["results"] for name, entry in everything.items()})
        except (KeyError, ValueError, ZeroDivisionError):
            continue
        rows.append([text, measured, "yes" if met else "**no**"])
    return grid(["goal", "measured", "met"], rows)


Verdict = Callable[[dict[str, dict[str, Results]]], tuple[bool, str]]


def against_node(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    part = answers["throughput"]["noop-100"]
    times = part[US]["rate"] / part[NODE]["rate"]
    return times >= 1.5, f"{times:.2f}x"


def against_python(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    part = answers["throughput"]["noop-100"]
    name, rate = best_python(part)
    times = part[US]["rate"] / rate
    return times >= 8, f"{times:.1f}x {name}"


def long_backlog(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    part = answers["backlog"]
    cost = 1 - part["1M"][US]["rate"] / part["10k"][US]["rate"]
    return cost < 0.10, f"{cost:.1%}"


def pickup(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    value = answers["latency"]["idle"][US]["p99_ms"]
    return value <= 5, f"{value:.2f} ms"


def per_job(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    row = answers["memory"]["in_flight"][US]
    values = [row[key] for key in ("kb_per_job_1000", "kb_per_job_5000") if key in row]
    return max(values) <= 40, " and ".join(f"{value:.1f} KB" for value in values)


def start(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    value = answers["startup"]["start"][US]["health_s"]
    return value <= 1.0, f"{value:.2f} s"


def again(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    value = max(one["seconds"] for one in answers["recovery"]["kill"][US]["rounds"])
    return value <= 35, f"{value:.1f} s at worst"


def cheap(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    value = answers["idle"]["idle"][US]["commands_per_hour"]
    return value <= 140, f"{value:.0f}"


def durable(answers: dict[str, dict[str, Results]]) -> tuple[bool, str]:
    part = answers["recorded"]["noop-100"]
    times = part[US]["rate"] / part[NODE]["rate"]
    return times >= 1, f"{times:.2f}x"


GOALS: list[tuple[str, Verdict]] = [
    ("≥ 1.5 x BullMQ for Node, no-op, 100 at once", against_node),
    ("≥ 8 x the best Python peer, no-op, 100 at once", against_python),
    ("a backlog of 1 M costs < 10 %", long_backlog),
    ("idle pickup p99 ≤ 5 ms", pickup),
    ("≤ 40 KB per no-op job in flight", per_job),
    ("process start → `/health` ≤ 1.0 s", start),
    ("kill -9 → running again ≤ lock duration (30 s) + 5 s", again),
    ("an idle worker ≤ 140 Redis commands an hour", cheap),
    ("every run recorded: ≥ BullMQ for Node that records nothing", durable),
]


def rewrite(readme: Path, everything: dict[str, Any]) -> None:
    """Put the tables between the README's markers."""
    text = readme.read_text()
    blocks = {name: rendered(name, entry) for name, entry in everything.items()}
    blocks["goals"] = goals(everything)
    for name, block in blocks.items():
        text = replaced(text, name, block)
    readme.write_text(text)


def replaced(text: str, name: str, block: str) -> str:
    before, marker, rest = text.partition(f"<!-- table: {name} -->\n")
    if not marker:
        return text
    return before + marker + block + "\n" + END + rest.partition(END)[2]
