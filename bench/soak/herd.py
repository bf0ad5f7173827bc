"""The soak's jobs. What they do is told to a witness that nobody disturbs: another Redis."""

# ruff: noqa: ARG001  a handler takes a payload, whether it reads it or not

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import Any

from redis import Redis

import oxherd.app
from oxherd import Context, Fatal, Herd, RetryLater, WaitForChildren

LOCK_MS = int(os.environ["SOAK_LOCK_MS"])
QUEUE = os.environ["JOB_QUEUE_NAME"]
witness = Redis.from_url(os.environ["SOAK_WITNESS_URL"])
herd = Herd()
limits_of = oxherd.app.limits_of
oxherd.app.limits_of = lambda settings: replace(limits_of(settings), lock_ms=LOCK_MS, stalled_interval=1.0)


def began(ctx: Context) -> int:
    """Count a run of a job's handler."""
    return int(witness.incr(f"ran:{ctx.job.id}"))


@herd.job("ok")
async def ok(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    began(ctx)
    await asyncio.sleep(payload["takes"])
    return {"n": payload["n"]}


@herd.job("long")
async def long(ctx: Context, payload: dict[str, Any]) -> str:
    """Longer than a lease."""
    began(ctx)
    await asyncio.sleep(LOCK_MS / 1000 * 1.3)
    return "long"


@herd.job("thread")
def thread(ctx: Context, payload: dict[str, Any]) -> str:
    began(ctx)
    time.sleep(payload["takes"])
    return "thread"


@herd.job("blocker")
async def blocker(ctx: Context, payload: dict[str, Any]) -> str:
    """Holds the event loop for longer than a lease."""
    began(ctx)
    time.sleep(LOCK_MS / 1000 * 1.2)  # noqa: ASYNC251  on purpose
    return "blocker"


@herd.job("flaky", retries=4)
async def flaky(ctx: Context, payload: dict[str, Any]) -> str:
    began(ctx)
    if ctx.attempt < 3:
        raise ValueError(f"attempt {ctx.attempt} fails")
    return "flaky"


@herd.job("broken")
async def broken(ctx: Context, payload: dict[str, Any]) -> None:
    began(ctx)
    raise ValueError("always")


@herd.job("fatal")
async def fatal(ctx: Context, payload: dict[str, Any]) -> None:
    began(ctx)
    raise Fatal("never again")


@herd.job("later")
async def later(ctx: Context, payload: dict[str, Any]) -> str:
    if began(ctx) < 3:
        raise RetryLater(0.2)
    return "later"


@herd.job("endless", timeout=0.3)
async def endless(ctx: Context, payload: dict[str, Any]) -> None:
    began(ctx)
    await asyncio.sleep(3600)


@herd.job("paid")
async def paid(ctx: Context, payload: dict[str, Any]) -> list[str]:
    began(ctx)
    return [await pay(ctx, f"step-{n}") for n in range(3)]


@herd.job("parent")
async def parent(ctx: Context, payload: dict[str, Any]) -> int:
    began(ctx)
    return len(await ctx.children())


@herd.job("spawner")
async def spawner(ctx: Context, payload: dict[str, Any]) -> int:
    """Adds its children itself, in paid steps, and waits for them."""
    began(ctx)
    for n in range(2):
        await ctx.spawn("ok", {"n": n, "takes": 0.01})
    done = await ctx.children()
    if len(done) < 2:
        raise WaitForChildren
    return len(done)


@herd.job("strict")
async def strict(ctx: Context, payload: dict[str, int]) -> None:
    """Never gets a payload that fits."""
    began(ctx)


async def pay(ctx: Context, step: str) -> str:
    """A step that costs money. What the journal has acknowledged must never be paid again."""
    place = f"{ctx.job.id}:{step}"

    async def once() -> str:
        witness.incr(f"paid:{place}")
        if witness.exists(f"kept:{place}"):
            witness.rpush("paid-again", place)
        await asyncio.sleep(0.05)
        return step

    result = str(await ctx.step(step, once))
    witness.set(f"kept:{place}", 1)
    return result
