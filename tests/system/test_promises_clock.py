"""The wall clock jumps, as virtual machines' clocks do: leases and waits are measured, not read off the wall."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from stage import Stage

from oxherd.context import Context
from oxherd.telemetry.events import JobStalled, JobStarted, LeaseWasLost
from oxherd.testing import Clock
from oxherd.worker.handlers import make_handler

HOUR = 3600


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
async def test_running_jobs_keep_their_leases_and_limits(stage: Stage, oxherd_clock: Clock, by: int):
    ran: Counter[str] = Counter()
    go = asyncio.Event()

    async def work(ctx: Context, payload: dict[str, Any]) -> str:
        ran[ctx.job.id] += 1
        await go.wait()
        return "done"

    await stage.worker({"work": make_handler("work", work, timeout=30, idle_timeout=20)}, lock_ms=900)
    jobs = [await stage.add("work") for _ in range(3)]
    await stage.happened.wait(JobStarted, count=3)
    oxherd_clock.jump(by)
    await asyncio.sleep(1.5)  # longer than a lease
    go.set()
    await stage.settle_ledger(*jobs)
    assert set(ran.values()) == {1}
    assert not stage.happened.all(JobStalled)
    assert not stage.happened.all(LeaseWasLost)


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
async def test_waiting_and_delayed_jobs_are_not_lost(stage: Stage, oxherd_clock: Clock, by: int):
    """A delayed job is due by the wall, as for all of BullMQ's workers; whatever the wall shows, it runs once."""
    ran: Counter[str] = Counter()

    async def work(ctx: Context, payload: dict[str, Any]) -> None:
        ran[ctx.job.id] += 1

    await stage.worker({"work": work})
    soon = await stage.add("work", delay=1_000)
    much_later = await stage.add("work", delay=24 * 3_600_000)
    oxherd_clock.jump(by)
    now = await stage.add("work")
    assert await stage.finished(now, within=3) == ["completed"]
    if by < 0:
        oxherd_clock.jump(-by)  # the clock is set right again
    assert await stage.finished(soon, within=8) == ["completed"]
    assert (await stage.job(much_later))["state"] == "delayed"
    await stage.settle_ledger(now, soon, completed=2, delayed=1)
    assert ran == {now: 1, soon: 1}


async def test_a_retry_whose_pause_spans_a_jump_back_is_run(stage: Stage, oxherd_clock: Clock):
    """Its due time seems an hour away then; once the clock is right again it must not have been forgotten."""

    async def fails_once(ctx: Context, payload: dict[str, Any]) -> str:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return "done"

    await stage.worker({"work": fails_once})
    job = await stage.add("work", attempts=2, backoff=700)
    await stage.on_stream(job, "delayed")
    oxherd_clock.jump(-HOUR)
    await asyncio.sleep(1.0)  # its pause has passed, but not on the wall
    assert (await stage.job(job))["state"] == "delayed"
    oxherd_clock.jump(HOUR)
    assert await stage.finished(job, within=8) == ["completed"]
