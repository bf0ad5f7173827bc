"""Proof that a backup restores: into a scratch Postgres, compared with what the backup says of itself, thrown away."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from oxherd.backup import facts, manifest, queue, restore, sealing, tools
from oxherd.backup.catalogue import REPORT
from oxherd.backup.create import Told, quiet
from oxherd.backup.manifest import Manifest
from oxherd.backup.storage import Storage
from oxherd.clock import mono, wall_ms
from oxherd.embedded.postgres import Postgres
from oxherd.errors import BackupDamaged, BackupFailed, OxherdError, VaultError
from oxherd.store.migrate import migrate
from oxherd.store.postgres import PostgresStore
from oxherd.vault.keyring import KeyRing
from oxherd.vault.vault import Vault

# Nobody will miss the scratch server's data.
SCRATCH = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `detail` in words."""

    name: str
    ok: bool
    detail: str = ""


@dataclass
class Report:
    """What verifying a backup came to.

    Attributes:
        backup: its name.
        at: when it was verified, wall ms.
        oxherd: the version that verified it.
        checks: in order.
        rows, bytes: of the restored database; bytes of its dump.
        rto_seconds: from the first byte fetched to the database restored, indexes and all: what a restore takes.
        rpo_seconds: how old the backup was: what would have been lost.
        seconds: of everything.
        signature: HMAC-SHA-256 under a key derived from ENCRYPTION_KEY; empty without one.
    """

    backup: str
    at: int
    oxherd: str = field(default_factory=manifest.oxherd_version)
    checks: list[Check] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    seconds: float = 0.0
    signature: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check was passed."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def add(self, name: str, faults: Sequence[str], good: str) -> None:
        """Add a check with the faults it found."""
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        self.checks.append(Check(name, not faults, shown or good))

    def data(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {**asdict(self), "ok": self.ok}

    def sign(self, ring: KeyRing) -> None:
        """Sign it with the active key."""
        self.signature = manifest.signature(self.data(), ring, manifest.REPORT_LABEL)


async def verify(
    found: Manifest,
    storage: Storage,
    identities: Sequence[Any],
    ring: KeyRing,
    *,
    told: Told = quiet,
    keep_report: bool = True,
) -> Report:
    """Restore a backup into a scratch Postgres, compare, throw it away. A bad backup is a report, no error.

    Parameters:
        found: its manifest.
        storage: where it is.
        identities: of `sealing.identities_of`.
        ring: checks the manifest's signature, opens a credential, signs the report.
        told: how far it is.
        keep_report: store the report beside the backup; `prune` spares the last one that is whole.

    Raises:
        EmbeddedUnavailable: no scratch server could be started here.
        UsageError: the identities are not those that the backup was encrypted for.
        ServiceUnreachable, ServiceRefused: the storage did not answer.
    """
    began = mono()
    report = Report(found.name, wall_ms(), rows=found.rows, bytes=found.raw)
    try:
        signature = found.check(ring)
        report.add("signature", [], "by ENCRYPTION_KEY" if signature == "signed" else "unsigned: no ENCRYPTION_KEY")
        opened = restore.unlock(found, storage, identities)
        await _restored(opened, ring, report, told)
        await asyncio.to_thread(_read_queue, opened, report)
    except (BackupDamaged, BackupFailed) as error:
        report.add("whole", [error.message], "")
    report.seconds = round(mono() - began, 3)
    report.rpo_seconds = round((report.at - found.taken_at) / 1000, 1)
    report.sign(ring)
    if keep_report:
        name = f"{found.name}/{REPORT}{report.at}.json"
        await asyncio.to_thread(storage.put, name, orjson.dumps(report.data()))
    return report


async def _restored(backup: restore.Opened, ring: KeyRing, report: Report, told: Told) -> None:
    told("scratch", 0, 0)
    scratch = Postgres(config=SCRATCH)
    await asyncio.to_thread(scratch.start)
    try:
        encoding = backup.manifest.database["encoding"]
        url = await asyncio.to_thread(scratch.create_database, "scratch", template="template0", encoding=encoding)
        address = tools.address_of(url)
        began = mono()
        filled = await restore.fill(backup, address, told=told)
        report.rto_seconds = round(mono() - began, 3)
        told("compare", 0, 0)
        await _compared(backup, address, filled, report)
        if backup.manifest.database["migration"]:
            await _used(url, ring, report)
    finally:
        await asyncio.to_thread(scratch.stop)


async def _compared(backup: restore.Opened, address: Any, filled: restore.Filled, report: Report) -> None:
    faults = await restore.compare(backup, address, filled)
    known = backup.facts
    for kind in facts.COMPARED:
        own = [each for each in faults if each.startswith(f"{kind}: ")]
        words = {"tables": f"{len(known['tables'])} tables, {report.rows} rows, checksums equal"}
        report.add(kind, own, words.get(kind, f"{len(known[kind])} the same"))
    if report.rows == 0:
        report.add("rows", ["the backup has no rows at all"], "")
    missing = [each for each in filled.left_out if each not in filled.stand_ins]
    here = len(known["extensions"]) - len(filled.left_out)
    notes = [f"{here} restored"]
    notes += [f"stand-ins for {', '.join(filled.stand_ins)}"] if filled.stand_ins else []
    notes += [f"not available to the scratch server: {', '.join(missing)}"] if missing else []
    report.checks.append(Check("extensions", ok=True, detail="; ".join(notes)))


async def _used(url: str, ring: KeyRing, report: Report) -> None:
    """Do with it what a worker would: bring the schema up to date, start, open a credential."""
    try:
        ran = [each.name for each in await migrate(url)]
        report.add("migrations", [], f"{', '.join(ran)} ran" if ran else "up to date")
    except OxherdError as error:
        report.add("migrations", [error.message], "")
        return
    store = PostgresStore(url)
    await store.start()
    try:
        rows = await store.list_credentials(limit=1)
        if not rows:
            report.add("credentials", [], "there is none to open")
        elif not ring.derived(manifest.LABEL):
            report.add("credentials", [], "not opened: ENCRYPTION_KEY is not set here")
        else:
            await Vault(ring, store).get(rows[0].tenant, rows[0].name)
            report.add("credentials", [], "one was opened")
    except VaultError as error:
        report.add("credentials", [error.message], "")
    finally:
        await store.stop()


def _read_queue(backup: restore.Opened, report: Report) -> None:
    piece = backup.manifest.piece("queue")
    if piece is None or backup.manifest.queue is None:
        return
    keys = {key for key, *_ in queue.records(queue_chunks(backup))}
    told = backup.manifest.queue["keys"]
    report.add("queue", [] if len(keys) == told else [f"{len(keys)} keys, not {told}"], f"{told} keys")


def queue_chunks(backup: restore.Opened) -> list[bytes]:
    """The queue's export, decrypted. It is as large as the queue."""
    piece = backup.manifest.piece("queue")
    assert piece is not None
    out = io.BytesIO()
    sealing.unseal(
        sealing.fetch(backup.storage, backup.manifest.name, piece), out, identities=backup.identities,
        what=backup.manifest.name, pace=sealing.Pace(),
    )  # fmt: skip
    return [out.getvalue()]
