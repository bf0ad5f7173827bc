"""Jobs of every temper."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import death
import quick  # noqa: F401  imported for its effect
import witness

from oxherd import Context, Fatal, Herd, RetryLater
from oxherd.context import Ask

herd = Herd()


@herd.job("ok")
async def ok(ctx: Context, payload: dict[str, Any]) -> dict[str, Any]:
    count = witness.saw("ok", ctx)
    await asyncio.sleep(payload.get("takes", 0))
    return {"ran": count}


@herd.job("mid")
async def mid(ctx: Context, payload: dict[str, Any]) -> str:
    witness.saw("mid", ctx)
    await asyncio.sleep(0)
    death.maybe("mid-handler")
    witness.saw("mid-end", ctx)
    return "done"


@herd.job("paid")
async def paid(ctx: Context, payload: dict[str, Any]) -> list[int]:
    first = await ctx.step("first", pay, ctx, "first")
    death.maybe("between-steps")
    second = await ctx.step("second", pay, ctx, "second")
    return [first, second]


async def pay(ctx: Context, what: str) -> int:
    return witness.saw(f"paid-{what}", ctx)


@herd.job("asks")
async def asks(ctx: Context, payload: dict[str, Any]) -> list[Any]:
    """Pays, asks a person, pays again."""
    first = await ctx.step("first", pay, ctx, "first")
    answer = await ctx.wait_for("refund", timeout="1h", about={"order": "A-1"})
    death.maybe("answered")
    second = await ctx.step("second", pay, ctx, "second")
    return [first, second, answer.by]


@herd.on_approval
async def tell(ctx: Context, ask: Ask) -> None:
    witness.saw("told", ctx)
    if ask.url is not None:
        witness.redis.set(f"url:{ctx.job.id}", ask.url.reveal())
    death.maybe("asked")


@herd.job("gate")
async def gate(ctx: Context, payload: dict[str, Any]) -> str:
    """Runs until the test opens the gate."""
    witness.saw("gate", ctx)
    while not witness.redis.exists("gate"):  # noqa: ASYNC110  the test is another process
        await asyncio.sleep(0.02)
    witness.saw("gate-end", ctx)
    return "through"


@herd.job("slow-step")
async def slow_step(ctx: Context, payload: dict[str, Any]) -> str:
    async def work() -> str:
        witness.saw("slow-step", ctx)
        while not witness.redis.exists("gate"):  # noqa: ASYNC110  the test is another process
            await asyncio.sleep(0.02)
        return f"by {os.getpid()}"

    return await ctx.step("slow", work)


@herd.job("block")
async def block_the_loop(ctx: Context, payload: dict[str, Any]) -> str:
    witness.saw("block", ctx)
    time.sleep(payload["seconds"])  # noqa: ASYNC251  what a careless handler does
    witness.saw("block-end", ctx)
    return "blocked"


@herd.job("poison")
async def poison(ctx: Context, payload: dict[str, Any]) -> None:
    witness.saw("poison", ctx)
    os._exit(9)


@herd.job("later")
async def later(ctx: Context, payload: dict[str, Any]) -> str:
    if witness.saw("later", ctx) <= payload.get("times", 1):
        raise RetryLater(0.05)
    return "later"


@herd.job("fails")
async def fails(ctx: Context, payload: dict[str, Any]) -> str:
    if witness.saw("fails", ctx) <= payload.get("times", 1):
        raise ValueError("not yet")
    return "at last"


@herd.job("fatal")
async def fatal(ctx: Context, payload: dict[str, Any]) -> None:
    witness.saw("fatal", ctx)
    raise Fatal("never")


@herd.job("stubborn")
async def stubborn(ctx: Context, payload: dict[str, Any]) -> None:
    """Swallows every cancellation."""
    witness.saw("stubborn", ctx)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            witness.saw("stubborn-told", ctx)


@herd.job("thread")
def thread(ctx: Context, payload: dict[str, Any]) -> str:
    """A plain handler that goes on and on."""
    witness.saw("thread", ctx)
    while not witness.redis.exists("gate"):
        time.sleep(0.01)
    return "through"


@herd.job("deaf-thread")
def deaf_thread(ctx: Context, payload: dict[str, Any]) -> None:
    """A plain handler inside one long blocking call."""
    witness.saw("deaf-thread", ctx)
    threading.Event().wait(60)


@herd.job("deaf-step")
async def deaf_step(ctx: Context, payload: dict[str, Any]) -> None:
    """A plain step inside one long blocking call."""
    witness.saw("deaf-step", ctx)
    await ctx.step("deaf", threading.Event().wait, 60)
