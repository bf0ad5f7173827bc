"""BullMQ for Python. Its `paced` producer also feeds the other two workers that speak BullMQ's protocol."""

import asyncio
import os
import sys
from typing import Any

import probe
import uvloop
from bullmq import Job, Queue, Worker

URL = os.environ["BENCH_REDIS_URL"]
QUEUE = os.environ["BENCH_QUEUE"]


async def noop(job: Job, _token: str) -> None:
    await probe.run(job.data)


async def work() -> None:
    Worker(QUEUE, noop, {"connection": URL, "concurrency": int(os.environ["BENCH_CONCURRENCY"])})
    await asyncio.Event().wait()


async def paced(count: int) -> None:
    queue = Queue(QUEUE, {"connection": URL})

    async def send(payload: dict[str, Any]) -> None:
        await queue.add("noop", payload)

    await probe.paced(count, send)
    await queue.close()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            uvloop.run(work())
        case ["paced", count]:
            uvloop.run(paced(int(count)))
