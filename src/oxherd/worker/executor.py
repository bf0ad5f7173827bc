"""One job from fetch to outcome: validate, claim, run under limits, record.

The outcome is data; the worker hands it to the queue. The result is stored before the queue is told.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from oxherd.clock import mono, wall_ms
from oxherd.codec import encode, tenant_of
from oxherd.context import AgentRunner, Context, Hidden, Step, Wire
from oxherd.errors import (
    Fatal,
    JobCancelled,
    JobError,
    JobTimeout,
    LeaseLost,
    Quarantined,
    StoreRefused,
    StoreUnreachable,
)
from oxherd.job import Delay, Done, Drop, Fail, HandBack, Job, Outcome, Park, Retry, Wait
from oxherd.queue.consumer import STALLED_TOO_OFTEN
from oxherd.settings import Secret
from oxherd.store import RunRecord, Store
from oxherd.telemetry import logs
from oxherd.telemetry.events import Event, emit
from oxherd.vault.vault import NO_VAULT, Vault
from oxherd.worker.approvals import Asking, RunWaits
from oxherd.worker.broadcast import Broadcast
from oxherd.worker.handlers import Handler, find_handler, read_payload
from oxherd.worker.retry import is_waiting, outcome_of

THREADS = "oxherd-handler"  # how the names of plain handlers' threads begin
TASKS = "job-"  # how the names of handlers' tasks begin
STATUS = {
    Done: "completed",
    Fail: "failed",
    Retry: "retrying",
    Delay: "delayed",
    HandBack: "handed_back",
    Park: "parked",
    Wait: "waiting",
}


class Interrupted(JobError):
    """A deploy interrupts the job: it is handed back."""


@dataclass(slots=True)
class Running:
    """A job that runs here.

    Attributes:
        job: the job.
        begun: monotonic seconds at which this attempt began.
        stop: why it is being stopped, once it is.
        context: set once the payload is valid.
        deadline: monotonic seconds at which the total limit passes; infinity for none.
        idle: seconds it may go without a sign of life; infinity for none.
        task: the handler's task while it runs.
        thread: the handler's thread while a plain function runs.
        recorded: whether its start is in the store.
        finished: whether its result was in the store before it ran.
        ended: whether its end was given to the store.
        adopted: whether it was found to be ours after an outage: then Redis may have forgotten that it ran.
        told_at: monotonic seconds at which the handler was last told to stop.
        secrets: takes what the job came to know, such as its tenant's keys, out of texts; None where it knows nothing.
        error: what the attempt ended with, for those who report errors.
        say_ended: emits the event that the attempt has ended.
        feed: tells those who follow the job; None while nobody does.
    """

    job: Job
    begun: float = field(default_factory=mono)
    stop: JobError | None = None
    context: Context | None = None
    deadline: float = float("inf")
    idle: float = float("inf")
    task: asyncio.Task[Any] | None = None
    thread: _Thread | None = None
    recorded: bool = False
    finished: bool = False
    ended: bool = False
    adopted: bool = False
    told_at: float = 0.0
    secrets: logs.Redactor | None = None
    error: BaseException | None = None
    say_ended: Callable[[Event], None] = emit
    feed: Broadcast | None = None

    def keep_secret(self, value: Secret) -> None:
        """Hide a value in this job's errors and log, and in all log lines."""
        if self.secrets is None:
            self.secrets = logs.Redactor()
        self.secrets.learn(value)
        logs.hide(value)

    def hide(self, text: str) -> str:
        """The text without the job's secrets."""
        return text if self.secrets is None else self.secrets.text(text)

    def interrupt(self, why: JobError) -> None:
        """Stop the job; the first reason given stands, except that a lost lease overrides any.

        Does nothing to a handler that has just returned: its result counts, unless the lease is lost.
        """
        if self.task is not None and self.task.done() and not isinstance(why, LeaseLost):
            return
        if self.stop is None or isinstance(why, LeaseLost):
            self.stop = why
        self.told_at = mono()
        if self.context is not None:
            self.context.cancel(str(why))
        if self.thread is not None and self.thread.interrupt():
            return  # what is settled while the thread goes on might run twice at once: wait for it, for a moment
        if self.task is not None:
            self.task.cancel()

    def overdue(self, now: float) -> JobError | None:
        """The limit that has passed, if one has."""
        if now >= self.deadline:
            return JobTimeout(
                f"the job's time limit passed after {now - self.begun:.1f} s", hint="raise the handler's timeout"
            )
        if self.context is not None and now - self.context.alive_at >= self.idle:
            return JobTimeout(
                f"no step, progress or log line for {now - self.context.alive_at:.1f} s",
                hint="call ctx.progress() in long work, or raise the handler's idle_timeout",
            )
        return None


class Executor:
    """Runs jobs. One per worker.

    Parameters:
        handlers: by job name.
        store: where runs are recorded, or None with --no-store.
        wire: progress, logs and children, for contexts.
        runner: runs agents, for contexts.
        vault: has credentials, for contexts, and opens sealed fields.
        asking: how contexts ask people.
        worker: this worker's id, for the record.
        queue: the queue's name, for the record.
        timeout, idle_timeout: defaults in seconds, 0 for no limit.
        threads: how many plain (not async) handlers may run at once.
        crash_limit: how many times a job may lose its worker before it is quarantined.
        hide: takes known secrets out of a text; errors and stacks go through it before they go anywhere.
    """

    def __init__(  # noqa: PLR0913  it is told everything, it looks up nothing
        self,
        handlers: Mapping[str, Handler],
        *,
        store: Store | None,
        wire: Wire,
        runner: AgentRunner,
        vault: Vault = NO_VAULT,
        asking: Asking = Asking(),  # noqa: B008  frozen
        worker: str,
        queue: str,
        timeout: float,
        idle_timeout: float,
        threads: int,
        crash_limit: int,
        hide: Callable[[str], str] = str,
    ) -> None:
        self.handlers = handlers
        self._store = store
        self._wire = wire
        self._runner = runner
        self._vault = vault
        self._asking = asking
        self._worker = worker
        self._queue = queue
        self._timeout = timeout
        self._idle_timeout = idle_timeout
        self._crash_limit = crash_limit
        self._hide = hide
        self._pool = ThreadPoolExecutor(max_workers=min(threads, 512), thread_name_prefix=THREADS)

    def close(self) -> None:
        """Take no more plain handlers; threads that still run are left to the process's end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def execute(self, running: Running) -> Outcome:
        """Run one attempt and record how it ended. Never raises for what a handler does."""
        outcome = await self._outcome(running)
        if isinstance(running.stop, LeaseLost):
            return Drop()
        return await self.record_end(running, outcome)

    async def record_end(self, running: Running, outcome: Outcome) -> Outcome:
        """Note in the store how an attempt ended; durable when it returns.

        Returns:
            The outcome; Drop where a later attempt has begun, a failure where the store can't hold the result.
        """
        if self._store is None or isinstance(outcome, Drop) or running.finished:
            return outcome
        return await self._recorded(self._store, running, outcome)

    async def _outcome(self, running: Running) -> Outcome:
        retries = 0
        try:
            # First of all: what is done already is delivered, also where the job could not be run any more.
            steps, finished = await self._claim(running)
            if finished is not None:
                running.finished = True
                return Done(finished)
            _refuse_deferred(running.job, self._crash_limit)
            handler = find_handler(self.handlers, running.job.name)
            retries = handler.retries
            payload, tenant = read_payload(handler, running.job.raw, partial(self._unseal, running))
            return Done(await self._run(running, handler, payload, tenant, steps))
        except Exception as error:  # noqa: BLE001  whatever a handler raises is an outcome
            return self._interrupted(running, error, retries)
        except asyncio.CancelledError as error:
            if running.stop is None:
                raise
            return self._interrupted(running, error, retries)

    def _interrupted(self, running: Running, error: BaseException, retries: int) -> Outcome:
        # A stopped handler may answer with any error, or swallow the stop: what stopped it decides.
        stop = running.stop
        if isinstance(stop, Interrupted):
            return HandBack()
        if stop is not None:
            stop.__cause__ = error if error is not stop else None
        elif running.context is not None and is_waiting(error):
            return _wait(running.context)
        running.error = stop or error
        return outcome_of(running.error, running.job, retries=retries, hide=partial(self._without_secrets, running))

    def _unseal(self, running: Running, data: dict[str, Any], job: str, tenant: str | None) -> None:
        for secret in self._vault.open_fields(data, job=job, tenant=tenant):
            running.keep_secret(secret)

    async def _credential(self, running: Running, tenant: str | None, name: str) -> Hidden:
        value = await self._vault.get(tenant, name)
        running.keep_secret(value)
        return value

    def _without_secrets(self, running: Running, text: str) -> str:
        return self._hide(running.hide(text))

    async def _claim(self, running: Running) -> tuple[Sequence[Step], bytes | None]:
        job = running.job
        if self._store is None or (job.attempts_started == 1 and not running.adopted):
            return (), None  # the first attempt has nothing to replay and nobody to fence off
        begun = await self._store.begin(self._record(running, "running", tenant=tenant_of(job.raw)))
        running.recorded = True
        if not begun.allowed:
            raise LeaseLost(f"a later attempt of job {job.id} has begun")
        return begun.steps, None if begun.output is None else begun.output.encode()

    async def _run(
        self, running: Running, handler: Handler, payload: Any, tenant: str | None, steps: Sequence[Step]
    ) -> bytes:
        context = Context(
            running.job,
            journal=_RunJournal(self._store, self._run_id(running.job), running, steps),
            wire=self._wire,
            runner=self._runner,
            tenant=tenant,
            credentials=partial(self._credential, running),
            waits=self._waits(running, tenant),
            hide=running.hide,
            feed=running.feed,
        )
        running.context = context
        limit = self._timeout if handler.timeout is None else handler.timeout
        idle = self._idle_timeout if handler.idle_timeout is None else handler.idle_timeout
        running.deadline = running.begun + limit if limit else float("inf")
        running.idle = idle or float("inf")
        if running.stop is not None:
            raise running.stop
        call = (
            handler.function(context, payload)
            if handler.is_async
            else self._in_thread(running, handler, context, payload)
        )
        running.task = asyncio.get_running_loop().create_task(
            _contained(context, call), name=f"{TASKS}{running.job.id}"
        )
        try:
            value = await running.task
        except asyncio.CancelledError:
            if running.told_at == 0.0 and running.task.cancelled():
                raise RuntimeError("the handler raised CancelledError although nobody had cancelled it") from None
            raise
        finally:
            running.task = None
        if running.stop is not None:
            raise running.stop
        if context.waiting is not None:
            raise context.waiting
        return encode(value)

    def _waits(self, running: Running, tenant: str | None) -> RunWaits | None:
        if self._store is None:
            return None
        return RunWaits(
            self._store,
            self._asking,
            running.job,
            run_id=self._run_id(running.job),
            queue=self._queue,
            tenant=tenant,
            keep_secret=running.keep_secret,
            hide=running.hide,
        )

    async def _in_thread(self, running: Running, handler: Handler, context: Context, payload: Any) -> Any:
        running.thread = _Thread(handler.function, context, payload)
        try:
            run = copy_context().run  # so that the trace goes on in the thread
            return await asyncio.get_running_loop().run_in_executor(self._pool, run, running.thread)
        finally:
            running.thread = None

    async def tell_earlier_steps(self, running: Running) -> None:
        """Tell those who began to follow a job that runs which steps it had finished by then."""
        feed = running.feed
        assert feed is not None
        if self._store is None:
            feed.missed("no store is configured: what was finished before is not known")
            return
        try:
            feed.earlier(await self._store.steps(self._run_id(running.job), outputs=True))
        except (StoreUnreachable, StoreRefused):
            feed.missed("the database is away: what was finished before is not known")

    def record_start(self, running: Running) -> None:
        """Note in the store that a job runs, for those who watch; nothing waits for it."""
        if self._store is None or running.recorded or running.ended:
            return
        running.recorded = True
        write = asyncio.ensure_future(self._note_start(self._store, running))
        write.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _note_start(self, store: Store, running: Running) -> None:
        if not running.ended:  # its end may have been recorded since this task was made
            tenant = running.context.tenant if running.context else None
            await store.record(self._record(running, "running", tenant=tenant))

    async def _recorded(self, store: Store, running: Running, outcome: Outcome) -> Outcome:
        tenant = running.context.tenant if running.context else None
        status = STATUS[type(outcome)]
        running.ended = True  # a note that it runs must not come after this
        try:
            written = await store.record(self._record(running, status, tenant=tenant, outcome=outcome))
        except Fatal as error:  # the database can't hold this result, now or ever
            outcome = Fail(str(error), "", "invalid")
            written = await store.record(self._record(running, "failed", tenant=tenant, outcome=outcome))
        return outcome if written and not isinstance(running.stop, LeaseLost) else Drop()

    def _run_id(self, job: Job) -> str:
        return f"{self._queue}/{job.id}@{job.timestamp}"

    def _record(
        self, running: Running, status: str, *, tenant: str | None, outcome: Outcome | None = None
    ) -> RunRecord:
        job = running.job
        usage = running.context.usage if running.context else None
        return RunRecord(
            id=self._run_id(job),
            queue=self._queue,
            job_id=job.id,
            name=job.name,
            tenant=tenant,
            status=status,
            fence=job.fence,
            attempt=job.attempt,
            attempts=job.attempts,
            worker=self._worker,
            input=job.raw.decode("utf-8", "replace"),
            output=_output_of(outcome),
            error=outcome.reason if isinstance(outcome, Fail | Retry | Delay | Wait) else None,
            kind=outcome.kind if isinstance(outcome, Fail) else None,
            stack=outcome.stack if isinstance(outcome, Fail | Retry) else None,
            enqueued_at=job.timestamp,
            started_at=job.processed_on,
            finished_at=wall_ms() if outcome is not None else 0,
            model_calls=usage.calls if usage else 0,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            cost_usd=usage.cost_usd if usage else None,
        )


def _wait(context: Context) -> Wait:
    waits = context.open_waits
    soonest = min(expires_at for _, expires_at in waits.values())
    names = ", ".join(repr(name) for name, _ in waits.values())
    return Wait(max(int((soonest - mono()) * 1000) + 1, 1), f"waits for an answer to {names}", tuple(waits))


async def _contained(context: Context, call: Awaitable[Any]) -> Any:
    context.begin()
    try:
        return await call
    except (SystemExit, KeyboardInterrupt) as error:  # out of a task they would end the whole worker
        raise RuntimeError(f"the handler raised {type(error).__name__}({error})") from error


def _output_of(outcome: Outcome | None) -> str | None:
    match outcome:
        case Done(output) | Fail(output=bytes(output)):
            return output.decode()
        case _:
            return None


def _refuse_deferred(job: Job, crash_limit: int) -> None:
    # BullMQ's script spares the jobs of schedulers, whatever they do to their workers.
    if job.deferred_failure == STALLED_TOO_OFTEN or (job.scheduler is not None and job.stalled > crash_limit):
        raise Quarantined(
            f"quarantined: {STALLED_TOO_OFTEN}; its worker died or lost it {job.stalled} times",
            hint="look at the worker's logs of those times, then: oxherd jobs retry",
        )
    if job.deferred_failure:
        raise Fatal(job.deferred_failure)


class _RunJournal:
    """One run's steps: what earlier attempts left, and the way to keep new ones."""

    def __init__(self, store: Store | None, run_id: str, running: Running, steps: Sequence[Step]) -> None:
        self._store = store
        self._run_id = run_id
        self._running = running
        self._steps = {step.key: step for step in steps}
        # Where one that failed left its place to another and later ran, the later is the one that counts.
        self._places = {step.place: step for step in steps if step.place}

    @cached_property
    def _insides(self) -> dict[str, list[Step]]:
        """The steps that are inside each step."""
        insides = defaultdict(list)
        for key, step in self._steps.items():
            for at in (at for at, letter in enumerate(key) if letter == "/"):
                insides[key[:at]].append(step)
        return insides

    def find(self, key: str) -> Step | None:
        """The finished step of that name, if an earlier attempt left one."""
        return self._steps.get(key)

    def at(self, place: str) -> Step | None:
        """The finished step that an earlier attempt had at that place, if it left one."""
        return self._places.get(place)

    def within(self, key: str) -> Sequence[Step]:
        """The finished steps inside that one, if an earlier attempt left any."""
        return self._insides.get(key, ())

    async def save(self, step: Step) -> None:
        """Keep a step; returns when it is durable."""
        if self._store is None:
            return
        job = self._running.job
        if not await self._store.save_step(self._run_id, job.fence, step, attempt_started_at=job.processed_on):
            raise LeaseLost(f"a later attempt of job {job.id} has begun")


class _Told(JobCancelled):
    """JobCancelled as it can be raised in another thread: from its class alone."""

    def __init__(self) -> None:
        super().__init__("told to stop")


class _Thread:
    """A plain handler in a thread, which can be interrupted between two of its bytecodes."""

    def __init__(self, function: Callable[..., Any], context: Context, payload: Any) -> None:
        self._function = function
        self._context = context
        self._payload = payload
        self._lock = threading.Lock()
        self._ident: int | None = None
        self._told = False

    def __call__(self) -> Any:
        """Run in the pool's thread."""
        with self._lock:
            self._context.check()
            self._ident = threading.get_ident()
        try:
            return self._function(self._context, self._payload)
        except StopIteration as error:  # no future can hold one
            raise RuntimeError("the handler raised StopIteration") from error
        finally:
            with self._lock:
                self._ident = None

    def interrupt(self) -> bool:
        """Raise JobCancelled in the thread, if the handler still runs there. A blocking C call is not interrupted.

        Returns:
            Whether the handler runs and was told for the first time: it may be about to stop.
        """
        with self._lock:
            if self._ident is None:
                return False
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._ident), ctypes.py_object(_Told))
            first, self._told = not self._told, True
            return first
