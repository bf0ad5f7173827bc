"""The worker: take jobs while there is room, run them, settle them, and stop without losing one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from oxherd.clock import mono, wall_ms
from oxherd.codec import decode, encode
from oxherd.context import AgentRunner
from oxherd.errors import JobCancelled, LeaseLost, OxherdError, RedisRefused, RedisUnreachable
from oxherd.job import Delay, Done, Drop, Fail, HandBack, Job, Outcome, Park, Retry, Wait
from oxherd.queue.answers import Answers
from oxherd.queue.connection import insist_on
from oxherd.queue.consumer import NOTHING, Consumer, FailedChildren, Fetched, NoChildren, PendingChildren
from oxherd.queue.feed import READER_MS
from oxherd.queue.keys import Keys
from oxherd.queue.producer import Producer
from oxherd.queue.registry import Registry
from oxherd.queue.schedule import make_next
from oxherd.queue.scripts import script
from oxherd.queue.turns import Turns
from oxherd.settings import RedisTarget
from oxherd.store import Store
from oxherd.telemetry.events import (
    GateChanged,
    InternalFault,
    JobCancelRequested,
    JobEnded,
    JobStarted,
    LeaseWasLost,
    RedisRefusedCommand,
    ScheduleFailed,
    WorkerDraining,
    WorkerStopped,
    begin,
    emit,
)
from oxherd.vault.vault import NO_VAULT, Vault
from oxherd.worker.approvals import Asking
from oxherd.worker.broadcast import Broadcast, Told
from oxherd.worker.control import Control
from oxherd.worker.executor import Executor, Interrupted, Running
from oxherd.worker.handlers import Handler, asks_for_stream
from oxherd.worker.lease import Leases
from oxherd.worker.stalled import Stalled

LONG_WAIT = 600.0  # seconds a truly idle worker blocks on the marker: hosted Redis bills per command
SHORT_WAIT = 5.0  # seconds of the first wait after work ran out
MAXED_WAIT = 5.0  # seconds between looks while the queue's own concurrency limit holds jobs back: it sends no marker
PAUSED_WAIT = 30.0  # seconds between looks while somebody paused the queue; a resume sends a marker
LAST_FETCH = 5.0  # seconds that a stopping worker waits for the reply to its last fetch
TIDY_UP = 3.0  # seconds that interrupted handlers have before their jobs are handed back over their heads
LAST_WORD = 2.0  # seconds that this may take
REFUSED_PAUSE = 0.2  # seconds after fetches of which none was answered
AGAIN = 2.0  # seconds that a handler has for tidying up before it is told to stop once more
EARLY_MS = 60_000  # how long a request to cancel a job that does not run here is remembered
WATCH = 0.25  # seconds between looks at time limits
SHOWN_AFTER = 0.5  # seconds after which a running job is recorded as running
LARGEST_BURST = 64  # fetches in one write
OUTCOME_WORD = {
    Done: "completed",
    Fail: "failed",
    Retry: "retried",
    Delay: "delayed",
    HandBack: "handed_back",
    Park: "parked",
    Wait: "waiting",
    Drop: "lease_lost",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """A worker's numbers.

    Attributes:
        concurrency: jobs at the same time.
        timeout, idle_timeout: seconds, 0 for no limit; handlers may set their own.
        lock_ms: how long a lease lasts without renewal.
        crash_limit: how many times a job may lose its worker before it is quarantined.
        stalled_interval: seconds between looks for dead workers' jobs.
        turns: how the queue's tenants take turns; None where jobs run in the order in which they came.
    """

    concurrency: int = 5
    timeout: float = 900.0
    idle_timeout: float = 0.0
    lock_ms: int = 30_000
    crash_limit: int = 2
    stalled_interval: float = 30.0
    turns: Turns | None = field(default_factory=Turns)


class Worker:
    """Serves one queue.

    Parameters:
        target, keys: where the queue is.
        handlers: by job name.
        store: where runs are recorded, or None.
        runner: runs agents for handlers.
        vault: has their credentials and opens sealed fields.
        asking: how they ask people.
        limits: the numbers.
        hide: takes known secrets out of the text of errors.
        told: what those who follow a job are told of a finished step's output, by the step's kind.
    """

    def __init__(  # noqa: PLR0913  it is told everything, it looks up nothing
        self,
        target: RedisTarget,
        keys: Keys,
        handlers: Mapping[str, Handler],
        *,
        store: Store | None,
        runner: AgentRunner,
        vault: Vault = NO_VAULT,
        asking: Asking = Asking(),  # noqa: B008  frozen
        limits: Limits,
        hide: Callable[[str], str] = str,
        told: Told = lambda _kind, _output: None,
    ) -> None:
        self.id = uuid4().hex
        self.keys = keys
        self.limits = limits
        self.running: dict[str, Running] = {}
        self.finished = 0
        self.handed_back = 0
        self.gate: str | None = None
        self.version = self.commit = ""  # of the program, for the registry; the app knows them
        self.stopping = False
        self._stopping_at = self._grace = 0.0
        self.fetched_at = mono()
        self._started_ms = wall_ms()
        self._slots = 0
        self._take_fails = False
        self._early_cancels: dict[str, int] = {}
        self._readers: dict[str, float] = {}  # until when, in monotonic seconds, somebody follows a job
        self._told = told
        self._room = asyncio.Event()
        self._opened = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._waiting: asyncio.Task[int | None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self.consumer = Consumer(
            target, keys, worker=self.id, name=socket.gethostname(), lock_ms=limits.lock_ms,
            holds=self._holds, adopt=self._adopt, on_back=self._on_back, turns=limits.turns,
        )  # fmt: skip
        self.leases = Leases(target, keys, lock_ms=limits.lock_ms, on_lost=self._on_lease_lost)
        self.control = Control(target, keys, on_cancel=self.cancel, on_reader=self._on_reader, on_gate=self._on_gate)
        self.answers = Answers(self.consumer.link, keys)
        self.stalled = Stalled(
            self.consumer.link, keys, interval=limits.stalled_interval, crash_limit=limits.crash_limit,
            sign=self._sign_of_life, lock_ms=limits.lock_ms, answers=self.answers, on_work=self._stop_waiting,
        )  # fmt: skip
        self.executor = Executor(
            handlers, store=store, wire=self, runner=runner, vault=vault, asking=asking, worker=self.id,
            queue=keys.queue,
            timeout=limits.timeout, idle_timeout=limits.idle_timeout, threads=limits.concurrency,
            crash_limit=limits.crash_limit, hide=hide,
        )  # fmt: skip

    # -- lifecycle

    async def start(self) -> None:
        """Connect everything and begin to take jobs.

        Raises:
            RedisUnreachable, RedisRefused: Redis is not there, or does not let us in.
        """
        self._loop = asyncio.get_running_loop()
        await self.consumer.start()
        await self.leases.start()
        await self.control.start(self.consumer.link)
        await self.stalled.start()
        self._loops = [
            asyncio.create_task(self._take_forever(), name="take"),
            asyncio.create_task(self._watch_limits(), name="limits"),
        ]

    async def stop(self, *, reason: str = "stop", grace: float = 25.0) -> None:
        """Stop in order: take nothing new, let jobs finish for `grace` seconds, hand the rest back, close.

        Leases are renewed until the last job has ended. Twice is fine.
        """
        if self.stopping:
            return
        self.stopping = True
        self._stopping_at, self._grace = mono(), grace
        if not self._loops:
            await self._close()  # it never began: nothing to drain, nothing to tell
            return
        emit(WorkerDraining(reason=reason, in_flight=len(self.running), grace_s=grace))
        await self._stop_taking()
        await self._drain(grace)
        await self._hand_back_rest()
        await self._close()
        emit(WorkerStopped(finished=self.finished, handed_back=self.handed_back))

    @property
    def taking(self) -> bool:
        """Whether the loop that takes jobs is alive and well."""
        return bool(self._loops) and not self._loops[0].done() and not self._take_fails

    def hurry(self) -> None:
        """End the grace period now."""
        self._idle.set()

    async def _stop_taking(self) -> None:
        self._opened.set()
        self._room.set()
        self._stop_waiting()
        # A fetch that is under way may bring jobs: they are ours to run or to hand back.
        deadline = mono() + LAST_FETCH
        while self.taking and self.consumer.link.is_up and mono() < deadline:
            await asyncio.wait(self._loops[:1], timeout=0.1)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    async def _drain(self, grace: float) -> None:
        if not self.running:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()

    async def _hand_back_rest(self) -> None:
        for running in list(self.running.values()):
            running.interrupt(Interrupted("the worker is shutting down"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIDY_UP)
        # What ignores its cancellation is handed back over its head; the process ends right after. Where Redis is away
        # the leases run out instead.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD):
                for running in list(self.running.values()):
                    await self._settle(running, HandBack())

    async def _close(self) -> None:
        await self.stalled.stop()
        await self._leave()  # Redis answers in order: the last words to followers have arrived, too
        tasks = [*self._loops, self._looking] if self._looking else self._loops
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.control.stop()
        await self.leases.stop()
        await self.consumer.stop()
        self.executor.close()

    async def _leave(self) -> None:
        if not self.consumer.link.is_up:
            return
        with contextlib.suppress(TimeoutError, RedisUnreachable, RedisRefused):
            async with asyncio.timeout(LAST_WORD):
                await Registry(self.consumer.link, self.keys).leave(self.id)

    def sign_of_life(self) -> dict[str, Any]:
        """What the registry of workers has of this one."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": self.version,
            "commit": self.commit,
            "started": self._started_ms,
            "concurrency": self.limits.concurrency,
            "in_flight": len(self.running),
            "finished": self.finished,
            "loop_lag": round(self.leases.loop_lag, 3),
            "gate": self.gate,
            "draining": self.stopping,
            "grace_s": self._grace,
            "draining_s": round(mono() - self._stopping_at, 1) if self.stopping else 0.0,
            "consuming": self.consuming,
        }

    @property
    def consuming(self) -> bool:
        """Whether it takes jobs, or would: full, or shut by the gate, is not silent.

        Anything else must have asked the queue within its longest wait.
        """
        full = len(self.running) >= self.limits.concurrency
        return self.taking and (full or self.gate is not None or mono() - self.fetched_at < LONG_WAIT + 30)

    def _sign_of_life(self) -> tuple[str, bytes]:
        return self.id, encode(self.sign_of_life())

    # -- taking jobs

    async def _take_forever(self) -> None:
        while not self.stopping:
            try:
                await self._take_while_open()
            except Exception:  # noqa: BLE001  our own fault: say so and go on; what a fetch brought is given again
                self._take_fails = True
                emit(InternalFault(where="take", stack=traceback.format_exc()))
                await asyncio.sleep(1.0)

    async def _take_while_open(self) -> None:
        burst, empty_before = 1, False
        while await self._may_take():
            got, last = await self._take(min(burst, self.limits.concurrency - self._slots))
            if last.job is not None:
                burst, empty_before = min(burst * 2, LARGEST_BURST), False
                continue
            burst = 1
            if last.look_on:
                continue
            empty_before = await self._wait(last, patient=empty_before and not got)

    async def _may_take(self) -> bool:
        """Wait for a free slot and an open gate. False: the worker stops."""
        while not self.stopping and (self._slots >= self.limits.concurrency or self.gate is not None):
            waiter = self._opened if self.gate is not None else self._room
            waiter.clear()
            if not self.stopping:
                await waiter.wait()
        return not self.stopping

    async def _take(self, count: int) -> tuple[int, Fetched]:
        """Fetch up to `count` jobs in one write; returns how many came and the last answer."""
        self._slots += count
        answers = await asyncio.gather(*(self._fetch_one() for _ in range(count)), return_exceptions=True)
        fetched = [answer for answer in answers if isinstance(answer, Fetched)]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RedisUnreachable | RedisRefused):
                raise answer
        self._take_fails = False
        if not fetched:
            await asyncio.sleep(REFUSED_PAUSE)  # the link says why and reconnects; this only keeps us from spinning
            return 0, Fetched(None, due_ms=wall_ms() + 1)
        self.fetched_at = mono()
        return sum(answer.job is not None for answer in fetched), fetched[-1]

    async def _fetch_one(self) -> Fetched:
        # Registered as soon as its own reply is here: a job that waited for the replies of others would look, to a
        # reconnection meanwhile, like one that nobody runs.
        taken = False
        try:
            answer = await self.consumer.fetch(f"{self.id}:{uuid4().hex[:8]}")
            self._look_on(answer)
            if answer.job is not None:
                self._spawn(answer.job)
                taken = True
        finally:
            self._slots -= not taken
        return answer

    async def _wait(self, last: Fetched, *, patient: bool) -> bool:
        """Sleep until there may be work; returns whether the wait passed without any sign of it."""
        seconds = await self._how_long(last, patient=patient)
        if self.stopping or self.gate is not None:
            return False
        waiting = self._waiting = asyncio.ensure_future(self._wait_for_marker(seconds, last))
        try:
            await asyncio.wait({waiting})  # the gate and the shutdown cancel `waiting`, not this loop
        finally:
            self._waiting = None
            waiting.cancel()
        return not waiting.cancelled() and waiting.result() is None

    async def _how_long(self, last: Fetched, *, patient: bool) -> float:
        due = (last.due_ms - wall_ms()) / 1000 if last.due_ms else LONG_WAIT
        if not patient:
            return max(min(due, SHORT_WAIT), 0.001)
        if last.over_limit:
            return max(min(due, LONG_WAIT), 0.001)  # the end of one of the tenant's jobs sends a marker
        try:
            held_back, paused = await self.consumer.held_back()
        except (RedisUnreachable, RedisRefused):
            return SHORT_WAIT
        longest = (PAUSED_WAIT if paused else MAXED_WAIT) if held_back else LONG_WAIT
        return max(min(due, longest), 0.001)

    async def _wait_for_marker(self, seconds: float, last: Fetched) -> int | None:
        if last.limited_ms:
            await asyncio.sleep(min(last.limited_ms / 1000, SHORT_WAIT))
            return 0
        deadline = mono() + seconds
        while (left := deadline - mono()) > 0:
            score = await self.consumer.wait_for_work(left)
            self.fetched_at = mono()
            if not score or score <= wall_ms():
                return score
            deadline = min(deadline, mono() + (score - wall_ms()) / 1000)  # a delayed job's time, not work yet
        return 0 if last.due_ms else None

    def _look_on(self, answer: Fetched) -> None:
        # A tenant's single job may wait behind more jobs than one fetch looks at: find it before a slot is free.
        if not answer.look_on:
            return
        if answer.job is None:
            self._stop_waiting()
        elif self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_through(), name="look")

    async def _look_through(self) -> None:
        with contextlib.suppress(RedisUnreachable, RedisRefused):  # the next fetch goes on
            while not self.stopping and await self.consumer.look_on():
                pass

    def _holds(self, job_id: str, token: str) -> bool:
        running = self.running.get(job_id)
        return running is not None and running.job.token == token

    def _on_back(self) -> None:
        self.control.listen_anew()
        self._stop_waiting()

    def _adopt(self, job: Job) -> None:
        # Fetched for us while the reply was lost: run it as if the reply had come.
        self._slots += 1
        self._spawn(job, adopted=True)

    # -- one slot's life: run, settle, run what came with the settling

    def _spawn(self, job: Job, *, adopted: bool = False) -> None:
        running = self._register(job)
        running.adopted = adopted
        self._aside(self._work(running))

    def _aside(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(act, name="slot")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, running: Running | None) -> None:
        try:
            while running is not None:
                self._say_started(running)
                outcome = await self._execute(running)
                following = await self._settle(running, outcome)
                running = self._register(following) if following is not None else None
        except Exception:  # noqa: BLE001  our own fault: say so; the lease runs out and another worker takes the job
            emit(InternalFault(where=f"job {running.job.id}" if running else "slot", stack=traceback.format_exc()))
            if running is not None:
                self._end(running, Drop())
        finally:
            self._slots -= 1
            self._room.set()
            if self.stopping and not self.running:
                self._idle.set()

    def _register(self, job: Job) -> Running:
        if (earlier := self.running.get(job.id)) is not None:  # fetched again: the earlier attempt's lease is gone
            earlier.interrupt(LeaseLost(f"job {job.id} was given out again"))
        running = self.running[job.id] = Running(job)
        self.leases.hold(job)
        if self._is_followed(job):
            self._tell(running, late=False)
        if self._early_cancels and job.processed_on <= self._early_cancels.pop(job.id, -1):
            self.cancel(job.id)  # asked for while the reply to the fetch was on its way
        return running

    def _say_started(self, running: Running) -> None:
        job = running.job
        running.say_ended = begin(
            JobStarted(job=job.name, id=job.id, attempt=job.attempt, wait_ms=job.waited_ms, work=job)
        )

    async def _execute(self, running: Running) -> Outcome:
        if running.job.scheduler is not None:
            await self._make_next(running.job)
        return await self.executor.execute(running)

    async def _make_next(self, job: Job) -> None:
        try:
            await make_next(self.consumer.link, self.keys, job)
        except OxherdError as error:
            emit(ScheduleFailed(scheduler=job.scheduler or "", error=str(error)))

    async def _settle(self, running: Running, outcome: Outcome) -> Job | None:
        following = NOTHING
        if running.feed is not None:
            running.feed.leave(outcome, OUTCOME_WORD[type(outcome)])
        try:
            if not isinstance(outcome, Drop):
                outcome, following = await self._report(running, outcome)
                self._look_on(following)
        except LeaseLost:
            outcome = Drop()
        except RedisRefused as error:  # a refusal that will not pass: the lease runs out and the job is given again
            emit(
                RedisRefusedCommand(
                    code=error.code, message=error.message, hint="the job is run again when its lease ends"
                )
            )
            outcome = Drop()
        self._end(running, outcome)
        if isinstance(outcome, Wait):
            self._aside(self._catch_up(running.job.id, outcome.waits))
        return following.job

    async def _catch_up(self, job_id: str, waits: Sequence[str]) -> None:
        with contextlib.suppress(RedisUnreachable, RedisRefused):  # the watcher finds what was answered meanwhile
            await self.answers.catch_up(job_id, waits)

    async def _report(self, running: Running, outcome: Outcome) -> tuple[Outcome, Fetched]:
        fetch = not self.stopping and self.gate is None and self._slots <= self.limits.concurrency
        try:
            return outcome, await self.consumer.settle(running.job, outcome, fetch=fetch)
        except NoChildren:
            outcome = Delay(1_000, "no child is open: run again")
        except PendingChildren:
            outcome = Fail("the handler returned while children are open", "", "failed")
        except FailedChildren:
            outcome = Fail("a child that counts has failed", "", "child_failed")
        outcome = await self.executor.record_end(running, outcome)
        return outcome, await self.consumer.settle(running.job, outcome, fetch=fetch)

    def _end(self, running: Running, outcome: Outcome) -> None:
        job = running.job
        if self.running.get(job.id) is running:
            del self.running[job.id]
            self.leases.let_go(job.id)
        self.finished += isinstance(outcome, Done | Fail)
        self.handed_back += isinstance(outcome, HandBack)
        if isinstance(outcome, Drop):
            emit(LeaseWasLost(id=job.id))
        if running.feed is not None:
            running.feed.end(outcome, OUTCOME_WORD[type(outcome)])
        usage = running.context.usage if running.context else None
        now = wall_ms()
        running.say_ended(
            JobEnded(
                job=job.name,
                id=job.id,
                attempt=job.attempt,
                attempts=job.attempts,
                outcome=OUTCOME_WORD[type(outcome)],
                kind=outcome.kind if isinstance(outcome, Fail) else "",
                wait_ms=job.waited_ms,
                run_ms=round((mono() - running.begun) * 1000, 2),
                total_ms=max(now - job.timestamp, 0),
                tokens=usage.tokens if usage else 0,
                cost_usd=None if usage is None or usage.cost_usd is None else float(usage.cost_usd),
                reason=getattr(outcome, "reason", ""),
                work=job,
                error=running.error,
            )
        )

    # -- telling those who follow a job

    def _is_followed(self, job: Job) -> bool:
        """Whether somebody asked, now or when the job was added. Looks at nothing but memory."""
        handler = self.executor.handlers.get(job.name)
        if (handler is not None and handler.stream) or asks_for_stream(job.raw):
            return True
        return bool(self._readers) and self._readers.get(job.id, 0.0) > mono()

    def _on_reader(self, job_id: str) -> None:
        now = mono()
        self._readers = {other: until for other, until in self._readers.items() if until > now}
        self._readers[job_id] = now + READER_MS / 1000
        running = self.running.get(job_id)
        if running is not None and running.feed is None and running.stop is None:
            self._tell(running, late=True)

    def _tell(self, running: Running, *, late: bool) -> None:
        feed = running.feed = Broadcast(
            self.consumer.link, self.keys, running.job,
            told=self._told, secrets=lambda: running.secrets, late=late,
        )  # fmt: skip
        if not late:
            return
        if running.context is not None:
            running.context.feed = feed
            for key, kind in running.context.open_steps.items():
                feed.step_began(key, kind, late=True)
        task = asyncio.get_running_loop().create_task(self.executor.tell_earlier_steps(running), name="earlier steps")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- stopping single jobs

    def cancel(self, job_id: str) -> None:
        """Cancel a job that runs here, or was fetched and is about to; others are ignored."""
        running = self.running.get(job_id)
        if running is None:
            now = wall_ms()
            self._early_cancels = {other: at for other, at in self._early_cancels.items() if now - at < EARLY_MS}
            self._early_cancels[job_id] = now
            return
        emit(JobCancelRequested(id=job_id))
        running.interrupt(JobCancelled("cancelled on request"))
        self._forget_cancel(job_id)

    def _forget_cancel(self, job_id: str) -> None:
        self.consumer.link.post(b"ZREM", self.keys.cancels, job_id)

    def _on_lease_lost(self, job_id: str) -> None:
        # In the lease's thread: mark first, so that a settle that is about to happen sees it; then stop the handler.
        running = self.running.get(job_id)
        if running is not None:
            running.stop = LeaseLost(f"job {job_id} is another worker's now")
            self._loop.call_soon_threadsafe(running.interrupt, running.stop)

    def _on_gate(self, reason: str | None) -> None:
        if reason == self.gate:
            return
        self.gate = reason
        emit(GateChanged(closed=reason is not None, reason=reason or "opened"))
        self._opened.set()
        if reason is not None:
            self._stop_waiting()

    async def _watch_limits(self) -> None:
        while True:
            await asyncio.sleep(WATCH)
            now = mono()
            for running in list(self.running.values()):
                if running.stop is not None:
                    if now - running.told_at > AGAIN:
                        running.interrupt(running.stop)  # again: a handler may have swallowed the first
                elif (late := running.overdue(now)) is not None:
                    running.interrupt(late)
                elif now - running.begun > SHOWN_AFTER:
                    self.executor.record_start(running)

    # -- what contexts ask of the queue

    async def update_progress(self, job: Job, value: Any) -> None:
        """Publish a job's progress."""
        k = self.keys
        await self.consumer.link.insist(
            script("updateProgress"), k.job(job.id), k.events, k.meta, job.id, encode(value, what="progress")
        )

    async def add_log(self, job: Job, text: str) -> None:
        """Append to a job's log, keeping as many lines as its producer asked for."""
        k, asked = self.keys, job.opts.get("kl")
        keep = asked if isinstance(asked, int) else ""
        # Where the reply is lost the line may appear twice: better than none, or than an error in the handler.
        await self.consumer.link.insist(
            script("addLog"),
            k.job(job.id),
            k.job(job.id) + b":logs",
            job.id,
            text,
            keep if isinstance(keep, int) else "",
        )

    async def children_values(self, job: Job) -> dict[str, Any]:
        """Results of a job's finished children by key."""
        link, processed = self.consumer.link, self.keys.job(job.id) + b":processed"
        flat = await insist_on(lambda: link.call(b"HGETALL", processed))
        pairs = iter(flat)
        return {key.decode(): decode(value) for key, value in zip(pairs, pairs, strict=True)}

    async def add_child(self, job: Job, child_id: str, name: str, data: Any, opts: dict[str, Any]) -> str:
        """Add a child of a running job; its id makes it safe to repeat."""
        parent = {"id": job.id, "queue": self.keys.qualified}
        producer = Producer(self.consumer.link, self.keys)
        return await insist_on(lambda: producer.add(name, data, **opts, jobId=child_id, parent=parent))
