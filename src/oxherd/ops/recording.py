"""What an operator did, kept in the database: one operation and one audit line."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable

from oxherd.app import build_store
from oxherd.errors import OxherdError
from oxherd.settings import Settings
from oxherd.store import AuditLine, Operation


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
    source = f"{getpass.getuser()}@{socket.gethostname()}"
    status = 200 if operation.outcome == "ok" else 500
    try:
        await store.start()
        try:
            await store.write_operation(operation)
            await store.write_audit(AuditLine("cli", source, action, operation.target, operation.summary, status))
        finally:
            await store.stop()
    except OxherdError as error:
        told(f"not recorded: {error.message}")
