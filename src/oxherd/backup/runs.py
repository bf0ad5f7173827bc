"""Backups as the variables have them, for commands and for workers; each is kept in the table of operations."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from oxherd.backup import catalogue, create, pgbackrest, pitr, retention, sealing, spool, tools, verify
from oxherd.backup.create import Told, quiet
from oxherd.backup.manifest import Manifest
from oxherd.backup.storage import Storage, open_storage
from oxherd.clock import mono
from oxherd.errors import BackupDamaged, OxherdError, UsageError
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys
from oxherd.settings import Secret, Settings
from oxherd.store import Operation, Store
from oxherd.store.address import Address
from oxherd.vault.keyring import KeyRing


def ring_of(settings: Settings) -> KeyRing:
    """The keys that sign backups and open credentials."""
    return KeyRing.of(settings.encryption_key, settings.encryption_keys_previous)


def database_of(settings: Settings) -> Address:
    """The configured database. Raises UsageError where there is none, or only a pooler or Supabase's REST."""
    if settings.database_url is None:
        raise UsageError(
            "DATABASE_URL is missing; a dump needs Postgres itself, not Supabase's REST",
            hint="on Supabase: the session pooler's address, from Project Settings, Database",
        )
    return tools.address_of(settings.database_url.reveal())


@contextlib.asynccontextmanager
async def _queue_link(settings: Settings, *, with_queue: bool) -> AsyncIterator[Link | None]:
    if not with_queue:
        yield None
        return
    link = Link(settings.redis_url, "backup", patience=60.0)
    await link.start()
    try:
        yield link
    finally:
        await link.stop()


async def take(
    settings: Settings,
    store: Store | None,
    *,
    told: Told = quiet,
    limit: float | None = None,
    with_queue: bool = True,
    resume: bool = False,
    note: Callable[[str], None] = lambda _: None,
    storage: Storage | None = None,
) -> Manifest:
    """Take a backup of the configured database and queue. Raises as `create.create`, and with a spool as `Spool.send`.

    Parameters:
        settings: the variables.
        store: where the operation is kept; None for nowhere.
        told: how far it is.
        limit: bytes a second that are read.
        with_queue: the queue, too.
        resume: where a killed process left a whole backup in the spool, that one is enough.
        note: told what an operator wants to know meanwhile.
        storage: where to; BACKUP_URL's when left out.
    """
    target = storage or open_storage(settings)
    target.on_wait = note
    await asyncio.to_thread(target.sweep)
    began = mono()
    try:
        async with _queue_link(settings, with_queue=with_queue) as link:
            keys = Keys(settings.job_queue_name, settings.job_queue_prefix)
            source = create.Source(
                database_of(settings), settings.backup_recipients, ring_of(settings), settings.backup_schemas,
                link, keys, limit,
            )  # fmt: skip
            if settings.backup_spool is None:
                made = await create.create(source, target, told=told)
            else:
                with spool.opened(settings, settings.backup_spool) as place:
                    made = await _by_way_of(place, source, target, resume=resume, told=told, note=note)
    except OxherdError as error:
        await keep(store, Operation("backup", target.shown, "failed", mono() - began, {"error": error.message}))
        raise
    await keep(store, Operation("backup", made.name, "ok", made.seconds, summary(made)))
    return made


async def _by_way_of(
    place: spool.Spool, source: create.Source, target: Storage, *, resume: bool, told: Told, note: Callable[[str], None]
) -> Manifest:
    """Store what was left there, then take another one: so there is never more than one on the disk."""
    for name in await asyncio.to_thread(place.left, note):
        try:
            made = await place.send(name, target, told=told, limit=source.limit)
        except BackupDamaged as error:
            note(f"{name} is thrown away: {error.message}")
            place.discard(name)
            continue
        note(f"{name} is stored, which an earlier process had taken")
        if resume:
            return made
    made = await create.create(source, place.storage, told=told)
    return await place.send(made.name, target, told=told, limit=source.limit)


def summary(made: Manifest) -> dict[str, Any]:
    """A backup's figures."""
    return {
        "bytes": made.stored, "raw_bytes": made.raw, "rows": made.rows, "tables": len(made.tables),
        "taken_at": made.taken_at, "server": made.database["server"], "client": made.database["client"],
        "queue_keys": made.queue["keys"] if made.queue else None, "signed": bool(made.signature),
    }  # fmt: skip


async def take_base(settings: Settings, *, incremental: bool, told: Told = quiet) -> pitr.Base | pgbackrest.Taken:
    """Take a base backup, with pgBackRest where its stanza is set. Raises as `pitr.take_base` and `pgbackrest.take`.

    Parameters:
        settings: the variables.
        incremental: only what changed since the last one.
        told: how far it is.
    """
    if stanza := settings.backup_pgbackrest_stanza:
        taken: pgbackrest.Taken = await create.in_thread(
            lambda stop: pgbackrest.take(stanza, incremental=incremental, stop=stop)
        )
        return taken
    storage, address = open_storage(settings), database_of(settings)
    return await pitr.take_base(
        address, storage, settings.backup_recipients, ring_of(settings), incremental=incremental, told=told
    )


def bases(settings: Settings) -> tuple[Sequence[pitr.Base | pgbackrest.Taken], Sequence[str]]:
    """All base backups, the newest first, and what is wrong with others. Raises as `pgbackrest.backups`."""
    if stanza := settings.backup_pgbackrest_stanza:
        return pgbackrest.backups(stanza), ()
    found = pitr.read(open_storage(settings), ring_of(settings), now=time.time())
    return found.bases, found.damaged


async def prove(
    settings: Settings,
    store: Store | None,
    name: str = "latest",
    *,
    told: Told = quiet,
    identity: Sequence[Secret] = (),
    storage: Storage | None = None,
) -> verify.Report:
    """Verify a backup; a bad one is a report. Raises as `verify.verify`, and BackupNotFound.

    Parameters:
        settings, store, told, storage: as for `take`.
        name: which one.
        identity: opens it; BACKUP_IDENTITY when left out.
    """
    source = storage or open_storage(settings)
    identities = sealing.identities_of(identity or settings.backup_identity)
    found = await asyncio.to_thread(catalogue.load, source, name)
    report = await verify.verify(found, source, identities, ring_of(settings), told=told)
    outcome = "ok" if report.ok else "failed"
    figures = {
        "bytes": found.stored, "rows": report.rows, "rto_seconds": report.rto_seconds,
        "rpo_seconds": report.rpo_seconds, "signed": bool(report.signature),
        "faults": [f"{check.name}: {check.detail}" for check in report.checks if not check.ok],
    }  # fmt: skip
    await keep(store, Operation("verify", found.name, outcome, report.seconds, figures))
    return report


async def clear(storage: Storage, plan: retention.Plan) -> dict[str, str]:
    """Delete what a plan has; why some could not be, by the backup's name, or `WAL`."""
    return await asyncio.to_thread(_clear, storage, plan)


def _clear(storage: Storage, plan: retention.Plan) -> dict[str, str]:
    refused: dict[str, str] = {}
    for entry in plan.drop:
        refused |= _delete(storage, entry.name, entry.objects)
    for base in plan.drop_bases:
        if base.name not in refused:
            refused |= _delete(storage, base.name, base.objects)
        if base.name in refused and base.after is not None:  # without it, what stays would be of no use
            refused[base.after] = f"{base.name} is after it"
    if not any(base.name in refused for base in plan.drop_bases):
        refused |= _delete(storage, "WAL", (each.name for each in plan.wal))
    for name in plan.abandoned:
        _delete(storage, name, [name])
    return refused


def _delete(storage: Storage, name: str, objects: Iterable[str]) -> dict[str, str]:
    """Delete objects, the first one first: it is what lists them, and what is half deleted must not be listed."""
    try:
        for each in objects:
            storage.delete(each)
    except OxherdError as error:
        return {name: error.message}
    return {}


async def due(settings: Settings, storage: Storage) -> retention.Plan:
    """What retention would delete now."""
    ring, now = ring_of(settings), time.time()
    backups = await asyncio.to_thread(catalogue.read, storage, ring, now=now)
    return retention.plan(backups, await asyncio.to_thread(pitr.read, storage, ring, now=now), now=now)


async def keep(store: Store | None, operation: Operation) -> None:
    """Keep what was done; what was done counts, also where that fails."""
    if store is not None:
        with contextlib.suppress(OxherdError):
            await store.write_operation(operation)
