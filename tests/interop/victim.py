"""A worker of ours in a process of its own, to be killed: it takes jobs and never ends them.

python victim.py REDIS_URL QUEUE LOCK_MS
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from oxherd.context import Context
from oxherd.queue.keys import Keys
from oxherd.settings import parse_redis_url
from oxherd.worker.handlers import make_handler
from oxherd.worker.worker import Limits, Worker


async def hang(ctx: Context, payload: dict[str, Any]) -> None:
    print(f"started {ctx.job.id}", flush=True)
    await asyncio.Event().wait()


async def no_agents(*_: object) -> None:
    raise NotImplementedError


async def main(url: str, queue: str, lock_ms: int) -> None:
    limits = Limits(lock_ms=lock_ms, stalled_interval=0.2)
    handlers = {"work": make_handler("work", hang)}
    worker = Worker(parse_redis_url(url), Keys(queue), handlers, store=None, runner=no_agents, limits=limits)
    await worker.start()
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
