from __future__ import annotations

import asyncio
import re
from importlib.resources import files

import asyncpg
import pytest

from oxherd.errors import OxherdError, StoreUnreachable, UsageError
from oxherd.settings import Secret
from oxherd.store import migrate as module
from oxherd.store.migrate import Migration, migrate, migrations, require_version, sql, status

ALL = [migration.name for migration in migrations()]


async def query(url: str, text: str, *arguments):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(text, *arguments) if arguments else await connection.execute(text)
    finally:
        await connection.close()


async def states(url: str) -> list[tuple[str, str]]:
    return [(each.name, each.state) for each in await status(url)]


EXTRA = Migration(900, "900_extra", "create table oxherd.extra (id int)")


def release(monkeypatch, migration: Migration) -> None:
    """Make it the next release, which has one more migration."""
    monkeypatch.setattr(module, "migrations", lambda: (*migrations(), migration))


def test_no_two_files_have_one_number():
    numbers = [migration.number for migration in migrations()]
    assert numbers == sorted(set(numbers))


async def test_an_empty_database_gets_everything_once(database_url: str):
    assert await states(database_url) == [(name, "pending") for name in ALL]
    assert [migration.name for migration in await migrate(Secret(database_url))] == ALL
    assert await migrate(database_url) == []
    assert await states(database_url) == [(name, "applied") for name in ALL]


async def test_only_what_is_new_runs(database_url: str, monkeypatch):
    await migrate(database_url)
    release(monkeypatch, EXTRA)
    assert [migration.name for migration in await migrate(database_url)] == ["900_extra"]


async def test_two_at_once_do_the_work_once_between_them(database_url: str):
    ran = await asyncio.gather(*(migrate(database_url) for _ in range(4)))
    assert sorted(migration.name for each in ran for migration in each) == ALL


async def test_an_edited_migration_is_noticed_and_nothing_runs(database_url: str, monkeypatch):
    await migrate(database_url)
    release(monkeypatch, EXTRA)
    await query(database_url, "update oxherd.migrations set checksum = 'another' where number = 1")
    with pytest.raises(UsageError, match=r"001_runs was applied with another text"):
        await migrate(database_url)
    assert dict(await states(database_url)) == dict.fromkeys(ALL, "applied") | {
        "001_runs": "edited",
        "900_extra": "pending",
    }
    assert await query(database_url, "select to_regclass($1)::text", "oxherd.extra") is None


async def test_a_migration_of_a_newer_release_is_left_alone(database_url: str):
    await migrate(database_url)
    await query(database_url, "insert into oxherd.migrations (number, name, checksum) values (999, '999_later', '')")
    assert await migrate(database_url) == []
    assert (await states(database_url))[-1] == ("999_later", "unknown")


async def test_a_migration_that_fails_leaves_nothing_behind(database_url: str, monkeypatch):
    await migrate(database_url)
    release(monkeypatch, Migration(900, "900_extra", f"{EXTRA.text}; create table oxherd.runs (id int)"))
    with pytest.raises(OxherdError, match=r"900_extra does not fit .* already exists") as caught:
        await migrate(database_url)
    assert caught.value.exit_code == 1
    assert (await states(database_url))[-1] == ("900_extra", "pending")
    assert await query(database_url, "select to_regclass($1)::text", "oxherd.extra") is None


async def test_a_server_that_is_too_old_is_told_so_and_nothing_is_made(database_url: str, monkeypatch):
    monkeypatch.setattr(module, "OLDEST_SERVER", 99)
    with pytest.raises(UsageError, match=r"Postgres 18\.\d+ at .* is too old"):
        await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    assert not await connection.fetchval("select exists (select from pg_namespace where nspname = 'oxherd')")
    await connection.close()


async def test_the_text_for_an_sql_editor_runs_as_it_is_and_again(database_url: str):
    for _ in range(2):
        await query(database_url, sql())
    assert await states(database_url) == [(name, "applied") for name in ALL]
    assert await migrate(database_url) == []


async def test_the_text_adds_only_what_a_database_lacks(database_url: str, monkeypatch):
    await migrate(database_url)
    release(monkeypatch, EXTRA)
    await query(database_url, sql())
    assert await query(database_url, "select to_regclass($1)::text", "oxherd.extra") == "oxherd.extra"


def test_the_text_tells_postgrest_to_look_again():
    assert "notify pgrst, 'reload schema'" in sql()


async def test_postgrest_is_told_of_a_new_schema(database_url: str):
    connection = await asyncpg.connect(database_url)
    heard = asyncio.Queue()
    await connection.add_listener("pgrst", lambda *said: heard.put_nowait(said[-1]))
    await migrate(database_url)
    assert await heard.get() == "reload schema"
    await connection.close()


async def test_a_login_without_rights_is_told_who_may(database_url: str):
    await query(database_url, "create role guest login password 'guest'")
    try:
        guest = re.sub(r"//.*?@", "//guest:guest@", database_url)
        with pytest.raises(UsageError, match="permission denied") as caught:
            await migrate(guest)
        assert "owner" in caught.value.hint
    finally:
        await query(database_url, "drop role guest")


async def test_a_database_that_is_not_there_is_named():
    for action in (migrate, status):
        with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:1"):
            await action("postgresql://me:hunter2@127.0.0.1:1/app")


def test_a_database_behind_the_release_is_told_the_command():
    newest = migrations()[-1].number
    require_version(newest)
    require_version(newest + 1)
    for version in (0, newest - 1):
        with pytest.raises(UsageError) as caught:
            require_version(version)
        assert "oxherd db migrate" in caught.value.hint


def test_every_statement_and_migration_says_what_it_is_for():
    folder = files("oxherd.store")
    for kind in ("sql", "migrations"):
        for file in (folder / kind).iterdir():
            assert file.read_text().startswith("-- "), file.name
