"""Dramatiq; the worker is started with its own command line: one process, `concurrency` threads."""

import asyncio
import json
import os
import sys
from typing import Any

import dramatiq
import probe
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS_URL"]))


@dramatiq.actor(actor_name="noop")
def noop(payload: dict[str, Any]) -> None:
    probe.run_blocking(payload)


async def send(payload: dict[str, Any]) -> None:
    noop.send(payload)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", count, payload]:
            for _ in range(int(count)):
                noop.send(json.loads(payload))
        case ["paced", count]:
            asyncio.run(probe.paced(int(count), send))
