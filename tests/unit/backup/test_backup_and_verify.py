from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
import time
from pathlib import Path

import pytest
from backup_helpers import ROWS, execute, processes, until, value

from oxherd.backup import catalogue, create, manifest, restore, runs, sealing, tools, verify
from oxherd.backup.storage import open_storage
from oxherd.embedded.postgres import Postgres
from oxherd.errors import BackupDamaged, JobStateError, OxherdError, UsageError
from oxherd.settings import child_environ


async def test_a_backup_is_proven_by_restoring_it(shop, configured):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    assert made.tables == {"shop.customers": 100, "shop.orders": ROWS}
    assert made.database["server"].startswith("18.")
    report = await runs.prove(settings, None)
    assert [check.name for check in report.checks if not check.ok] == []
    assert report.rto_seconds > 0
    assert report.rpo_seconds >= 0
    assert len(report.signature) == 64
    (entry,) = catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries
    assert entry.is_verified
    (path,) = (Path(settings.backup_url) / made.name).glob("verified.*.json")
    path.write_text(path.read_text().replace(f'"rows":{ROWS + 100}', '"rows":1'))
    (entry,) = catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries
    assert not entry.is_verified  # a report that somebody changed proves nothing


async def test_what_is_stored_is_unreadable_and_says_nothing_of_the_rows(shop, configured):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    folder = Path(settings.backup_url) / made.name
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"example.com" not in stored
    assert all(path.read_bytes().startswith(b"age-encryption.org/v1") for path in folder.glob("*.00000.age"))
    assert "checksum" not in (folder / "manifest.json").read_text()


async def test_rows_written_while_the_dump_runs_are_in_neither_dump_nor_manifest(database_url, configured, monkeypatch):
    await execute(database_url, "create table t (i int); insert into t select generate_series(1, 1000)")
    gather = create.facts.gather

    async def late(*args, **named):
        await execute(database_url, "insert into t select generate_series(1, 500); create table late (i int)")
        return await gather(*args, **named)

    monkeypatch.setattr(create.facts, "gather", late)
    settings = configured(DATABASE_URL=database_url)
    made = await runs.take(settings, None, with_queue=False)
    monkeypatch.undo()
    assert made.tables == {"public.t": 1000}
    assert (await runs.prove(settings, None)).ok


async def test_a_restored_row_that_differs_is_told(shop, configured, postgres):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    identities = sealing.identities_of(settings.backup_identity)
    opened = restore.unlock(made, open_storage(settings), identities)
    url = postgres.create_database("altered", template="template0")
    try:
        address = tools.address_of(url)
        filled = await restore.fill(opened, address)
        assert await restore.compare(opened, address, filled) == []
        await execute(url, "update shop.orders set cents = cents + 1 where id = 77")
        await execute(url, "drop policy own on shop.customers; drop index shop.orders_by_state")
        await execute(url, "select setval('shop.customers_id_seq', 7)")
        await execute(url, "alter table shop.customers disable row level security; create table shop.more (i int)")
        found = await restore.compare(opened, address, filled)
    finally:
        postgres.drop_database("altered")
    for told in (
        "tables: shop.orders has other rows",
        "tables: shop.more is there, and was not in the backup",
        "sequences: shop.customers_id_seq differs",
        "indexes: shop.orders_by_state is missing",
        "policies: shop.customers own is missing",
        "row security: shop.customers differs",
    ):
        assert told in found


async def test_every_changed_byte_and_every_cut_is_noticed(shop, configured):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    storage = open_storage(settings)
    (part,) = made.pieces[0].parts
    path = Path(settings.backup_url) / made.name / part.name
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(50):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(BackupDamaged):
            sealing.checked_part(storage, made.name, part)
    path.write_bytes(whole[:-1])
    with pytest.raises(BackupDamaged):
        sealing.checked_part(storage, made.name, part)
    path.write_bytes(changed)
    report = await runs.prove(settings, None)
    assert [check.name for check in report.checks if not check.ok] == ["whole"]
    assert "its bytes changed" in report.checks[-1].detail


def test_a_stream_that_was_changed_and_hashed_anew_is_still_refused(tmp_path, keys):
    raw = random.Random(1).randbytes(300_000)
    identities, recipients = sealing.identities_of([keys[1]]), sealing.recipients_of([keys[0]])
    taken: list[bytes] = []

    class Storage:
        def put(self, _name, data):
            taken.append(bytes(data))

    sealing.seal(sealing.as_stream(raw), Storage(), "b", "database", recipients=recipients, pace=sealing.Pace())
    sealed = b"".join(taken)
    for damaged in (sealed[:-20], sealed[:70_000], sealed[:1000] + b"x" + sealed[1001:], sealed + b"more"):
        with pytest.raises(BackupDamaged), (tmp_path / "out").open("wb") as out:
            sealing.unseal([damaged], out, identities=identities, what="b", pace=sealing.Pace())
    with (tmp_path / "out").open("wb") as out:
        sealing.unseal([sealed], out, identities=identities, what="b", pace=sealing.Pace())
    assert (tmp_path / "out").read_bytes() == raw


def test_a_program_that_has_seen_enough_is_no_damage(keys):
    raw = b"".join(b"%d\tcustomer %d\t%s\n" % (row, row, b"x" * 1000) for row in range(3_000))
    taken: list[bytes] = []

    class Storage:
        def put(self, _name, data):
            taken.append(bytes(data))

    class Ended:
        def write(self, _data):
            raise BrokenPipeError

    recipients, identities = sealing.recipients_of([keys[0]]), sealing.identities_of([keys[1]])
    sealing.seal(sealing.as_stream(raw), Storage(), "b", "database", recipients=recipients, pace=sealing.Pace())
    with pytest.raises(BrokenPipeError):  # age hands over once more what was refused, which no zstd stream survives
        sealing.unseal(taken, Ended(), identities=identities, what="b", pace=sealing.Pace())


async def test_another_identity_opens_nothing_and_is_no_fault_of_the_backup(shop, configured):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    with pytest.raises(UsageError, match="other keys than BACKUP_IDENTITY"):
        await runs.prove(settings, None, identity=[sealing.new_identity()[1]])
    assert not list((Path(settings.backup_url) / made.name).glob("verified.*"))


async def test_a_manifest_that_was_changed_or_made_by_somebody_else_is_refused(shop, configured):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    assert made.check(runs.ring_of(settings)) == "signed"
    forged = dataclasses.replace(made, tables={"shop.customers": 1})
    with pytest.raises(BackupDamaged):
        forged.check(runs.ring_of(settings))
    (Path(settings.backup_url) / made.name / manifest.FILE).write_bytes(forged.as_bytes())
    assert not (await runs.prove(settings, None)).ok


async def test_two_at_once_are_one(shop, configured):
    settings = configured(DATABASE_URL=shop)
    first = asyncio.create_task(runs.take(settings, None, with_queue=False, limit=300_000))
    await until(lambda: "pg_dump --format" in processes())
    with pytest.raises(JobStateError):
        await runs.take(settings, None, with_queue=False)
    assert "postgres:" not in processes().partition("pg_dump")[2].partition("\n")[0]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries == ()
    assert "pg_dump --format" not in processes()
    await runs.take(settings, None, with_queue=False)


async def test_a_backup_killed_in_the_middle_is_not_listed(shop, configured, keys, tmp_path):
    folder = tmp_path / "killed"
    environ = child_environ(
        {"DATABASE_URL": shop, "BACKUP_URL": str(folder), "BACKUP_RECIPIENTS": keys[0]}, inherit=False
    )
    command = [sys.executable, "-c", CUT_SHORT, "backup", "create", "--no-queue", "--throttle", "0.4"]
    victim = await asyncio.create_subprocess_exec(*command, env=environ)
    await until(lambda: list(folder.glob("*/*.age")))
    assert victim.returncode is None
    victim.kill()
    await victim.wait()
    settings = configured(BACKUP_URL=str(folder), DATABASE_URL=shop)
    assert catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time()).entries == ()
    later = catalogue.read(open_storage(settings), runs.ring_of(settings), now=time.time() + 2 * catalogue.ABANDONED)
    assert later.abandoned
    await until(lambda: "pg_dump --format" not in processes())
    await runs.take(settings, None, with_queue=False)


# The command with parts so small that many are written.
CUT_SHORT = """
from oxherd.backup import sealing
from oxherd.cli import main

sealing.PART, sealing.CHUNK = 20_000, 50_000
main()
"""


async def test_no_password_is_an_argument(shop):
    address = tools.address_of(shop)
    environ = tools.connection_environ(address, tls=False)
    assert environ["PGPASSWORD"] in shop
    assert environ["PGSSLMODE"] == "disable"
    assert not any(environ["PGPASSWORD"] in part for part in create.DUMP)


async def test_a_database_that_is_not_empty_is_not_restored_into(shop, configured, database_url):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    opened = restore.unlock(made, open_storage(settings), sealing.identities_of(settings.backup_identity))
    await execute(database_url, "create table mine (i int); insert into mine values (1)")
    with pytest.raises(UsageError, match=r"public\.mine"):
        await restore.fill(opened, tools.address_of(database_url))
    assert await value(database_url, "select count(*) from mine") == 1


async def test_one_table_is_restored_beside_others(shop, configured, database_url):
    settings = configured(DATABASE_URL=shop)
    made = await runs.take(settings, None, with_queue=False)
    opened = restore.unlock(made, open_storage(settings), sealing.identities_of(settings.backup_identity))
    await execute(database_url, "create table mine (i int)")
    await restore.fill(opened, tools.address_of(database_url), table="shop.customers")
    assert await value(database_url, "select count(*) from shop.customers") == 100
    assert await value(database_url, "select count(*) from pg_indexes where schemaname = 'shop'") == 2
    with pytest.raises(UsageError, match="has a table"):
        await restore.fill(opened, tools.address_of(database_url), table="shop.customers")
    with pytest.raises(UsageError, match="no table"):
        await restore.fill(opened, tools.address_of(database_url), table="shop.nothing")


async def test_one_table_comes_with_what_is_its_own_and_with_nothing_of_its_neighbours(
    database_url, configured, postgres
):
    await execute(database_url, """
        create schema "a.b"; create sequence numbers start 7; create type mood as enum ('glad');
        create table "a.b"."t, ""x" (id serial primary key, n int default nextval('numbers'), t text);
        create index "we ""ird" on "a.b"."t, ""x" (t); insert into "a.b"."t, ""x" (t) values ('a');
        create table old (id serial primary key); alter table old rename to orders; insert into orders default values;
        create table orders_done (id serial primary key); create table moody (id serial, mood mood)""")  # fmt: skip
    settings = configured(DATABASE_URL=database_url)
    made = await runs.take(settings, None, with_queue=False)
    assert (await runs.prove(settings, None)).ok
    opened = restore.unlock(made, open_storage(settings), sealing.identities_of(settings.backup_identity))
    other = await asyncio.to_thread(postgres.create_database, f"{database_url.rpartition('/')[2]}_tables")
    await execute(other, "create sequence numbers start 30")
    for table in ('a.b.t, "x', "public.orders"):
        await restore.fill(opened, tools.address_of(other), table=table)
    await execute(other, """insert into "a.b"."t, ""x" (t) values ('b'); insert into orders default values""")
    assert await value(other, """select array_agg((id, n)::text order by id) from "a.b"."t, ""x" """) == [
        "(1,7)", "(2,30)"
    ]  # fmt: skip
    assert await value(other, "select array_agg(id order by id) from orders") == [1, 2]
    assert await value(other, """select count(*) from pg_indexes where indexname = 'we "ird'""") == 1
    with pytest.raises(OxherdError, match=r'ERROR:  type "public\.mood" does not exist'):
        await restore.fill(opened, tools.address_of(other), table="public.moody")
    assert await value(other, "select to_regclass('moody_id_seq')") is None
    await asyncio.to_thread(postgres.drop_database, other.rpartition("/")[2])


async def test_oxherds_own_tables_are_migrated_and_a_credential_is_opened(oxherd_database_url, configured):
    from oxherd.app import build_store, build_vault

    settings = configured(DATABASE_URL=oxherd_database_url)
    store = build_store(settings)
    await store.start()
    try:
        await build_vault(settings, store).put("acme", "stripe", settings.backup_identity[0])
        await runs.take(settings, store, with_queue=False)
        report = await runs.prove(settings, store)
        assert {check.name: check.detail for check in report.checks}["credentials"] == "one was opened"
        assert report.ok
        wrong = configured(DATABASE_URL=oxherd_database_url, ENCRYPTION_KEY="A" * 43 + "=", ENCRYPTION_KEYS_PREVIOUS="")
        assert not (await runs.prove(wrong, store)).ok
        (done,) = await store.operations("backup", limit=5)
        assert done["summary"]["rows"] > 0
        verified = await store.operations("verify", limit=5)
        assert [each["outcome"] for each in verified] == ["failed", "ok"]
        assert verified[1]["summary"]["rto_seconds"] > 0
    finally:
        await store.stop()


async def test_a_scratch_server_is_gone_after_verifying(shop, configured, monkeypatch):
    settings = configured(DATABASE_URL=shop)
    await runs.take(settings, None, with_queue=False)
    started: list[Postgres] = []
    monkeypatch.setattr(verify, "Postgres", lambda **named: started.append(Postgres(**named)) or started[-1])
    await runs.prove(settings, None)
    assert [each.running for each in started] == [False]


async def test_a_dump_that_fails_says_why_and_leaves_nothing(database_url, configured):
    await execute(database_url, "create role nobody_at_all nologin; create table t (i int)")
    settings = configured(DATABASE_URL=database_url, BACKUP_SCHEMAS="nowhere")
    with pytest.raises(OxherdError, match="no matching schemas"):
        await runs.take(settings, None, with_queue=False)
    assert list(open_storage(settings).objects()) == []
