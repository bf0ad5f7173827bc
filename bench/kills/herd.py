"""The jobs of the kills: an agent of three turns with tools, on workers whose leases run out soon."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partialmethod

import oxherd.app
from oxherd import Budget, Herd, tool
from oxherd.agents import ratelimit
from oxherd.agents.llm import LLM

LOCK_MS = int(os.environ["KILLS_LOCK_MS"])
limits_of = oxherd.app.limits_of
oxherd.app.limits_of = lambda settings: replace(limits_of(settings), lock_ms=LOCK_MS, stalled_interval=0.5)
ratelimit.HOLD_MS = LOCK_MS  # what dead workers hold would block the living: here one dies twice a second
# The provider is OpenRouter's double, with prices and records of generations, at another address.
LLM.__init__ = partialmethod(LLM.__init__, openrouter=True)

herd = Herd()


@tool
async def look(what: str) -> str:
    """Look something up."""
    await asyncio.sleep(0.02)
    return f"{what} is big"


for number in range(4):
    herd.agent(f"triage-{number}", model=f"m{number}", tools=[look], budget=Budget(usd=1, steps=6))
