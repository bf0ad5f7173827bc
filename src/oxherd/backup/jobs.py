"""The built-in jobs that take and verify backups on a schedule; the queue sees to it that one worker does each."""

from __future__ import annotations

from typing import Any

from oxherd.backup import runs
from oxherd.backup.create import quiet
from oxherd.backup.storage import open_storage
from oxherd.errors import BackupFailed, OxherdError
from oxherd.settings import Settings
from oxherd.store import Store

CREATE, VERIFY = "oxherd.backup", "oxherd.backup-verify"
SCHEDULES = {CREATE: ("oxherd-backup", "17 3 * * *"), VERIFY: ("oxherd-backup-verify", "43 4 * * 0")}


async def take(settings: Settings, store: Store | None, *, again: bool = False) -> dict[str, Any]:
    """Take a backup, then delete those that retention no longer keeps. Raises as `runs.take`.

    Parameters:
        settings: the variables.
        store: where the operation is kept; None for nowhere.
        again: whether the job had begun before; then what it left in the spool is enough.
    """
    made = await runs.take(settings, store, told=quiet, resume=again)
    storage = open_storage(settings)
    try:
        plan = await runs.due(settings, storage)
        refused = await runs.clear(storage, plan)
        names = [*(entry.name for entry in plan.drop), *(base.name for base in plan.drop_bases)]
        deleted = sum(name not in refused for name in names)
        kept = [*plan.damaged, *(f"{name}: {why}" for name, why in refused.items())]
    except OxherdError as error:  # the backup is there: a retry would only take another one
        deleted, kept = 0, [error.message]
    return {"name": made.name, **runs.summary(made), "deleted": deleted, "not_deleted": kept}


async def prove(settings: Settings, store: Store | None) -> dict[str, Any]:
    """Verify the newest backup.

    Raises:
        BackupFailed: it can't be restored as it was.
    """
    report = await runs.prove(settings, store)
    if not report.ok:
        faults = "; ".join(f"{check.name}: {check.detail}" for check in report.checks if not check.ok)
        raise BackupFailed(f"{report.backup} is not proven: {faults}"[:2000], hint="docs/runbooks/backup-unproven.md")
    return {"name": report.backup, "rto_seconds": report.rto_seconds, "rpo_seconds": report.rpo_seconds}
