"""What an operator does with backups: looking whether all is in order, and what is written down of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from oxherd.app import keys_of
from oxherd.backup import catalogue, facts, jobs, pgbackrest, pitr, restore, runs, sealing, spool, tools
from oxherd.backup.create import Server, Told, look
from oxherd.backup.storage import open_storage
from oxherd.clock import mono
from oxherd.errors import BackupDamaged, OxherdError, PayloadInvalid, ScheduleNotFound, UsageError
from oxherd.ops import restore as restoring_
from oxherd.ops.plan import Plan, Step
from oxherd.ops.recording import optional_store, write_line
from oxherd.queue.connection import Link
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat
from oxherd.queue.timetable import Timetable
from oxherd.settings import Secret, Settings
from oxherd.store import Operation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and how it is."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Restoring:
    """A restore that can be shown, and then done: the plan, and the name that is typed to confirm it."""

    plan: Plan
    target: str
    run: Callable[[Told, Callable[[Step], None], Callable[[str], None]], Awaitable[restoring_.Outcome]]


async def unlocked(settings: Settings, name: str, identity: Sequence[Secret]) -> restore.Opened:
    """A backup whose signature and keys fit. Raises BackupNotFound, BackupDamaged, UsageError."""
    storage = open_storage(settings)
    identities = sealing.identities_of(identity or settings.backup_identity)
    found = await asyncio.to_thread(catalogue.load, storage, name)
    found.check(runs.ring_of(settings))
    return restore.unlock(found, storage, identities)


async def restoring(
    settings: Settings, backup: restore.Opened, *, into: str | None, table: str | None, queue: bool
) -> Restoring:
    """Plan a restore of the database, of a table, or of the queue. Raises UsageError, StoreUnreachable."""
    name = backup.manifest.name
    if queue:
        if into or table:
            raise UsageError("--queue restores the queue alone: leave out --into and --table")
        jobs = (backup.manifest.queue or {}).get("jobs", 0)
        step = Step("restore", f"queue {settings.job_queue_name}", f"{jobs} jobs, into an empty queue")

        async def put(_told: Told, _done: Callable[[Step], None], note: Callable[[str], None]) -> restoring_.Outcome:
            address = runs.database_of(settings) if settings.database_url else None
            return await _kept(settings, name, restoring_.put_queue_back(backup, settings, address), note)

        return Restoring(Plan((step,)), settings.job_queue_name, put)
    target = await restoring_.look(settings, into)
    shown = restoring_.plan(backup, target, restoring_.Outcome(), table=table)

    async def run(told: Told, done: Callable[[Step], None], note: Callable[[str], None]) -> restoring_.Outcome:
        outcome = restoring_.Outcome()
        plan = restoring_.plan(backup, target, outcome, table=table, told=told)
        work = restoring_.restore_database(backup, settings, target, plan, outcome, done)
        return await _kept(settings, name, work, note)

    return Restoring(shown, target.name, run)


async def _kept(
    settings: Settings, name: str, work: Awaitable[restoring_.Outcome], note: Callable[[str], None]
) -> restoring_.Outcome:
    """Do it; only then is the database's own history opened, since the database may just have been swapped."""
    began = mono()
    try:
        outcome = await work
    except OxherdError as error:
        async with optional_store(settings, note) as store:
            await runs.keep(store, Operation("restore", name, "failed", mono() - began, {"error": error.message}))
        raise
    figures = {
        "database": outcome.database, "kept": outcome.kept, "rows": outcome.rows, "finished": len(outcome.finished),
        "repeated": len(outcome.repeated), "rto_seconds": outcome.seconds,
    }  # fmt: skip
    async with optional_store(settings, note) as store:
        await runs.keep(store, Operation("restore", name, "ok", outcome.seconds, figures))
        if store is not None:
            with contextlib.suppress(OxherdError):
                await write_line(store, "restoreBackup", name, {"into": outcome.database}, 200)
    return outcome


async def set_schedules(
    settings: Settings, wanted: Mapping[str, str | None], *, tz: str | None
) -> list[dict[str, Any]]:
    """Make the schedules of backups as they are wanted; those that are.

    Parameters:
        settings: where the queue is.
        wanted: cron patterns by the job's name, None for the usual one; what is left out is removed.
        tz: the time zone.

    Raises:
        UsageError: a pattern or the time zone can't be read.
    """
    link = Link(settings.redis_url, "cli")
    await link.start()
    try:
        timetable = Timetable(link, keys_of(settings))
        found = []
        for job, (schedule_id, pattern) in jobs.SCHEDULES.items():
            if job in wanted:
                opts = {"removeOnComplete": {"count": 30}, "removeOnFail": {"count": 30}}
                repeat = Repeat(pattern=wanted[job] or pattern, tz=tz)
                try:
                    await timetable.put(schedule_id, repeat, NewJob(job, {}, opts))
                except PayloadInvalid as error:
                    raise UsageError(error.message) from None
                found.append(await timetable.one(schedule_id))
            else:
                with contextlib.suppress(ScheduleNotFound):
                    await timetable.remove(schedule_id)
        return found
    finally:
        await link.stop()


async def diagnose(settings: Settings) -> list[Finding]:
    """Look at the database, the programs, the storage and the keys. Writes one object and removes it."""
    findings: list[Finding] = []
    server = await _try(findings, "database", _server(settings))
    clients = await asyncio.to_thread(tools.found_clients)
    if server is not None:
        detail = f"Postgres {server.version}, {'TLS' if server.tls else 'no TLS'}, {server.bytes / 1e6:.0f} MB"
        findings[-1] = Finding("database", ok=True, detail=detail + (", Supabase" if server.supabase else ""))
        findings += _programs(clients, server)
        left_out = facts.MANAGED if server.supabase else ()
        scope = ", ".join(settings.backup_schemas) or "all but " + ", ".join(left_out) if left_out else "all"
        findings.append(Finding("schemas", ok=True, detail=", ".join(settings.backup_schemas) or scope))
    else:
        findings += [Finding("pg_dump", ok=True, detail=client.shown) for client in clients]
    if settings.backup_pgbackrest_stanza:
        await _try(findings, "pgbackrest", asyncio.to_thread(pgbackrest.look, settings.backup_pgbackrest_stanza))
    elif (found := await asyncio.to_thread(pgbackrest.installed)) is not None:
        unused = f"{found}, not used: BACKUP_PGBACKREST_STANZA is not set"
        findings.append(Finding("pgbackrest", ok=True, detail=unused))
    if await _try(findings, "storage", asyncio.to_thread(_probe, settings)) and not settings.backup_pgbackrest_stanza:
        await _try(findings, "rewind", asyncio.to_thread(_rewinding, settings))
    if settings.backup_spool is not None:
        await _try(findings, "spool", asyncio.to_thread(_spool, settings, settings.backup_spool))
    await _try(findings, "recipients", asyncio.to_thread(_recipients, settings))
    if settings.backup_identity:
        await _try(findings, "identity", asyncio.to_thread(_identities, settings))
    else:
        findings.append(Finding("identity", ok=True, detail="none here: this machine writes backups it can't read"))
    signing = "signed with ENCRYPTION_KEY" if settings.encryption_key else "unsigned: ENCRYPTION_KEY is not set"
    findings.append(Finding("manifests", ok=True, detail=signing))
    return findings


async def _try(findings: list[Finding], what: str, work: Awaitable[T]) -> T | None:
    try:
        result = await work
    except OxherdError as error:
        findings.append(Finding(what, ok=False, detail=f"{error.message}{f' ({error.hint})' if error.hint else ''}"))
        return None
    findings.append(Finding(what, ok=True, detail=result if isinstance(result, str) else ""))
    return result


async def _server(settings: Settings) -> Server:
    connection = await runs.database_of(settings).connect()
    try:
        return await look(connection)
    finally:
        await connection.close()


def _programs(clients: list[tools.Client], server: Server) -> list[Finding]:
    used, found = False, []
    for verdict in tools.judged(clients, server.major, tls=server.tls):
        reason = verdict.reason or ("an earlier one fits" if used else "the newest that fits: used")
        found.append(Finding("pg_dump", ok=True, detail=f"{verdict.client.shown}: {reason}"))
        used = used or not verdict.reason
    if not used:
        found.append(
            Finding("pg_dump", ok=False, detail=f"none fits: install postgresql-client-{server.major} or newer")
        )
    return found


def _probe(settings: Settings) -> str:
    storage = open_storage(settings, patience=0)
    storage.put("doctor.probe", b"oxherd")
    back = storage.get("doctor.probe")
    try:
        storage.delete("doctor.probe")
    except OxherdError:
        return f"{storage.shown}: writes and reads; deletes are refused, so prune will be, too"
    return (
        f"{storage.shown}: writes, reads and deletes" if back == b"oxherd" else f"{storage.shown}: reads something else"
    )


def _spool(settings: Settings, folder: Path) -> str:
    with spool.opened(settings, folder) as place:
        place.storage.put("doctor.probe", b"oxherd")
        place.storage.delete("doctor.probe")
    return f"{folder}: {shutil.disk_usage(folder).free / 1e9:.1f} GB free, for one backup as it is stored"


def _rewinding(settings: Settings) -> str:
    archive = pitr.read(open_storage(settings), runs.ring_of(settings), now=time.time())
    if archive.damaged:
        raise BackupDamaged("; ".join(archive.damaged))
    if not archive.bases:
        return "no base backup: nothing to go back to any moment with"
    missing = ""
    for base in reversed(archive.bases):
        until, missing = archive.reach(base)
        if archive.chain(base) and not missing:
            first, last = (datetime.fromtimestamp(int(at), UTC).isoformat() for at in (base.ended_at / 1000, until))
            return f"to any moment from {first} to about {last}, of which the newest WAL is"
    raise BackupDamaged(
        f"WAL file {missing} is missing since the newest base backup", hint="take one: oxherd backup base"
    )


def _recipients(settings: Settings) -> str:
    return f"{len(sealing.recipients_of(settings.backup_recipients))} can read a backup"


def _identities(settings: Settings) -> str:
    from oxherd.backup.sealing import identities_of

    return f"{len(identities_of(settings.backup_identity))}: this machine can read backups"
