import asyncio
import dataclasses
import errno
import io
import json
import logging
import re
import subprocess
import sys
import threading
import timeit
import warnings

import pytest

from oxherd.settings import Secret
from oxherd.telemetry import events, logs
from oxherd.telemetry.events import catalogue, emit

HIDDEN = "hunter-two"


class Terminal(io.BytesIO):
    def isatty(self):
        return True


@pytest.fixture
def log():
    """Configure logging into a sink of the test's, and put it back afterwards."""
    stops = []

    def configure(level="debug", style="json", *, sink=None, secrets=()):
        sink = sink or io.BytesIO()
        stops.append(logs.configure(level, style, sink=sink, secrets=[Secret(text) for text in secrets]))
        return sink

    yield configure
    for stop in stops:
        stop()


def records(sink):
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def text(sink):
    return sink.getvalue().decode()


@pytest.mark.parametrize("kind", catalogue(), ids=lambda kind: kind.name)
def test_every_event_has_a_line_with_all_its_fields(log, sample, kind):
    sink = log()
    event = sample(kind)
    emit(event)
    record = records(sink)[-1]
    assert list(record)[:4] == ["message", "level", "time", "event"]
    assert record["message"].startswith(f"[{kind.name.split('.')[0]}] ")
    assert record["event"] == kind.name
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", record["time"])
    told = set(record) | set(records(sink)[0])
    assert set(logs.FIELDS[kind]) <= told


OTHER = {"text": "another text", 3: 4000, 1.5: 2500.0, True: False}


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, line in logs.LINES.items() for field in sorted(line.told)]
)
def test_a_field_that_pretty_lines_leave_out_is_told_by_the_words(sample, kind, field):
    event = sample(kind)
    changed = sample(kind, **{field: OTHER[getattr(event, field)]})
    assert logs.LINES[kind].words(event) != logs.LINES[kind].words(changed)


def test_the_worker_says_its_facts_and_then_the_line_that_deploys_wait_for(log, sample):
    sink = log()
    emit(sample(events.WorkerStarted, queue="agent-jobs", concurrency=5, commit="0123456789"))
    facts, started = records(sink)
    assert facts["event"] == "worker.facts"
    assert "(0123456)" in facts["message"]
    assert facts["handlers"] == ["agent.run", "oxherd.echo"]
    assert started["message"] == "[worker] Started processing jobs from queue: agent-jobs"
    assert started["level"] == "info"
    assert started["concurrency"] == 5


def test_the_line_that_deploys_wait_for_is_the_same_on_a_terminal(log, sample):
    sink = log("info", "auto", sink=Terminal())
    emit(sample(events.WorkerStarted, queue="agent-jobs", concurrency=5))
    last = re.sub(r"\x1b\[\d*m", "", text(sink)).splitlines()[-1]
    assert last.endswith("[worker] Started processing jobs from queue: agent-jobs  concurrency=5")


def test_a_job_has_one_line_with_everything_about_its_end(log, job_ended):
    sink = log("info")
    emit(job_ended())
    (record,) = records(sink)
    del record["time"]
    assert record == {
        "message": "[job] support.reply 42 completed in 1.2 s",
        "level": "info",
        "event": "job.ended",
        "job": "support.reply",
        "id": "42",
        "attempt": 1,
        "attempts": 3,
        "outcome": "completed",
        "kind": "",
        "wait_ms": 12,
        "run_ms": 1234.5,
        "total_ms": 1250,
        "tokens": 812,
        "cost_usd": 0.0012,
        "reason": "",
    }


def test_a_job_s_pretty_line_tells_nothing_twice_and_nothing_empty(log, job_ended):
    sink = log("info", "pretty")
    emit(job_ended(tokens=0, cost_usd=None))
    line = text(sink).split(maxsplit=1)[1]
    assert line == (
        "info    [job] support.reply 42 completed in 1.2 s  attempt=1 attempts=3 wait_ms=12 total_ms=1250\n"
    )


@pytest.mark.parametrize(("finished", "words"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs")])
def test_one_job_is_not_called_jobs(log, sample, finished, words):
    sink = log()
    emit(sample(events.WorkerStopped, finished=finished))
    assert records(sink)[0]["message"] == f"[worker] Stopped: {words} finished, 3 handed back"


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        ("completed", "info"),
        ("retried", "info"),
        ("delayed", "info"),
        ("handed_back", "info"),
        ("parked", "info"),
        ("failed", "warning"),
        ("lease_lost", "warning"),
    ],
)
def test_a_job_that_failed_or_lost_its_lease_is_a_warning(log, job_ended, outcome, level):
    sink = log("info")
    emit(job_ended(outcome=outcome, reason="because"))
    (record,) = records(sink)
    assert record["level"] == level
    assert record["message"].endswith(f"{outcome.replace('_', ' ')} in 1.2 s: because")


@pytest.mark.parametrize(("ms", "shown"), [(0.4, "0 ms"), (830, "830 ms"), (59_949, "59.9 s"), (125_000, "2 min 5 s")])
def test_a_duration_is_shown_in_the_unit_a_person_would_use(log, job_ended, ms, shown):
    sink = log()
    emit(job_ended(run_ms=ms))
    assert records(sink)[0]["message"].endswith(f" in {shown}")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_only_events_at_least_as_severe_as_the_level_are_logged(log, sample, job_ended, level):
    sink = log(level)
    ranks = ["debug", "info", "warning", "error"]
    loud = [kind for kind in catalogue() if ranks.index(kind.level) >= ranks.index(level)]
    for kind in catalogue():
        emit(job_ended() if kind is events.JobEnded else sample(kind))
    logged = [record["event"] for record in records(sink) if record["event"] != "worker.facts"]
    assert logged == [kind.name for kind in loud]


def test_events_below_the_level_have_no_subscriber(log):
    log("warning")
    subscribed = {kind for kind, subscribers in events._subscribers.items() if subscribers}
    assert events.JobStarted not in subscribed
    assert events.WorkerStarted not in subscribed
    assert events.JobEnded in subscribed


def test_a_failed_job_is_logged_at_warning_and_a_completed_one_is_not_even_formatted(log, job_ended, monkeypatch):
    sink = log("warning")
    emit(job_ended(outcome="failed"))
    monkeypatch.setattr(logs, "_record", None)
    emit(job_ended())
    assert [record["outcome"] for record in records(sink)] == ["failed"]


def test_stopping_silences_everything_and_puts_python_s_logging_back(sample):
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    sink = io.BytesIO()
    stop = logs.configure("debug", "json", sink=sink)
    stop()
    emit(sample(events.JobStalled))
    assert sink.getvalue() == b""
    assert (list(root.handlers), root.level) == before


@pytest.mark.parametrize("style", ["json", "pretty"])
@pytest.mark.parametrize("kind", catalogue(), ids=lambda kind: kind.name)
def test_a_known_secret_is_hidden_in_every_field_of_every_event(log, sample, kind, style):
    sink = log("debug", style, secrets=[HIDDEN])
    usual = {field.name: getattr(sample(kind), field.name) for field in dataclasses.fields(kind)}
    texts = {name: f"a {HIDDEN} b" for name, value in usual.items() if isinstance(value, str)}
    lists = {name: (HIDDEN,) for name, value in usual.items() if isinstance(value, tuple)}
    emit(sample(kind, **texts, **lists))
    assert HIDDEN not in text(sink)
    assert "***" in text(sink) or not texts


@pytest.mark.parametrize("style", ["json", "pretty"])
@pytest.mark.parametrize(
    "secret", ['quo"ted', "back\\slash", "new\nline", "ümläut", "p@ss:w/rd", "tab\tbed", "\udcffodd"]
)
def test_a_secret_with_special_characters_is_hidden_too(log, job_ended, secret, style):
    sink = log("debug", style, secrets=[secret])
    emit(job_ended(outcome="failed", reason=f"could not log in with {secret}!"))
    assert "could not log in with ***!" in text(sink)


def test_a_percent_encoded_secret_is_hidden(log, job_ended):
    sink = log(secrets=["p@ss:word"])
    emit(job_ended(reason="redis://u:p%40ss%3Aword@host refused"))
    assert "redis://u:***@host refused" in text(sink)


def test_the_longest_of_overlapping_secrets_is_hidden_as_one(log, job_ended):
    sink = log(secrets=["pass", "postgres://u:pass@h/db"])
    emit(job_ended(reason="postgres://u:pass@h/db"))
    assert records(sink)[0]["reason"] == "***"


def test_a_secret_that_is_an_everyday_word_spoils_no_fixed_text(log, sample):
    sink = log(secrets=["worker", "message", "jobs"])
    emit(sample(events.WorkerStarted, queue="agent-queue"))
    emit(sample(events.WorkerWarned, message="the worker has a message"))
    _, started, warned = records(sink)
    assert started["message"] == "[worker] Started processing jobs from queue: agent-queue"
    assert warned["event"] == "worker.warned"
    assert warned["message"] == "[worker] the *** has a ***"


def test_a_very_short_secret_is_hidden_only_as_a_whole_value(log, job_ended):
    sink = log(secrets=["ab"])
    emit(job_ended(job="ab", reason="cabbage"))
    assert (records(sink)[0]["job"], records(sink)[0]["reason"]) == ("***", "cabbage")


def test_a_secret_met_while_running_is_hidden_from_then_on_also_in_what_libraries_log(log, job_ended):
    sink = log()
    logs.hide(Secret("met-while-running"))
    emit(job_ended(outcome="failed", reason="no: met-while-running"))
    logging.getLogger("library").warning("key met-while-running")
    assert "met-while-running" not in text(sink)
    assert "no: ***" in text(sink)


def test_of_the_secrets_met_while_running_those_last_used_are_hidden():
    redactor = logs.Redactor(most=3)
    for name in ("first", "second", "third", "first", "fourth"):
        redactor.learn(Secret(f"the-{name}-key"))
    hidden = redactor.text("the-first-key the-second-key the-third-key the-fourth-key")
    assert hidden == "*** the-second-key *** ***"


@pytest.mark.parametrize(
    "value",
    ["-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n", "tab\tbed 'quoted' \x07", 'Grüße "an" alle\\\\'],
)
def test_a_secret_of_several_lines_or_odd_characters_is_hidden_in_any_form(value):
    redactor = logs.Redactor([Secret(value)])
    for shown in (
        value,
        repr(value),
        f"{ValueError(value)!r}",
        json.dumps({"key": value}),
        f"near {value.splitlines()[-1]}",
    ):
        hidden = redactor.text(shown)
        assert "***" in hidden
        assert not any(line in hidden for line in value.splitlines())


def test_five_hundred_secrets_cost_a_line_little():
    redactor = logs.Redactor((Secret(f"sk-live-{number:032}") for number in range(500)), most=500)
    line = b'{"message": "[job] support.reply 42 completed in 1.2 s"}' * 4
    assert min(timeit.repeat(lambda: redactor.suspects(line), number=20, repeat=5)) / 20 < 0.001


def test_a_value_of_the_secret_type_needs_no_registration(log, job_ended):
    sink = log()
    emit(job_ended(job=Secret(HIDDEN), reason=f"the key {Secret(HIDDEN)} expired"))
    logging.getLogger("library").warning("key %s %r", Secret(HIDDEN), Secret(HIDDEN))
    assert HIDDEN not in text(sink)
    assert records(sink)[0]["job"] == "***"


def test_what_libraries_log_comes_out_in_the_same_form(log):
    sink = log("info")
    logging.getLogger("some.library").warning("disk is %d%% full", 91)
    logging.getLogger("some.library").debug("never mind")
    (record,) = records(sink)
    assert record["message"] == "disk is 91% full"
    assert (record["level"], record["event"], record["logger"]) == ("warning", "log", "some.library")


@pytest.mark.parametrize(("level", "logged"), [("debug", 2), ("info", 1), ("error", 0)])
def test_what_uvicorn_says_of_its_own_start_is_kept_for_debugging(log, level, logged):
    sink = log(level)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received")
    assert len(records(sink)) == logged


@pytest.mark.parametrize(
    ("rank", "level"),
    [(5, "debug"), (10, "debug"), (20, "info"), (25, "info"), (30, "warning"), (40, "error"), (50, "error")],
)
def test_levels_of_libraries_are_mapped_to_ours(log, rank, level):
    sink = log()
    logging.getLogger("library").setLevel(1)
    logging.getLogger().setLevel(1)
    logging.getLogger("library").log(rank, "x")
    assert records(sink)[0]["level"] == level


def test_secrets_in_what_libraries_log_are_hidden_in_message_and_stack(log):
    sink = log(secrets=[HIDDEN])
    try:
        raise ValueError(f"bad password {HIDDEN}")
    except ValueError:
        logging.getLogger("library").exception("login as %s failed", HIDDEN)
    (record,) = records(sink)
    assert HIDDEN not in text(sink)
    assert record["message"] == "login as *** failed"
    assert "ValueError: bad password ***" in record["stack"]


def test_a_library_s_broken_format_string_is_still_a_line(log):
    sink = log()
    logging.getLogger("library").warning("%d things", "many")
    assert records(sink)[0]["message"] == "%d things ('many',)"


def test_python_s_warnings_become_lines(log):
    sink = log()
    warnings.warn("old and tired", DeprecationWarning, stacklevel=1)
    assert "old and tired" in records(sink)[0]["message"]


def test_a_pretty_stack_is_indented_below_its_line(log, sample):
    sink = log("debug", "pretty")
    emit(sample(events.LoopBlocked, seconds=1.25, stack="File a\n  line 1"))
    assert text(sink).splitlines()[-3].endswith("[loop] Event loop blocked, so far for 1.25 s, by:")
    assert text(sink).splitlines()[-2:] == ["    File a", "      line 1"]


def test_text_from_a_job_can_neither_forge_a_line_nor_steer_the_terminal(log, job_ended):
    sink = log("debug", "pretty")
    emit(job_ended(reason="x\n12:00:00 info [job] forged\r\x1b[2J\x9b0m"))
    assert len(text(sink).splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text(sink))


def test_colours_are_for_terminals_only(log, sample):
    plain, coloured = log("debug", "pretty"), log("debug", "auto", sink=Terminal())
    emit(sample(events.JobStalled))
    assert "\x1b[" not in text(plain)
    assert "\x1b[33m" in text(coloured)


def test_text_that_is_no_unicode_is_escaped_and_not_fatal(log, job_ended):
    as_json, pretty = log(), log("debug", "pretty")
    emit(job_ended(outcome="failed", reason="half \ud83d of an emoji"))
    assert records(as_json)[0]["reason"] == r"half \ud83d of an emoji"
    assert r"half \ud83d of an emoji" in text(pretty)


def test_an_endless_text_is_cut(log, job_ended):
    sink = log()
    emit(job_ended(outcome="failed", reason="x" * 1_000_000))
    logging.getLogger("library").warning("y" * 1_000_000)
    assert len(sink.getvalue()) < 40_000
    assert records(sink)[0]["reason"].endswith("… (1000000 characters)")


def test_while_redis_refuses_everything_there_is_one_line_a_second(log, sample, monkeypatch):
    sink = log()
    now = 100.0
    monkeypatch.setattr(logs, "mono", lambda: now)
    for _ in range(5_000):
        emit(sample(events.RedisRefusedCommand, code="OOM"))
    emit(sample(events.RedisRefusedCommand, code="BUSY"))
    now = 101.0
    emit(sample(events.RedisRefusedCommand, code="OOM"))
    emit(sample(events.RedisRefusedCommand, code="OOM"))
    assert [(r["code"], r["unlogged"]) for r in records(sink)] == [("OOM", 0), ("BUSY", 0), ("OOM", 4_999)]


def test_an_event_that_makes_no_line_is_reported_and_stops_nobody(log, sample):
    sink = log()
    emit(sample(events.LeasesLate, seconds="a word where a number belongs"))
    (record,) = records(sink)
    assert record["level"] == "error"
    assert record["message"].startswith("[log] No line for lease.late: ValueError: ")


class Full(io.BytesIO):
    def write(self, line):
        raise OSError(errno.ENOSPC, "no space left on device")


class Slow(io.BytesIO):
    def write(self, line):
        return super().write(line[:7])


class Busy(io.BytesIO):
    def write(self, line):
        return None


@pytest.mark.parametrize("sink", [Full(), Busy()])
def test_a_sink_that_takes_nothing_costs_lines_and_never_jobs(log, job_ended, sink):
    log(sink=sink)
    emit(job_ended())


def test_a_sink_that_takes_a_few_bytes_at_a_time_gets_them_all(log, job_ended):
    sink = log(sink=Slow())
    emit(job_ended())
    assert records(sink)[0]["id"] == "42"


def test_lines_of_several_threads_do_not_mix(log, job_ended):
    sink = log(sink=Slow())
    threads = [threading.Thread(target=lambda: [emit(job_ended()) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records(sink)) == 200


def test_lines_go_to_stdout_as_json_where_nobody_is_watching():
    code = "from oxherd.telemetry import events, logs\nlogs.configure()\nevents.emit(events.JobStalled(id='7'))\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["id"] == "7"
    assert run.stderr == ""


def test_logging_imports_nothing_heavy():
    code = "import sys, oxherd.telemetry.logs as _; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"structlog", "rich", "pydantic", "asyncio"} & set(run.stdout.split())


def test_a_job_s_line_is_cheap(log, job_ended):
    with open("/dev/null", "wb", buffering=0) as sink:  # noqa: PTH123  unbuffered, as stdout is
        log("info", "json", sink=sink, secrets=[f"a-secret-of-some-length-{n}" for n in range(6)])
        event = job_ended()
        seconds = min(timeit.repeat(lambda: emit(event), number=1000, repeat=10)) / 1000
    assert seconds < 40e-6  # about 5 µs on an idle machine; the margin is for a busy one


class Counting(io.BytesIO):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def write(self, line):
        if line:
            self.sizes.append(len(line))
        return super().write(line)


async def test_jobs_that_end_in_one_turn_of_the_loop_share_writes_that_no_pipe_tears(log, job_ended):
    sink = log(sink=Counting())
    for number in range(40):
        emit(job_ended(id=str(number)))
    await asyncio.sleep(0)
    assert [record["id"] for record in records(sink)] == [str(number) for number in range(40)]
    assert len(sink.sizes) < 8
    assert max(sink.sizes) <= 4096


async def test_a_line_that_tells_more_does_not_wait_and_comes_after_those_that_did(log, job_ended):
    sink = log()
    emit(job_ended(id="1"))
    emit(job_ended(id="2", outcome="failed"))
    emit(job_ended(id="3"))
    logging.getLogger("library").warning("hello")
    assert [record.get("id") for record in records(sink)] == ["1", "2", "3", None]


async def test_what_waits_is_written_when_logging_ends(job_ended):
    sink = io.BytesIO()
    stop = logs.configure("info", "json", sink=sink)
    emit(job_ended(id="1"))
    stop()
    assert [record["id"] for record in records(sink)] == ["1"]
