"""`oxherd rotate` as an operator types it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from oxherd.ops.rotate_state import Locks, Progress, StateFile
from oxherd.settings import Secret

KEY = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="


@pytest.fixture
def run(tmp_path):
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "oxherd", "rotate", *words]
        environ = {"PATH": os.environ["PATH"], "ENCRYPTION_KEY": KEY, "API_TOKEN": "t" * 16}
        return subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return call


def test_what_is_under_way_is_told_without_a_key_and_not_begun_again(run, tmp_path):
    assert json.loads(run("--status", "--json").stdout) == []
    progress = Progress.begin("API_TOKEN")
    progress.new = {"API_TOKEN": Secret("the new one")}
    StateFile(tmp_path / ".oxherd" / "rotations", "API_TOKEN", Locks((Secret(KEY),))).save(progress)
    (told,) = json.loads(run("--status", "--json").stdout)
    assert (told["name"], told["stage"]) == ("API_TOKEN", "new")
    again = run("API_TOKEN")
    assert (again.returncode, "--resume" in again.stderr) == (1, True)


def test_an_audit_s_report_is_shown_in_a_safe_order_and_a_dry_run_does_nothing(run, tmp_path):
    finding = {"fails": True, "live": None, "in_head": True, "what": "a secret", "fingerprint": "f", "rotation": "-",
               "first": {"path": "a", "line": 1}}  # fmt: skip
    names = ("ENCRYPTION_KEY", "API_TOKEN", "DATABASE_URL", "RAILWAY_TOKEN")
    (tmp_path / "report.json").write_text(json.dumps({"findings": [{**finding, "variable": each} for each in names]}))
    done = run("--leaked", "report.json", "--dry-run", "--json")
    order = ["RAILWAY_TOKEN", "DATABASE_URL", "API_TOKEN", "ENCRYPTION_KEY"]
    assert [each["variable"] for each in json.loads(done.stdout)] == order
    assert not (tmp_path / ".oxherd").exists()


def test_wrong_use_is_told_apart_with_the_way_out(run):
    for words, said in (
        ((), "which secret?"),
        (("PORT",), "is no secret that can be rotated"),
        (("API_TOKEN", "--done"), "add --resume"),
        (("API_TOKEN", "--leaked", "report.json"), "names the secrets itself"),
    ):
        done = run(*words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
