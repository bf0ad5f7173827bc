from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import time
from datetime import UTC, datetime

import pytest
from aiohttp import web
from backup_helpers import execute, reachable, value
from typer.testing import CliRunner

from fakes.key_services import REF, FakeSupabaseApi
from oxherd.backup import manifest, pitr, retention, runs, sealing, tools
from oxherd.backup.catalogue import Catalogue
from oxherd.backup.create import quiet
from oxherd.backup.storage import open_storage
from oxherd.cli import app
from oxherd.embedded.postgres import Postgres
from oxherd.errors import BackupDamaged, BackupFailed, BackupNotFound, ServiceRefused, UsageError
from oxherd.ops import backup as ops
from oxherd.ops import rewind
from oxherd.settings import TABLE, load
from oxherd.vault.keyring import KeyRing

DAY = 86_400.0


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


def read(settings, *, now=0.0):
    return pitr.read(open_storage(settings), runs.ring_of(settings), now=now)


def planned(settings, *, days):
    """What retention would do so many days after the epoch."""
    return retention.plan(Catalogue((), ()), read(settings), now=days * DAY)


def test_the_table_that_was_dropped_is_back_at_the_moment_before(archiving, configured, keys, tmp_path):
    """Also after pruning, which leaves all that the moment needs, and nothing from before."""
    server, spool = archiving
    settings = configured(DATABASE_URL=server.url)
    storage, identities = open_storage(settings), sealing.identities_of([keys[1]])

    def take(**more):
        work = pitr.take_base(
            tools.address_of(server.url), storage, settings.backup_recipients, runs.ring_of(settings), **more
        )
        return asyncio.run(work)

    asyncio.run(execute(server.url, "create table t as select generate_series(1, 1000) i"))
    early = datetime.now(UTC)
    old, whole = take(), take()
    asyncio.run(execute(server.url, "insert into t select generate_series(1, 300)"))
    base = take(incremental=True)
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

    plan = planned(settings, days=base.ended_at / 1000 / DAY + 8)
    assert asyncio.run(runs.clear(storage, plan)) == {}
    assert [each.name for each, _ in plan.keep_bases] == [base.name, whole.name]
    assert [each.name for each in plan.drop_bases] == [old.name]
    left = [each.name for each in storage.objects("pitr/")]
    assert not [name for name in left if old.name in name or f"/{old.wal}" in name]
    assert read(settings).reach(whole) == (max(each.at for each in read(settings).wal), "")

    folder = tmp_path / "rewound" / "postgres"
    with pytest.raises(BackupNotFound):
        pitr.rewind(read(settings), storage, identities, early, folder)
    done = pitr.rewind(read(settings), storage, identities, moment, folder)
    assert (done.base, done.compared) == (base.name, True)
    assert done.segments >= 1
    with pytest.raises(UsageError, match="not empty"):
        pitr.rewind(read(settings), storage, identities, moment, folder)
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
        pitr.rewind(read(settings), storage, identities, moment, tmp_path / "damaged")


def test_a_base_backup_that_can_not_be_taken_says_why_and_is_not_kept(postgres, configured):
    settings = configured(DATABASE_URL=postgres.url)
    storage = open_storage(settings)
    given = (tools.address_of(postgres.url), storage, settings.backup_recipients, runs.ring_of(settings))
    with pytest.raises(BackupNotFound, match="no base backup yet"):
        asyncio.run(pitr.take_base(*given, incremental=True))
    made = asyncio.run(pitr.take_base(*given))
    with pytest.raises(BackupFailed, match="WAL summarization"):
        asyncio.run(pitr.take_base(*given, incremental=True))
    storage.put(f"pitr/base/{made.name}/backup_manifest.zst", sealing.zipped(b"{}"))
    with pytest.raises(BackupDamaged, match="no longer its list of files"):
        asyncio.run(pitr.take_base(*given, incremental=True))
    assert read(settings).bases == (made,)


def test_without_the_programs_of_a_base_backup_s_postgres_a_whole_one_is_laid_out_and_an_incremental_one_is_refused(
    postgres, configured, keys, tmp_path, monkeypatch
):
    settings = configured(DATABASE_URL=postgres.url)
    storage, ring = open_storage(settings), runs.ring_of(settings)
    whole = asyncio.run(
        pitr.take_base(tools.address_of(postgres.url), storage, settings.backup_recipients, ring)
    )  # fmt: skip
    monkeypatch.setattr(tools, "found_clients", list)
    moment, identities = datetime.now(UTC), sealing.identities_of([keys[1]])
    done = pitr.rewind(read(settings), storage, identities, moment, tmp_path / "whole")
    assert (done.base, done.compared) == (whole.name, False)
    stored_base(storage, ring, "changes", days=moment.timestamp() / DAY, after=whole.name)
    with pytest.raises(UsageError, match="no pg_combinebackup of Postgres 18 is here"):
        pitr.rewind(read(settings), storage, identities, datetime.now(UTC), tmp_path / "changes")
    assert not (tmp_path / "changes").exists()


def stored_base(storage, ring, name, *, days, after=None, wal="0" * 24):
    """An index, and a part of one byte, of a base backup that ended so many days after the epoch."""
    piece = manifest.Piece("base", 1, (manifest.Part("base.zst.00000.age", 1, "0" * 64),))
    base = pitr.Base(name, int(days * DAY * 1000), 18, after, piece, wal, 16 << 20, "0" * 64).signed(ring)
    storage.put(f"pitr/base/{name}/base.zst.00000.age", b"x")
    storage.put(f"pitr/base/{name}/backup_manifest.zst", b"x")
    storage.put(f"pitr/base/{name}/base.json", json.dumps(dataclasses.asdict(base)).encode())
    return base


def test_an_index_that_was_changed_or_is_not_signed_is_refused_and_nothing_is_pruned(configured, tmp_path):
    settings = configured()
    storage, ring = open_storage(settings), runs.ring_of(settings)
    stored_base(storage, ring, "old", days=100)
    stored_base(storage, ring, "new", days=110)
    index = tmp_path / "backups" / "pitr" / "base" / "new" / "base.json"
    good = json.loads(index.read_text())
    at = datetime.fromtimestamp(120 * DAY, UTC)
    assert read(settings).before(at)[-1].name == "new"
    assert [each.name for each in planned(settings, days=120).drop_bases] == ["old"]
    changed, unsigned = good | {"after": "old"}, good | {"signature": ""}
    for bad, said in ((changed, "was changed"), (unsigned, "has no signature"), ([], "can't be read")):
        index.write_text(json.dumps(bad))
        archive = read(settings)
        assert said in archive.damaged[0]
        assert archive.before(at)[-1].name == "old"
        plan = planned(settings, days=120)
        assert plan.does_nothing
        assert plan.damaged == archive.damaged
        with pytest.raises(BackupDamaged, match="base backup new"):
            dataclasses.replace(archive, bases=()).before(at)
    index.write_text(json.dumps(unsigned))
    assert pitr.read(storage, KeyRing.of(None), now=0).damaged == ()


def test_wal_that_ends_before_the_moment_or_has_a_gap_is_told(configured, tmp_path):
    settings = configured()
    storage, ring = open_storage(settings), runs.ring_of(settings)
    ended = datetime.now(UTC).timestamp() - 60
    stored_base(storage, ring, "base", days=ended / DAY, wal="0000000100000002000000FE")
    moment = datetime.now(UTC)

    def doubts():
        return rewind.into_folder(settings, (), moment, tmp_path / "x", quiet, dry_run=True)["doubts"]

    def doctor():
        return {each.what: each for each in asyncio.run(ops.diagnose(settings))}["rewind"]

    (short,) = doubts()
    assert "pg_switch_wal" in short
    for name in ("0000000100000002000000FE", "0000000200000002000000FF", "000000020000000300000000"):
        storage.put(f"pitr/wal/{name}.age", b"x")
    moment = datetime.fromtimestamp(read(settings).wal[-1].at - 0.5, UTC)
    assert doubts() == []
    assert doctor().ok
    assert "to any moment from" in doctor().detail
    storage.delete("pitr/wal/0000000200000002000000FF.age")
    os.utime(tmp_path / "backups" / "pitr" / "wal" / "0000000100000002000000FE.age", (ended, ended))
    (short,) = doubts()
    assert "WAL file 0000000100000002000000FF is missing" in short
    assert not doctor().ok
    assert "0000000100000002000000FF" in doctor().detail


def test_a_chain_keeps_its_beginning_and_every_moment_of_seven_days_stays(configured, monkeypatch):
    settings = configured()
    storage, ring = open_storage(settings), runs.ring_of(settings)
    for name, days, after, wal in (
        ("a", 100, None, 1), ("a1", 103, "a", 4), ("b", 107, None, 8), ("b1", 110, "b", 11), ("b2", 113, "b1", 14),
        ("lost1", 113.5, "lost", 15), ("c", 114, None, 15), ("c1", 117, "c", 18),
    ):  # fmt: skip
        stored_base(storage, ring, name, days=days, after=after, wal=f"{wal:024X}")
    for name in ("00000001.history", *(f"{number:024X}" for number in range(20)), f"{3:024X}.00000028.backup"):
        storage.put(f"pitr/wal/{name}.age", b"x")

    def plan(now):
        found = planned(settings, days=now)
        return (
            sorted(each.name for each, _ in found.keep_bases), [each.name for each in found.drop_bases],
            sorted(each.name.rpartition("/")[2] for each in found.wal),
        )  # fmt: skip

    everything = ["a", "a1", "b", "b1", "b2", "c", "c1", "lost1"]
    assert plan(100) == (everything, [], ["0" * 24 + ".age"])
    assert plan(110.5)[:2] == (everything, [])
    kept, dropped, wal = plan(120.6)
    assert kept == ["b", "b1", "b2", "c", "c1", "lost1"]
    assert dropped == ["a1", "a"]
    assert wal == sorted([*(f"{number:024X}.age" for number in range(8)), f"{3:024X}.00000028.backup.age"])
    assert plan(1_000)[0] == ["c", "c1"]

    delete = storage.delete

    def locked(name):
        if "/a1/" in name:
            raise ServiceRefused("an object lock is on it")
        delete(name)

    monkeypatch.setattr(storage, "delete", locked)
    told = asyncio.run(runs.clear(storage, planned(settings, days=120.6)))
    assert told == {"a1": "an object lock is on it", "a": "a1 is after it"}
    assert len(read(settings).bases) == len(everything)
    assert len(read(settings).wal) == 22
    environ = {variable.name: None for variable in TABLE} | {
        "BACKUP_URL": settings.backup_url, "ENCRYPTION_KEY": settings.encryption_key.reveal(),
    }  # fmt: skip
    done = CliRunner().invoke(app, ["backup", "prune", "--yes"], env=environ)
    assert done.exit_code == 0, done.output
    assert "base a1" in done.stdout
    assert [each.name for each in read(settings).bases] == ["c1", "c"]
    assert len(read(settings).wal) == 6


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
