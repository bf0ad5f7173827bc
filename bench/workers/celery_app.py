"""Celery; the worker is started with its own command line. No result backend: nothing is stored."""

import asyncio
import json
import os
import sys
from typing import Any

import probe
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True


@app.task(name="noop", ignore_result=True)
def noop(payload: dict[str, Any]) -> None:
    probe.run_blocking(payload)


async def send(payload: dict[str, Any]) -> None:
    noop.delay(payload)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", count, payload]:
            for _ in range(int(count)):
                noop.delay(json.loads(payload))
        case ["paced", count]:
            asyncio.run(probe.paced(int(count), send))
