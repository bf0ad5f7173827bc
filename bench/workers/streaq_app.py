import json
import os
import sys
from typing import Any

import probe
import uvloop
from streaq import Worker

worker: Worker[None] = Worker(
    redis_url=os.environ["BENCH_REDIS_URL"],
    concurrency=int(os.environ.get("BENCH_CONCURRENCY", "16")),
    anyio_kwargs={"use_uvloop": True},
)


@worker.task
async def noop(payload: dict[str, Any]) -> None:
    await probe.run(payload)


async def enqueue(count: int, payload: dict[str, Any]) -> None:
    async with worker:
        for done in range(0, count, 500):
            await worker.enqueue_many([noop.enqueue(payload) for _ in range(min(500, count - done))])


async def paced(count: int) -> None:
    async def send(payload: dict[str, Any]) -> None:
        await noop.enqueue(payload)

    async with worker:
        await probe.paced(count, send)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            worker.run_sync()
        case ["enqueue", count, payload]:
            uvloop.run(enqueue(int(count), json.loads(payload)))
        case ["paced", count]:
            uvloop.run(paced(int(count)))
