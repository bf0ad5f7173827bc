"""RQ; the worker is started with its own command line: a pool of processes, each forks once per job."""

import asyncio
import json
import os
import sys
from typing import Any

import probe
from redis import Redis
from rq import Queue

queue = Queue(os.environ["BENCH_QUEUE"], connection=Redis.from_url(os.environ["BENCH_REDIS_URL"]))


def noop(payload: dict[str, Any]) -> None:
    probe.run_blocking(payload)


async def send(payload: dict[str, Any]) -> None:
    queue.enqueue("rq_app.noop", payload)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", count, payload]:
            for _ in range(int(count)):
                queue.enqueue("rq_app.noop", json.loads(payload))
        case ["paced", count]:
            asyncio.run(probe.paced(int(count), send))
