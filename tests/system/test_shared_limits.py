"""Four workers find a provider's quota and share it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from oxherd import settings
from oxherd.app import queue_client

PROVIDER = Path(__file__).parents[1] / "fakes" / "quota.py"
WORKERS, JOBS = 4, 50
QUOTA, WINDOW = 40, 1.5  # requests per seconds
AGENT = {"name": "a", "model": "m"}


@contextmanager
def running(*command: str, environ: dict[str, str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def provider() -> Iterator[str]:
    with running(sys.executable, str(PROVIDER), str(QUOTA), str(WINDOW), "always", environ={}) as process:
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"


async def until_done(admin, count: int) -> dict[str, int]:
    async with asyncio.timeout(90):
        async for _ in admin.events("0"):
            counts = await admin.counts()
            if counts["completed"] + counts["failed"] >= count:
                return counts
    raise AssertionError


@pytest.mark.timeout(180)
async def test_four_workers_use_nearly_all_of_a_quota_and_hardly_anything_is_refused(redis_url, queue_name, provider):
    environ = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    environ |= {"OPENROUTER_BASE_URL": f"{provider}/v1", "JOB_CONCURRENCY": str(JOBS), "LOG_LEVEL": "info"}
    worker = [sys.executable, "-m", "oxherd", "worker", "--no-store"]
    async with queue_client(settings.load(environ)) as (producer, admin):
        await admin.close_gate("until all workers are up")
        with (
            running(*worker, environ=environ) as one, running(*worker, environ=environ) as two,
            running(*worker, environ=environ) as three, running(*worker, environ=environ) as four,
        ):  # fmt: skip
            for process in (one, two, three, four):
                await asyncio.to_thread(until_ready, process)
            for _ in range(WORKERS * JOBS):
                await producer.add("agent.run", {"agent": AGENT, "input": "hello"})
            await admin.open_gate()
            counts = await until_done(admin, WORKERS * JOBS)
        assert counts["completed"] == WORKERS * JOBS
    async with aiohttp.ClientSession() as session, session.get(f"{provider}/count") as answer:
        told = await answer.json()
    full = told["windows"][:-1]  # in the last one the jobs ran out
    print(told)
    assert told["refused"] < 0.01 * WORKERS * JOBS
    assert sum(full) >= 0.9 * QUOTA * len(full)
    assert len(full) >= 3


def until_ready(process: subprocess.Popen) -> None:
    for line in process.stdout:
        if b"Started processing" in line or b"worker.started" in line:
            return
    raise AssertionError("the worker did not start")
