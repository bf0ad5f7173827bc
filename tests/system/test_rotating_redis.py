"""REDIS_URL under load, with real workers as deployments of the fake Railway: no job fails."""

from __future__ import annotations

import asyncio
import base64

import pytest
from bench.rotation import run as bench
from deployed import DeployedWorker
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from fakes.railway import ABSENT, COMMIT, CONTRACT, FakeRailway
from fakes.rotating import Rotating
from oxherd.embedded.valkey import Valkey

pytestmark = pytest.mark.skipif(not CONTRACT.exists(), reason=ABSENT)
NAME = "REDIS_URL"
RULES = "sanitize-payload ~* &* +@all"


@pytest.fixture
def valkey_with_users(tmp_path):
    file = tmp_path / "users.acl"
    file.write_text(f"user default on nopass ~* &* +@all\nuser app on >first {RULES}\n")
    with Valkey(tcp=True, config={"aclfile": str(file)}) as engine:
        yield engine


async def test_workers_change_users_without_a_failed_job(valkey_with_users, tmp_path, queue_name):
    (tmp_path / "reading.py").write_text(bench.APP)
    old = valkey_with_users.url.replace("redis://", "redis://app:first@")

    async def start(variables, say):
        return await DeployedWorker("reading:herd", tmp_path, variables, say).start()

    async with FakeRailway(start=start, REDIS_URL=old, JOB_QUEUE_NAME=queue_name) as railway:
        railway.commits = [COMMIT]
        railway.deploy()
        for _ in range(3):
            await railway.sleep(5)
        environ = {NAME: old, "JOB_QUEUE_NAME": queue_name, "ENCRYPTION_KEY": base64.b64encode(bytes(32)).decode(),
                   **railway.environ}  # fmt: skip
        rig = Rotating(tmp_path / "state", environ, asyncio.sleep, patience=10.0, test_job=True)
        watching = {NAME: valkey_with_users.url, "JOB_QUEUE_NAME": queue_name}
        railway.tick = 5.0
        async with bench.under_load(watching, 10, rate=20.0, job="oxherd.echo") as ended:
            await rig.run(NAME, settle=0)
        assert ended.keys() == {"completed"}
        assert railway.deployed[-1].variables[NAME] != old
        async with Redis.from_url(old) as client:
            with pytest.raises(AuthenticationError):
                await client.ping()
