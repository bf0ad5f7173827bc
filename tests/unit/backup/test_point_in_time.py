from __future__ import annotations

import asyncio
import os
import shutil
import time
from datetime import UTC, datetime

import pytest
from aiohttp import web
from backup_helpers import execute, reachable, value

from fakes.key_services import REF, FakeSupabaseApi
from oxherd.backup import pitr, sealing, tools
from oxherd.backup.storage import open_storage
from oxherd.embedded.postgres import Postgres
from oxherd.errors import BackupDamaged, BackupFailed, BackupNotFound, UsageError
from oxherd.ops import rewind
from oxherd.settings import load


@pytest.fixture
def archiving(tmp_path):
    """A server that archives its WAL into a folder, as `cp` in archive_command does it."""
    spool = tmp_path / "spool"
    spool.mkdir()
    reachable(tmp_path)
    spool.chmod(0o777)
    config = {
        "archive_mode": "on", "archive_command": f"cp %p {spool}/%f", "fsync": "off", "summarize_wal": "on",
    }  # fmt: skip
    with Postgres(tmp_path / "live", config=config) as server:
        yield server, spool


def test_the_table_that_was_dropped_is_back_at_the_moment_before(archiving, configured, keys, tmp_path):
    server, spool = archiving
    settings = configured(DATABASE_URL=server.url)
    storage, identities = open_storage(settings), sealing.identities_of([keys[1]])
    asyncio.run(execute(server.url, "create table t as select generate_series(1, 1000) i"))
    early = datetime.now(UTC)
    address = tools.address_of(server.url)
    whole = asyncio.run(pitr.take_base(address, storage, settings.backup_recipients))
    asyncio.run(execute(server.url, "insert into t select generate_series(1, 300)"))
    base = asyncio.run(pitr.take_base(address, storage, settings.backup_recipients, incremental=True))
    assert base.after == whole.name
    assert base.piece.stored < whole.piece.stored / 10
    asyncio.run(execute(server.url, "insert into t select generate_series(1, 200)"))
    moment = asyncio.run(value(server.url, "select clock_timestamp()"))
    asyncio.run(execute(server.url, "drop table t"))
    segment = asyncio.run(value(server.url, "select pg_walfile_name(pg_switch_wal())"))
    deadline = time.monotonic() + 30
    while not (spool / segment).exists() or (spool / segment).stat().st_size < 16 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert segment in pitr.push_wal(spool, storage, settings.backup_recipients)
    assert list(spool.iterdir()) == []

    folder = tmp_path / "rewound" / "postgres"
    with pytest.raises(BackupNotFound):
        pitr.rewind(storage, identities, early, folder)
    done = pitr.rewind(storage, identities, moment, folder)
    assert done.base == base.name
    assert done.segments >= 1
    with pytest.raises(UsageError, match="not empty"):
        pitr.rewind(storage, identities, moment, folder)
    shutil.copy(tmp_path / "live" / "postgres.password", tmp_path / "rewound" / "postgres.password")
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
    with Postgres(tmp_path / "rewound") as again:
        assert asyncio.run(value(again.url, "select count(*) from t")) == 1500
        asyncio.run(execute(again.url, "insert into t values (1)"))

    part = next((tmp_path / "backups" / "pitr" / "base" / base.name).glob("*.age"))
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    with pytest.raises(BackupDamaged):
        pitr.rewind(storage, identities, moment, tmp_path / "damaged")


def test_a_base_backup_that_can_not_be_taken_says_why_and_is_not_kept(postgres, configured):
    settings = configured(DATABASE_URL=postgres.url)
    storage = open_storage(settings)
    address = tools.address_of(postgres.url)
    with pytest.raises(BackupNotFound, match="no base backup yet"):
        asyncio.run(pitr.take_base(address, storage, settings.backup_recipients, incremental=True))
    made = asyncio.run(pitr.take_base(address, storage, settings.backup_recipients))
    with pytest.raises(BackupFailed, match="WAL summarization"):
        asyncio.run(pitr.take_base(address, storage, settings.backup_recipients, incremental=True))
    assert [each.name for each in pitr.bases(storage)] == [made.name]


def test_what_is_no_wal_file_is_refused(configured, tmp_path):
    settings = configured()
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(UsageError, match="no WAL file"):
        pitr.push_wal(tmp_path / "note.txt", open_storage(settings), settings.backup_recipients)


class Project(FakeSupabaseApi):
    """One with point-in-time recovery over an hour."""

    def __init__(self, *, pitr_enabled=True):
        super().__init__()
        self.pitr_enabled, self.asked = pitr_enabled, []
        self.window = (1_795_000_000, 1_795_003_600)

    def routes(self, router):
        super().routes(router)
        router.add_get(f"/v1/projects/{REF}/database/backups", self._backups)
        router.add_post(f"/v1/projects/{REF}/database/backups/restore-pitr", self._restore)

    async def _backups(self, _):
        return web.json_response(
            {
                "region": "eu-central-1", "walg_enabled": True, "pitr_enabled": self.pitr_enabled, "backups": [],
                "physical_backup_data": {
                    "earliest_physical_backup_date_unix": self.window[0],
                    "latest_physical_backup_date_unix": self.window[1],
                },
            }
        )  # fmt: skip

    async def _restore(self, request):
        self.asked.append(await request.json())
        return web.Response(status=201)


def supabase_settings(api):
    return load(
        {
            "SUPABASE_API_URL": api.url, "SUPABASE_ACCESS_TOKEN": api.token, "SUPABASE_PROJECT_REF": REF,
        },
        needs=(),
    )  # fmt: skip


async def test_supabase_goes_back_only_after_the_ref_was_typed_and_within_its_window():
    def refuse(_ref):
        raise UsageError("not typed")

    async with Project() as api:
        settings, told, typed = supabase_settings(api), [], []
        inside, outside = (datetime.fromtimestamp(at, UTC) for at in (1_795_000_100, 1_794_999_000))
        with pytest.raises(UsageError, match="not within"):
            await rewind.supabase(settings, outside, typed.append, told.append, dry_run=False)
        with pytest.raises(UsageError, match="not typed"):
            await rewind.supabase(settings, inside, refuse, told.append, dry_run=False)
        await rewind.supabase(settings, inside, typed.append, told.append, dry_run=True)
        assert (api.asked, typed) == ([], [])
        await rewind.supabase(settings, inside, typed.append, told.append, dry_run=False)
        assert (api.asked, typed) == ([{"recovery_time_target_unix": 1_795_000_100}], [REF])
    async with Project(pitr_enabled=False) as api:
        with pytest.raises(UsageError, match="no point-in-time recovery"):
            await rewind.supabase(supabase_settings(api), inside, typed.append, told.append, dry_run=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [("soon", "must be a time"), ("2026-11-01T10:00", "no time zone"), ("2999-01-01T00:00:00Z", "not come")],
)
def test_a_moment_has_a_zone_and_has_passed(text, said):
    with pytest.raises(UsageError, match=said):
        rewind.moment(text)
