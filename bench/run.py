"""Measures Oxherd and its peers on this machine. `python bench/run.py --help` says how."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import fairness.measure
import idle.measure
import latency.measure
import memory.measure
import recovery.measure
import startup.measure
import tables
import throughput.backlog
import throughput.measure
import throughput.recorded
from contestants import BENCH, BY_NAME, CONTESTANTS, Contestant
from install import install_all
from processes import ALLOWED, OTHER_CORE
from report import Answer, load, save

Measure = Callable[..., Answer]
QUESTIONS: dict[str, tuple[str, Measure]] = {
    "throughput": ("(a) no-op jobs per second and CPU per job", throughput.measure.measure),
    "backlog": ("(b) the same with a long queue", throughput.backlog.measure),
    "recorded": ("(h) the same with every run in Postgres", throughput.recorded.measure),
    "latency": ("(c) pickup latency of an idle worker", latency.measure.measure),
    "memory": ("(d) memory per job in flight", memory.measure.measure),
    "startup": ("(e) process start to ready", startup.measure.measure),
    "recovery": ("(f) kill -9 to running again", recovery.measure.measure),
    "idle": ("(g) Redis commands of an idle worker", idle.measure.measure),
    "fairness": ("(i) the wait behind another tenant's thousand jobs", fairness.measure.measure),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure Oxherd and its peers. Without a question all are asked, in about 25 minutes.",
        epilog="questions: " + "; ".join(f"{name} {text}" for name, (text, _) in QUESTIONS.items()),
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="which to ask, default all")
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that all of it works")
    parser.add_argument("--peers", help=f"names, comma-separated: {','.join(BY_NAME)}")
    parser.add_argument("--rounds", type=int, help="interleaved rounds, default 3, with --quick 1")
    parser.add_argument("--json", type=Path, help="results file; questions not asked keep their entry")
    parser.add_argument("--readme", action="store_true", help="put the tables into bench/README.md")
    parser.add_argument("--tables", action="store_true", help="measure nothing, only print the tables of --json")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if unknown := set(options.questions) - set(QUESTIONS):
        print(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    path = options.json or BENCH / "results" / ("quick.json" if options.quick else "latest.json")
    asked = options.questions or list(QUESTIONS)
    if not options.tables:
        measure(asked, chosen(options.peers), options, path)
    everything = load(path)
    show({name: entry for name, entry in everything.items() if name in asked})
    if options.readme:
        tables.rewrite(BENCH / "README.md", everything)
    return 0


def chosen(names: str | None) -> list[Contestant]:
    if not names:
        return list(CONTESTANTS)
    if unknown := set(names.split(",")) - set(BY_NAME):
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(BY_NAME)}")
    return [BY_NAME[name] for name in BY_NAME if name in names.split(",")]


def measure(asked: list[str], contestants: list[Contestant], options: argparse.Namespace, path: Path) -> None:
    usable = install_all(contestants)
    signal.signal(signal.SIGTERM, stop)
    os.sched_setaffinity(0, OTHER_CORE)
    warn(usable)
    for name in asked:
        title, ask = QUESTIONS[name]
        print(f"\n{title}", flush=True)
        began = time.monotonic()
        answer = ask(usable, options.rounds or (1 if options.quick else 3), quick=options.quick)
        save(path, name, answer, quick=options.quick, seconds=time.monotonic() - began)
        print(f"  took {time.monotonic() - began:.0f} s", flush=True)


def stop(*_: object) -> NoReturn:
    """Leave through the context managers, which end everything that was started."""
    raise SystemExit(143)


def warn(contestants: list[Contestant]) -> None:
    names = ", ".join(contestant.label for contestant in contestants)
    print(f"measuring {names}\nworkers on core {ALLOWED[-1]}, engines and producers on core {ALLOWED[0]}")
    if len(ALLOWED) < 2:
        print("warning: one core only, so the worker shares it with Redis and the producer")
    if (load_now := os.getloadavg()[0]) > 0.5:
        print(f"warning: this machine is busy (load {load_now:.1f}); the numbers will be too low")


def show(everything: dict[str, dict[str, object]]) -> None:
    for name, entry in everything.items():
        print(f"\n{QUESTIONS[name][0]}\n\n{tables.rendered(name, entry)}")
        print_failures(json.loads(json.dumps(entry["results"])))
    print(f"\nGoals\n\n{tables.goals(everything)}")


def print_failures(results: Answer) -> None:
    for part, by_name in results.items():
        for name, row in by_name.items():
            for failure in row.get("failures", []):
                print(f"- {name}, {part}: {failure}")


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
