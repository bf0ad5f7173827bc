"""Every drill, as `oxherd drill run all` does it: real engines, real workers, the runbook's own commands."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from deployed import DeployedWorker

from fakes import railway
from oxherd import settings
from oxherd.ops.drills import DRILLS, commit


def oxherd(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environ = settings.child_environ(variables, inherit=False)
    command = [sys.executable, "-m", "oxherd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)


@pytest.mark.timeout(400)
def test_every_drill_recovers_by_its_runbook_and_the_report_has_it(runs_url, tmp_path):
    report = tmp_path / "drills.html"
    ran = oxherd("drill", "run", "all", "--at-once", "2", "--json", "--report", str(report), DATABASE_URL=runs_url)
    assert ran.stdout, ran.stderr
    results = {each["name"]: each for each in json.loads(ran.stdout)}
    assert set(results) == set(DRILLS)
    assert {name: each["fault"] for name, each in results.items() if not each["ok"]} == {}
    assert ran.returncode == 0
    for each in results.values():
        assert (each["lost"], each["doubled"], each["paid_again"]) == (0, 0, 0)
        assert each["jobs"] >= 1
        assert each["rto_seconds"] > 0
    assert results["redis-lost"]["gone"] <= 3
    assert results["bad-deploy"]["broken_exit_code"] == 2
    assert [each["code"] for each in results["key-leaked"]["commands"]][:6] == [
        1,
        1,
        1,
        1,
        1,
        0,
    ]  # found, four switches
    assert 5 <= results["runaway-spend"]["calls_before_the_cap"] <= 10
    assert report.read_text().count("<circle") == len(DRILLS)  # each was measured once

    listed = json.loads(oxherd("drill", "list", "--json", DATABASE_URL=runs_url).stdout)
    assert {each["outcome"] for each in listed} == {"ok"}
    told = oxherd("drill", "report", DATABASE_URL=runs_url)
    assert "| redis-lost |" in told.stdout


def commands_of(folder: str) -> list[str]:
    """Those in the pages' blocks, each once, in the pages' order."""
    pages = sorted((Path(__file__).parents[2] / "docs" / folder).glob("*.md"))
    blocks = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in dict.fromkeys(lines) if line]


def test_every_command_block_of_the_alerts_runbooks_runs(runs_url, redis_url, queue_name):
    variables = {
        "DATABASE_URL": runs_url, "REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name,
        "ENCRYPTION_KEY": base64.b64encode(os.urandom(32)).decode(),
    }  # fmt: skip
    commands = commands_of("runbooks")
    assert "oxherd jobs dead" in commands
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "openssl":
            continue  # asks a server with TLS, which is not here; tests/unit/worker/test_probes.py has one
        assert program == "oxherd", command
        ran = oxherd(*arguments, **variables)
        assert ran.returncode in {0, 1}, f"{command}: {ran.stderr}"


@pytest.mark.skipif(not railway.CONTRACT.exists(), reason=railway.ABSENT)
async def test_every_command_block_of_the_incidents_runs(redis_url, queue_name, tmp_path):
    (tmp_path / "app.py").write_text("from oxherd import Herd\n\nherd = Herd()\n")
    key = base64.b64encode(os.urandom(32)).decode()
    commit(tmp_path / "repository", f"ENCRYPTION_KEY={key}\n", "# set it here\n")

    async def start(variables, say):
        return await DeployedWorker("app:herd", tmp_path, variables, say).start()

    async with railway.FakeRailway(start=start, REDIS_URL=redis_url, JOB_QUEUE_NAME=queue_name) as service:
        service.deploy()
        await service.sleep(5)
        service.deploy()
        service.tick = 5.0
        variables = {"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "ENCRYPTION_KEY": key, **service.environ}
        ended = {}
        for command in commands_of("incident"):
            finding = "" if "FINGERPRINT" not in command else fingerprint(tmp_path / "repository" / "findings.json")
            watches = command.startswith("oxherd deploy") and not command.endswith(("status", "--dry-run"))
            program, *words = shlex.split(command.replace("FINGERPRINT", finding))
            assert program == "oxherd", command
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "oxherd", *words, *(("--settle", "0") if watches else ()),
                cwd=tmp_path / "repository", env=settings.child_environ(variables, inherit=False), stdout=-1, stderr=-1,
            )  # fmt: skip
            said = await asyncio.wait_for(process.communicate(), 60)
            ended[command.partition(" --")[0]] = process.returncode
            assert process.returncode in {0, 1}, f"{command}: {said}"
    assert ended == {
        "oxherd deploy status": 0, "oxherd deploy watch": 0, "oxherd deploy rollback": 0, "oxherd audit secrets": 1,
        "oxherd rotate": 0, "oxherd audit accept FINGERPRINT": 0,
    }  # fmt: skip


def fingerprint(report: Path) -> str:
    (found,) = json.loads(report.read_text())["findings"]
    return found["fingerprint"]


def test_in_production_nothing_that_breaks_is_run():
    refused = oxherd("drill", "run", "prove-backup", "redis-lost", "--in", "production")
    assert refused.returncode == 2
    assert "redis-lost breaks things" in refused.stderr
    assert "prove-backup" in refused.stderr


def test_a_drill_in_production_that_can_not_reach_it_fails_and_says_why():
    failed = oxherd("drill", "run", "prove-backup", "--in", "production", "--json")
    assert failed.returncode == 1
    (result,) = json.loads(failed.stdout)
    assert result["ok"] is False
    assert result["rpo_seconds"] is None
    assert "oxherd backup verify" in result["fault"]


def test_an_unknown_drill_and_a_report_that_can_not_be_written_are_wrong_use(tmp_path):
    assert oxherd("drill", "run", "worker-down", "meteorite").returncode == 2
    refused = oxherd("drill", "run", "worker-down", "--report", str(tmp_path / "missing" / "drills.html"))
    assert refused.returncode == 2
    assert "can't be written" in refused.stderr


def test_the_plan_has_no_secret(runs_url):
    planned = oxherd("drill", "plan", DATABASE_URL=runs_url, REDIS_URL="redis://:hush-hush@127.0.0.1:1/0")
    assert planned.returncode == 0
    assert "hush-hush" not in planned.stdout
    assert "127.0.0.1:1" in planned.stdout
