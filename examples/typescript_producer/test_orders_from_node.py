from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest
from orders import herd

from oxherd.telemetry.events import JobEnded
from oxherd.testing import replay_every_step, says, serving

FOLDER = Path(__file__).parent
KEY = base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture(scope="session")
def built():
    """producer.ts, type-checked and compiled."""
    if not (FOLDER / "node_modules" / "typescript").exists():
        pytest.skip("needs Node and its packages: npm ci")
    subprocess.run(["npx", "tsc"], cwd=FOLDER, check=True, timeout=60)


async def producer(**variables: str):
    node = shutil.which("node")
    process = await asyncio.create_subprocess_exec(
        node, "dist/producer.js", "17", "Is it blue?", cwd=FOLDER, env={**os.environ, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        answer, told = await process.communicate()
    return process.returncode, answer.decode(), told.decode()


@pytest.mark.usefixtures("built")
async def test_the_producer_waits_for_the_result(oxherd_redis_url, oxherd_database_url, oxherd_model):
    oxherd_model.script(says("Yes, it is blue."))
    async with serving(
        herd, redis_url=oxherd_redis_url, database_url=oxherd_database_url, model=oxherd_model, ENCRYPTION_KEY=KEY
    ) as worker:
        code, answer, told = await producer(REDIS_URL=oxherd_redis_url, JOB_QUEUE_NAME=worker.queue, ENCRYPTION_KEY=KEY)
        assert code == 0, told
        assert json.loads(answer) == {"number": 17, "card": "ends in 1111", "reply": "Yes, it is blue."}
        assert "'reading'" in told
        (end,) = worker.events.all(JobEnded)
        added = await worker.admin.job(end.id)
        assert "4111" not in json.dumps(added["data"])  # in Redis the card is sealed


@pytest.mark.usefixtures("built")
async def test_a_failure_is_thrown_in_the_producer_with_its_reason(oxherd_redis_url):
    other = base64.b64encode(secrets.token_bytes(32)).decode()
    async with serving(herd, redis_url=oxherd_redis_url, ENCRYPTION_KEY=other) as worker:
        code, _, told = await producer(REDIS_URL=oxherd_redis_url, JOB_QUEUE_NAME=worker.queue, ENCRYPTION_KEY=KEY)
        assert code == 1
        assert "card" in told


async def test_a_crash_behind_any_step_repeats_nothing(oxherd_model):
    oxherd_model.script(says("Yes."))
    order = {"number": 17, "note": "Is it blue?", "card": "4111"}
    assert (await replay_every_step(herd, "order.check", order, model=oxherd_model)).result["reply"] == "Yes."
