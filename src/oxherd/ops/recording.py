"""What an operator did, kept in the database: one operation and one audit line."""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from oxherd.app import build_store
from oxherd.errors import OxherdError
from oxherd.settings import Settings
from oxherd.store import AuditLine, Operation, Store

T = TypeVar("T")


def operator() -> str:
    """Whoever runs this command, and where."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


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


async def write_line(store: Store, action: str, target: str, detail: Mapping[str, Any], status: int) -> None:
    """One line of the audit log about what this operator did. Raises StoreUnreachable."""
    await store.write_audit(AuditLine("cli", operator(), action, target, dict(detail), status))


async def audited(store: Store | None, action: str, work: Awaitable[T], *, target: str = "") -> T:
    """Do what keeps its own operation, and write one line about it."""
    outcome, done = 500, ""
    try:
        result = await work
        outcome, done = 200, getattr(result, "name", target)
        return result
    finally:
        if store is not None:
            with contextlib.suppress(OxherdError):
                await write_line(store, action, done or target, {}, outcome)


async def record(settings: Settings, action: str, operation: Operation, told: Callable[[str], None]) -> None:
    """Keep it where a database is configured. What was done is done: a database that is away is told of, no more.

    Parameters:
        settings: with the database.
        action: its name in the audit log, such as `deploy rollback`.
        operation: what was done, and what came of it.
        told: hears why it was not kept.
    """
    store = build_store(settings)
    if store is None:
        told("not recorded: neither DATABASE_URL nor SUPABASE_URL is set")
        return
    status = 200 if operation.outcome == "ok" else 500
    try:
        await store.start()
        try:
            await store.write_operation(operation)
            await write_line(store, action, operation.target, operation.summary, status)
        finally:
            await store.stop()
    except OxherdError as error:
        told(f"not recorded: {error.message}")
