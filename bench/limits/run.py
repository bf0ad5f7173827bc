"""Four workers find out a provider's quota and share it: how much of it do they use, and how often are they refused?

`python -m bench.limits.run --quota 60 --window 60 --jobs 50` ends with exit code 0 only if less than 1 % of the calls
were refused and at least 90 % of the quota was used, the last window left out. It takes three minutes and a half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oxherd import settings
from oxherd.app import queue_client
from oxherd.embedded.valkey import Valkey
from oxherd.queue.admin import Admin

PROVIDER = Path(__file__).parents[2] / "tests" / "fakes" / "quota.py"
AGENT = {"name": "a", "model": "m"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quota", type=int, default=60, help="calls in a window")
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    parser.add_argument("--tells", choices=("always", "refusals"), default="always", help="when limits are told")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds that an answer takes; a refusal takes none")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=50, help="per worker")
    parser.add_argument("--most", type=float, default=0.01, help="the part of the calls that may be refused")
    return parser.parse_args()


@contextmanager
def running(*command: str, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def spend(valkey: Valkey, url: str, options: argparse.Namespace) -> dict[str, int]:
    """Run all jobs; how they ended."""
    environ = {"REDIS_URL": valkey.url, "JOB_QUEUE_NAME": "limits", "PORT": "0", "HOST": "127.0.0.1"}
    environ |= {"OPENROUTER_BASE_URL": f"{url}/v1", "JOB_CONCURRENCY": str(options.jobs), "LOG_FORMAT": "json"}
    jobs = options.workers * options.jobs
    async with queue_client(settings.load(environ)) as (producer, admin):
        await admin.close_gate("until all workers are up")
        with running_workers(options.workers, environ) as workers:
            for worker in workers:
                await asyncio.to_thread(until_ready, worker)
            for _ in range(jobs):
                await producer.add("agent.run", {"agent": AGENT, "input": "hello"})
            await admin.open_gate()
            return await until_done(admin, jobs)


@contextmanager
def running_workers(count: int, environ: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    if count == 0:
        yield []
        return
    command = (sys.executable, "-m", "oxherd", "worker", "--no-store")
    with running(*command, environ=environ) as one, running_workers(count - 1, environ) as others:
        yield [one, *others]


def until_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if not any(b"worker.started" in line for line in process.stdout):
        raise AssertionError("the worker did not start")


async def until_done(admin: Admin, count: int) -> dict[str, int]:
    async for _ in admin.events("0"):
        counts = await admin.counts()
        if counts["completed"] + counts["failed"] >= count:
            return counts
    raise AssertionError


def verdict(told: dict[str, Any], options: argparse.Namespace) -> bool:
    """Print what the provider saw; whether it is as it should be."""
    full = told["windows"][:-1]  # in the last one the jobs ran out
    answered, refused = sum(told["windows"]), sum(told["refused"])
    used, share = sum(full) / (options.quota * len(full) or 1), refused / (answered + refused)
    print(f"calls answered in each window   {told['windows']}")
    print(f"calls refused in each window    {told['refused']}")
    print(f"of the quota used               {used:.1%} of {options.quota} in {options.window:g} s")
    print(f"of the calls refused            {share:.2%}")
    return share < options.most and used >= 0.9 and len(full) >= 2


def main() -> None:
    options = arguments()
    with (
        Valkey(tcp=True) as valkey,
        running(
            sys.executable,
            str(PROVIDER),
            str(options.quota),
            str(options.window),
            options.tells,
            str(options.latency),
            environ={},
        ) as provider,
    ):
        assert provider.stdout is not None
        url = f"http://127.0.0.1:{json.loads(provider.stdout.readline())['port']}"
        counts = asyncio.run(spend(valkey, url, options))
        with urllib.request.urlopen(f"{url}/count") as answer:
            told = json.load(answer)
    good = verdict(told, options) and counts["failed"] == 0
    sys.exit(not good)


if __name__ == "__main__":
    main()
