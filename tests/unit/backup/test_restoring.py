from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace

import pytest
from backup_helpers import execute, value
from typer.testing import CliRunner

from oxherd.app import Service, build_store, keys_of, queue_client
from oxherd.backup import jobs, queue, retention, runs
from oxherd.backup.catalogue import Catalogue, Entry
from oxherd.backup.pitr import Archive
from oxherd.backup.storage import open_storage
from oxherd.cli import app
from oxherd.errors import ServiceRefused, UsageError
from oxherd.herd import Herd
from oxherd.ops import backup as ops
from oxherd.queue.connection import Link
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat
from oxherd.queue.timetable import Timetable
from oxherd.settings import TABLE

DAY = 86_400_000
# What is set for a database as a whole; its rights are what keeps others out of it.
DRESS = """
    create role {role} nologin; revoke all on database {name} from public; grant connect on database {name} to {role};
    alter database {name} set search_path = "$user", public, "My Schema"; alter database {name} owner to {role};
    alter role {role} in database {name} set work_mem = '9MB'; alter database {name} connection limit 77"""
DRESSED = """
    select concat_ws('; ', pg_get_userbyid(datdba), datacl::text, datconnlimit, (
        select string_agg(concat_ws(' ', nullif(setrole, 0)::regrole, setconfig), '; ' order by setrole)
        from pg_db_role_setting where setdatabase = d.oid))
    from pg_database d where datname = current_database()"""
WORN = (
    '{role}; {{{role}=CTc/{role}}}; 77; {{"search_path=\\"$user\\", public, \\"My Schema\\""}}; {role} {{work_mem=9MB}}'
)


def oxherd(settings, *words, typed=None):
    """The command in this process, with these settings' variables."""
    environ = {variable.name: None for variable in TABLE} | settings
    return CliRunner().invoke(app, ["backup", *words], env=environ, input=typed)


@pytest.fixture
def variables(configured, tmp_path, keys, redis_url, queue_name):
    return {
        "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "BACKUP_URL": str(tmp_path / "backups"),
        "BACKUP_RECIPIENTS": keys[0], "BACKUP_IDENTITY": keys[1].reveal(),
    }  # fmt: skip


def test_a_live_database_is_swapped_only_after_its_name_was_typed(variables, oxherd_database_url):
    url = oxherd_database_url
    given = variables | {"DATABASE_URL": url}
    name = url.rpartition("/")[2]
    asyncio.run(
        execute(
            url, "create table mine (i int); insert into mine values (1); alter table mine enable row level security"
        )
    )
    assert oxherd(given, "create").exit_code == 0
    asyncio.run(execute(url, f"insert into mine values (2); {DRESS.format(name=name, role='swapped')}"))

    shown = oxherd(given, "restore", "latest", "--dry-run")
    assert f"what is live now stays as {name}_before_" in shown.output
    wrong = oxherd(given, "restore", "latest", typed="another\n")
    assert wrong.exit_code == 2
    assert asyncio.run(value(url, "select count(*) from mine")) == 2

    done = oxherd(given, "restore", "latest", "--json", "--confirm", name)
    assert done.exit_code == 0, done.output
    outcome, last = json.loads(done.stdout)["outcome"], json.loads(done.stdout)["steps"][-1]
    assert asyncio.run(value(url, "select count(*) from mine")) == 1
    assert outcome["kept"] in last["detail"]
    assert outcome["unlike"] == []
    assert asyncio.run(value(url, DRESSED)) == WORN.format(role="swapped")
    before = url.removesuffix(name) + outcome["kept"]
    assert asyncio.run(value(before, "select count(*) from mine")) == 2
    assert asyncio.run(value(url, "select count(*) from oxherd.operations where kind = 'restore'")) == 1
    asyncio.run(execute(url.removesuffix(name) + "postgres", f'drop database "{outcome["kept"]}"'))


def test_a_live_journal_that_can_not_be_read_is_no_reason_not_to_restore(variables, oxherd_database_url):
    url = oxherd_database_url
    given, name = variables | {"DATABASE_URL": url}, url.rpartition("/")[2]
    assert oxherd(given, "create").exit_code == 0
    asyncio.run(execute(url, "drop table oxherd.steps cascade"))
    done = oxherd(given, "restore", "latest", "--confirm", name)
    assert done.exit_code == 0, done.output
    assert "which jobs went on after the backup is not known" in done.stderr
    assert 'relation "oxherd.steps" does not exist' in done.stderr
    assert asyncio.run(value(url, "select count(*) from oxherd.steps")) == 0
    (kept,) = re.findall(rf"{name}_before_\d+", done.stderr)
    asyncio.run(execute(url.removesuffix(name) + "postgres", f'drop database "{kept}"'))


def test_a_missing_database_is_made_and_a_url_on_the_command_line_is_refused(variables, shop, postgres):
    given = variables | {"DATABASE_URL": shop}
    asyncio.run(execute(shop, DRESS.format(name=shop.rpartition("/")[2], role="made")))
    assert oxherd(given, "create", "--no-queue").exit_code == 0
    assert oxherd(given, "restore", "latest", "--into", shop).exit_code == 2
    done = oxherd(given, "restore", "latest", "--into", "made_anew", "--confirm", "made_anew")
    assert done.exit_code == 0, done.output
    assert asyncio.run(value(shop.removesuffix("shop") + "made_anew", "select count(*) from shop.customers")) == 100
    assert asyncio.run(value(shop.removesuffix("shop") + "made_anew", DRESSED)) == WORN.format(role="made")
    postgres.drop_database("made_anew")


def test_the_doctor_names_what_is_wrong_and_a_new_key_is_never_written_over(variables, shop, tmp_path):
    good = oxherd(variables | {"DATABASE_URL": shop}, "doctor", "--json")
    assert good.exit_code == 0
    assert any("used" in each["detail"] for each in json.loads(good.stdout) if each["what"] == "pg_dump")
    bad = oxherd(variables | {"DATABASE_URL": shop, "BACKUP_RECIPIENTS": "age1wrong"}, "doctor", "--json")
    assert bad.exit_code == 1
    assert [each["what"] for each in json.loads(bad.stdout) if not each["ok"]] == ["recipients"]

    made = oxherd(variables, "keygen", "--output", str(tmp_path / "key"))
    assert made.stdout.startswith("age1")
    assert "AGE-SECRET-KEY" not in made.output
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    kept = (tmp_path / "key").read_text()
    assert oxherd(variables, "keygen", "--output", str(tmp_path / "key")).exit_code == 2
    assert (tmp_path / "key").read_text() == kept
    new = variables | {"DATABASE_URL": shop, "BACKUP_RECIPIENTS": made.stdout.strip(), "BACKUP_IDENTITY": None}
    assert oxherd(new, "create", "--no-queue").exit_code == 0
    assert oxherd(new, "verify").exit_code == 2
    proof = oxherd(new, "verify", "--identity-file", str(tmp_path / "key"), "--report", str(tmp_path / "proof.json"))
    assert proof.exit_code == 0, proof.output
    assert json.loads((tmp_path / "proof.json").read_text())["ok"]


def test_a_manifest_that_can_not_be_read_hides_no_other_backup(variables, shop, tmp_path):
    given = variables | {"DATABASE_URL": shop}
    names = [json.loads(oxherd(given, "create", "--no-queue", "--json").stdout)["name"] for _ in range(2)]
    (tmp_path / "backups" / names[0] / "manifest.json").write_bytes(b"{")
    listed = oxherd(given, "list")
    assert listed.exit_code == 1
    assert names[1] in listed.stdout
    assert f"the manifest of {names[0]} can't be read" in listed.stderr
    assert names[0] not in oxherd(given, "prune", "--dry-run").stdout


async def test_the_queue_comes_back_and_what_ended_after_the_backup_is_not_run_again(
    configured, variables, oxherd_database_url
):
    settings = configured(**variables, DATABASE_URL=oxherd_database_url)
    async with queue_client(settings) as (producer, admin):
        ids = [await producer.add("oxherd.echo", {"n": n}) for n in range(5)]
        await producer.add("oxherd.echo", {"n": "later"}, delay=3_600_000)
        await producer.add("oxherd.echo", {"n": "urgent"}, priority=3)
        link = producer._link
        keys = keys_of(settings)
        await link.call(b"RPOPLPUSH", keys.wait, keys.active)  # a worker took the first
        made = await runs.take(settings, None)
        assert made.queue["jobs"] == 7
        await execute(oxherd_database_url, ENDED.format(queue=keys.queue, job=ids[1]))
        backup = await ops.unlocked(settings, "latest", ())
        with pytest.raises(UsageError, match="not empty"):
            await ops.restoring_.put_queue_back(backup, settings, runs.database_of(settings))
        await link.call(b"FLUSHDB")
        outcome = await ops.restoring_.put_queue_back(backup, settings, runs.database_of(settings))
        assert [row["job_id"] for row in outcome.finished] == [ids[1]]
        assert outcome.interrupted == [ids[0]]
        counts = await admin.counts()
        assert (counts["wait"], counts["completed"], counts["delayed"], counts["prioritized"]) == (4, 1, 1, 1)
        assert (await admin.job(ids[1]))["returnvalue"] == {"kept": True}
    service = Service(settings, Herd(), store=None)
    await service.start()
    try:
        async with queue_client(settings) as (_, admin), asyncio.timeout(20):
            while (await admin.counts())["completed"] < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await service.close()


async def test_what_hangs_on_a_job_that_ended_after_the_backup_goes_on(configured, variables, oxherd_database_url):
    settings = configured(**variables, DATABASE_URL=oxherd_database_url)
    keys, once = keys_of(settings), {"deduplication": {"id": "once"}}
    async with queue_client(settings) as (producer, admin):
        child = NewJob("oxherd.echo", {}, {"jobId": "child"})
        await producer.add_flow(NewJob("oxherd.echo", {}, {"jobId": "parent"}, children=[child]))
        first = await producer.schedule("hourly", Repeat(every=3_600_000), NewJob("oxherd.echo", {}))
        alone = await producer.add("oxherd.echo", {}, **once)
        await producer.add("oxherd.echo", {}, jobId="waits")
        link = producer._link
        await link.call(b"HSET", keys.meta, b"paused", 1)
        await runs.take(settings, None)
        for each in ("child", first, alone):
            await execute(oxherd_database_url, ENDED.format(queue=keys.queue, job=each))
        await link.call(b"FLUSHDB")
        backup = await ops.unlocked(settings, "latest", ())
        outcome = await ops.restoring_.put_queue_back(backup, settings, runs.database_of(settings))
        assert {row["job_id"] for row in outcome.finished} == {"child", first, alone}
        assert await admin.state("child") == "completed"
        at = await link.call(b"HGET", keys.job("child"), b"finishedOn")
        assert int(at) == outcome.finished[0]["finished_at"]
        # BullMQ 5 renames `paused` over `wait` when it resumes.
        assert await link.call(b"LRANGE", keys.paused, 0, -1) == [b"waits", b"parent"]
        assert await link.call(b"LLEN", keys.wait) == 0
        (following,) = await link.call(b"ZRANGE", keys.delayed, 0, -1)
        assert following.startswith(b"repeat:hourly:")
        assert following.decode() != first
        assert await producer.add("oxherd.echo", {}, **once) != alone


ENDED = """
    insert into oxherd.runs (id, queue, job_id, name, status, fence, attempt, attempts, worker, input, output,
        enqueued_at, started_at, finished_at, model_calls, input_tokens, output_tokens)
    values ('{queue}/{job}@1', '{queue}', '{job}', 'oxherd.echo', 'completed', 1, 1, 1, 'w', '{{}}',
        '{{"kept": true}}', now(), now(), now() + interval '1 second', 0, 0, 0)
"""


def test_each_job_gets_one_place():
    places = {
        "wait": [b"1", b"2", b"2", b"gone"], "active": [b"1", b"3"],
        "completed": [b"2", b"100"], "delayed": [b"4", b"99"],
    }  # fmt: skip
    known = {b"1": 0, b"2": 100, b"3": 0, b"4": 0, b"astray": 0, b"done": 7}
    made = queue.placed(places, known, {b"4": queue.Ended("failed", 200, b"boom")})
    assert made.wait == [b"astray", b"1", b"3"]
    assert made.interrupted == [b"1", b"3"]
    assert made.scored["completed"] == [(b"2", b"100")]
    assert made.scored["failed"] == []
    assert list(made.finished) == [b"4"]
    assert made.scored["delayed"] == []
    assert made.lost == [b"gone"]


async def test_one_of_many_workers_takes_each_scheduled_backup(configured, variables, oxherd_database_url):
    settings = configured(**variables, DATABASE_URL=oxherd_database_url, PORT="0")
    found = await ops.set_schedules(settings, {jobs.CREATE: None, jobs.VERIFY: None}, tz="Europe/Vienna")
    assert [each["id"] for each in found] == ["oxherd-backup", "oxherd-backup-verify"]
    with pytest.raises(UsageError, match="'daily'"):
        await ops.set_schedules(settings, {jobs.CREATE: "daily"}, tz=None)
    again = await ops.set_schedules(settings, {jobs.CREATE: "*/30 * * * *"}, tz=None)
    assert [(each["id"], each["pattern"]) for each in again] == [("oxherd-backup", "*/30 * * * *")]
    stores = [build_store(settings) for _ in range(2)]
    services = [Service(settings, Herd(), store=store) for store in stores]
    link = Link(settings.redis_url, "test")
    await link.start()
    try:
        for service in services:
            await service.start()
        await Timetable(link, keys_of(settings)).run_now("oxherd-backup")
        async with queue_client(settings) as (_, admin), asyncio.timeout(30):
            while (await admin.counts())["completed"] < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        (done,) = await stores[0].operations("backup", limit=5)
        assert done["outcome"] == "ok"
    finally:
        await link.stop()
        for service in services:
            await service.close()


def entry(days, *, verified=None, now=1_800_000_000_000):
    name = f"b{10_000 - days:05}"
    report = None if verified is None else {"ok": verified}
    return Entry(SimpleNamespace(name=name, taken_at=now - days * DAY, stored=1), (f"{name}/manifest.json",), report)


def test_seven_days_five_weeks_and_twelve_months_are_kept_and_the_last_verified_one():
    entries = [entry(day, verified=True if day == 399 else None) for day in range(400)]
    made = retention.plan(Catalogue(tuple(entries), ("stray/x",)), Archive(), now=0)
    kept = {each.name: why for each, why in made.keep}
    assert sum("daily" in why for why in kept.values()) == 7
    assert sum("weekly" in why for why in kept.values()) == 5
    assert sum("monthly" in why for why in kept.values()) == 12
    assert kept[entry(399).name] == "the last verified"
    assert len(made.drop) == 400 - len(kept)
    assert made.drop[0].name < made.drop[-1].name


async def test_a_delete_that_a_lock_refuses_is_said_and_the_rest_goes_on(configured, shop, monkeypatch):
    settings = configured(DATABASE_URL=shop)
    made = [await runs.take(settings, None, with_queue=False) for _ in range(2)]
    storage = open_storage(settings)
    delete = storage.delete

    def refuse(name):
        if made[0].name in name:
            raise ServiceRefused("an object lock is on it")
        delete(name)

    monkeypatch.setattr(storage, "delete", refuse)
    found = await runs.due(settings, storage)
    entries = [*found.drop, *(each for each, _ in found.keep)]
    told = await runs.clear(storage, retention.Plan(drop=tuple(entries)))
    assert told == {made[0].name: "an object lock is on it"}
    assert {each.name.partition("/")[0] for each in storage.objects()} == {made[0].name}
