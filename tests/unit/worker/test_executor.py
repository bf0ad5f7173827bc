from __future__ import annotations

import asyncio
import base64
import threading
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import AfterValidator

from oxherd.codec import encode
from oxherd.context import Context, Step, _digest
from oxherd.errors import Fatal, JobCancelled, LeaseLost, RetryLater, WaitForChildren
from oxherd.job import Delay, Done, Drop, Fail, HandBack, Job, Park, Retry
from oxherd.queue.consumer import STALLED_TOO_OFTEN
from oxherd.settings import Secret
from oxherd.store import Begun, RunRecord
from oxherd.telemetry.logs import _learned
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import seal_field
from oxherd.vault.vault import NO_VAULT, Vault
from oxherd.worker.executor import Executor, Interrupted, Running
from oxherd.worker.handlers import make_handler

NO_ARGUMENTS = _digest((), {})


class Records:
    """A store that keeps what it is told and answers what it is set to."""

    kind = "memory"
    waiting = 0
    away_seconds = 0.0

    def __init__(self, begun: Begun | None = None, *, allowed: bool = True) -> None:
        self.runs: list[RunRecord] = []
        self.steps: list[Step] = []
        self.begun = begun
        self.allowed = allowed

    async def begin(self, run: RunRecord) -> Begun:
        self.runs.append(run)
        assert self.begun is not None
        return self.begun

    async def record(self, run: RunRecord) -> bool:
        self.runs.append(run)
        return self.allowed

    async def save_step(self, run_id: str, fence: int, step: Step, *, attempt_started_at: int = 0) -> bool:
        self.steps.append(step)
        return self.allowed


def hinted(text: str) -> Fatal:
    return Fatal(text, hint=text)


def no_card(card: str) -> str:
    raise ValueError(f"{card} is no card")


@dataclass
class Payment:
    card: Annotated[str, AfterValidator(no_card)]


class Lines(list):
    """What jobs log."""

    async def add_log(self, job: Job, text: str) -> None:
        self.append(text)


def executor(function, *, store=None, timeout=0.0, idle_timeout=0.0, retries=0, vault=NO_VAULT, hide=str) -> Executor:
    handlers = {"a": make_handler("a", function, retries=retries)}

    async def no_agents(*_: Any) -> None: ...

    return Executor(
        handlers, store=store, wire=Lines(), runner=no_agents, vault=vault, worker="w", queue="q",
        timeout=timeout, idle_timeout=idle_timeout, threads=4, hide=hide, crash_limit=2,
    )  # fmt: skip


def running(raw: bytes = b"{}", **fields: Any) -> Running:
    return Running(Job(id="1", name=fields.pop("name", "a"), raw=raw, opts=fields.pop("opts", {}), token="t", **fields))


def handler(answer: Any):
    async def run(ctx: Context, payload: dict[str, Any]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return run


@pytest.mark.parametrize(
    ("answer", "outcome", "status"),
    [
        ({"ok": 1}, Done, "completed"),
        (None, Done, "completed"),
        (ValueError("x"), Fail, "failed"),
        (Fatal("x"), Fail, "failed"),
        (RetryLater(3), Delay, "delayed"),
        (WaitForChildren(), Park, "parked"),
        (object(), Fail, "failed"),
    ],
)
async def test_every_way_to_end_is_recorded_before_the_queue_is_told(answer, outcome, status):
    store = Records()
    assert isinstance(await executor(handler(answer), store=store).execute(running()), outcome)
    assert [run.status for run in store.runs] == [status]


async def test_a_result_that_json_can_not_hold_is_a_clear_failure():
    outcome = await executor(handler(object())).execute(running())
    assert isinstance(outcome, Fail)
    assert "can't be written as JSON" in outcome.reason


async def test_a_retry_is_recorded_as_one():
    store = Records()
    outcome = await executor(handler(ValueError("x")), store=store).execute(running(opts={"attempts": 2}))
    assert isinstance(outcome, Retry)
    assert store.runs[0].status == "retrying"
    assert store.runs[0].error == "ValueError: x"


async def test_a_fenced_write_drops_the_job():
    assert await executor(handler(1), store=Records(allowed=False)).execute(running()) == Drop()


async def test_a_result_that_an_earlier_process_stored_is_returned_without_running():
    called = []

    async def run(ctx: Context, payload: dict[str, Any]) -> None:
        called.append(1)

    store = Records(Begun(allowed=True, output='{"answer":42}', steps=()))
    outcome = await executor(run, store=store).execute(running(attempts_started=2))
    assert outcome == Done(b'{"answer":42}')
    assert not called


async def test_a_later_attempt_gets_finished_steps_from_the_journal():
    async def run(ctx: Context, payload: dict[str, Any]) -> Any:
        return [await ctx.step("paid", lambda: "again"), await ctx.step("new", lambda: "fresh")]

    paid = Step("paid", NO_ARGUMENTS, b'"once"', "step", None, 1, 0, 1.0)
    store = Records(Begun(allowed=True, output=None, steps=[paid]))
    assert await executor(run, store=store).execute(running(attempts_started=2)) == Done(b'["once","fresh"]')
    assert [step.key for step in store.steps] == ["new"]


async def test_an_attempt_that_was_overtaken_does_not_run():
    called = []

    async def run(ctx: Context, payload: dict[str, Any]) -> None:
        called.append(1)

    store = Records(Begun(allowed=False, output=None, steps=()))
    assert await executor(run, store=store).execute(running(attempts_started=2)) == Drop()
    assert not called


async def test_a_step_refused_by_the_fence_stops_the_run():
    async def run(ctx: Context, payload: dict[str, Any]) -> None:
        await ctx.step("paid", lambda: 1)

    assert await executor(run, store=Records(allowed=False)).execute(running()) == Drop()


async def test_the_same_step_name_twice_is_an_error():
    async def run(ctx: Context, payload: dict[str, Any]) -> None:
        await ctx.step("one", lambda: 1)
        await ctx.step("one", lambda: 1)

    outcome = await executor(run).execute(running(opts={"attempts": 5}))
    assert isinstance(outcome, Fail)
    assert "'one' ran twice" in outcome.reason


@pytest.mark.parametrize(
    ("why", "outcome"),
    [
        (JobCancelled("by hand"), Fail),
        (LeaseLost("taken"), Drop),
        (Interrupted("deploy"), HandBack),
    ],
)
@pytest.mark.parametrize("swallows", [False, True])
async def test_what_stopped_a_handler_decides_whatever_it_answers(why, outcome, swallows):
    started = asyncio.Event()

    async def run(ctx: Context, payload: dict[str, Any]) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not swallows:
                raise
        return "finished all the same"

    job = running()
    task = asyncio.ensure_future(executor(run).execute(job))
    await started.wait()
    job.interrupt(why)
    assert isinstance(await task, outcome)


async def test_a_lost_lease_overrides_an_earlier_reason():
    job = running()
    job.interrupt(JobCancelled("first"))
    job.interrupt(LeaseLost("second"))
    job.interrupt(JobCancelled("third"))
    assert isinstance(job.stop, LeaseLost)


async def test_a_plain_handler_runs_in_a_thread_and_is_interrupted_there():
    entered, in_thread = threading.Event(), []

    def run(ctx: Context, payload: dict[str, Any]) -> None:
        in_thread.append(threading.current_thread() is not threading.main_thread())
        entered.set()
        while True:
            pass

    job = running()
    task = asyncio.ensure_future(executor(run).execute(job))
    await asyncio.to_thread(entered.wait)
    job.interrupt(JobCancelled("enough"))
    outcome = await task
    assert in_thread == [True]
    assert isinstance(outcome, Fail)
    assert outcome.kind == "cancelled"


async def test_a_quarantined_job_fails_unrun_with_its_reason():
    outcome = await executor(handler(1)).execute(running(deferred_failure=STALLED_TOO_OFTEN, stalled=3))
    assert isinstance(outcome, Fail)
    assert outcome.kind == "quarantined"
    assert "3 times" in outcome.reason


async def test_a_failed_childs_parent_fails_unrun():
    outcome = await executor(handler(1)).execute(running(deferred_failure="child bull:q:7 failed"))
    assert isinstance(outcome, Fail)
    assert outcome.reason == "child bull:q:7 failed"


def test_limits_are_told_apart():
    job = running()
    assert job.overdue(job.begun + 1e9) is None
    job.deadline = job.begun + 5
    assert "time limit" in str(job.overdue(job.begun + 6))


class TestSecrets:
    RING = KeyRing.of(Secret(base64.b64encode(bytes(32)).decode()))

    @pytest.fixture
    async def vault(self) -> Vault:
        class Rows:
            kept: ClassVar = {}

            async def put_credential(self, tenant, name, envelope):
                self.kept[tenant, name] = envelope

            async def get_credential(self, tenant, name):
                return self.kept.get((tenant, name))

        vault = Vault(self.RING, Rows())
        await vault.put("acme", "stripe", Secret("sk-live-of-acme"))
        return vault

    def payload(self) -> bytes:
        card = seal_field("4111-1111", self.RING, job="a", tenant="acme", path=("card",))
        return encode({"tenant": "acme", "card": card})

    @pytest.mark.parametrize("retries", [0, 3])
    @pytest.mark.parametrize("error", [ValueError, Fatal, lambda text: RetryLater(1, text), KeyError, hinted])
    async def test_neither_a_credential_nor_a_sealed_field_is_in_what_is_kept_of_an_error(self, vault, error, retries):
        async def pay(ctx: Context, payload: dict[str, Any]) -> None:
            key = await ctx.credential("stripe")
            await ctx.log(f"paying {payload['card']} with {key.reveal()}")
            raise error(f"refused {payload['card']} with {key.reveal()}")

        store = Records()
        one = executor(pay, store=store, vault=vault, retries=retries)
        outcome = await one.execute(running(self.payload()))
        assert "refused *** with ***" in outcome.reason
        assert one._wire == ["paying *** with ***"]
        everything = f"{outcome} {store.runs}"
        assert "4111-1111" not in everything
        assert "sk-live-of-acme" not in everything
        assert _learned.text("4111-1111 sk-live-of-acme") == "*** ***"
        assert '"$sealed":"oxherd1.' in store.runs[-1].input

    async def test_a_validation_error_does_not_show_what_was_sealed(self, vault):
        async def pay(ctx: Context, payload: Payment) -> None: ...

        outcome = await executor(pay, vault=vault).execute(running(self.payload()))
        assert (outcome.kind, "card: Value error, *** is no card" in outcome.reason) == ("invalid", True)

    async def test_a_secret_that_crosses_the_place_where_a_long_error_is_cut_is_hidden_whole(self, vault):
        async def pay(ctx: Context, payload: dict[str, Any]) -> None:
            raise Fatal("x" * 3_995 + payload["card"])

        outcome = await executor(pay, vault=vault).execute(running(self.payload()))
        assert outcome.reason == "x" * 3_995 + "***"

    async def test_a_field_that_can_not_be_opened_fails_the_job_by_its_name(self):
        outcome = await executor(handler("never runs")).execute(running(self.payload()))
        assert outcome.reason.startswith("card: ENCRYPTION_KEY is not set here")
        assert (type(outcome), outcome.kind) == (Fail, "invalid")

    async def test_a_tenant_gets_its_own_credentials_only(self, vault):
        async def read(ctx: Context, payload: dict[str, Any]) -> str:
            return (await ctx.credential("stripe")).reveal()

        one = executor(read, vault=vault)
        assert (await one.execute(running(b'{"tenant":"acme"}'))).value == b'"sk-live-of-acme"'
        assert "tenant 'other' has no credential 'stripe'" in (await one.execute(running(b'{"tenant":"other"}'))).reason
        assert "a job without a tenant has no credential" in (await one.execute(running(b"{}"))).reason

    async def test_a_credential_that_is_returned_or_kept_by_a_step_is_three_stars(self, vault):
        async def read(ctx: Context, payload: dict[str, Any]) -> Any:
            async def step():
                return {"key": await ctx.credential("stripe")}

            return [await ctx.credential("stripe"), await ctx.step("key", step)]

        store = Records()
        outcome = await executor(read, vault=vault, store=store).execute(running(b'{"tenant":"acme"}'))
        assert (outcome.value, store.steps[0].output) == (b'["***",{"key":"***"}]', b'{"key":"***"}')


@pytest.mark.parametrize(
    "error", [ValueError("key sesame refused"), Fatal("key sesame refused"), RetryLater(1, "sesame")]
)
async def test_known_secrets_are_out_of_an_error_before_it_reaches_redis_or_the_store(error):
    store = Records()
    hide = lambda text: text.replace("sesame", "***")  # noqa: E731
    outcome = await executor(handler(error), store=store, hide=hide).execute(running(opts={"attempts": 2}))
    assert "***" in outcome.reason
    assert "sesame" not in repr(outcome)
    assert "sesame" not in repr(store.runs)
