"""`oxherd rotate` as an operator types it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from oxherd.ops.rotate_state import Locks, Progress, Stage, StateFile
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
        (("API_TOKEN", "--done"), "add --resume or --rollback"),
        (("API_TOKEN", "--to", "nowhere/new.env"), "nowhere/new.env can't be written"),
        (("API_TOKEN", "--state", "/dev/null/states"), "no state can be kept in /dev/null/states"),
        (("API_TOKEN", "--consumers", "manual", "--url", "example.com"), "must be an http:// or https:// address"),
        (("API_TOKEN", "--leaked", "report.json"), "names the secrets itself"),
    ):
        done = run(*words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_what_a_way_back_waits_for_is_said_to_be_done_as_on_the_way_there(run, tmp_path):
    progress = Progress.begin("API_TOKEN")
    progress.old, progress.new = {"API_TOKEN": Secret("t" * 16)}, {"API_TOKEN": Secret("n" * 16)}
    progress.stage, progress.given = Stage.SWITCH, {"switch": {"manual": {"told": True}}}
    StateFile(tmp_path / ".oxherd" / "rotations", "API_TOKEN", Locks((Secret(KEY),))).save(progress)
    words = ("API_TOKEN", "--rollback", "--consumers", "manual", "--url", "http://127.0.0.1:1", "--to", "back.env")
    waits = run(*words)
    assert (waits.returncode, "add --done" in waits.stderr) == (1, True), waits.stderr
    assert (tmp_path / "back.env").read_text() == f"API_TOKEN={'t' * 16}\n"
    done = run(*words, "--done")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "back.env").exists()
    assert json.loads(run("--status", "--json").stdout) == []


def test_what_has_not_begun_is_not_to_be_gone_on_with(run):
    done = run("SUPABASE_ACCESS_TOKEN", "--yes", "--consumers", "manual")
    assert "is set neither here nor where it is used" in done.stderr
    assert "--resume" not in done.stderr


def test_what_a_report_leaves_out_is_named_and_one_with_nothing_to_do_says_so(run, tmp_path):
    dead = {"variable": "DATABASE_URL", "fails": True, "live": False, "what": "a password", "rotation": "-"}
    (tmp_path / "report.json").write_text(json.dumps({"findings": [dead]}))
    done = run("--leaked", "report.json", "--dry-run")
    assert done.returncode == 0
    assert "report.json has nothing to replace" in done.stderr
    assert "left out, as its service refused it when the report was made: DATABASE_URL" in done.stderr
