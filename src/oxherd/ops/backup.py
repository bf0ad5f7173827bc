"""What an operator does with backups: looking whether all is in order, and what is written down of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from oxherd.app import build_store
from oxherd.backup import facts, runs, sealing, tools
from oxherd.backup.create import Server, look
from oxherd.backup.storage import open_storage
from oxherd.errors import OxherdError
from oxherd.settings import Settings
from oxherd.store import AuditLine, Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and how it is."""

    what: str
    ok: bool
    detail: str


@contextlib.asynccontextmanager
async def optional_store(settings: Settings, note: Callable[[str], None]) -> AsyncIterator[Store | None]:
    """The configured store, or None where it can't be used now: a restore must work when the database is gone."""
    store = build_store(settings)
    if store is not None:
        try:
            await store.start()
        except OxherdError as error:
            note(f"not kept in the database's history: {error.message}")
            store = None
    try:
        yield store
    finally:
        if store is not None:
            await store.stop()


async def audited(store: Store | None, action: str, work: Awaitable[T], *, target: str = "") -> T:
    """Do it, and write one line about it."""
    outcome, done = 500, ""
    try:
        result = await work
        outcome, done = 200, getattr(result, "name", target)
        return result
    finally:
        if store is not None:
            with contextlib.suppress(OxherdError):
                await store.write_audit(AuditLine("cli", socket.gethostname(), action, done or target, {}, outcome))


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
    await _try(findings, "storage", asyncio.to_thread(_probe, settings))
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


def _recipients(settings: Settings) -> str:
    return f"{len(sealing.recipients_of(settings.backup_recipients))} can read a backup"


def _identities(settings: Settings) -> str:
    from oxherd.backup.sealing import identities_of

    return f"{len(identities_of(settings.backup_identity))}: this machine can read backups"
