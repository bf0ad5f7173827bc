from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from backup_helpers import execute, until, value
from typer.testing import CliRunner

from oxherd.backup import pgbackrest, runs, tools
from oxherd.backup.create import quiet
from oxherd.cli import app
from oxherd.embedded.engine import free_port
from oxherd.errors import BackupFailed, BackupNotFound, UsageError
from oxherd.ops import backup as ops
from oxherd.ops import rewind
from oxherd.settings import TABLE

PROGRAM = shutil.which("pgbackrest")
SERVERS = sorted(tools.DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


@contextmanager
def running(data, port, folder):
    """A Postgres that archives through pgBackRest; its URL."""
    server = subprocess.Popen(
        [
            SERVERS[-1].parent / "postgres", "-D", data, "-p", str(port), "-c", "fsync=off", "-c",
            f"unix_socket_directories={folder}",
        ],
        cwd="/", stderr=subprocess.DEVNULL, **NOBODY,
    )  # fmt: skip
    url = f"postgresql://owner@127.0.0.1:{port}/postgres"

    async def ready():
        async with asyncio.timeout(30):
            while server.poll() is None:
                try:
                    if not await value(url, "select pg_is_in_recovery()"):
                        return
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.02)
        raise AssertionError(server.returncode)

    try:
        asyncio.run(ready())
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)  # whoever ends it in peace waits for the archiver
        server.wait()


@pytest.fixture
def stanza(monkeypatch):
    """A server, and a stanza of it named main; its URL and its folder."""
    if PROGRAM is None or not SERVERS:
        pytest.skip("pgbackrest and Debian's postgresql, of a version that it knows, are not installed")
    with tempfile.TemporaryDirectory(prefix="oxherd-") as name:
        yield from with_stanza(Path(name), monkeypatch)


def with_stanza(folder, monkeypatch):
    port = free_port()
    (folder / "pgbackrest.conf").write_text(
        f"[global]\nrepo1-path={folder}/repo\nlog-path={folder}\nlock-path={folder}/lock\n"
        f"spool-path={folder}/spool\ncompress-type=none\nrepo1-bundle=y\nrepo1-retention-full=9\n"
        f"[main]\npg1-path={folder}/data\npg1-socket-path={folder}\npg1-port={port}\npg1-user=owner\n"
    )
    monkeypatch.setenv("PGBACKREST_CONFIG", str(folder / "pgbackrest.conf"))
    if NOBODY:  # as the server's own user, as it is meant to be run
        os.chown(folder, NOBODY["user"], NOBODY["group"])
        (folder / "bin").mkdir()
        (folder / "bin" / "pgbackrest").write_text(
            f'#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {PROGRAM} "$@"\n'
        )
        (folder / "bin" / "pgbackrest").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    subprocess.run(
        [SERVERS[-1], "-D", folder / "data", "-U", "owner", "-A", "trust", "--no-sync"], cwd="/", check=True,
        stdout=subprocess.DEVNULL, **NOBODY,
    )  # fmt: skip
    with (folder / "data" / "postgresql.conf").open("a") as file:
        file.write(f"archive_mode = on\narchive_command = '{PROGRAM} --stanza=main archive-push %p'\n")
    with running(folder / "data", port, folder) as url:
        subprocess.run(["pgbackrest", "--stanza=main", "stanza-create"], check=True, stdout=subprocess.DEVNULL)
        yield url, folder


def test_the_table_that_was_dropped_is_back_at_the_moment_before(stanza, configured):
    url, folder = stanza
    settings = configured(DATABASE_URL=url, BACKUP_PGBACKREST_STANZA="main")
    asyncio.run(execute(url, "create table t as select generate_series(1, 1000) i"))
    early = datetime.now(UTC)
    whole = asyncio.run(runs.take_base(settings, incremental=False))
    asyncio.run(execute(url, "insert into t select generate_series(1, 300)"))
    base = asyncio.run(runs.take_base(settings, incremental=True))
    assert (whole.after, base.after) == (None, whole.name)
    assert base.bytes < whole.bytes / 10
    assert runs.bases(settings) == ([base, whole], ())
    asyncio.run(until(lambda: time.time() * 1000 > base.ended_at))
    asyncio.run(execute(url, "insert into t select generate_series(1, 200)"))
    moment = asyncio.run(value(url, "select clock_timestamp()"))
    asyncio.run(execute(url, "drop table t"))
    found = {each.what: each for each in asyncio.run(ops.diagnose(settings))}["pgbackrest"]
    assert found.ok, found
    assert "WAL arrives; 2 base backups" in found.detail

    for dry_run in (True, False):
        with pytest.raises(BackupNotFound):
            rewind.into_folder(settings, (), early, folder / "new", quiet, dry_run=dry_run)
        done = rewind.into_folder(settings, (), moment, folder / "new", quiet, dry_run=dry_run)
        assert done["base"] == base.name
    with pytest.raises(UsageError, match="not empty"):
        rewind.into_folder(settings, (), moment, folder / "new", quiet, dry_run=False)
    with running(folder / "new", free_port(), folder) as again:
        assert asyncio.run(value(again, "select count(*) from t")) == 1500
        asyncio.run(execute(again, "insert into t values (1)"))

    environ = {variable.name: None for variable in TABLE} | {"BACKUP_PGBACKREST_STANZA": "main"}
    listed = CliRunner().invoke(app, ["backup", "list", "--bases", "--json"], env=environ)
    assert [each["name"] for each in json.loads(listed.stdout)] == [base.name, whole.name]
    with pytest.raises(UsageError, match="no stanza other"):
        pgbackrest.backups("other")
    with pytest.raises(BackupFailed, match="pgbackrest backup failed"):
        asyncio.run(runs.take_base(configured(BACKUP_PGBACKREST_STANZA="other"), incremental=False))


def test_a_stanza_without_pgbackrest_says_what_to_do(configured, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no pgbackrest on the path"):
        runs.bases(configured(BACKUP_PGBACKREST_STANZA="main"))
