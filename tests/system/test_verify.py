from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree as ET

import bullmq
import pytest
from aiohttp import web
from process import Start
from stage import Stage

from fakes.openrouter import KEY, FakeOpenRouter, says
from oxherd import Herd, __version__
from oxherd.app import Service
from oxherd.ops.junit import junit
from oxherd.ops.verify import Asked, Check, Report, read_logs, verify
from oxherd.settings import Secret, load

TOKEN = "test-token-of-verify-0123"
OLD, NEW = "0ld" + "0" * 37, "4be7c1d2f00a" + "9" * 28
STARTED = "[worker] Started processing jobs from queue: agent-jobs"


def outcomes(report: Report) -> dict[str, str]:
    return {check.name: check.outcome for check in report.checks}


def check(report: Report, name: str) -> Check:
    return next(each for each in report.checks if each.name == name)


@pytest.fixture
def asked(redis_url: str, queue_name: str) -> Callable[..., Asked]:
    settings = load({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name})
    return lambda **more: Asked(queue_name, **{"settings": settings, "patience": 10.0, **more})


async def test_a_deployment_that_works_passes_and_nothing_of_the_test_stays(
    start: Start, asked: Callable[..., Asked], stage: Stage
) -> None:
    worker = await start(RAILWAY_GIT_COMMIT_SHA=NEW)

    async def lines() -> list[str]:
        return [json.dumps(line) for line in worker.lines]

    report = await verify(asked(url=f"http://127.0.0.1:{worker.port}", commit=NEW, version=__version__, logs=lines))

    assert report.ok
    assert outcomes(report) == {
        "health": "passed", "version": "passed", "logs": "passed", "test job": "passed", "agent": "skipped",
        "queue": "passed", "dead letters": "passed", "error rate": "passed",
    }  # fmt: skip
    assert f"commit {NEW[:12]}" in check(report, "test job").found
    assert not any((await stage.admin.counts()).values())


async def test_the_same_over_http_where_redis_cannot_be_reached(
    start: Start, asked: Callable[..., Asked], stage: Stage
) -> None:
    worker = await start(API_TOKEN=TOKEN)
    report = await verify(asked(url=f"http://127.0.0.1:{worker.port}", settings=None, token=Secret(TOKEN)))

    assert report.ok
    assert check(report, "test job").found.startswith("oxherd.echo through the HTTP API, run by ")
    assert not any((await stage.admin.counts()).values())

    refused = await verify(asked(url=f"http://127.0.0.1:{worker.port}", settings=None, token=Secret(f"{TOKEN}-not")))
    assert "HTTP 401" in check(refused, "test job").found
    assert "API_TOKEN" in check(refused, "test job").fix


async def test_jobs_of_the_old_deployment_and_of_other_kinds_of_workers_prove_nothing(
    start: Start, asked: Callable[..., Asked], redis_url: str, queue_name: str
) -> None:
    async def ignorant(job: Any, _token: str) -> str:
        return "done, whatever it was"

    other = bullmq.Worker(queue_name, ignorant, {"connection": redis_url})
    try:
        alone = await verify(asked(patience=0.8))
        assert "a worker that does not know oxherd.echo" in check(alone, "test job").found

        old, new = await asyncio.gather(start(RAILWAY_GIT_COMMIT_SHA=OLD), start(RAILWAY_GIT_COMMIT_SHA=NEW))
        report = await verify(asked(url=f"http://127.0.0.1:{new.port}", commit=NEW, patience=20.0))
        assert report.ok
        assert f"commit {NEW[:12]}" in check(report, "test job").found
    finally:
        await other.close(force=True)
    new.kill()
    await new.exited()

    stale = await verify(asked(url=f"http://127.0.0.1:{old.port}", commit=NEW))
    assert outcomes(stale)["version"] == "failed"
    assert "none by this deployment" in check(stale, "test job").found
    assert f"commit {OLD[:12]}" in check(stale, "test job").found


async def test_nobody_consumes_and_the_waiting_test_job_is_taken_back(
    asked: Callable[..., Asked], stage: Stage
) -> None:
    await stage.add("somebody's")
    report = await verify(asked(patience=0.5))

    assert check(report, "test job").found == "no worker took the test job within 0.5 s"
    assert "JOB_QUEUE_NAME" in check(report, "test job").fix
    assert {state: count for state, count in (await stage.admin.counts()).items() if count} == {"wait": 1}


async def test_a_worker_with_a_closed_gate_fails_with_the_command_that_opens_it(
    start: Start, asked: Callable[..., Asked], stage: Stage
) -> None:
    worker = await start()
    await stage.admin.close_gate("maintenance")
    await worker.said("gate.changed")
    report = await verify(asked(url=f"http://127.0.0.1:{worker.port}", patience=0))

    assert check(report, "health").found == "the intake gate is closed: maintenance"
    assert "oxherd gate open" in check(report, "health").fix


async def test_failed_jobs_are_told_of_and_too_many_of_its_own_fail_the_deployment(
    start: Start, asked: Callable[..., Asked], stage: Stage
) -> None:
    worker = await start()
    await stage.finished(*[await stage.add("nobody's") for _ in range(10)])
    url = f"http://127.0.0.1:{worker.port}"
    report = await verify(asked(url=url))
    assert not report.ok
    assert check(report, "dead letters").outcome == "warned"
    assert check(report, "dead letters").found == "10 jobs failed for good within the hour, 10 are kept"
    assert check(report, "error rate").outcome == "failed"
    assert check(report, "error rate").found == "10 of 11 attempts failed since it started"
    assert (await verify(asked(url=url, error_rate=1.0))).ok


async def test_an_agent_is_run_for_real_and_its_cap_holds(
    redis_url: str, queue_name: str, asked: Callable[..., Asked]
) -> None:
    herd = Herd()
    herd.agent("support", model="openai/gpt-5-mini")
    async with FakeOpenRouter(lambda _: says("ready")) as fake:
        settings = load(
            {
                "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "PORT": "0", "HOST": "127.0.0.1",
                "OPENROUTER_BASE_URL": fake.url, "OPENROUTER_API_KEY": KEY,
            }
        )  # fmt: skip
        service = Service(settings, herd, store=None)
        await service.start()
        try:
            url = f"http://127.0.0.1:{service.port}"
            report = await verify(asked(url=url, agent="support"))
            assert check(report, "agent").found.startswith("support answered with openai/gpt-5-mini")
            assert f"for ${fake.bill}" in check(report, "agent").found

            capped = await verify(asked(url=url, agent="support", max_usd=Decimal(0)))
            assert "support failed" in check(capped, "agent").found

            unknown = await verify(asked(url=url, agent="nobody"))
            assert "no agent is called 'nobody'" in check(unknown, "agent").found
            assert len(fake.requests) == 1
        finally:
            await service.close()


async def test_an_address_where_something_else_answers_is_told_apart(asked: Callable[..., Asked]) -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="<h1>Hello</h1>")

    server = web.Application()
    server.router.add_get("/{any:.*}", hello)
    runner = web.AppRunner(server)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        report = await verify(asked(url=url, settings=None, patience=0))
        assert check(report, "health").found == "HTTP 200, and the answer is not Oxherd's"
    finally:
        await runner.cleanup()
    gone = await verify(asked(url=url, settings=None, patience=0))
    assert "did not answer GET /health" in check(gone, "health").found


@pytest.mark.parametrize(
    ("lines", "outcome", "found"),
    [
        ([STARTED], "passed", "no failed import since"),
        (["ModuleNotFoundError: No module named 'orders'"], "failed", "an import failed: ModuleNotFoundError"),
        ([STARTED, "Error: --app shop:herd: no module 'shop'. Searched:"], "failed", "an import failed"),
        (["ImportError: old news", STARTED], "passed", "no failed import since"),
        ([STARTED.replace("agent-jobs", "others")], "failed", "it serves the queue 'others', not 'agent-jobs'"),
        (["Build finished"], "failed", "1 lines, none says `[worker] Started processing jobs from queue: agent-jobs`"),
        ([json.dumps({"message": STARTED, "level": "info"})], "passed", "no failed import since"),
    ],
)
def test_a_log_is_read_from_its_last_start_on(lines: list[str], outcome: str, found: str) -> None:
    check = read_logs(lines, "agent-jobs")
    assert check.outcome == outcome
    assert found in check.found


def test_ci_reads_the_report_as_tests() -> None:
    report = Report(
        (
            Check("health", "passed", "HTTP 200", "", 0.25),
            Check("logs", "failed", "an import failed: \x1b[31m<x>", "add the package", 1.0),
            Check("agent", "skipped", "no --agent was given"),
            Check("dead letters", "warned", "3 jobs failed", "oxherd jobs dead"),
        )
    )
    root = ET.fromstring(junit(report, "oxherd verify"))
    assert {name: root.get(name) for name in ("tests", "failures", "skipped", "time")} == {
        "tests": "4", "failures": "1", "skipped": "1", "time": "1.250",
    }  # fmt: skip
    failure = root.find("testcase[@name='logs']/failure")
    assert failure is not None
    assert failure.text == "an import failed: ?[31m<x>\nadd the package"


async def test_the_command_s_exit_code_says_whether_it_is_verified(
    start: Start, redis_url: str, queue_name: str, tmp_path: Any
) -> None:
    worker = await start(RAILWAY_GIT_COMMIT_SHA=NEW)

    async def run(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "oxherd", "verify", f"http://127.0.0.1:{worker.port}", *arguments,
            env={"PATH": os.environ["PATH"], "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    (good, text), (bad, said) = await asyncio.gather(
        run("--commit", NEW[:9], "--junit", str(tmp_path / "verify.xml")), run("--commit", OLD, "--json")
    )
    assert good == 0
    assert "verified: 6 passed, 2 skipped" in text
    assert 'failures="0"' in (tmp_path / "verify.xml").read_text(encoding="utf-8")
    assert bad == 1
    assert {each["name"]: each["outcome"] for each in json.loads(said)["checks"]}["version"] == "failed"
