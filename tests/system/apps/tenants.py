"""Handlers whose beginnings and ends are on record, for counting what ran at once."""

from __future__ import annotations

import asyncio
import os

import quick  # noqa: F401  imported for its effect
import witness

from oxherd import Context, Herd

herd = Herd()
LOG = f"log:{witness.QUEUE}"


@herd.job("work")
async def work(ctx: Context, payload: dict) -> None:
    witness.redis.rpush(LOG, f"begin {ctx.job.id} {payload['tenant']} {os.getpid()}")
    await asyncio.sleep(0.02)
    witness.redis.rpush(LOG, f"end {ctx.job.id}")


@herd.job("hold")
async def hold(ctx: Context, payload: dict) -> None:
    await asyncio.sleep(60)
