"""What a drill's workers run: jobs whose steps note what they paid for, some with a credential, and an agent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from oxherd import Budget, Context, Herd

STEPS = ("look", "think", "deliver")
MODEL = "drill/model"
CREDENTIAL = "drill"  # of jobs without a tenant

herd = Herd()
clerk = herd.agent("drill", model=MODEL, instructions="Answer in one word.", budget=Budget(steps=4))


class Order(BaseModel):
    """Payload of the drill's jobs.

    Attributes:
        name: of the job, in the ledger.
        ledger: path of the file in which steps are written down.
        takes: seconds that each step takes.
    """

    name: str
    ledger: Path
    takes: float = 0.2


@herd.job("drill.work", retries=8)
async def work(ctx: Context, order: Order) -> str:
    """Three steps, each of which would cost money."""
    for step in STEPS:
        await ctx.step(step, pay, order, step)
        note(order.ledger, f"kept {order.name} {step}")
    return order.name


@herd.job("drill.open", retries=8)
async def unlock(ctx: Context, order: Order) -> str:
    """The same, for whoever has a credential."""
    await ctx.credential(CREDENTIAL)
    return await work(ctx, order)


@herd.job("drill.ask", retries=8)
async def ask(ctx: Context, order: Order) -> str:
    """A model call."""
    return str((await ctx.run(clerk, order.name)).output)


async def pay(order: Order, step: str) -> str:
    """Write down that a step is paid for, before the time that it takes."""
    note(order.ledger, f"paid {order.name} {step}")
    await asyncio.sleep(order.takes)
    return step


def note(ledger: Path, line: str) -> None:
    """One line; so short a one is appended whole, whoever else writes."""
    handle = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)
