"""What the documentation says is compared with the code, so that it can't drift."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from redis import Redis

from oxherd.agents import Agent
from oxherd.cli import EXIT_CODES
from oxherd.job import State
from oxherd.settings import TABLE
from oxherd.telemetry.events import JobEnded, catalogue
from oxherd.telemetry.logs import FIELDS
from oxherd.worker.retry import KINDS
from oxherd.worker.worker import OUTCOME_WORD

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
EXAMPLES = [*(ROOT / "examples").glob("*.md"), *(ROOT / "examples").glob("*/*.md")]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md"), *EXAMPLES])
README = (ROOT / "README.md").read_text()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_pages_made_from_code_are_up_to_date():
    command = [sys.executable, "scripts/docs.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_page_that_is_out_of_date_fails_the_check_and_shows_the_difference(monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts" / "docs.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(sys, "argv", ["docs.py"])
    assert docs.main() == 0
    (tmp_path / "docs" / "settings.md").write_text("old\n")
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    capsys.readouterr()
    assert docs.main() == 1
    shown = capsys.readouterr().out
    assert shown.startswith("out of date: docs/settings.md\n  - old\n")
    assert ".env.example" not in shown


def test_the_made_pages_hold_no_escape_codes():
    for name in ("cli.md", "events.md", "settings.md"):
        assert "\x1b" not in page(name)


def test_every_declared_event_is_documented():
    documented = re.findall(r"^\| `([a-z_.]+)` \|", page("events.md"), re.MULTILINE)
    assert [name for name in documented if "." in name] == [kind.name for kind in catalogue()]


def test_every_variable_is_documented_and_in_the_example_file():
    example = (ROOT / ".env.example").read_text()
    for variable in TABLE:
        assert f"| `{variable.name}` |" in page("settings.md")
        assert re.search(rf"^(# )?{variable.name}=", example, re.MULTILINE)


def test_variables_that_the_pages_name_exist():
    known = {variable.name for variable in TABLE}
    for path in PAGES:
        named = set(re.findall(r"\b(?:JOB|LOG|SHUTDOWN|OPENROUTER|SUPABASE)_[A-Z_]+\b", path.read_text()))
        assert named <= known, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_the_settings_read_the_environment(path):
    if path.name == "settings.py":
        return
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"environ", "environb", "getenv"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tests_that_the_pages_name_exist(path):
    for file, name in re.findall(r"\[`(\w+)`\]\((?:\.\./)?(tests/[\w/]+\.py)\)", path.read_text()):
        assert f"def {file}(" in (ROOT / name).read_text(), f"{name} has no {file}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_make_targets_that_the_pages_name_exist(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text()
    named = set(re.findall(r"`make ([a-z]+)", text)) | set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_that_the_pages_name_exist(path):
    known = set(re.findall(r"^## (oxherd.*)$", page("cli.md"), re.MULTILINE))
    for words in re.findall(r"(?:^|`)(oxherd(?: [a-z]+)+)", path.read_text(), re.MULTILINE):
        name = words.split()
        assert any(" ".join(name[:length]) in known for length in (3, 2)), words


def test_the_readme_s_agent_can_be_served(tmp_path, monkeypatch):
    (agent,) = blocks(README, "python")
    assert len([line for line in agent.splitlines() if line.strip()]) <= 12
    (tmp_path / "jobs.py").write_text(agent)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    from oxherd.app import load_herd

    herd = load_herd("jobs:herd")
    assert list(herd.handlers) == ["support.reply"]
    assert herd.handlers["support.reply"].timeout == 600.0


def test_the_readme_s_first_screen_has_the_two_commands_and_the_producer():
    screen = README.split("## ")[0]
    assert "make demo" in screen
    assert "make test" in screen
    assert 'queue.add("support.reply"' in blocks(screen, "ts")[0]


def test_the_readme_s_producer_adds_what_its_agent_takes(redis_url):
    node = ROOT / "tests" / "interop" / "node"
    if not shutil.which("node") or not (node / "node_modules").exists():
        assert os.environ.get("CI") != "true"
        pytest.skip("no Node here, or `make node` has not been run")
    (producer,) = blocks(README, "ts")
    code = producer.replace('"bullmq"', '"bullmq5"') + "await queue.close();"
    command = ["node", "--input-type=module", "--eval", code]
    subprocess.run(command, cwd=node, env={**os.environ, "REDIS_URL": redis_url}, check=True, timeout=30)
    with Redis.from_url(redis_url, decode_responses=True) as client:
        jobs = [client.hgetall(f"bull:agent-jobs:{number}") for number in (1, 2)]
    assert [job["name"] for job in jobs] == ["support.reply", "agent.run"]
    assert Agent.inline(json.loads(jobs[1]["data"])["agent"], tools={}).model == "openai/gpt-5-mini"


def test_the_operations_page_knows_every_exit_code():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page("operations.md"), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


def test_the_operations_page_shows_a_job_s_line_as_it_is():
    (line,) = blocks(page("operations.md"), "json")
    shown = json.loads(line)
    assert list(shown) == ["message", "level", "time", "event", *FIELDS[JobEnded]]
    assert shown["event"] == JobEnded.name


def test_the_operations_page_names_series_that_exist():
    named = set(re.findall(r"`(oxherd_[a-z_]+)", page("operations.md")))
    known = set(re.findall(r"^\| `(oxherd_[a-z_]+)` \|", page("events.md"), re.MULTILINE))
    assert named <= known


def test_the_life_of_a_job_shows_every_state_and_outcome():
    text = page("job-life.md")
    (diagram,) = blocks(text, "mermaid")
    assert {state.value.replace("-", "_") for state in State} <= set(re.findall(r"\w+", diagram))
    assert set(OUTCOME_WORD.values()) <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert {kind for _, kind in KINDS} <= set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_the_architecture_s_layers_are_those_that_are_enforced():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    enforced = [re.findall(r"\w+", layer) for layer in contracts[0]["layers"]]
    (shown,) = re.findall(r"^`cli \|.*?\n\n", page("architecture.md"), re.MULTILINE | re.DOTALL)
    assert [re.findall(r"\w+", layer) for layer in shown.split("→")] == enforced


def test_the_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_hold_no_path_of_anybody_s_machine(path):
    assert not re.search(r"/(?:work|home|root|Users|tmp)/", path.read_text())
