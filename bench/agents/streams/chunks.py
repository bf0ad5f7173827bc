"""What it costs to tell those who follow: CPU per streamed chunk with publishing off and on.

`python bench/agents/streams/chunks.py --help`. The run is in a process of its own on one core, the provider and a real
Valkey are on the other; rounds are interleaved, the table has the medians.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
CLIENT = HERE.parent / "client"
sys.path[:0] = [str(HERE.parents[1]), str(CLIENT)]

from measure import provider  # noqa: E402  it lies in a folder beside this one
from processes import OTHER_CORE, WORKER_CORE, before_exec  # noqa: E402

from oxherd.embedded.valkey import Valkey  # noqa: E402

PACE = 0.02  # seconds between chunks: fifty a second
AT_ONCE = 40  # replies
MODES = {"off": "nobody follows", "on": "published", "secrets": "published, the job knows 5 credentials"}

Result = dict[str, float]


def one_round(mode: str, url: str, valkey: Valkey, replies: int) -> Result:
    argv = [sys.executable, str(CLIENT / "probe.py"), "run", url, str(replies), str(AT_ONCE)]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "FOLLOWED": mode, "REDIS_URL": valkey.url}
    before = told_to(valkey)
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, check=False, preexec_fn=lambda: before_exec(WORKER_CORE)
    )
    if done.returncode:
        raise SystemExit(f"{mode} failed:\n{done.stderr[-2000:]}")
    found: Result = json.loads(done.stdout)
    writes, kilobytes = (after - then for after, then in zip(told_to(valkey), before, strict=True))
    return found | {"writes": writes / (replies + 20), "kb": kilobytes / (replies + 20)}  # with those to warm up


def told_to(valkey: Valkey) -> tuple[float, float]:
    """Scripts that Valkey ran, and kilobytes it was sent."""
    from redis import Redis

    with Redis.from_url(valkey.url) as client:
        scripts = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
        return scripts, client.info("stats")["total_net_input_bytes"] / 1000


def table(taken: dict[str, list[Result]]) -> str:
    found = {mode: {key: median(one[key] for one in rounds) for key in rounds[0]} for mode, rounds in taken.items()}
    lines = [
        "| run | CPU ms per reply | µs per chunk | more than off | Redis commands per reply | KB sent per reply |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for mode, label in MODES.items():
        row, more = found[mode], found[mode]["us_per_chunk"] - found["off"]["us_per_chunk"]
        lines.append(
            f"| {label} | {row['cpu_ms']:.2f} | {row['us_per_chunk']:.1f} | {more:+.1f} µs | {row['writes']:.1f} | "
            f"{row['kb']:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replies", type=int, default=400, help="per round and run")
    parser.add_argument("--pace", type=float, default=PACE, help="seconds between chunks")
    options = parser.parse_args()
    os.sched_setaffinity(0, OTHER_CORE)
    if (busy := os.getloadavg()[0]) > 0.5:
        print(f"warning: this machine is busy (load {busy:.1f}); the figures will be too high")
    taken: dict[str, list[Result]] = {mode: [] for mode in MODES}
    with Valkey(tcp=True) as valkey, provider(options.pace) as url:
        one_round("on", url, valkey, AT_ONCE)  # bytecode and file caches
        for number in range(options.rounds):
            for mode in MODES:
                taken[mode].append(one_round(mode, url, valkey, options.replies))
                print(f"  {number + 1}  {mode:<8} {taken[mode][-1]['us_per_chunk']:6.1f} µs per chunk", flush=True)
    print("\n" + table(taken))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
