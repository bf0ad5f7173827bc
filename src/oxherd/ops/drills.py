"""What each drill breaks, and how it is mended: by its runbook's commands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from oxherd.backup import catalogue, runs
from oxherd.backup.storage import open_storage
from oxherd.job import State
from oxherd.ops.audit_sources import git
from oxherd.ops.disasters import DISASTERS
from oxherd.ops.drill import DATABASE, CommandFailed, Drill, Result, Stage, damage
from oxherd.ops.drill_app import CREDENTIAL

JOBS = 20
AFTER = 3  # jobs that come after the backup
BROKEN = "raise ImportError('this release is broken, as the drill wants it')\n"


async def under_load(stage: Stage) -> None:
    """Jobs of which some are done, some run and some wait."""
    await stage.until_ended(await stage.add(JOBS), share=0.2)


async def prove_worker(stage: Stage, result: Result) -> None:
    """Nothing breaks."""
    async with damage(stage, result):
        await stage.follow(result)


async def prove_backup(stage: Stage, result: Result) -> None:
    """Nothing breaks."""
    await under_load(stage)
    await stage.back_up()
    async with damage(stage, result):
        await stage.follow(result)


async def worker_down(stage: Stage, result: Result) -> None:
    """One of two workers is killed amid its jobs."""
    await under_load(stage)
    async with damage(stage, result):
        stage.workers[0].kill()
        await stage.follow(result)


async def bad_deploy(stage: Stage, result: Result) -> None:
    """All workers are replaced by a release that ends when it is imported; then by the one before."""
    await under_load(stage)
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
    result.figures["broken_exit_code"] = worker.exit_code


async def redis_down(stage: Stage, result: Result) -> None:
    """Valkey is killed under load and started again from its append-only file."""
    await under_load(stage)
    async with damage(stage, result):
        await asyncio.to_thread(stage.valkey.kill)
        await asyncio.to_thread(stage.valkey.start)
        await stage.follow(result)


async def database_down(stage: Stage, result: Result) -> None:
    """Postgres is killed under load and started again."""
    await under_load(stage)
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
        await stage.follow(result, slice(1))
        await stage.provider.start()
        await stage.follow(result, slice(1, None))
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
        await stage.follow(result, slice(3))
        await asyncio.to_thread(stage.workers[0].stop)
        await stage.start_worker(BUDGET_DAILY_USD="100")
        await stage.follow(result, slice(3, None))
    result.figures["model_calls"] = stage.provider.calls


async def redis_lost(stage: Stage, result: Result) -> None:
    """All of Redis is flushed; the queue comes back from a backup."""
    await under_load(stage)
    await stage.back_up()
    await stage.add(AFTER)
    async with damage(stage, result):
        await asyncio.to_thread(stage.valkey.clear)
        await stage.follow(result)


async def database_lost(stage: Stage, result: Result) -> None:
    """The database is dropped; it comes back from a backup."""
    await under_load(stage)
    await stage.back_up()
    await stage.add(AFTER)
    async with damage(stage, result):
        await asyncio.to_thread(stage.postgres.drop_database, DATABASE)
        await stage.follow(result)


async def bad_migration(stage: Stage, result: Result) -> None:
    """A migration destroys a column; a backup is restored beside the live database and takes its place."""
    await under_load(stage)
    await stage.back_up()
    async with damage(stage, result):
        await stage.sql("alter table oxherd.steps drop column output")
        await stage.follow(result)


async def backup_damaged(stage: Stage, result: Result) -> None:
    """A byte of the newest backup has flipped; the one before it is proven instead."""
    await stage.until_ended(await stage.add(JOBS, takes=0.01))
    await stage.back_up()
    (older,) = stored(stage)
    await stage.back_up()
    (newest,) = stored(stage) - {older}
    stage.extra |= {"OLDER": older}
    async with damage(stage, result):
        flip(max((stage.folder / "backups").glob(f"**/*{newest}*/**/*"), key=lambda path: path.stat().st_size))
        await stage.follow(result)


def stored(stage: Stage) -> set[str]:
    """Names of the backups."""
    known, ring = open_storage(stage.settings), runs.ring_of(stage.settings)
    return {each.name for each in catalogue.read(known, ring, now=time.time()).entries}


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


async def key_leaked(stage: Stage, result: Result) -> None:
    """Two keys are in a repository's history; they are replaced while workers run jobs that open what one sealed."""
    leaked = {name: stage.variables[name] for name in ("ENCRYPTION_KEY", "OPENROUTER_API_KEY")}
    commit(stage.folder / "repository", "".join(f"{name}={value}\n" for name, value in leaked.items()), "# none here\n")
    stage.extra |= {"REPOSITORY": "repository", "OPENROUTER_MANAGEMENT_KEY": stage.provider.management_key}
    await stage.run(f"echo generated-for-the-drill | oxherd credentials put {CREDENTIAL}")
    await stage.until_ended(await stage.add(JOBS, job="drill.open"), share=0.2)
    async with damage(stage, result):
        await stage.follow(result, slice(2))
        while result.commands[-1].code:
            await stage.add(AFTER, job="drill.open")
            await stage.hand_over()
            await stage.follow(result, slice(2, 3))
        await stage.follow(result, slice(3, None))
    if kept := [name for name, value in leaked.items() if value in ",".join(stage.variables.values())]:
        raise CommandFailed(f"workers still have what leaked: {', '.join(kept)}")


def commit(folder: Path, *versions: str) -> None:
    """Make a repository whose history has each version of a file."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    plain = ("user.name=drill", "user.email=drill@localhost", "commit.gpgSign=false", "core.hooksPath=/dev/null")
    for text in versions:
        (folder / ".env").write_text(text)
        git(folder, "add", "--force", ".env")
        git(folder, *(word for each in plain for word in ("-c", each)), "commit", "--quiet", "--message", "settings")


async def key_revoked(stage: Stage, result: Result) -> None:
    """The model service takes the key no more; jobs fail at once until workers have another."""
    stage.extra |= {"OPENROUTER_MANAGEMENT_KEY": stage.provider.management_key}
    async with damage(stage, result):
        stage.provider.revoke()
        ids = await stage.add(JOBS, job="drill.ask")
        await stage.until_ended(ids[:1], states=frozenset({State.FAILED}))
        await stage.follow(result, slice(2))
        await stage.hand_over()
        await stage.follow(result, slice(2, None))
    if stage.provider.calls < JOBS:
        raise CommandFailed(f"{JOBS - stage.provider.calls} of {JOBS} jobs had no answer from the model service")


async def region_lost(stage: Stage, result: Result) -> None:
    """Engines and workers are all gone; a backup fills new ones elsewhere."""
    await under_load(stage)
    await stage.back_up()
    async with damage(stage, result):
        for worker in stage.workers:
            worker.kill()
        await stage.move()
        await stage.follow(result, slice(3))
        await stage.start_worker()
        await stage.follow(result, slice(3, None))


PLAYS = {
    "prove-worker": prove_worker,
    "prove-backup": prove_backup,
    "worker-down": worker_down,
    "bad-deploy": bad_deploy,
    "redis-down": redis_down,
    "database-down": database_down,
    "provider-down": provider_down,
    "runaway-spend": runaway_spend,
    "redis-lost": redis_lost,
    "database-lost": database_lost,
    "bad-migration": bad_migration,
    "backup-damaged": backup_damaged,
    "key-leaked": key_leaked,
    "key-revoked": key_revoked,
    "region-lost": region_lost,
}
DRILLS = {
    each.name: Drill(each, PLAYS[each.name], workers=2 if each.name == "worker-down" else 1) for each in DISASTERS
}
