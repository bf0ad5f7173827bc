"""What a run of an agent costs: CPU, streams at once, memory. `python bench/agents/runs/measure.py --help`.

Every contestant runs in a process of its own on one core; the provider, and Oxherd's Valkey and Postgres, on the other.
Rounds are interleaved, tables have the medians. The peers are installed by the bench, each into an environment of its
own; those that can't be had are left out with a word.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BENCH = HERE.parents[1]
sys.path.insert(0, str(BENCH))

import runs_tables  # noqa: E402  beside this file
from contestants import PEERS  # noqa: E402  two folders up, as the rest
from install import install_python, ready  # noqa: E402
from processes import OTHER_CORE, WORKER_CORE, BenchError, before_exec  # noqa: E402
from report import Rounds, load, save, say  # noqa: E402
from tables import replaced  # noqa: E402

RESULTS = BENCH / "results" / "agents.json"
README = HERE.parent / "README.md"
LOOP = "uvloop==0.23.0"
NODE = ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7")
HELD = 200  # runs at once whose memory is looked at


@dataclass(frozen=True, slots=True)
class Contestant:
    """`first` is the number of streams that its search begins with."""

    name: str
    requires: tuple[str, ...]
    first: int

    @property
    def home(self) -> Path:
        return PEERS / f"agents-{self.name}"

    @property
    def label(self) -> str:
        return runs_tables.LABELS[self.name]

    def install(self) -> None:
        if self.name == "ai_sdk":
            install_node(self.home)
        elif self.requires:
            install_python(self.home, self.requires)

    def command(self, scenario: str, url: str, given: dict[str, Any]) -> list[str]:
        if self.name == "ai_sdk":
            return ["node", "--expose-gc", str(HERE / "probe.mjs"), scenario, url, json.dumps(given)]
        python = str(self.home / "bin" / "python") if self.requires else sys.executable
        return [python, str(HERE / "probe.py"), self.name, scenario, url, json.dumps(given)]


CONTESTANTS = (
    Contestant("oxherd_worker", (), 128),
    Contestant("oxherd_run", (), 128),
    Contestant("bare", ("aiohttp==3.14.5", "orjson==3.13.0", LOOP), 128),
    Contestant("openai_sdk", ("openai==3.54.0", LOOP), 32),
    Contestant("openai_agents_run", ("openai-agents==0.24.0", LOOP), 16),
    Contestant("pydantic_ai_run", ("pydantic-ai-slim[openai]==2.68.0", LOOP), 16),
    Contestant("langgraph_run", ("langgraph==1.2.22", "langchain==1.4.7", "langchain-openai==1.7.3", LOOP), 16),
    Contestant("ai_sdk", NODE, 32),
)
BY_NAME = {one.name: one for one in CONTESTANTS}


def install_node(home: Path) -> None:
    wanted = list(NODE)
    if ready(home, wanted):
        return
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm")
    say(f"installing {', '.join(wanted)}")
    home.mkdir(parents=True, exist_ok=True)
    (home / "package.json").write_text('{"private": true}\n')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *wanted], cwd=home, check=True)
    (home / "installed.json").write_text(json.dumps(wanted))


class Place:
    """The provider and, for Oxherd, its engines."""

    def __init__(self, url: str, redis: str, postgres: str) -> None:
        self.url = url
        self.engines = {"redis": redis, "postgres": postgres}

    def measure(self, one: Contestant, scenario: str, **given: Any) -> dict[str, Any]:
        command = one.command(scenario, self.url, {**given, **self.engines})
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=400,
            env={**os.environ, "BENCH_PACKAGES": str(one.home)}, preexec_fn=lambda: before_exec(WORKER_CORE),
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"{one.name}: {done.stderr.strip()[-1500:]}")
        return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def place() -> Iterator[Place]:
    from oxherd.embedded.postgres import Postgres
    from oxherd.embedded.valkey import Valkey
    from oxherd.store.migrate import migrate

    with (
        tempfile.TemporaryDirectory(prefix="oxherd-bench-") as folder,
        Valkey(tcp=True) as valkey,
        Postgres() as postgres,
    ):
        import asyncio

        asyncio.run(migrate(postgres.url))
        port = Path(folder) / "port"
        provider = subprocess.Popen(
            [sys.executable, str(HERE / "provider.py"), str(port)],
            preexec_fn=lambda: before_exec(OTHER_CORE),  # noqa: PLW1509  one thread
        )
        try:
            deadline = time.monotonic() + 20
            while not port.exists():
                if time.monotonic() > deadline or provider.poll() is not None:
                    raise SystemExit("the provider did not start")
                time.sleep(0.02)
            yield Place(f"http://127.0.0.1:{port.read_text()}/v1", valkey.url, postgres.url)
        finally:
            provider.kill()
            provider.wait()


def cpu(place: Place, chosen: list[Contestant], *, rounds: int, quick: bool) -> dict[str, Any]:
    """CPU of a run: chunks 5 ms apart, and all of them in one piece."""
    parts = {
        "paced": {"said": "paced", "runs": 16 if quick else 96, "warm_up": 16, "at_once": 8},
        "burst": {"said": "burst", "runs": 40 if quick else 300, "warm_up": 40, "at_once": 20},
    }
    return {name: in_rounds(place, chosen, name, "cpu", rounds, **given) for name, given in parts.items()}


def streams(place: Place, chosen: list[Contestant], *, quick: bool, **_: Any) -> dict[str, Any]:
    """The most streams of 50 tokens a second at once."""
    return {"most": in_rounds(place, chosen, "streams", "streams", 1, at_once=10_000, first=8 if quick else None)}


def memory(place: Place, chosen: list[Contestant], *, rounds: int, quick: bool) -> dict[str, Any]:
    """Memory of runs that wait for the rest of an answer."""
    return {
        "held": in_rounds(place, chosen, "memory", "memory", min(rounds, 2), at_once=10_000, runs=20 if quick else HELD)
    }


def in_rounds(
    place: Place, chosen: list[Contestant], label: str, scenario: str, rounds: int, **given: Any
) -> dict[str, Any]:
    taken = Rounds(label)
    for number in range(rounds):
        for one in chosen:
            with taken.attempt(one.name, number):
                first = given.get("first", one.first) or one.first
                result = place.measure(one, scenario, **{**given, "first": first})
                taken.add(one.name, result)
                say(", ".join(f"{key} {value:.3g}" for key, value in result.items() if isinstance(value, float | int)))
    return taken.medians()


QUESTIONS = {"cpu": cpu, "streams": streams, "memory": memory}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"which to ask, default all: {', '.join(QUESTIONS)}"
    )
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that all of it works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help=f"names, comma-separated: {','.join(BY_NAME)}")
    parser.add_argument("--tables", action="store_true", help="measure nothing, put the results into the README")
    options = parser.parse_args()
    if not options.tables:
        ask(options)
    if not options.quick:
        write_tables()
    return 0


def ask(options: argparse.Namespace) -> None:
    PEERS.mkdir(exist_ok=True)
    chosen = []
    for one in [BY_NAME[name] for name in options.peers.split(",")] if options.peers else CONTESTANTS:
        try:
            one.install()
        except FileNotFoundError as error:
            say(f"left out {one.label}: {error.filename or error} is not installed")
            continue
        chosen.append(one)
    os.sched_setaffinity(0, OTHER_CORE)
    with place() as built:
        for question in options.questions or QUESTIONS:
            began = time.monotonic()
            answer = QUESTIONS[question](
                built, chosen, rounds=1 if options.quick else options.rounds, quick=options.quick
            )
            if not options.quick:
                kept = load(RESULTS).get(question, {}).get("results", {})
                for part, found in kept.items():  # those not measured now keep what they had
                    answer[part] = {**found, **answer.get(part, {})}
                versions = {one.name: list(one.requires) for one in CONTESTANTS if one.requires}
                save(RESULTS, question, answer, quick=False, seconds=time.monotonic() - began, versions=versions)


def write_tables() -> None:
    everything, text = load(RESULTS), README.read_text()
    for name, block in runs_tables.blocks(everything).items():
        text = replaced(text, name, block)
    README.write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
