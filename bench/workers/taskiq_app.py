"""Taskiq; the worker is started with its own command line. Two brokers: a stream with acks, a list without."""

import json
import os
import sys
from typing import Any

import probe
import uvloop
from taskiq_redis import ListQueueBroker, RedisStreamBroker

BROKERS = {"stream": RedisStreamBroker, "list": ListQueueBroker}
broker = BROKERS[os.environ["BENCH_BROKER"]](os.environ["BENCH_REDIS_URL"])


@broker.task(task_name="noop")
async def noop(payload: dict[str, Any]) -> None:
    await probe.run(payload)


async def enqueue(count: int, payload: dict[str, Any]) -> None:
    await broker.startup()  # makes the consumer group, which sees only what comes after it
    for _ in range(count):
        await noop.kiq(payload)
    await broker.shutdown()


async def paced(count: int) -> None:
    await broker.startup()
    await probe.paced(count, noop.kiq)
    await broker.shutdown()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", count, payload]:
            uvloop.run(enqueue(int(count), json.loads(payload)))
        case ["paced", count]:
            uvloop.run(paced(int(count)))
