"""How many jobs a second do 1, 2 and 4 worker processes do on one Redis, on this machine?

    python -m bench.scaling.run --rounds 3

The queue is filled behind a closed gate while the workers start; the clock runs from its opening to the last job done.
Rounds are interleaved, so that what else the machine does falls on all alike; the ratios are what counts.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oxherd.embedded.valkey import Valkey
from oxherd.queue.admin import Admin
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.queue.producer import NewJob, Producer
from oxherd.settings import parse_redis_url

PROCESSES = (1, 2, 4)
LOOK = 0.02  # seconds between looks at how many are done
LONGEST = 120.0  # seconds for one round
BATCH = 1000


@dataclass(frozen=True)
class Load:
    """What is measured: jobs that wait so many seconds, so many at once in each process."""

    title: str
    seconds: float
    jobs: int
    concurrency: int


LOADS = (
    Load("no-op, 100 at once in each", 0.0, 6_000, 100),
    Load("50 ms of waiting, 50 at once in each", 0.05, 2_000, 50),
)


@contextlib.contextmanager
def workers(url: str, queue: str, count: int, concurrency: int) -> Iterator[None]:
    asked = {
        **os.environ, "REDIS_URL": url, "JOB_QUEUE_NAME": queue, "JOB_CONCURRENCY": str(concurrency), "PORT": "0",
        "HOST": "127.0.0.1", "LOG_LEVEL": "error",
    }  # fmt: skip
    command = [sys.executable, "-m", "oxherd", "worker", "--no-store", "--app", "herd:herd"]
    running = [
        subprocess.Popen(command, cwd=Path(__file__).parent, env=asked, stdout=subprocess.DEVNULL) for _ in range(count)
    ]
    try:
        yield
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.wait(30)


async def measure(load: Load, count: int) -> float:
    """Jobs per second."""
    with Valkey(tcp=True) as valkey:
        keys = Keys("scaling")
        link = Link(parse_redis_url(valkey.url), "bench")
        await link.start()
        producer, admin = Producer(link, keys), Admin(link, keys)
        await admin.close_gate("being filled")
        job = NewJob("waits", {"seconds": load.seconds}, {"removeOnComplete": True})
        for _ in range(load.jobs // BATCH):
            await producer.add_bulk([job] * BATCH)
        with workers(valkey.url, keys.queue, count, load.concurrency):
            while await link.call(b"ZCARD", keys.workers_seen) < count:  # noqa: ASYNC110  the workers are other processes
                await asyncio.sleep(LOOK)
            begun = time.monotonic()
            await admin.open_gate()
            while await link.call(b"LLEN", keys.wait) + await link.call(b"LLEN", keys.active):
                if time.monotonic() - begun > LONGEST:
                    raise SystemExit(f"{count} processes did not finish within {LONGEST:g} s")
                await asyncio.sleep(LOOK)
            took = time.monotonic() - begun
        await link.stop()
    return load.jobs / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print("| jobs/s, median (ratio to one process) | " + " | ".join(f"{count} processes" for count in PROCESSES) + " |")
    print("| --- |" + " ---: |" * len(PROCESSES))
    for load in LOADS:
        rates: dict[int, list[float]] = {count: [] for count in PROCESSES}
        for _ in range(rounds):
            for count in PROCESSES:
                rates[count].append(asyncio.run(measure(load, count)))
        medians = {count: statistics.median(each) for count, each in rates.items()}
        one = medians[PROCESSES[0]]
        print(f"| {load.title} | " + " | ".join(f"{rate:,.0f} ({rate / one:.2f})" for rate in medians.values()) + " |")


if __name__ == "__main__":
    main()
