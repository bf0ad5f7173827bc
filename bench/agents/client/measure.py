"""What one streamed reply of 50 chunks costs a client, in CPU. `python bench/agents/client/measure.py --help`.

Every client runs in a process of its own on one core, the provider on the other; rounds are interleaved, the table has
the medians. The peers are installed by the bench, each into an environment of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from contestants import PEERS  # noqa: E402  it lies two folders up
from install import install_python  # noqa: E402
from processes import OTHER_CORE, WORKER_CORE, before_exec  # noqa: E402
from report import circumstances  # noqa: E402

PACE = 0.005  # seconds between chunks: each comes in a read of its own
AT_ONCE = 4  # replies; at this, the slowest client is busy but not late
LOOP = "uvloop==0.23.0"
GOAL = 1.3  # times bare


@dataclass(frozen=True, slots=True)
class Client:
    module: str
    label: str
    requires: tuple[str, ...] = ()

    @property
    def python(self) -> str:
        return str(PEERS / f"agents-{self.module}" / "bin" / "python") if self.requires else sys.executable

    def install(self) -> None:
        if self.requires:
            install_python(PEERS / f"agents-{self.module}", self.requires)


CLIENTS = (
    Client("bare", "bare aiohttp + orjson", ("aiohttp==3.14.5", "orjson==3.13.0", LOOP)),
    Client("oxherd_llm", "**Oxherd**"),
    Client("openai_sdk", "openai SDK 3.54.0", ("openai==3.54.0", LOOP)),
    Client("pydantic_ai_run", "pydantic-ai 2.68.0", ("pydantic-ai-slim[openai]==2.68.0", LOOP)),
)

Result = dict[str, float]


@contextmanager
def provider(pace: float) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="oxherd-bench-") as folder:
        port = Path(folder) / "port"
        argv = [sys.executable, str(HERE / "provider.py"), str(port), str(pace)]
        process = subprocess.Popen(argv, preexec_fn=lambda: before_exec(OTHER_CORE))  # noqa: PLW1509  one thread
        try:
            deadline = time.monotonic() + 20
            while not port.exists():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the provider did not start")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port.read_text()}/v1"
        finally:
            process.kill()
            process.wait()


def one_round(client: Client, url: str, replies: int) -> Result:
    argv = [client.python, str(HERE / "probe.py"), client.module, url, str(replies), str(AT_ONCE)]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: before_exec(WORKER_CORE),
    )
    if done.returncode:
        raise SystemExit(f"{client.module} failed:\n{done.stderr[-2000:]}")
    found: Result = json.loads(done.stdout)
    return found


def measured(rounds: int, replies: int, pace: float) -> dict[str, list[Result]]:
    taken: dict[str, list[Result]] = {client.module: [] for client in CLIENTS}
    with provider(pace) as url:
        for client in CLIENTS:
            one_round(client, url, AT_ONCE)  # bytecode and file caches
        for number in range(rounds):
            for client in CLIENTS:
                result = one_round(client, url, replies)
                taken[client.module].append(result)
                print(f"  {number + 1}  {client.module:<16} {result['cpu_ms']:7.2f} ms", flush=True)
    return taken


def middles(rounds: list[Result]) -> Result:
    return {key: median(one[key] for one in rounds) for key in rounds[0]}


def table(found: dict[str, Result]) -> str:
    bare = found["bare"]["cpu_ms"]
    lines = [
        "| client | CPU ms per reply | µs per chunk | times bare | import s | memory MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for client in CLIENTS:
        row = found[client.module]
        lines.append(
            f"| {client.label} | {row['cpu_ms']:.2f} | {row['us_per_chunk']:.0f} | {row['cpu_ms'] / bare:.2f} | "
            f"{row['import_s']:.2f} | {row['memory_mb']:.0f} |"
        )
    times = found["oxherd_llm"]["cpu_ms"] / bare
    return "\n".join(
        (*lines, "", f"Goal: ≤ {GOAL} x bare. Measured: {times:.2f} x, {'met' if times <= GOAL else 'NOT met'}.")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replies", type=int, default=150, help="per round and client")
    parser.add_argument("--pace", type=float, default=PACE, help="seconds between chunks; 0: all of them in one piece")
    parser.add_argument("--json", type=Path, help="also write every round to this file")
    options = parser.parse_args()
    PEERS.mkdir(exist_ok=True)
    for client in CLIENTS:
        client.install()
    os.sched_setaffinity(0, OTHER_CORE)
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"warning: this machine is busy (load {busy:.1f}); the figures will be too high")
    taken = measured(options.rounds, options.replies, options.pace)
    if options.json:
        entry = {
            **circumstances(quick=False),
            "versions": {c.module: list(c.requires) for c in CLIENTS},
            "rounds": taken,
        }
        options.json.write_text(json.dumps(entry, indent=1) + "\n")
    print("\n" + table({name: middles(rounds) for name, rounds in taken.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
