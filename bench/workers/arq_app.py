import json
import os
import sys
from typing import Any

import probe
import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])


async def noop(_ctx: Any, payload: dict[str, Any]) -> None:
    await probe.run(payload)


async def work() -> None:
    worker = Worker(
        functions=[noop],
        redis_settings=SETTINGS,
        max_jobs=int(os.environ["BENCH_CONCURRENCY"]),
        # arq reads the queue once per delay; its default of 0.5 s would cap the throughput at that pace
        poll_delay=float(os.environ.get("BENCH_POLL_DELAY", "0.5")),
    )
    await worker.async_run()


async def enqueue(count: int, payload: dict[str, Any]) -> None:
    pool = await create_pool(SETTINGS)
    for _ in range(count):
        await pool.enqueue_job("noop", payload)
    await pool.aclose()


async def paced(count: int) -> None:
    pool = await create_pool(SETTINGS)

    async def send(payload: dict[str, Any]) -> None:
        await pool.enqueue_job("noop", payload)

    await probe.paced(count, send)
    await pool.aclose()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            uvloop.run(work())
        case ["enqueue", count, payload]:
            uvloop.run(enqueue(int(count), json.loads(payload)))
        case ["paced", count]:
            uvloop.run(paced(int(count)))
