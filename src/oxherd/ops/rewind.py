"""Going back to a moment: with a base backup and WAL into a new data folder, or by Supabase in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oxherd.backup import pgbackrest, pitr, runs, sealing
from oxherd.backup.create import Told
from oxherd.backup.storage import open_storage
from oxherd.cloud.supabase_admin import SupabaseAdmin
from oxherd.errors import UsageError
from oxherd.ops.rotate_supabase import ref_of
from oxherd.settings import Secret, Settings


def moment(text: str) -> datetime:
    """A moment with a time zone. Raises UsageError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("--to must be a time such as 2026-11-28T09:41:00Z") from None
    if found.tzinfo is None:
        raise UsageError("--to has no time zone", hint=f"{text}Z is UTC")
    if found > datetime.now(UTC):
        raise UsageError("--to has not come yet")
    return found


def into_folder(
    settings: Settings, identity: Sequence[Secret], to: datetime, folder: Path, told: Told, *, dry_run: bool
) -> dict[str, Any]:
    """Make a data folder that recovers to a moment, or say from which base; with pgBackRest where its stanza is set.

    Raises as `pitr.rewind` and `pgbackrest.rewind`.
    """
    if stanza := settings.backup_pgbackrest_stanza:
        taken = pgbackrest.before(stanza, to) if dry_run else pgbackrest.rewind(stanza, to, folder)
        return {"base": taken.name, "to": to.isoformat(), "doubts": []}
    storage = open_storage(settings)
    archive = pitr.read(storage, runs.ring_of(settings), now=time.time())
    base = archive.before(to)[-1]
    doubts = [f"not used: {fault}" for fault in archive.damaged] + _short_of(archive, base, to)
    if dry_run:
        return {"base": base.name, "to": to.isoformat(), "doubts": doubts}
    identities = sealing.identities_of(identity or settings.backup_identity)
    done = pitr.rewind(archive, storage, identities, to, folder, told=told)
    if not done.compared:
        doubts.append("files were not compared with Postgres's own list: pg_verifybackup of that version is not here")
    return {"base": done.base, "to": done.to, "segments": done.segments, "compared": done.compared, "doubts": doubts}


def _short_of(archive: pitr.Archive, base: pitr.Base, to: datetime) -> list[str]:
    """Why Postgres will not start there: it refuses to, where its WAL ends before the moment."""
    until, missing = archive.reach(base)
    if until >= to.timestamp():
        return []
    if missing:
        return [f"WAL file {missing} is missing: Postgres gets only to about {_shown(until)}"]
    rest = "have the old server archive the rest (select pg_switch_wal()), then do this again"
    return [f"WAL is archived to about {_shown(until)} only, and Postgres refuses to stop before the moment: {rest}"]


async def supabase(
    settings: Settings, to: datetime, confirmed: Callable[[str], None], note: Callable[[str], None], *, dry_run: bool
) -> dict[str, Any]:
    """Have Supabase go back to a moment, in place, after the project's ref was typed.

    Parameters:
        settings: the project and the token.
        to: the moment.
        confirmed: raises unless the ref was typed.
        note: tells the window.
        dry_run: ask nothing of it.

    Raises:
        UsageError: it has no point-in-time recovery, or not so far.
        ServiceUnreachable, ServiceRefused: it did not take it.
    """
    if settings.supabase_access_token is None:
        raise UsageError("SUPABASE_ACCESS_TOKEN is missing; Supabase's Management API wants a personal access token")
    ref, unix = ref_of(settings), int(to.timestamp())
    async with SupabaseAdmin(settings.supabase_api_url, settings.supabase_access_token, ref) as api:
        found = await api.backups()
        window = found.get("physical_backup_data") or {}
        first, last = window.get("earliest_physical_backup_date_unix"), window.get("latest_physical_backup_date_unix")
        if not found.get("pitr_enabled") or first is None or last is None:
            raise UsageError(
                f"project {ref} has no point-in-time recovery", hint="it is an add-on; oxherd backup restore needs none"
            )
        note(f"it can go back to any moment from {_shown(first)} to {_shown(last)}")
        if not first <= unix <= last:
            raise UsageError(f"{to.isoformat()} is not within that")
        if not dry_run:
            note("in place: the project is offline meanwhile, and what came after that moment is gone")
            confirmed(ref)
            await api.restore_to(unix)
    return {"project": ref, "to": _shown(unix)}


def _shown(unix: float) -> str:
    return datetime.fromtimestamp(int(unix), UTC).isoformat()
