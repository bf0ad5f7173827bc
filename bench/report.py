"""Collects rounds, prints progress, keeps results as JSON."""

import contextlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from contestants import CONTESTANTS, NODE_PACKAGES, ROOT, Contestant
from processes import ALLOWED, BenchError

Answer = dict[str, dict[str, dict[str, Any]]]  # part of the question -> contestant -> medians
GIVE_UP_AFTER = 2


def say(text: str) -> None:
    """Continue the progress line that an attempt has begun."""
    print(text, flush=True)


class Rounds:
    """The results of one part of a question, by contestant."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.taken: dict[str, list[dict[str, Any]]] = {}
        self.failures: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def attempt(self, name: str, number: int) -> Iterator[None]:
        """One round of one contestant; its failure is noted and the others go on."""
        print(f"  {self.label:<32} {number + 1}  {name:<14} ", end="", flush=True)
        try:
            yield
        except BenchError as error:
            self.fail(name, error)

    def fail(self, name: str, error: BenchError) -> None:
        self.failures.setdefault(name, []).append(str(error))
        say(f"failed: {error}")

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.taken.setdefault(name, []).append(result)

    def remaining(self, contestants: list[Contestant]) -> list[Contestant]:
        """Those that have not failed too often to be tried again."""
        return [one for one in contestants if len(self.failures.get(one.name, ())) < GIVE_UP_AFTER]

    def medians(self) -> dict[str, dict[str, Any]]:
        summary: dict[str, dict[str, Any]] = {}
        for name, rounds in self.taken.items():
            keys = rounds[0].keys() | rounds[-1].keys()
            summary[name] = {key: middle([one[key] for one in rounds if key in one]) for key in sorted(keys)}
            summary[name]["rounds"] = rounds
        for name, failures in self.failures.items():
            summary.setdefault(name, {})["failures"] = failures
        return summary


def middle(values: list[Any]) -> Any:
    return values[-1] if isinstance(values[0], str) else median(values)


def circumstances(*, quick: bool) -> dict[str, Any]:
    """On what, when and with which versions a question was measured."""
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "commit": output_of(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]),
        "cpu": cpu_model(),
        "cores": len(ALLOWED),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "node": output_of(["node", "--version"]),
        "fdatasync_ms": round(fdatasync_ms(), 3),
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": {one.name: list(one.requires) for one in CONTESTANTS if one.requires}
        | {"bullmq-node": list(NODE_PACKAGES)},
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def fdatasync_ms() -> float:
    """What durability costs on this disk, in the folder where Postgres puts its files."""
    with tempfile.NamedTemporaryFile() as file:
        began = time.monotonic()
        for _ in range(50):
            os.write(file.fileno(), bytes(512))
            os.fdatasync(file.fileno())
        return (time.monotonic() - began) / 50 * 1000


def output_of(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def save(
    path: Path,
    question: str,
    answer: Answer,
    *,
    quick: bool,
    seconds: float,
    versions: dict[str, list[str]] | None = None,
) -> None:
    """Replace one question's results in the file and keep the others'."""
    everything, known = load(path), circumstances(quick=quick)
    known["versions"] = versions or known["versions"]
    everything[question] = {**known, "took_s": round(seconds), "results": answer}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(everything, indent=1) + "\n")
    fresh.replace(path)
