"""What each drill breaks, and how it is mended: by its runbook's commands."""

from __future__ import annotations

import asyncio

from oxherd.job import State
from oxherd.ops.disasters import DISASTERS
from oxherd.ops.drill import Drill, Result, Stage, damage

JOBS = 30
BROKEN = "raise ImportError('this release is broken, as the drill wants it')\n"


async def worker_down(stage: Stage, result: Result) -> None:
    """One of two workers is killed amid its jobs."""
    await stage.add(JOBS)
    await stage.until_ended(list(stage.jobs), share=0.2)
    async with damage(stage, result):
        stage.workers[0].kill()
        await stage.follow(result)


async def bad_deploy(stage: Stage, result: Result) -> None:
    """All workers are replaced by a release that ends when it is imported; then by the one before."""
    await stage.add(JOBS)
    await stage.until_ended(list(stage.jobs), share=0.2)
    async with damage(stage, result):
        for worker in stage.workers:
            await asyncio.to_thread(worker.stop)
        await _crash_on_import(stage, result)
        await stage.start_worker()
        await stage.follow(result)


async def _crash_on_import(stage: Stage, result: Result) -> None:
    (stage.folder / "broken_release.py").write_text(BROKEN)
    worker = stage.launch("broken_release:herd", PYTHONPATH=str(stage.folder))
    await stage.until(lambda: worker.exit_code is not None)
    result.figures["exit_code_of_the_broken_release"] = worker.exit_code


async def redis_down(stage: Stage, result: Result) -> None:
    """Valkey is killed under load and started again from its append-only file."""
    await stage.add(JOBS)
    await stage.until_ended(list(stage.jobs), share=0.2)
    async with damage(stage, result):
        await asyncio.to_thread(stage.valkey.kill)
        await asyncio.to_thread(stage.valkey.start)
        await stage.follow(result)


async def database_down(stage: Stage, result: Result) -> None:
    """Postgres is killed under load and started again."""
    await stage.add(JOBS)
    await stage.until_ended(list(stage.jobs), share=0.2)
    async with damage(stage, result):
        await asyncio.to_thread(stage.postgres.kill)
        await asyncio.to_thread(stage.postgres.start)
        await stage.follow(result)


async def provider_down(stage: Stage, result: Result) -> None:
    """The model service stops answering until jobs have failed for good."""
    async with damage(stage, result):
        await stage.provider.cut()
        ids = await stage.add(JOBS, job="drill.ask", attempts=1)
        await stage.until_ended(ids[:1], states=frozenset({State.FAILED, State.DELAYED}))
        close, *rest = stage.disaster.commands
        await stage.follow(result, only=lambda command: command == close)
        await stage.provider.start()
        await stage.follow(result, only=lambda command: command in rest)
    result.figures["model_calls"] = stage.provider.calls


async def runaway_spend(stage: Stage, result: Result) -> None:
    """Workers reach the day's cap, and close the gate by themselves."""
    for worker in stage.workers:
        await asyncio.to_thread(worker.stop)
    stage.workers.clear()
    await stage.start_worker(BUDGET_DAILY_USD="0.05")
    async with damage(stage, result):
        await stage.add(JOBS, job="drill.ask", attempts=1)
        await stage.until_closed()
        result.figures["calls_before_the_cap"] = stage.provider.calls
        await stage.follow(result, only=lambda command: "gate open" not in command and "replay" not in command)
        await asyncio.to_thread(stage.workers[0].stop)
        await stage.start_worker(BUDGET_DAILY_USD="100")
        await stage.follow(result, only=lambda command: "gate open" in command or "replay" in command)
    result.figures["model_calls"] = stage.provider.calls


PLAYS = {
    "worker-down": worker_down,
    "bad-deploy": bad_deploy,
    "redis-down": redis_down,
    "database-down": database_down,
    "provider-down": provider_down,
    "runaway-spend": runaway_spend,
}
DRILLS = {each.name: Drill(each, PLAYS[each.name]) for each in DISASTERS}
