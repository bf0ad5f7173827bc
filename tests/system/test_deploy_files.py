"""The files that run a worker somewhere, each checked by the tool or the schema of its platform."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oxherd.queue.keys import Keys
from oxherd.settings import TABLE, parse_duration

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GRACE = next(parse_duration(row.default) for row in TABLE if row.name == "SHUTDOWN_GRACE")
NAMES = {row.name for row in TABLE}
KEDA = ("TriggerAuthentication", "ScaledObject")
RENDER = {
    "web": {
        "type", "name", "runtime", "plan", "dockerfilePath", "preDeployCommand", "healthCheckPath",
        "maxShutdownDelaySeconds", "envVars",
    },
    "keyvalue": {"type", "name", "plan", "maxmemoryPolicy", "ipAllowList"},
}  # fmt: skip


def tool(name: str) -> str:
    """A program of the environment or the machine. A laptop may lack it; CI may not."""
    found = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip(f"{name} is not installed here")
    assert found, f"CI needs {name}"
    return found


def passes(*command: str | Path) -> None:
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def read(name: str) -> list[dict]:
    return [each for each in yaml.safe_load_all((ROOT / name).read_text()) if each]


def test_hadolint_finds_nothing_in_the_dockerfile():
    passes(tool("hadolint"), "--failure-threshold", "warning", ROOT / "Dockerfile")


def test_compose_s_schema_accepts_the_file():
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml")


def test_compose_migrates_before_the_worker_and_gives_it_time_to_hand_back():
    (project,) = read("compose.yaml")
    worker, valkey = project["services"]["worker"], project["services"]["valkey"]
    assert {name: on["condition"] for name, on in worker["depends_on"].items()} == {
        "migrate": "service_completed_successfully", "valkey": "service_healthy", "postgres": "service_healthy",
    }  # fmt: skip
    assert parse_duration(worker["stop_grace_period"]) >= GRACE + 10
    assert "noeviction" in valkey["command"]
    assert valkey["command"][valkey["command"].index("--appendonly") + 1] == "yes"
    assert set(worker["environment"]) <= NAMES


def test_kubernetes_schema_accepts_the_manifest():
    passes(tool("kubernetes-validate"), "--strict", "--quiet", ROOT / "deploy/kubernetes.yaml")


def test_kubernetes_probes_and_drains_as_the_worker_needs_it():
    pod = read("deploy/kubernetes.yaml")[0]["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert worker["readinessProbe"]["httpGet"]["path"] == worker["startupProbe"]["httpGet"]["path"] == "/health"
    assert worker["livenessProbe"]["httpGet"]["path"] == "/health/live"
    (pause,) = re.findall(r"sleep\((\d+)\)", worker["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= int(pause) + GRACE + 10
    assert pod["initContainers"][0]["command"] == ["oxherd", "db", "migrate"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert {each["name"] for each in worker["env"]} <= NAMES


def test_keda_counts_all_that_waits_and_what_runs():
    auth, scaled = read("deploy/keda.yaml")
    assert (auth["kind"], scaled["kind"]) == KEDA
    keys, spec = Keys("agent-jobs"), scaled["spec"]
    watched = {each["name"]: each["metadata"]["listName"] for each in spec["triggers"]}
    assert watched == {
        "waiting": keys.wait.decode(), "prioritized": keys.prioritized.decode(), "active": keys.active.decode(),
    }  # fmt: skip
    assert set(re.findall(r"\w+", spec["advanced"]["scalingModifiers"]["formula"])) == set(watched)
    assert spec["scaleTargetRef"]["name"] == read("deploy/kubernetes.yaml")[0]["metadata"]["name"]
    assert {each["authenticationRef"]["name"] for each in spec["triggers"]} == {auth["metadata"]["name"]}
    assert all(each["type"] == "redis" for each in spec["triggers"])


def test_the_render_blueprint_has_documented_fields_only_and_wires_what_it_makes():
    (blueprint,) = read("render.yaml")
    assert set(blueprint) == {"services", "databases"}
    for service in blueprint["services"]:
        assert set(service) <= RENDER[service["type"]]
    worker, queue = blueprint["services"]
    assert (ROOT / worker["dockerfilePath"]).exists()
    assert worker["healthCheckPath"] == "/health"
    assert GRACE + 10 <= worker["maxShutdownDelaySeconds"] <= 300
    assert queue["maxmemoryPolicy"] == "noeviction"
    assert queue["ipAllowList"] == []
    wired = {each["key"]: each for each in worker["envVars"]}
    assert wired["REDIS_URL"]["fromService"]["name"] == queue["name"]
    assert wired["DATABASE_URL"]["fromDatabase"]["name"] == blueprint["databases"][0]["name"]
    assert set(wired) <= NAMES
    for row in TABLE:
        assert not row.secret or "value" not in wired.get(row.name, {})


def test_systemd_accepts_the_unit(tmp_path):
    program = tmp_path / "oxherd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "oxherd.service"
    unit.write_text((ROOT / "deploy/oxherd.service").read_text().replace("/opt/oxherd/bin/oxherd", str(program)))
    done = subprocess.run([tool("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_gives_the_drain_its_time_and_does_not_repeat_wrong_settings():
    lines = (line.partition("=") for line in (ROOT / "deploy/oxherd.service").read_text().splitlines())
    unit = {name: value for name, mark, value in lines if mark and not name.startswith("#")}
    assert int(unit["TimeoutStopSec"]) >= GRACE + 10
    assert unit["Type"] == "notify"
    assert unit["RestartPreventExitStatus"] == "2"


async def test_systemd_hears_that_the_worker_is_ready_alive_and_stopping(tmp_path, start):
    heard: asyncio.Queue[str] = asyncio.Queue()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        asyncio.get_running_loop().add_reader(ear, lambda: heard.put_nowait(ear.recv(256).decode()))
        worker = await start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000")
        async with asyncio.timeout(10):
            assert await heard.get() == "READY=1"
            assert [await heard.get(), await heard.get()] == ["WATCHDOG=1"] * 2
            worker.terminate()
            while (word := await heard.get()) == "WATCHDOG=1":
                pass
            assert word == "STOPPING=1"
        assert await worker.exited() == 0
        asyncio.get_running_loop().remove_reader(ear)


def test_railway_s_own_way_of_reading_its_file_finds_the_project(tmp_path):
    program = (
        "import importlib.util as u, json, sys\n"
        "spec = u.spec_from_file_location('railway_config', sys.argv[1])\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(json.dumps(module.main()))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(ROOT / ".railway/railway.py")]
    graph = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert [each["name"] for each in graph["resources"]] == ["worker"]
