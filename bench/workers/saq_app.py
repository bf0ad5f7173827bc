import json
import os
import sys
from typing import Any

import probe
import uvloop
from saq import Queue, Worker

queue = Queue.from_url(os.environ["BENCH_REDIS_URL"])


async def noop(_ctx: Any, *, payload: dict[str, Any]) -> None:
    await probe.run(payload)


async def work() -> None:
    await Worker(queue, [noop], concurrency=int(os.environ["BENCH_CONCURRENCY"])).start()


async def send(payload: dict[str, Any]) -> None:
    # SAQ ends a job after 10 s by default; jobs that are held longer say so.
    options = {"timeout": payload["timeout"]} if "timeout" in payload else {}
    await queue.enqueue("noop", payload=payload, **options)


async def enqueue(count: int, payload: dict[str, Any]) -> None:
    await queue.connect()
    for _ in range(count):
        await send(payload)
    await queue.disconnect()


async def paced(count: int) -> None:
    await queue.connect()
    await probe.paced(count, send)
    await queue.disconnect()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            uvloop.run(work())
        case ["enqueue", count, payload]:
            uvloop.run(enqueue(int(count), json.loads(payload)))
        case ["paced", count]:
            uvloop.run(paced(int(count)))
