"""Every drill, as `oxherd drill run all` does it: real engines, real workers, the runbook's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from oxherd import settings
from oxherd.ops.drills import DRILLS


def oxherd(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environ = settings.child_environ(variables, inherit=False)
    command = [sys.executable, "-m", "oxherd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)


@pytest.mark.timeout(400)
def test_every_drill_recovers_by_its_runbook_and_the_report_has_it(runs_url, tmp_path):
    report = tmp_path / "drills.html"
    at_once = str(1 + (os.cpu_count() or 1))  # one of them only waits for a lease to run out
    ran = oxherd("drill", "run", "all", "--at-once", at_once, "--json", "--report", str(report), DATABASE_URL=runs_url)
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
    assert 5 <= results["runaway-spend"]["calls_before_the_cap"] <= 10
    assert "<svg" not in report.read_text()  # no history yet

    listed = json.loads(oxherd("drill", "list", "--json", DATABASE_URL=runs_url).stdout)
    assert {each["outcome"] for each in listed} == {"ok"}
    told = oxherd("drill", "report", DATABASE_URL=runs_url)
    assert "| redis-lost |" in told.stdout


def test_in_production_nothing_that_breaks_is_run():
    refused = oxherd("drill", "run", "redis-lost", "--in", "production")
    assert refused.returncode == 2
    assert "breaks things" in refused.stderr
    assert "prove-backup" in refused.stderr


def test_a_drill_in_production_that_can_not_reach_it_fails_and_says_why():
    failed = oxherd("drill", "run", "prove-backup", "--in", "production", "--json")
    assert failed.returncode == 1
    (result,) = json.loads(failed.stdout)
    assert result["ok"] is False
    assert "oxherd backup verify" in result["fault"]


def test_an_unknown_drill_is_wrong_use():
    assert oxherd("drill", "run", "meteorite").returncode == 2


def test_the_plan_has_no_secret(runs_url):
    planned = oxherd("drill", "plan", DATABASE_URL=runs_url, REDIS_URL="redis://:hush-hush@127.0.0.1:1/0")
    assert planned.returncode == 0
    assert "hush-hush" not in planned.stdout
    assert "127.0.0.1:1" in planned.stdout
