"""Whatever a producer, or a hand in Redis, puts on the queue: it fails with a reason, the worker goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from process import Start
from stage import Stage

from oxherd.context import Context
from oxherd.telemetry.events import InternalFault

BAD_DATA = {
    "no JSON": (b"{oops", "is not JSON"),
    "nothing": (b"", "is not JSON"),
    "half a text": (b'{"a": "', "is not JSON"),
    "invalid UTF-8": (b'{"email": "\xff\xfe"}', "is not JSON"),
    "half a pair": (b'{"email": "\\ud800"}', "is not JSON"),
    "NaN": (b'{"email": NaN}', "is not JSON"),
    "an array": (b"[1, 2]", "must be a JSON object, it is an array"),
    "a string": (b'"text"', "must be a JSON object, it is a string"),
    "a number": (b"1e400", "payload"),
    "null": (b"null", "must be a JSON object, it is null"),
    "a bomb": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "payload"),
    "a wrong type": (b'{"email": 7, "age": 3}', "email"),
    "a missing field": (b'{"age": 3}', "email"),
    "far too much": (b'{"email": "' + b"x" * 11_000_000 + b'"}', "at most 10,000,000"),
}
ODD_FIELDS = {
    "opts that are no JSON": {"opts": b"{oops"},
    "opts that are no object": {"opts": b"[1]"},
    "attempts that are a text": {"opts": b'{"attempts": "many"}'},
    "attempts below zero": {"opts": b'{"attempts": -3}'},
    "a fraction to keep": {"opts": b'{"removeOnComplete": 3.5}'},
    "an odd age to keep": {"opts": b'{"removeOnComplete": {"age": "old", "count": null}}'},
    "a negative count to keep": {"opts": b'{"removeOnComplete": -7, "removeOnFail": -7}'},
    "odd switches": {"opts": b'{"fpof": "yes", "lifo": {}, "kl": "many", "stackTraceLimit": "none"}'},
    "numbers that are none": {"timestamp": b"soon", "delay": b"late", "priority": b""},
    "a stack trace that is none": {"stacktrace": b"{}"},
    "a scheduler that is none": {"rjk": b"gone"},
}
ODD_FAILURES = {
    "backoff of an unknown kind": b'{"attempts": 2, "backoff": {"type": "moon", "delay": 1}}',
    "backoff without a number": b'{"attempts": 2, "backoff": {"type": "exponential", "delay": "long"}}',
    "backoff below zero": b'{"attempts": 2, "backoff": -5}',
    "backoff that is a list": b'{"attempts": 2, "backoff": [1]}',
    "stack traces without end": b'{"attempts": 2, "stackTraceLimit": 99999999999, "backoff": 1}',
    "odd things to keep": b'{"removeOnFail": {"age": -1, "count": "x", "limit": {}}}',
}


@dataclass
class Person:
    email: str
    age: int = 0


async def greet(ctx: Context, payload: Person) -> str:
    return f"hello {payload.email}"


async def ok(ctx: Context, payload: dict[str, Any]) -> str:
    return "ok"


async def fails(ctx: Context, payload: dict[str, Any]) -> None:
    raise ValueError("as always")


async def add_raw(stage: Stage, handler: str, **fields: bytes) -> str:
    """Add a job, and write into its hash what no library of ours would."""
    await stage.admin.close_gate("not yet")
    job = await stage.add(handler, {"email": "a@b"})
    for field, value in fields.items():
        await stage.link.call(b"HSET", stage.keys.job(job), field.encode(), value)
    return job


@pytest.mark.parametrize("recorded", [False, True], ids=["", "recorded"])
async def test_data_that_does_not_fit_fails_once_and_says_why(stage: Stage, runs_url: str, recorded: bool):
    from oxherd.store.postgres import PostgresStore

    jobs = {name: await add_raw(stage, "greet", data=data) for name, (data, _) in BAD_DATA.items()}
    store = PostgresStore(runs_url) if recorded else None
    if store is not None:
        await store.start()
    worker = await stage.worker({"greet": greet, "ok": ok}, store=store)
    await stage.admin.open_gate()
    healthy = await stage.add("ok")
    await stage.settle_ledger(*jobs.values(), healthy, failed=len(jobs))
    for name, (_, reason) in BAD_DATA.items():
        shown = await stage.job(jobs[name])
        assert reason in shown["failed_reason"], name
        assert shown["attempts_made"] == 1, "retrying would not help"
        assert len(shown["failed_reason"]) < 1_000, "it must not repeat the payload"
    assert not stage.happened.all(InternalFault)
    assert worker.taking
    await worker.stop()
    if store is not None:
        await store.stop()


async def test_fields_that_are_odd_count_as_unset(stage: Stage):
    jobs = {name: await add_raw(stage, "greet", **fields) for name, fields in ODD_FIELDS.items()}
    worker = await stage.worker({"greet": greet})
    await stage.admin.open_gate()
    await stage.settle_ledger(*jobs.values())
    assert not stage.happened.all(InternalFault)
    assert worker.taking


async def test_jobs_that_fail_with_odd_options_fail_like_others(stage: Stage):
    jobs = {name: await add_raw(stage, "fails", opts=opts) for name, opts in ODD_FAILURES.items()}
    worker = await stage.worker({"fails": fails})
    await stage.admin.open_gate()
    await stage.settle_ledger(*jobs.values(), failed=len(jobs))
    assert not stage.happened.all(InternalFault)
    assert worker.taking


async def test_names_and_ids_that_nobody_expects(stage: Stage):
    k = stage.keys
    named = [await add_raw(stage, "ok", name=name) for name in (b"", b"\xff\xfe", b"nobody's", b"x" * 100_000)]
    await stage.link.call(b"LPUSH", k.wait, b"a ghost without a hash")
    await stage.link.call(b"LPUSH", k.wait, b"\xff\xfe")
    await stage.link.call(b"HSET", k.base + b"\xff\xfe", b"name", b"ok", b"data", b"{}", b"opts", b"{}")
    worker = await stage.worker({"ok": ok})
    await stage.admin.open_gate()
    healthy = await stage.add("ok")
    assert await stage.finished(*named, "a ghost without a hash") == ["failed"] * 5
    assert await stage.finished("\ufffd\ufffd", healthy) == ["completed", "completed"]
    for job in named:
        assert "no handler for job name" in (await stage.job(job))["failed_reason"]
        assert len((await stage.job(job))["failed_reason"]) < 5_000
    assert not stage.happened.all(InternalFault)
    assert worker.taking


async def test_an_id_that_is_no_text_keeps_its_lease_and_is_recovered_like_others(stage: Stage):
    k = stage.keys
    raw = k.base + b"\xff"
    await stage.link.call(b"HSET", raw, b"name", b"ok", b"data", b"{}", b"opts", b"{}")
    await stage.link.call(b"LPUSH", k.active, b"\xff")  # its worker died
    worker = await stage.worker({"ok": ok})
    assert await stage.finished("\ufffd") == ["completed"]
    assert await stage.link.call(b"HGET", raw, b"stc") == b"1"
    assert not stage.happened.all(InternalFault)
    assert worker.taking


async def test_an_id_that_waits_twice_is_finished_once(stage: Stage):
    """A duplicate in the list: the second fetch takes the lease, so only one of the two may finish the job."""
    jobs = [await add_raw(stage, "ok") for _ in range(3)]
    await stage.link.call(b"LPUSH", stage.keys.wait, jobs[0].encode())
    await stage.link.call(b"LPUSH", stage.keys.wait, jobs[0].encode())
    worker = await stage.worker({"ok": ok})
    await stage.admin.open_gate()
    await stage.finished(*jobs)
    healthy = await stage.add("ok")
    await stage.finished(healthy)
    assert (await stage.admin.counts())["completed"] == 4
    assert not stage.happened.all(InternalFault)
    assert worker.taking


async def test_the_same_job_id_given_twice_is_one_job(stage: Stage):
    await stage.worker({"ok": ok})
    first = await stage.add("ok", jobId="order-7")
    second = await stage.add("ok", jobId="order-7")
    await stage.finished(first)
    third = await stage.add("ok", jobId="order-7")
    assert first == second == third == "order-7"
    healthy = await stage.add("ok")
    await stage.settle_ledger(first, healthy)


async def test_noise_on_the_control_channel_is_ignored(stage: Stage):
    worker = await stage.worker({"ok": ok})
    for noise in (b"", b"\xff\xfe", b"cancel", b"cancel nobody", b"gate", b"gate ajar", b"dance now"):
        await stage.link.call(b"PUBLISH", stage.keys.control, noise)
    job = await stage.add("ok")
    await stage.settle_ledger(job)
    assert worker.control._link.is_up
    assert worker.control._link.reconnects == 0


async def test_a_huge_result_and_a_huge_backlog_of_logs_pass(stage: Stage):
    async def big(ctx: Context, payload: dict[str, Any]) -> str:
        await ctx.log("y" * 1_000_000)
        await ctx.progress({"text": "z" * 1_000_000})
        return "x" * 20_000_000

    await stage.worker({"big": big}, lock_ms=10_000)
    job = await stage.add("big")
    await stage.settle_ledger(job)
    assert len((await stage.job(job))["returnvalue"]) == 20_000_000


async def test_bad_jobs_do_not_end_a_worker_process_or_its_log(stage: Stage, start: Start, runs_url: str):
    jobs = [await add_raw(stage, "ok", data=data) for data, _ in BAD_DATA.values() if len(data) < 1_000_000]
    jobs += [await add_raw(stage, "ok", name=name) for name in (b"\xff\xfe", b"line\nbreak", b"\x00\x1b[31m")]
    worker = await start(database_url=runs_url)
    await stage.admin.open_gate()
    healthy = await stage.add("ok")
    await stage.finished(*jobs, healthy)
    for job in jobs:
        await worker.said("job.ended", id=job)
    assert not [line for line in worker.lines if line["event"] in ("?", "worker.fault")], worker.story()
    await worker.health(200)
