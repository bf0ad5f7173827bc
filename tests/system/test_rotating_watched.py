"""A switch that real workers do not survive: the rotation says why, and the old value comes back."""

from __future__ import annotations

import base64

import pytest
from deployed import DeployedWorker

from fakes import key_services, railway
from fakes.key_services import FakeOpenRouterKeys
from fakes.railway import COMMIT, FakeRailway
from fakes.rotating import Rotating
from oxherd.errors import RotationStopped
from oxherd.ops.diagnosis import EXIT_CODES, Cause
from oxherd.ops.testjob import through_redis
from oxherd.settings import load

pytestmark = pytest.mark.skipif(
    not (railway.CONTRACT.exists() and key_services.OPENROUTER.path.exists()), reason=railway.ABSENT
)
NAME = "OPENROUTER_API_KEY"
APP = """
import os
from oxherd import Herd

if os.environ["OPENROUTER_API_KEY"] != {key!r}:
    raise SystemExit("the key is pinned in this image")
herd = Herd()
"""


async def test_a_deployment_that_crashes_with_the_new_value_is_explained_and_the_rollback_serves(
    redis_url, queue_name, tmp_path
):
    async def start(variables, say):
        return await DeployedWorker("pinned:herd", tmp_path, variables, say).start()

    async with (
        FakeOpenRouterKeys() as router,
        FakeRailway(start=start, REDIS_URL=redis_url, JOB_QUEUE_NAME=queue_name) as service,
    ):
        old = router.make("first")
        (tmp_path / "pinned.py").write_text(APP.format(key=old))
        service.write(**{NAME: old})
        service.commits, service.restart_retries = [COMMIT], 0
        before = service.deploy()
        for _ in range(3):
            await service.sleep(5)
        environ = {
            "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "OPENROUTER_BASE_URL": router.url,
            "OPENROUTER_MANAGEMENT_KEY": router.management_key,
            "ENCRYPTION_KEY": base64.b64encode(bytes(32)).decode(), **service.environ,
        }  # fmt: skip
        rig = Rotating(tmp_path / "state", environ, service.sleep, patience=10.0, test_job=True)
        with pytest.raises(RotationStopped, match="is CRASHED: crash loop: the process ends") as stopped:
            await rig.run(NAME)
        assert "| the key is pinned in this image" in stopped.value.message
        assert "its last words" in stopped.value.hint
        assert "--rollback" in stopped.value.hint
        assert stopped.value.exit_code == EXIT_CODES[Cause.CRASH]
        assert before.status(service.now) == "SUCCESS"

        await rig.roll_back(NAME)
        assert (service.variables[NAME], service.deployed[-1].variables[NAME]) == (old, old)
        assert [each.status(service.now) for each in service.deployed] == ["REMOVED", "CRASHED", "SUCCESS"]
        assert [row["name"] for row in router.rows.values()] == ["first"]
        async with through_redis(load(environ)) as way:
            (ended,) = await way.run("oxherd.echo", {}, patience=10.0)
        assert ended.state == "completed"
