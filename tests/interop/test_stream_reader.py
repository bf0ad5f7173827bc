"""The reader in docs/streams.md, run by Node with nothing but ioredis, follows runs of a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nodejs import FOLDER, install

from fakes.openrouter import DONE, KEY, FakeOpenRouter, Streams, chunk
from oxherd import Herd, settings
from oxherd.app import Service, keys_of, queue_client
from oxherd.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text()
ASKED = {"agent": {"name": "support", "model": "m"}, "input": "hello"}
SHOW = """
const text = Object.values(pieces).map((parts) => parts.join(""));
console.log(JSON.stringify({ text, entries: kept }));
"""


def sample(language: str) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return code


def script() -> str:
    """Both samples as one program: Node 20 reads no types, and the test wants to see the entries."""
    reader = re.sub(r": string(?=[,)])", "", sample("ts"))
    putting = sample("js").replace('"agent-jobs", jobId)', "process.env.QUEUE, process.env.JOB, process.env.SINCE)")
    before, loop, after = putting.partition(")) {\n")
    return f"const kept = [];\n{reader}{before}{loop}  kept.push(entry);\n{after}{SHOW}"


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    install()
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def known(redis_url, queue_name, fake) -> Settings:
    variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1"}
    return settings.load(variables | {"OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY})


async def read_by_node(redis_url: str, known: Settings, job_id: str, since: str = "0") -> dict[str, Any]:
    environ = {"REDIS_URL": redis_url, "QUEUE": known.job_queue_name, "JOB": job_id, "SINCE": since}
    process = await asyncio.create_subprocess_exec(
        "node", "--input-type=module", "--eval", script(), cwd=FOLDER,
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def test_the_sample_needs_ioredis_alone_and_about_25_lines():
    assert re.findall(r'from "(.*?)"', sample("ts")) == ["ioredis"]
    assert len(sample("ts").splitlines()) <= 25


async def test_the_documented_reader_makes_a_run_publish_has_its_reply_and_resumes(redis_url, known, fake):
    broken = Streams(chunk({"content": "Wrong ans"}), 0.1, cut=True)
    fake.script(broken, Streams(chunk({"content": "Right, "}), 0.1, chunk({"content": "😀!"}), chunk({}, "stop"), DONE))
    async with queue_client(known) as (producer, admin):
        job_id = await producer.add("agent.run", ASKED)
        reading = asyncio.create_task(read_by_node(redis_url, known, job_id))
        async with asyncio.timeout(20):
            while await admin._link.call(b"ZSCORE", keys_of(known).readers, job_id) is None:  # noqa: ASYNC110  Node's
                await asyncio.sleep(0.02)
        service = Service(known, Herd(), store=None)
        await service.start()
        try:
            read = await reading
        finally:
            await service.close()
    assert read["text"] == ["Right, 😀!"]
    kinds = [entry["type"] for entry in read["entries"]]
    assert kinds[0] == "attempt"
    assert "reset" in kinds
    assert kinds[-1] == "end"

    at = kinds.index("reset")
    rest = await read_by_node(redis_url, known, job_id, since=read["entries"][at]["id"])
    assert rest["entries"] == read["entries"][at + 1 :]
    assert rest["text"] == ["Right, 😀!"]
