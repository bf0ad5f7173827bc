"""What else can be wrong with what a worker needs: the database, money, keys, certificates, backups."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from oxherd.clock import mono, wall_ms
from oxherd.cloud.certificates import Server, Validity, validity
from oxherd.queue.timetable import Timetable
from oxherd.settings import Secret
from oxherd.store import Store
from oxherd.telemetry.alerts import Finding
from oxherd.telemetry.slo import DAY, HOUR

SPIKE = 3.0  # times the usual
SPEND_LEAST = 1.0  # US dollars in an hour below which nobody is told
HOUR_MS = 3_600_000
EXPIRY_NOTICE = 14 * DAY  # seconds
LAST_PART = 0.2  # of a certificate's life, where that is less: those of a week are renewed within days of their end
BACKUP_JOB = "oxherd.backup"  # the name of the jobs that a schedule of backups makes
BACKUPS_SEEN = 20  # of the newest
MISSED = 3  # jobs of a schedule that were made without any backup to show for it
BACKUPS_EVERY = 300.0  # seconds between looks
Probe = Callable[[], Awaitable[list[Finding]]]


def store_probe(store: Store) -> Probe:
    """Finds a database that takes no writes."""

    async def probe() -> list[Finding]:
        away = store.away_seconds
        summary = f"{store.waiting} writes have waited for {away:.0f} s"
        return [Finding("store-away", "", summary)] if away else []

    return probe


def spend_probe(store: Store) -> Probe:
    """Finds an hour that cost far more than the hours of the day before it."""

    async def spent(since: int, until: int) -> float:
        rows = await store.spend_report(by="day", since=since, until=until)
        return float(sum(row.cost_usd for row in rows))

    async def probe() -> list[Finding]:
        now = wall_ms()
        last, before = await spent(now - HOUR_MS, now), await spent(now - 24 * HOUR_MS, now - HOUR_MS)
        usual = before / 23
        if last < SPEND_LEAST or not usual or last < SPIKE * usual:
            return []
        return [Finding("spend-spike", "", f"${last:.2f} in the last hour; usual is ${usual:.2f}")]

    return probe


def expiry_probe(keys: Mapping[str, Secret | None]) -> Probe:
    """Finds keys that are JSON web tokens, such as Supabase's legacy ones, and end within two weeks.

    Parameters:
        keys: values of variables by their names.
    """

    async def probe() -> list[Finding]:
        found = []
        for name, key in keys.items():
            ends = None if key is None else jwt_expiry(key.reveal())
            left = float("inf") if ends is None else ends - wall_ms() / 1000
            if left < EXPIRY_NOTICE:
                found.append(Finding("key-expiring", name, f"{name} expires in {left / DAY:.1f} days"))
        return found

    return probe


def jwt_expiry(text: str) -> float | None:
    """When a JSON web token ends, in wall seconds (RFC 7519, `exp`); None where it never does, or is none."""
    parts = text.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    ends = claims.get("exp") if isinstance(claims, dict) else None
    return float(ends) if isinstance(ends, int | float) else None


def certificate_probe(servers: Mapping[str, Server]) -> Probe:
    """Finds certificates that are about to end. Asks each server once a day, once an hour while it does not answer.

    Parameters:
        servers: by the names of the variables that say where they are.
    """
    known: dict[str, Validity | None] = {}
    due: dict[str, float] = {}

    async def read(name: str) -> None:
        if mono() >= due.get(name, 0.0):
            known[name] = await validity(servers[name])
            due[name] = mono() + (HOUR if known[name] is None else DAY)

    async def probe() -> list[Finding]:
        await asyncio.gather(*(read(name) for name in servers))
        found = []
        for name, valid in known.items():
            if valid is not None and (words := _ending(valid)):
                server = servers[name]
                found.append(
                    Finding("certificate-expiring", name, f"the certificate of {server.host}:{server.port} {words}")
                )
        return found

    return probe


def _ending(valid: Validity) -> str:
    left = valid.ends - wall_ms() / 1000
    if left <= 0:
        return f"expired {-left / DAY:.1f} days ago"
    notice = min(EXPIRY_NOTICE, LAST_PART * (valid.ends - valid.begins))
    return f"expires in {left / DAY:.1f} days" if left < notice else ""


def backup_probe(store: Store, timetable: Timetable, oldest: float) -> Probe:
    """Finds backups that are too old, or whose verification failed; nothing where nobody ever made one.

    Parameters:
        store: where backups and verifications are noted.
        timetable: where backups are scheduled.
        oldest: seconds that the last good backup may be old.
    """
    seen: list[Finding] = []
    due = 0.0

    async def probe() -> list[Finding]:
        nonlocal seen, due
        if mono() >= due:
            made, verified = await asyncio.gather(
                store.operations("backup", limit=BACKUPS_SEEN), store.operations("verify", limit=1)
            )
            seen = _too_old(made, oldest) or ([] if made else await _missed(timetable))
            seen += [
                Finding("backup-unproven", "", f"the verification of {each['target']} failed")
                for each in verified
                if each["outcome"] != "ok"
            ]
            due = mono() + BACKUPS_EVERY
        return seen

    return probe


def _too_old(made: list[dict[str, Any]], oldest: float) -> list[Finding]:
    """`made`: the newest first. A backup is as old as its snapshot, however long its upload took."""
    good = next((each["summary"].get("taken_at", each["at"]) for each in made if each["outcome"] == "ok"), None)
    if good is None:
        summary = f"none of the last {len(made)} backups was good"
        return [Finding("backup-old", "", summary)] if made else []
    age = wall_ms() / 1000 - good / 1000
    return [Finding("backup-old", "", f"the last good backup is {age / HOUR:.0f} hours old")] if age > oldest else []


async def _missed(timetable: Timetable) -> list[Finding]:
    """Schedules of backups that fire and have nothing to show for it."""
    return [
        Finding("backup-old", each["id"], f"the schedule {each['id']} has fired, and there is no backup")
        for each in await timetable.all()
        if each["name"] == BACKUP_JOB and not each["paused"] and each["count"] >= MISSED
    ]
