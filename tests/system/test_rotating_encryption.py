"""ENCRYPTION_KEY under load: no job fails, whatever dies; what only the old key opens is waited for."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from pathlib import Path

import asyncpg
import pytest
from bench.rotation import run as bench
from deployed import DeployedWorker

from fakes import railway as railways
from fakes.railway import COMMIT, FakeRailway
from fakes.rotating import Rotating
from oxherd.app import queue_client
from oxherd.errors import RotationStopped
from oxherd.ops.rotate_state import Locks, StateFile
from oxherd.queue.waiting import wait_for_end
from oxherd.settings import Secret, load
from oxherd.vault.crypto import Key, binding, seal
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import seal_field
from oxherd.vault.vault import LABEL

needs_contract = pytest.mark.skipif(not railways.CONTRACT.exists(), reason=railways.ABSENT)
NAME, PREVIOUS = "ENCRYPTION_KEY", "ENCRYPTION_KEYS_PREVIOUS"
OLD, LOST = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))
ROWS = 2_000


@pytest.fixture
async def railway(redis_url, oxherd_database_url, queue_name, tmp_path):
    (tmp_path / "reading.py").write_text(bench.APP)

    async def start(variables, say):
        return await DeployedWorker("reading:herd", tmp_path, variables, say).start()

    async with FakeRailway(
        start=start, REDIS_URL=redis_url, DATABASE_URL=oxherd_database_url, JOB_QUEUE_NAME=queue_name,
        ENCRYPTION_KEY=OLD,
    ) as fake:  # fmt: skip
        fake.commits = [COMMIT]
        fake.deploy()
        for _ in range(3):
            await fake.sleep(5)
        await bench.fill(oxherd_database_url, Key.of(Secret(OLD)), ROWS)
        yield fake


@pytest.fixture
def environ(railway):
    names = ("REDIS_URL", "DATABASE_URL", "JOB_QUEUE_NAME", NAME)
    return {**{name: railway.variables[name] for name in names}, **railway.environ}


@pytest.fixture
def rig(tmp_path, railway, environ):
    return Rotating(tmp_path / "state", environ, railway.sleep, patience=10.0, test_job=True)


async def keys_of_rows(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    found = await connection.fetch("select distinct key_id from oxherd.credentials")
    await connection.close()
    return {row[0] for row in found}


@needs_contract
async def test_killed_at_each_stage_thousands_of_rows_are_sealed_anew_and_no_job_fails(railway, environ, tmp_path):
    state = tmp_path / "state"
    railway.tick = 5.0

    async def rotate(die_before: str, key: str = OLD) -> int:
        more = ["--resume"] if (state / f"{NAME}.rotation").exists() else []
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("dying_rotation.py")), "rotate", NAME, "--yes", *more,
            "--settle", "0", "--state", str(state),
            env={"PATH": os.environ["PATH"], **environ, NAME: key, "DIE_BEFORE": die_before},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert OLD.encode() not in said
        assert process.returncode in {0, -signal.SIGKILL}, said.decode()
        return process.returncode

    async with bench.under_load(environ, ROWS, rate=20.0) as ended:
        for stage in ("install", "prove", "switch", "retire", "bury", "record"):
            assert await rotate(stage) == -signal.SIGKILL
        new = StateFile(state, NAME, Locks((Secret(OLD),))).load().new[NAME].reveal()
        assert await rotate("never", key=new) == 0  # the state opens with the new key, too
    assert ended.keys() == {"completed"}
    assert (railway.variables[NAME], railway.variables[PREVIOUS]) == (new, "")
    assert railway.deployed[-1].variables[NAME] == new
    assert await keys_of_rows(environ["DATABASE_URL"]) == {Key.of(Secret(new)).id}
    assert not list(state.glob("*.rotation"))


@needs_contract
async def test_a_dry_run_changes_nothing(rig, railway, environ):
    plan = await rig.plan(NAME)
    assert "2,000 rows" in " ".join(step.detail for step in plan.steps)
    assert (railway.writes, await keys_of_rows(environ["DATABASE_URL"])) == ([], {Key.of(Secret(OLD)).id})
    assert not rig.folder.exists()


@needs_contract
async def test_what_the_old_key_alone_can_open_stops_it_and_until_then_it_can_be_taken_back(rig, railway, environ):
    connection = await asyncpg.connect(environ["DATABASE_URL"])
    envelope = seal("lost", Key.of(Secret(LOST)), binding(LABEL, "acme", "lost"))
    await connection.execute("insert into oxherd.credentials values ('acme', 'lost', $1)", envelope)
    with pytest.raises(RotationStopped, match="1 credentials can't be opened with either key: lost of acme"):
        await rig.run(NAME)
    assert railway.variables[NAME] == OLD  # a row that no key opens stops it before workers are switched
    await connection.execute("delete from oxherd.credentials where name = 'lost'")
    await connection.close()
    await rig.roll_back(NAME)
    assert (railway.variables[NAME], railway.variables[PREVIOUS]) == (OLD, "")
    assert await keys_of_rows(environ["DATABASE_URL"]) == {Key.of(Secret(OLD)).id}

    sealed = seal_field("c1", KeyRing.of(Secret(OLD)), job="read", tenant="acme", path=("name",))
    async with queue_client(load(environ)) as (producer, admin), queue_client(load(environ)) as (_, watcher):
        since = await watcher.newest_event()
        job = await producer.add("read", {"tenant": "acme", "name": sealed}, delay=3_600_000)
        with pytest.raises(RotationStopped, match=r"wait with fields that the key \w+ sealed: 1 read"):
            await rig.run(NAME)
        assert OLD in railway.variables[PREVIOUS]
        await admin.promote(job)
        assert (await wait_for_end(admin, watcher, job, since=since)).state == "completed"
    assert await rig.run(NAME, resume=True) == ["retire", "bury", "record"]
    assert "1 jobs that have ended keep fields" in " ".join(rig.told)
