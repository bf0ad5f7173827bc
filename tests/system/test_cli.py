"""The installed command, as a shell runs it, against real engines."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from oxherd.embedded.engine import free_port
from oxherd.embedded.postgres import Postgres
from oxherd.embedded.valkey import Valkey
from oxherd.ops.child import WorkerProcess
from oxherd.settings import TABLE

OXHERD = [sys.executable, "-m", "oxherd"]
NOBODY = "redis://127.0.0.1:1/0"
APP = """
import asyncio
from oxherd import Context, Fatal, Herd

herd = Herd()

@herd.job("greet")
async def greet(ctx: Context, payload: dict) -> dict:
    await ctx.progress({"percent": 50})
    await ctx.log("greeting")
    return {"hello": payload.get("name", "world")}

@herd.job("break")
async def break_(ctx: Context, payload: dict) -> None:
    raise Fatal(f"order {payload.get('order')} is broken")

@herd.job("wait")
async def wait(ctx: Context, payload: dict) -> None:
    await ctx.progress("waiting")
    await asyncio.Event().wait()
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Runs `oxherd` with these variables of the table and no others."""

    variables: dict[str, str]
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        known = {variable.name for variable in TABLE}
        return {name: value for name, value in os.environ.items() if name not in known} | self.variables

    def __call__(self, *words: str, stdin: str = "") -> Done:
        done = subprocess.run(
            [*OXHERD, *words], env=self.environ, cwd=self.folder, input=stdin, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on; killed at the end if it still does."""
        with subprocess.Popen(
            [*OXHERD, *words], env=self.environ, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def shell(redis_url, queue_name, tmp_path) -> Shell:
    """On a queue of its own that nobody serves."""
    return Shell({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name}, tmp_path)


@pytest.fixture(scope="module")
def served(valkey: Valkey, postgres: Postgres, tmp_path_factory) -> Iterator[Shell]:
    """On a queue that a worker with the app above serves."""
    name = f"served_{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp("served")
    (folder / "served_app.py").write_text(APP)
    variables = {"REDIS_URL": valkey.url, "JOB_QUEUE_NAME": name, "DATABASE_URL": postgres.create_database(name)}
    shell = Shell(variables, folder)
    assert shell("db", "migrate").code == 0
    with worker(shell):
        yield shell
    postgres.drop_database(name)


@contextmanager
def worker(shell: Shell) -> Iterator[WorkerProcess]:
    port = str(free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shell.folder)
        process = WorkerProcess(
            {**shell.variables, "HOST": "127.0.0.1", "PORT": port}, app="served_app:herd", inherit=False,
            log=shell.folder / "worker.log",
        )  # fmt: skip
        process.start()
        try:
            process.wait_until_healthy()
            yield process
        finally:
            process.stop(grace=0)


def a_failed_job(served: Shell, name: str = "break", **payload: object) -> str:
    done = served("enqueue", name, json.dumps(payload), "--wait", "--json")
    assert done.code == 1, done.err
    return done.json["id"]


# -- enqueue


def test_enqueue_prints_the_id_alone(shell):
    done = shell("enqueue", "greet", "--job-id", "mine")
    assert (done.code, done.out, done.err) == (0, "mine\n", "")


def test_every_option_reaches_the_queue(shell):
    options = ["--delay", "1h", "--attempts", "4", "--backoff", "exponential:2s", "--priority", "7", "--lifo"]
    job_id = shell("enqueue", "greet", '{"name": "Ann"}', *options).out.strip()
    job = shell("jobs", "show", job_id, "--json").json
    assert job["data"] == {"name": "Ann"}
    assert (job["state"], job["delay"], job["attempts"], job["priority"]) == ("delayed", 3_600_000, 4, 7)
    assert job["opts"]["backoff"] == {"type": "exponential", "delay": 2000}
    assert job["opts"]["lifo"] is True


def test_a_second_job_of_the_same_id_is_not_added(shell):
    shell("enqueue", "greet", "--job-id", "mine")
    shell("enqueue", "greet", "--job-id", "mine")
    assert shell("jobs", "list", "--json").json["counts"]["wait"] == 1


def test_the_payload_may_come_through_a_pipe(shell):
    job_id = shell("enqueue", "greet", "-", stdin='{"name": "Bo"}').out.strip()
    assert shell("jobs", "show", job_id, "--json").json["data"] == {"name": "Bo"}


def test_wait_prints_the_result_on_stdout_and_progress_on_stderr(served):
    # It begins once it is looked at: of one that has ended by then only the result is shown.
    done = served("enqueue", "greet", '{"name": "Ann"}', "--wait", "--delay", "1s")
    assert (done.code, json.loads(done.out)) == (0, {"hello": "Ann"})
    assert 'progress: {"percent":50}' in done.err


def test_wait_with_json_prints_how_it_went(served):
    done = served("enqueue", "greet", "--wait", "--json")
    assert done.json["ms"] >= 0
    assert {**done.json, "id": "", "ms": 0} == {
        "id": "", "state": "completed", "result": {"hello": "world"}, "reason": None, "attempts": 1, "ms": 0,
    }  # fmt: skip


def test_wait_for_a_job_that_fails_gives_the_reason_and_exit_code_1(served):
    done = served("enqueue", "break", '{"order": 5}', "--wait")
    assert (done.code, done.out) == (1, "")
    assert "failed: order 5 is broken" in done.err
    assert "Hint: oxherd jobs show" in done.err
    assert "Traceback" not in done.err


def test_wait_for_a_job_that_had_ended_before_answers_at_once(served):
    job_id = f"once-{uuid.uuid4().hex}"
    served("enqueue", "greet", "--job-id", job_id, "--wait")
    done = served("enqueue", "greet", "--job-id", job_id, "--wait", "--timeout", "10s")
    assert (done.code, json.loads(done.out)) == (0, {"hello": "world"})


def test_wait_gives_up_after_its_timeout_and_the_job_stays(shell):
    done = shell("enqueue", "greet", "--wait", "--timeout", "300ms")
    assert (done.code, done.out) == (1, "")
    assert "has not ended within 0.3 s; it goes on" in done.err
    assert shell("jobs", "list", "--json").json["counts"]["wait"] == 1


def test_wait_ends_when_somebody_removes_the_job(shell):
    with shell.running("enqueue", "greet", "--wait") as waiting:
        job_id = waiting.stderr.readline().split()[-1]
        assert shell("jobs", "cancel", job_id).code == 0
        _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 1
    assert "was removed before it ended" in err


def test_wait_outlasts_an_outage_and_misses_nothing(own_valkey, queue_name, tmp_path):
    shell = Shell({"REDIS_URL": own_valkey.url, "JOB_QUEUE_NAME": queue_name}, tmp_path)
    with shell.running("enqueue", "greet", "--wait") as waiting:
        job_id = waiting.stderr.readline().split()[-1]
        own_valkey.kill()
        assert any("Redis is away" in line for line in iter(waiting.stderr.readline, ""))
        own_valkey.start()
        assert shell("jobs", "cancel", job_id).out == f"{job_id}  removed\n"
        _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 1
    assert "Redis is back" in err
    assert "was removed before it ended" in err


def test_ctrl_c_ends_the_waiting_with_130_and_no_traceback(shell):
    with shell.running("enqueue", "greet", "--wait") as waiting:
        waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, "")
    assert "Traceback" not in err


# -- jobs


def test_jobs_list_shows_states_and_counts(shell):
    shell("enqueue", "greet")
    shell("enqueue", "later", "--delay", "1h")
    done = shell("jobs", "list")
    head, first, second = done.out.splitlines()
    assert head.split() == ["ID", "NAME", "STATE", "ATTEMPTS", "ADDED", "TOOK", "REASON"]
    assert first.split()[1:4] == ["greet", "wait", "0/1"]
    assert second.split()[1:4] == ["later", "delayed", "0/1"]
    assert done.err == "1 wait · 1 delayed\n"


def test_jobs_list_can_be_narrowed(shell):
    for _ in range(3):
        shell("enqueue", "greet")
    shell("enqueue", "later", "--delay", "1h")
    assert [job["name"] for job in shell("jobs", "list", "--state", "delayed", "--json").json["jobs"]] == ["later"]
    assert len(shell("jobs", "list", "--limit", "2", "--json").json["jobs"]) == 2


def test_jobs_show_tells_all_there_is(served):
    job_id = served("enqueue", "greet", '{"name": "Ann"}', "--wait", "--json").json["id"]
    done = served("jobs", "show", job_id)
    assert f"id        {job_id}\nname      greet\nstate     completed\nattempts  1 of 1\n" in done.out
    assert 'payload   {"name":"Ann"}' in done.out
    assert 'result    {"hello":"Ann"}' in done.out
    assert "log:\ngreeting" in done.out
    job = served("jobs", "show", a_failed_job(served, order=1), "--json").json
    assert job["failed_reason"] == "order 1 is broken"
    assert "Fatal: order 1 is broken" in job["stacktrace"][0]


def test_a_job_that_is_not_there_is_exit_code_1(shell):
    done = shell("jobs", "show", "nope")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: no job nope on queue")


def test_jobs_retry_runs_a_failed_job_again(served):
    job_id = a_failed_job(served, order=2)
    with served.running("jobs", "tail", "--json") as tail:
        assert tail.stderr.readline().startswith("following queue")
        assert served("jobs", "retry", job_id).out == f"{job_id}  waiting\n"
        events = iter(tail.stdout.readline, "")
        assert any(json.loads(line)["event"] == "failed" for line in events if f'"{job_id}"' in line)


def test_one_job_that_refuses_does_not_keep_the_others_from_it(shell):
    job_id = shell("enqueue", "greet").out.strip()
    done = shell("jobs", "remove", "nope", job_id, "--json")
    assert done.code == 1
    assert [each["id"] for each in done.json] == ["nope", job_id]
    assert done.json[1] == {"id": job_id, "done": "removed"}
    assert "no job nope" in done.err


def test_jobs_cancel_stops_a_job_that_runs(served):
    with served.running("enqueue", "wait", "--wait") as waiting:
        job_id = waiting.stderr.readline().split()[-1]
        assert any("progress: " in line for line in iter(waiting.stderr.readline, ""))
        refused = served("jobs", "remove", job_id)
        assert refused.code == 1
        assert f"job {job_id} runs right now" in refused.err
        assert served("jobs", "cancel", job_id).out == f"{job_id}  stopping\n"
        _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 1
    assert "cancelled" in err


def test_dead_letters_are_grouped_and_replayed(served):
    for order in (10, 11):
        a_failed_job(served, order=order)
    groups = served("jobs", "dead", "--json").json
    group = next(group for group in groups if group["name"] == "break")
    assert group["count"] == len(group["ids"]) >= 2
    assert "order" in group["reason"]
    assert "break" in served("jobs", "dead").out
    done = served("jobs", "replay", "--name", "break", "--yes", "--json")
    assert sorted(done.json["replayed"]) == sorted(group["ids"])
    assert done.json["gone"] == []


def test_replay_of_chosen_jobs_refuses_one_that_is_no_dead_letter(served):
    job_id = a_failed_job(served, order=20)
    done = served("jobs", "replay", job_id, "nope", "--yes")
    assert done.code == 1
    assert "not among the dead letters: nope" in done.err
    assert served("jobs", "replay", job_id, "--yes").out == "1 put back\n"


def test_replay_asks_nobody_where_nobody_is(served):
    job_id = a_failed_job(served, order=30)
    done = served("jobs", "replay", job_id)
    assert done.code == 2
    assert "add --yes" in done.err


def test_a_delayed_job_is_promoted_and_runs(served):
    job_id = served("enqueue", "greet", "--delay", "1h").out.strip()
    assert served("jobs", "promote", "--begun", "--yes").out == "0 put on the queue\n"
    assert served("jobs", "promote", job_id).out == f"{job_id}  waiting\n"
    assert served("jobs", "tail", job_id).code == 0
    again = served("jobs", "promote", job_id)
    assert (again.code, again.err) == (1, f"Error: job {job_id} is not delayed\n")


def test_jobs_tail_names_the_jobs_and_ends_with_130(served):
    with served.running("jobs", "tail") as tail:
        tail.stderr.readline()
        served("enqueue", "greet", "--wait")
        line = next(line for line in iter(tail.stdout.readline, "") if " completed " in line)
        tail.send_signal(signal.SIGINT)
        _, err = tail.communicate(timeout=20)
    assert "greet" in line
    assert '{"hello":"world"}' in line
    assert (tail.returncode, err) == (130, "")


def test_a_job_is_followed_while_it_is_waited_for_and_again_afterwards(served):
    done = served("enqueue", "greet", '{"stream": true}', "--wait", "--stream", "--json")
    assert done.json["result"] == {"hello": "world"}
    assert 'progress: {"percent":50}\nlog: greeting\n' in done.err

    again = served("jobs", "tail", done.json["id"], "--json")
    entries = [json.loads(line) for line in again.out.splitlines()]
    assert [entry["type"] for entry in entries] == ["attempt", "progress", "log", "end"]
    rest = served("jobs", "tail", done.json["id"], "--json", "--from", entries[1]["id"])
    assert [json.loads(line) for line in rest.out.splitlines()] == entries[2:]


def test_following_a_job_that_fails_is_exit_code_1_with_its_reason(served):
    done = served("jobs", "tail", a_failed_job(served, order=7))
    assert (done.code, done.out) == (1, "")
    assert "failed: order 7 is broken" in done.err
    assert served("jobs", "tail", "nobody").code == 1


def test_a_reader_that_has_seen_enough_is_no_error(shell):
    for _ in range(3):
        shell("enqueue", "greet")
    command = f"{sys.executable} -m oxherd jobs list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["/bin/bash", "-c", command], env=shell.environ, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "0\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# -- gate


def test_a_closed_gate_keeps_jobs_waiting_until_it_opens(served):
    assert served("gate", "close", "--reason", "restoring").out == "closed: restoring\n"
    try:
        assert served("gate", "status", "--json").json == {"gate": "closed", "reason": "restoring"}
        job_id = served("enqueue", "greet").out.strip()
        done = served("enqueue", "greet", "--job-id", f"gate-{job_id}", "--wait", "--timeout", "500ms")
        assert done.code == 1
        assert served("jobs", "show", job_id, "--json").json["state"] == "wait"
    finally:
        assert served("gate", "open").out == "open\n"
    assert served("enqueue", "greet", "--job-id", f"gate-{job_id}", "--wait").code == 0
    assert served("gate", "status").out == "open\n"


# -- db


@pytest.fixture
def database(database_url, tmp_path) -> Shell:
    return Shell({"DATABASE_URL": database_url}, tmp_path)


def test_migrate_brings_an_empty_database_up_to_date_once(database):
    before = database("db", "status")
    assert before.code == 1
    assert "pending" in before.out
    applied = database("db", "migrate", "--json").json["applied"]
    assert applied == sorted(applied)
    assert applied
    assert database("db", "migrate").out == "nothing to do: the schema is up to date\n"
    after = database("db", "status", "--json")
    assert after.code == 0
    assert {each["state"] for each in after.json} == {"applied"}
    assert [each["name"] for each in after.json] == applied


def test_the_sql_for_an_editor_needs_no_variable_at_all(tmp_path):
    done = Shell({}, tmp_path)("db", "sql")
    assert done.code == 0
    assert "create table oxherd.runs" in done.out


def test_migrating_without_a_database_url_shows_the_other_way(tmp_path):
    done = Shell({"SUPABASE_URL": "https://x.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "k"}, tmp_path)("db", "migrate")
    assert done.code == 2
    assert "oxherd db sql" in done.err


def test_a_database_that_is_away_is_exit_code_3_without_its_password(tmp_path):
    done = Shell({"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x"}, tmp_path)("db", "status")
    assert done.code == 3
    assert "127.0.0.1" in done.err
    assert "hunter2" not in done.err
    assert "Traceback" not in done.err


# -- what goes wrong


def test_the_worker_refuses_to_start_and_lists_all_faults_at_once(tmp_path):
    variables = {"PORT": "http", "JOB_CONCURRENCY": "0", "ENCRYPTION_KEY": "hunter2", "LOG_LEVEL": "loud"}
    done = Shell(variables, tmp_path)("worker", "--app", "no_such_module")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: 6 variables are missing or malformed:\n")
    for name in (*variables, "REDIS_URL", "DATABASE_URL"):
        assert f"  - {name} " in done.err
    assert "hunter2" not in done.err


def test_without_a_store_the_worker_wants_to_hear_it_said(tmp_path):
    done = Shell({"REDIS_URL": NOBODY}, tmp_path)("worker")
    assert done.code == 2
    assert "--no-store" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("worker", "--no-store"),
        ("enqueue", "greet"),
        ("enqueue", "greet", "--wait"),
        ("jobs", "list"),
        ("jobs", "tail"),
        ("gate", "status"),
    ],
    ids=" ".join,
)
def test_redis_that_is_away_is_exit_code_3(words, tmp_path):
    done = Shell({"REDIS_URL": NOBODY, "PORT": "0"}, tmp_path)(*words)
    assert done.code == 3
    assert "can't reach Redis at redis://127.0.0.1:1/0" in done.err
    assert "Traceback" not in done.err


def test_debug_shows_where_an_error_came_from(tmp_path):
    done = Shell({"REDIS_URL": NOBODY}, tmp_path)("--debug", "jobs", "list")
    assert done.code == 3
    assert "Traceback" in done.err


def app_fault(tmp_path: Path, source: str, app: str = "broken_app:herd") -> Done:
    (tmp_path / "broken_app.py").write_text(source)
    return Shell({"REDIS_URL": NOBODY}, tmp_path)("worker", "--no-store", "--app", app)


def test_an_app_that_is_not_there_shows_where_was_searched(tmp_path):
    done = app_fault(tmp_path, "", app="nowhere.jobs:herd")
    assert done.code == 2
    assert "no module 'nowhere'" in done.err
    assert f"\n  {tmp_path}\n" in done.err


def test_an_app_that_fails_shows_its_real_cause(tmp_path):
    done = app_fault(tmp_path, "value = {}['missing key']")
    assert done.code == 2
    assert "KeyError: 'missing key'" in done.err
    assert "broken_app.py" in done.err


def test_an_app_that_imports_what_is_not_installed_names_it(tmp_path):
    done = app_fault(tmp_path, "import no_such_library")
    assert done.code == 2
    assert "broken_app imports 'no_such_library', which is not installed" in done.err


@pytest.mark.parametrize(("source", "found"), [("herd = 5", "a int"), ("other = 5", "nothing")])
def test_an_app_whose_herd_is_none_says_what_was_found(tmp_path, source, found):
    done = app_fault(tmp_path, source)
    assert done.code == 2
    assert f"herd must be a Herd, it is {found}" in done.err


def test_a_port_that_is_taken_is_named(redis_url, valkey, tmp_path):
    taken = valkey.url.rpartition(":")[2].partition("/")[0]
    variables = {"REDIS_URL": redis_url, "HOST": "127.0.0.1", "PORT": taken}
    done = Shell(variables, tmp_path)("worker", "--no-store")
    assert done.code == 2
    assert f"can't listen on 127.0.0.1:{taken}" in done.err


def test_the_worker_drains_on_sigterm_and_ends_with_0(served):
    with worker(served) as another:
        process = another._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux only")
def test_a_worker_child_dies_with_its_parent(served):
    script = f"""
from pathlib import Path
from oxherd.ops.child import WorkerProcess
variables = {{**{served.variables!r}, "HOST": "127.0.0.1", "PORT": "{free_port()}"}}
worker = WorkerProcess(variables, app="served_app:herd", log=Path("child.log"))
worker.start()
worker.wait_until_healthy()
print(worker._process.pid, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=served.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    ) as parent:  # fmt: skip
        watched = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    gone, _, _ = select.select([watched], [], [], 15)
    os.close(watched)
    assert gone
