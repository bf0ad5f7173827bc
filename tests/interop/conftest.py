from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from nodejs import Node, install
from shared_queue import Queue

from oxherd.embedded.valkey import Valkey
from oxherd.settings import RedisTarget, parse_redis_url


@pytest.fixture(scope="session", params=[5, 6], ids=["node5", "node6"])
def node(request: pytest.FixtureRequest, valkey: Valkey) -> Iterator[Node]:
    """BullMQ for Node, the newest 5 and the newest 6: one process each for the whole run."""
    install()
    process = Node(request.param, valkey.url)
    yield process
    process.stop()


@pytest.fixture
def target(valkey: Valkey) -> RedisTarget:
    return parse_redis_url(valkey.url)


@pytest.fixture
async def queue(queue_name: str, node: Node, target: RedisTarget) -> AsyncIterator[Queue]:
    async with Queue(queue_name, node, target) as one:
        yield one


@pytest.fixture
async def open_queue(node: Node, target: RedisTarget) -> AsyncIterator[Callable[[str], Any]]:
    """Opens more queues than the one a test begins with."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(name: str) -> Queue:
            return await stack.enter_async_context(Queue(name, node, target))

        yield opened


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Polls what no event announces, such as a key that must go away."""

    async def wait(look: Callable[[], Any], *, within: float = 5.0) -> Any:
        deadline = time.monotonic() + within
        while not (found := await look()):
            assert time.monotonic() < deadline, f"did not happen within {within} s"
            await asyncio.sleep(0.01)
        return found

    return wait
