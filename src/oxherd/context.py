"""What a handler is given: its job, durable steps, people's answers, progress, logs, agents."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from shlex import quote
from typing import Any, Protocol, get_type_hints

from pydantic import TypeAdapter

from oxherd.clock import mono, wall_ms
from oxherd.codec import decode, encode
from oxherd.errors import Fatal, JobCancelled, JournalMismatch, NoCredential, StepRepeated, Waiting
from oxherd.job import Job
from oxherd.telemetry.events import Ending, StepEnded, StepReplayed, StepStarted, emit, spanning


@dataclass(slots=True)
class Usage:
    """Tokens and money of a run so far.

    Attributes:
        calls: of models.
        input_tokens, output_tokens: of all of them.
        cost_usd: in US dollars; None once any part of it is unknown: unknown is never 0.
        cached_tokens: of the input, which the provider had cached. Replayed calls count none.
        reasoning_tokens: of the output, which went into thinking. The same.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal | None = field(default_factory=Decimal)
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def add(self, other: Usage) -> None:
        """Add another call's usage to this one."""
        self.calls += other.calls
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cached_tokens += other.cached_tokens
        self.reasoning_tokens += other.reasoning_tokens
        known = self.cost_usd is not None and other.cost_usd is not None
        self.cost_usd = self.cost_usd + other.cost_usd if known else None  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Step:
    """One finished, journaled step of a run.

    Attributes:
        key: its name, unique within the run.
        inputs: BLAKE2b of its arguments, hex, to notice a changed program.
        output: its result as JSON.
        kind: step, model, tool, wait (a person's answer), or agent: which version of an agent the run uses.
        usage: what it cost, or None where it is not a paid call.
        attempt: the fencing number of the attempt that ran it.
        started_at: wall ms.
        ms: how long it took.
        place: its number among the steps that are awaited one after the other, such as `3`, or `3.1` for the first
            one inside the third; empty in tasks beside the handler's own, where the order is left to chance.
    """

    key: str
    inputs: str
    output: bytes
    kind: str
    usage: Usage | None
    attempt: int
    started_at: int
    ms: float
    place: str = ""


class Journal(Protocol):
    """Where one run's steps are kept."""

    def find(self, key: str) -> Step | None:
        """The finished step of that name from an earlier attempt, if there is one."""

    def at(self, place: str) -> Step | None:
        """The finished step that an earlier attempt had at that place, if there is one."""

    def within(self, key: str) -> Sequence[Step]:
        """The finished steps from earlier attempts that are inside that one."""

    async def save(self, step: Step) -> None:
        """Keep a step. Returns when it is durable. Raises LeaseLost where a later attempt has begun."""


class Wire(Protocol):
    """What a context needs from the queue."""

    async def update_progress(self, job: Job, value: Any) -> None:
        """Publish progress."""

    async def add_log(self, job: Job, text: str) -> None:
        """Append a line to the job's log."""

    async def children_values(self, job: Job) -> dict[str, Any]:
        """Results of the finished children by their Redis key."""

    async def add_child(self, job: Job, child_id: str, name: str, data: Any, opts: dict[str, Any]) -> str:
        """Add a child of the job under that id and return it; an id that exists is left as it is."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What came next of a tool call that the model is writing.

    Attributes:
        index: its number in the reply, from 0.
        id, name: as far as they are known; the service tells them once.
        text: of its arguments, which are JSON.
    """

    index: int
    id: str | None
    name: str | None
    text: str


@dataclass(slots=True)
class Delta:
    """What came next of a model's reply.

    Attributes:
        text: of the answer.
        reasoning: of what the model thinks aloud.
        tried: from 1; a higher number than before says that the reply broke off and begins anew.
        calls: of the tools it wants called.
        so_far: gives all of the reply up to now as one delta, for whoever begins to listen late; None where this is
            all of it.
    """

    text: str
    reasoning: str
    tried: int
    calls: tuple[CallDelta, ...] = ()
    so_far: Callable[[], Delta] | None = field(default=None, compare=False, repr=False)


class Feed(Protocol):
    """Where a run is told as it happens, for those who follow it. Nothing here waits, and nothing raises."""

    def step_began(self, key: str, kind: str) -> None:
        """A step begins to run."""

    def step_ended(self, step: Step, *, replayed: bool = False) -> None:
        """A step is finished and kept; `replayed`: by an earlier attempt."""

    def step_failed(self, key: str, *, waits: bool) -> None:
        """A step raised, or was cancelled; `waits`: because it waits for an answer, and is asked for again then."""

    def delta(self, key: str, delta: Delta) -> None:
        """More of the reply that the running step `key` waits for."""

    def tell(self, type: str, **fields: Any) -> None:  # noqa: A002  the wire's word
        """Anything else, such as progress."""


class Hidden(Protocol):
    """A value that shows as `***` wherever it is printed, logged or written as JSON (an `oxherd.settings.Secret`)."""

    def reveal(self) -> str:
        """The value itself. Call it only where the value leaves the process."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person answered, or that nobody did.

    Attributes:
        approved: yes. False for no, and where nobody answered.
        value: more than yes or no, as plain data; None where nothing of the kind was said.
        by: who answered; empty where nobody did.
        expired: nobody answered in time.
        at: when, wall ms.
        message: the person's words, or empty.
    """

    approved: bool
    value: Any
    by: str
    expired: bool
    at: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question, for whoever tells a person of it.

    Attributes:
        id: what `oxherd approvals` calls it.
        name: the step that the answer will be.
        about: what the person is shown.
        expires_at: wall ms.
        url: a page on which whoever has the link can answer, once. None unless ENCRYPTION_KEY and PUBLIC_URL are set.
    """

    id: str
    name: str
    about: Any
    expires_at: int
    url: Hidden | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of a question.

    Attributes:
        ask: the question as it stands.
        inputs: digest of what it was asked with, perhaps by an earlier attempt.
        answer: None while it is open.
        asked_at: wall ms.
        left_ms: until it expires.
    """

    ask: Ask
    inputs: str
    answer: Answer | None
    asked_at: int
    left_ms: int


class Waits(Protocol):
    """Where one run's questions are kept."""

    notify: Notify | None

    async def open(self, key: str, *, inputs: str, about: Any, lasts: str | float | None) -> Asked:
        """Ask, or look what became of an earlier asking. Raises LeaseLost where a later attempt has begun."""


AgentRunner = Callable[["Context", Any, Any], Any]
Credentials = Callable[[str | None, str], Awaitable[Hidden]]
UNTYPED = (
    None,
    Any,
    "Any",
    "None",
)  # return annotations, also those that were never evaluated, that ask for plain data
Notify = Callable[["Context", Ask], Any]


@dataclass(slots=True)
class _Scope:
    """Where steps are asked for: in the handler, or in a step that is running.

    Attributes:
        prefix: of the keys in it. Without it, what a replayed step would have named inside itself would be free for
            others to take on the next attempt.
        place: of the step, None where it has none.
        task: in which its steps come one after the other.
        asked: how many did.
        spawned: how many children were added in it.
        around: the scope that it is in.
        still: whether it has ended, or goes on only with an answer.
    """

    prefix: str = ""
    place: str | None = ""
    task: asyncio.Task[Any] | None = None
    asked: int = 0
    spawned: int = 0
    around: _Scope | None = None
    still: bool = False

    def next_place(self) -> str:
        """The place of a step that is asked for now, empty where there is none."""
        if self.place is None or self.task is None or asyncio.current_task() is not self.task:
            return ""
        self.asked += 1
        return f"{self.place}{self.asked}"

    @classmethod
    def inside(cls, key: str, place: str, around: _Scope) -> _Scope:
        """That of a step which begins to run in the calling task."""
        return cls(f"{key}/", f"{place}." if place else None, asyncio.current_task(), around=around)


_within: ContextVar[_Scope | None] = ContextVar("oxherd_step", default=None)


class Context:
    """Handed to every handler and tool.

    Attributes:
        job: the job as it was fetched.
        tenant: the payload's `tenant`, or None.
        usage: tokens and money of this run, replayed steps included.
        feed: where the run is told to those who follow it; None while nobody asked.
        open_steps: the kind of each step that runs now, by its key.
        open_waits: the questions that nobody has answered yet by their ids: step, and when they expire, monotonic s.
        waiting: raised where the handler could not go on without an answer; None while there was no such place.
    """

    __slots__ = (
        "_at_rest",
        "_busy",
        "_cancelled",
        "_credentials",
        "_hide",
        "_inner",
        "_journal",
        "_live",
        "_root",
        "_runner",
        "_scopes",
        "_seen",
        "_waits",
        "_wire",
        "alive_at",
        "feed",
        "job",
        "open_steps",
        "open_waits",
        "tenant",
        "usage",
        "waiting",
    )

    def __init__(  # noqa: PLR0913  it is told everything, it looks up nothing
        self,
        job: Job,
        *,
        journal: Journal,
        wire: Wire,
        runner: AgentRunner,
        tenant: str | None = None,
        credentials: Credentials | None = None,
        waits: Waits | None = None,
        hide: Callable[[str], str] = str,
        feed: Feed | None = None,
    ) -> None:
        self.job = job
        self.tenant = tenant
        self.usage = Usage()
        self.feed = feed
        self.open_steps: dict[str, str] = {}
        self.alive_at = mono()
        self._journal = journal
        self._wire = wire
        self._runner = runner
        self._credentials = credentials
        self._waits = waits
        self._hide = hide
        self._scopes: dict[str, int] = {}
        self._seen: set[str] = set()
        self._inner: dict[str, Step] = {}  # finished steps inside steps that run, which may be tried again
        self._root = _Scope()
        self._live = False  # once a step has run, which an earlier attempt may have seen fail, others may follow
        self._cancelled: str | None = None
        self._busy = 0  # steps that run and do not wait for an answer
        self._at_rest: asyncio.Event | None = None
        self.open_waits: dict[str, tuple[str, float]] = {}
        self.waiting: Waiting | None = None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.job.attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, timed out or lost its lease. For handlers that run in a thread."""
        return self._cancelled is not None

    def check(self) -> None:
        """Raise JobCancelled if the job should stop. Call it in loops of handlers that run in a thread."""
        if self._cancelled is not None:
            raise JobCancelled(self._cancelled)

    def cancel(self, reason: str) -> None:
        """Mark the job as to be stopped (the worker calls this)."""
        self._cancelled = reason

    def begin(self) -> None:
        """Say that the calling task is the handler's own: its steps have places (the worker calls this)."""
        self._root.task = asyncio.current_task()

    async def step(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        kind: str = "step",
        usage: Usage | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run `function(*args, **kwargs)` once and for all: a later attempt gets the kept result instead.

        Parameters:
            name: unique within the run, the same on every attempt. A step inside a step is kept as `outer/inner`.
            function: async or plain (plain ones run in a thread). Its result must be JSON-able; with a return
                annotation the result comes back as that type, otherwise as plain data.
            kind: step, model or tool, for the timeline.
            usage: filled in by `function` while it runs, for paid calls.

        Raises:
            StepRepeated: the name was used before in this run.
            JournalMismatch: an earlier attempt kept it with other arguments, or another step in its place.
            ResultInvalid: the result can't be written as JSON.
            LeaseLost: another worker has the job; nothing was written.
        """
        inputs = _digest(args, kwargs)
        key, place, done = self._place_step(name, inputs)
        if done is None:
            self._live = True
            begin = partial(_call, function, args, kwargs)
            done = await self._told(key, kind, self._run_step(key, place, inputs, begin, kind, usage))
            self._count(done)
        elif key not in self._inner:
            self._replay(*self._journal.within(key), done)  # those inside it are not asked for
        self._finish_step(done)
        return _typed(function, done.output)

    def _place_step(self, name: str, inputs: str) -> tuple[str, str, Step | None]:
        """The key and the place of a step that is asked for now, and the step itself where it is kept."""
        self.check()
        key = self.key_of(name)
        if key in self._seen:
            raise StepRepeated(
                f"step {key!r} ran twice in one run", hint="give each step its own name, such as f'{name}-{i}'"
            )
        self._seen.add(key)
        place = self._scope().next_place()
        done = self._inner.get(key) or self._journal.find(key)
        self._compare(key, place, inputs, done)
        return key, place, done

    def _finish_step(self, done: Step) -> None:
        if self._scope().prefix:
            self._inner[done.key] = done
        self.alive_at = mono()

    def _replay(self, *steps: Step) -> None:
        """Take a step from the journal, the last of these, and those that are inside it."""
        emit(StepReplayed(id=self.job.id, step=steps[-1].key, kind=steps[-1].kind))
        self._count(*steps)
        if self.feed is not None:
            for step in steps:
                self.feed.step_ended(step, replayed=True)

    def _count(self, *steps: Step) -> None:
        for step in steps:
            if step.usage is not None:
                self.usage.add(step.usage)

    def try_again(self) -> None:
        """Begin the step that runs anew: steps inside it that have finished are found, and not run again.

        For whoever calls a function again after it has failed; names are then counted from the start.
        """
        scope = self._scope()
        scope.asked = scope.spawned = 0
        self._forget(scope.prefix)

    def _forget(self, prefix: str) -> None:
        self._seen = {key for key in self._seen if not key.startswith(prefix)}
        self._scopes = {path: count for path, count in self._scopes.items() if not path.startswith(prefix)}

    async def _told(self, key: str, kind: str, run: Awaitable[Step]) -> Step:
        """Run a step and tell its beginning and its end to those who follow."""
        self.open_steps[key] = kind
        if self.feed is not None:
            self.feed.step_began(key, kind)
        try:
            step = await run
        except BaseException as error:
            if self.feed is not None:
                self.feed.step_failed(key, waits=isinstance(error, Waiting))
            raise
        finally:
            del self.open_steps[key]
        if self.feed is not None:
            self.feed.step_ended(step)
        return step

    def _scope(self) -> _Scope:
        return _within.get() or self._root

    def _compare(self, key: str, place: str, inputs: str, kept: Step | None) -> None:
        there = self._journal.at(place) if place and not self._live else None
        if there is None or there.key == key:
            there = kept
        if there is not None and (there.key, there.inputs) != (key, inputs):
            raise self._mismatch(_described(there.place, there.key, there.inputs), place, key, inputs, there.key)

    def _mismatch(self, kept: str, place: str, key: str, inputs: str, fork_from: str) -> JournalMismatch:
        return JournalMismatch(
            kept=kept,
            asked=_described(place, key, inputs),
            hint=f"deploy the former program, or: oxherd runs replay {self.job.id} --fork-from {quote(fork_from)}",
        )

    async def _run_step(
        self, key: str, place: str, inputs: str, run: Callable[[], Awaitable[Any]], kind: str, usage: Usage | None
    ) -> Step:
        saving: float | None = None

        def ending(how: Ending) -> StepEnded:
            journal_s = mono() - saving if saving is not None else 0.0
            return StepEnded(self.job.id, key, kind, how.outcome, how.seconds, journal_s, how.error)

        with spanning(StepStarted(self.job.id, key, kind), ending), self._inside(key, place):
            step = await self._make_step(key, place, inputs, run, kind, usage)
            saving = mono()
            await self._journal.save(step)
        if self._inner:
            self._inner = {inner: kept for inner, kept in self._inner.items() if not inner.startswith(f"{key}/")}
        return step

    async def _make_step(
        self, key: str, place: str, inputs: str, run: Callable[[], Awaitable[Any]], kind: str, usage: Usage | None
    ) -> Step:
        started_at, begun = wall_ms(), mono()
        value = await run()
        return Step(
            key=key,
            inputs=inputs,
            output=encode(value, what=f"the result of step {key!r}"),
            kind=kind,
            usage=usage,
            attempt=self.job.fence,
            started_at=started_at,
            ms=(mono() - begun) * 1000,
            place=place,
        )

    @contextmanager
    def _inside(self, key: str, place: str) -> Iterator[None]:
        """What is asked for meanwhile, in this task and those it makes, belongs to the step; and the step is busy."""
        scope = _Scope.inside(key, place, self._scope())
        outer = _within.set(scope)
        self._busy += 1
        try:
            yield
        finally:
            _within.reset(outer)
            self._rest(scope)

    def _rest(self, scope: _Scope) -> None:
        """The step is not busy any more."""
        if not scope.still:
            scope.still = True
            self._busy -= 1
            if not self._busy and self._at_rest is not None:
                self._at_rest.set()

    async def wait_for(
        self,
        name: str,
        *,
        timeout: str | float | None = None,  # noqa: ASYNC109  a person's time, not this call's
        about: Any = None,
        notify: Notify | None = None,
    ) -> Answer:
        """Ask a person, and wait for the answer without holding a slot or a lease.

        While there is no answer this raises `Waiting`: the job is parked, and runs again from the journal once somebody
        has answered (`oxherd approvals`, the API, a link) or the time is over. Steps that run side by side with it are
        waited for first, and several questions may be open at once. What is not in a step is done again.

        Parameters:
            name: unique within the run, as for `step`.
            timeout: how long the question stands, such as "24h" or seconds; APPROVAL_TIMEOUT when left out. It counts
                from the first asking.
            about: what the person is shown: plain data without secrets. An answer is for this alone, so it must be
                the same on every attempt.
            notify: called as `notify(ctx, ask)`, in a step of its own, to tell a person; `Herd.on_approval` when left
                out.

        Returns:
            The answer. That nobody answered is one, too: `expired`, and not `approved`.

        Raises:
            Waiting: see above. A handler that catches it and returns is parked all the same.
            StepRepeated, JournalMismatch, ResultInvalid, LeaseLost: see `step`.
            Fatal: the timeout is none, or there is no store to keep a question in.
        """
        inputs = _digest((about,), {})
        key, place, done = self._place_step(name, inputs)
        if done is None:
            self._live = True
            done = await self._told(key, "wait", self._ask(key, place, inputs, about, timeout, notify))
        elif key not in self._inner:
            self._replay(done)
        self._finish_step(done)
        return Answer(**decode(done.output))

    async def _ask(
        self, key: str, place: str, inputs: str, about: Any, lasts: str | float | None, notify: Notify | None
    ) -> Step:
        with self._inside(key, place):
            asked = await self._open(key, place, inputs, about, lasts)
            if asked.answer is not None:
                return await self._keep_answer(key, place, asked, asked.answer)
            await self._tell(asked, notify)
        raise await self._nothing_else_to_do(key)

    async def _open(self, key: str, place: str, inputs: str, about: Any, lasts: str | float | None) -> Asked:
        if self._waits is None:
            raise Fatal(
                f"ctx.wait_for({key!r}) needs a store: the answer may come when this worker is gone",
                hint="set DATABASE_URL, and start without --no-store",
            )
        asked = await self._waits.open(key, inputs=inputs, about=about, lasts=lasts)
        if asked.inputs != inputs:
            raise self._mismatch(_described("", key, asked.inputs), place, key, inputs, key)
        return asked

    async def _tell(self, asked: Asked, notify: Notify | None) -> None:
        assert self._waits is not None
        self.open_waits[asked.ask.id] = asked.ask.name, mono() + asked.left_ms / 1000
        if tell := notify or self._waits.notify:
            await self.step("notify", partial(_notified, tell, self, asked.ask))

    async def _keep_answer(self, key: str, place: str, asked: Asked, answer: Answer) -> Step:
        step = Step(
            key=key,
            inputs=asked.inputs,
            output=encode(answer),
            kind="wait",
            usage=None,
            attempt=self.job.fence,
            started_at=asked.asked_at,
            ms=float(max(answer.at - asked.asked_at, 0)),
            place=place,
        )
        await self._journal.save(step)
        return step

    async def _nothing_else_to_do(self, key: str) -> Waiting:
        """Wait until no step is busy: what those beside this one do is kept, and not done again."""
        scope: _Scope | None = self._scope()
        while scope is not None and scope is not self._root:
            self._rest(scope)
            scope = scope.around
        await asyncio.sleep(0)  # tasks that were made together with this one begin
        while self._busy:
            self._at_rest = self._at_rest or asyncio.Event()
            self._at_rest.clear()
            await self._at_rest.wait()
        self.waiting = Waiting(f"waits for an answer to {key!r}")
        return self.waiting

    def scope(self, name: str) -> str:
        """A prefix for steps that belong together: `name`, or `name#2`, `name#3`, … when it was given out before.

        The same on every attempt, as long as the handler asks in the same order.
        """
        path = self.key_of(name)
        count = self._scopes[path] = self._scopes.get(path, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def key_of(self, name: str) -> str:
        """The whole key of a step that is asked for here by that name."""
        return f"{self._scope().prefix}{name}"

    async def run(self, agent: Any, input: Any) -> Any:  # noqa: A002  the field's word
        """Run an agent; each of its model and tool calls is a step.

        Parameters:
            agent: an `Agent`, the name of one, or an inline definition (a dict).
            input: text, or a list of chat messages.

        Returns:
            A `Run` with `output`, `messages`, `usage` and `steps`.
        """
        return await self._runner(self, agent, input)

    async def credential(self, name: str) -> Hidden:
        """A secret that the job's tenant keeps under that name, as it is now: `oxherd credentials put` stores them.

        It is read anew each time and no step: a step's result is kept, and a kept secret would be no secret. From now
        on the value is hidden in logs and in this job's errors.

        Returns:
            The value, hidden until `reveal()`.

        Raises:
            NoCredential: the tenant has none of that name.
            VaultError: it can't be opened with this worker's keys.
        """
        self.check()
        if self._credentials is None:
            raise NoCredential(f"this context has no credentials, so there is no {name!r}")
        value = await self._credentials(self.tenant, name)
        self.alive_at = mono()
        return value

    def hide(self, text: str) -> str:
        """The text with `***` for the job's secrets: its sealed fields, and the credentials it asked for."""
        return self._hide(text)

    async def progress(self, value: float | dict[str, Any] | str) -> None:
        """Publish progress, as a number or an object; BullMQ's QueueEvents and `--wait` show it."""
        self.alive_at = mono()
        if self.feed is not None:
            self.feed.tell("progress", value=value)
        await self._wire.update_progress(self.job, value)

    async def log(self, text: str) -> None:
        """Append a line, without the job's secrets, to its log, which Bull Board and `oxherd jobs show` display."""
        self.alive_at = mono()
        if self.feed is not None:
            self.feed.tell("log", text=text)
        await self._wire.add_log(self.job, self.hide(text))

    async def publish(self, data: Any) -> None:
        """Show something to those who follow this run now, such as a preview; nothing happens where nobody does.

        It is kept no longer than the stream is (an hour), and published again by each attempt that comes here. It never
        waits for Redis. The job's secrets are hidden in it.

        Parameters:
            data: anything JSON can hold, at most 64 KiB of it; in place of what is too large, a `gap` is published.
        """
        self.alive_at = mono()
        if self.feed is not None:
            self.feed.tell("data", data=data)

    async def children(self) -> dict[str, Any]:
        """Results of the job's finished children by their key, such as `bull:agent-jobs:42`."""
        return await self._wire.children_values(self.job)

    async def spawn(self, name: str, data: Any = None, **opts: Any) -> str:
        """Add a child job; `raise WaitForChildren` then parks this job until all its children have finished.

        Safe on later attempts: the same call adds the same child, which is not added twice.

        Parameters:
            name: the child's job name.
            data: its payload.
            opts: BullMQ's job options by their long names, such as `attempts=3` or `failParentOnFailure=True`.

        Returns:
            The child's id.
        """
        scope = self._scope()
        scope.spawned += 1
        child_id = "child-" + self.idempotency_key(f"spawn/{scope.spawned}/{name}")
        return await self._wire.add_child(self.job, child_id, name, data, opts)

    def idempotency_key(self, name: str) -> str:
        """The same key on every attempt of this job, for outside effects that must not happen twice.

        Inside a step (every tool call is one) it is the step's own: two calls of a tool in one run have two keys.
        """
        path = f"{self.job.id}@{self.job.timestamp}/{self._scope().prefix}{name}"
        return hashlib.blake2b(path.encode(), digest_size=16).hexdigest()


async def _notified(notify: Notify, ctx: Context, ask: Ask) -> None:
    await _call(notify, (ctx, ask), {})  # what it returns is not kept: it may hold the link


async def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    value = await asyncio.to_thread(function, *args, **kwargs)
    return await value if inspect.isawaitable(value) else value


def _digest(args: Any, kwargs: Any) -> str:
    try:
        text = encode([list(args), kwargs], ordered=True)
    except Exception:  # noqa: BLE001  arguments that JSON can't hold (a client, the context) still get a stable hash
        text = repr([type(value).__qualname__ for value in [*args, *kwargs.values()]]).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _described(place: str, key: str, inputs: str) -> str:
    number = f"step {place} " if place else "step "
    return f"{number}{key!r} with inputs {inputs[:12]}"


def _typed(function: Callable[..., Any], output: bytes) -> Any:
    if getattr(function, "__annotations__", {}).get("return") in UNTYPED:
        return decode(output)  # resolving hints takes longer than all the rest of a step
    try:
        wanted = get_type_hints(function).get("return", Any)
    except Exception:  # noqa: BLE001  a callable object or an unresolvable annotation: plain data then
        wanted = Any
    return decode(output) if wanted in (Any, None, type(None)) else TypeAdapter(wanted).validate_json(output)
