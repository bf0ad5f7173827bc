from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from oxherd.embedded.valkey import Valkey

sys.path.insert(0, str(Path(__file__).parents[2]))  # for bench.soak, which has the bad network

from bench.soak.proxy import Proxy
from process import Start, WorkerProcess
from stage import Stage


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window; skips without one."""
    from dashboard_place import FLAGS, chromium
    from playwright.sync_api import sync_playwright

    found = chromium()
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield one
        one.close()


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey for this test to mistreat; what it acknowledged survives `kill`."""
    with Valkey(tcp=True, append_only=True) as engine:
        yield engine


@pytest.fixture
def redis_port(redis_url: str) -> int:
    """Where the shared Valkey listens."""
    return int(redis_url.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def proxy(redis_port: int) -> Iterator[Proxy]:
    """A bad network between workers and the shared Valkey."""
    with Proxy(redis_port) as one:
        yield one


@pytest.fixture
async def stage(redis_url: str, queue_name: str, proxy: Proxy) -> AsyncIterator[Stage]:
    """A queue on the shared Valkey. The network outlives it, so that its workers can stop in good order."""
    async with Stage(redis_url, queue_name) as one:
        yield one


@pytest.fixture
async def own_stage(own_valkey: Valkey, queue_name: str) -> AsyncIterator[Stage]:
    """A queue on a Valkey of its own."""
    async with Stage(own_valkey.url, queue_name) as one:
        yield one


@pytest.fixture
def witness(redis_url: str) -> Iterator[Redis]:
    """What handlers in other processes say they did: `saw:<what>:<job>`; tests tell them things by it, too."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def start(redis_url: str, queue_name: str) -> AsyncIterator[Start]:
    """Starts worker processes on the test's queue; they are gone when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(*, ready: bool = True, **more: Any) -> WorkerProcess:
            settings = {"redis_url": redis_url, "queue": queue_name, "witness_url": redis_url, **more}
            worker = WorkerProcess(**settings)
            stack.push_async_callback(worker.close)
            await (worker.start() if ready else worker.launch())
            return worker

        yield started


@pytest.fixture
def runs_url(oxherd_database_url: str) -> str:
    """A database with Oxherd's schema, for this test alone."""
    return oxherd_database_url


@pytest.fixture
async def start_web(redis_url: str, queue_name: str, runs_url: str) -> AsyncIterator[Any]:
    """Starts `oxherd web` as its own process and returns its port; it is gone when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(**variables: str) -> int:
            web = WorkerProcess(
                redis_url, queue_name, witness_url=redis_url, database_url=runs_url, command="web", **variables
            )
            stack.push_async_callback(web.close)
            await web.launch()
            await web.said("web.started")
            return web.port

        yield started
