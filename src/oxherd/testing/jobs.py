"""One job through the worker's real executor and agents, without Redis and Postgres."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from oxherd.agents import LLM, Agents
from oxherd.app import built_in_handlers
from oxherd.clock import wall_ms
from oxherd.codec import decode, encode, tenant_of
from oxherd.context import Answer, Ask, Step, Usage
from oxherd.errors import UsageError
from oxherd.herd import Herd
from oxherd.job import Done, Fail, Job, Outcome, Retry
from oxherd.settings import Secret
from oxherd.store import Begun, Question, RunRecord, Store, WaitRow
from oxherd.testing.events import Events, captured_events
from oxherd.testing.model import ScriptedModel
from oxherd.vault.keyring import KeyRing
from oxherd.vault.vault import NO_VAULT, Vault
from oxherd.worker.approvals import Asking
from oxherd.worker.executor import Executor, Running

QUEUE = "test"
MISSING = object()
NO_MODEL = "http://model-is-missing.invalid/v1"  # the error of who calls it names it


@dataclass(frozen=True, slots=True)
class Child:
    """A child that a handler added."""

    id: str
    name: str
    data: Any
    opts: Mapping[str, Any]


Answers = Mapping[str, "bool | Answer | None"]


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """What happened before an attempt while its job was parked.

    Attributes:
        results: of finished children by their Redis keys.
        answers: to questions, by their names or ids: yes, no, None for nobody's, or an `Answer` that says more.
    """

    results: Mapping[str, Any] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobRun:
    """One attempt of a job, and how it went.

    Attributes:
        outcome: `Done`, `Retry`, `Fail`, `Delay`, `Park` or `Wait`, from `oxherd.job`.
        steps: the finished steps, those of earlier attempts included, in the order in which they finished.
        ran: the keys of those that this attempt ran itself.
        usage: tokens and money of the run, replayed steps included.
        progress, logs: what the handler published.
        children: what it added with `ctx.spawn`.
        questions: what it asks people, as far as nobody has answered.
        events: what Oxherd said meanwhile.
        place: where it ran.
    """

    outcome: Outcome
    steps: Sequence[Step]
    ran: Sequence[str]
    usage: Usage
    progress: Sequence[Any]
    logs: Sequence[str]
    children: Sequence[Child]
    questions: Sequence[Ask]
    events: Events
    place: Place = field(repr=False)

    @property
    def result(self) -> Any:
        """What the handler returned, as plain data.

        Raises:
            AssertionError: it did not return; with the reason and, where it raised, the stack.
        """
        if isinstance(self.outcome, Done):
            return decode(self.outcome.value)
        raise AssertionError(f"the job has no result, but {described(self.outcome)}")

    @property
    def outputs(self) -> dict[str, Any]:
        """What each finished step returned, as plain data, by its key."""
        return {step.key: decode(step.output) for step in self.steps}

    async def again(self, *, children: Mapping[str, Any] | None = None, answers: Answers | None = None) -> JobRun:
        """Run the next attempt of the same job, which replays the finished steps.

        Parameters:
            children: results of the children that have finished since, by their ids or their names; a name stands for
                all children of that name.
            answers: what people have answered since, by the names or ids of `questions`: True, False, None where the
                time is over, or an `Answer` from `oxherd.context`.

        Raises:
            UsageError: there is no such child or question.
        """
        self.place.spent += isinstance(self.outcome, Retry)
        known = {key for ask in self.questions for key in (ask.name, ask.id)}
        if unknown := set(answers or ()) - known:
            raise UsageError(f"the job asks no {min(unknown)!r}, but: {', '.join(sorted(known)) or 'nothing'}")
        return await self.place.attempt(self.steps, Meanwhile(self.results_of(children or {}), answers or {}))

    def results_of(self, children: Mapping[str, Any]) -> dict[str, Any]:
        """Results of this run's children by their Redis keys, from results by id or name. Raises UsageError."""
        known = {key for child in self.children for key in (child.id, child.name)}
        if unknown := set(children) - known:
            raise UsageError(f"the job has added no child {min(unknown)!r}, but: {', '.join(sorted(known)) or 'none'}")
        found = {child.id: children.get(child.id, children.get(child.name, MISSING)) for child in self.children}
        return {f"bull:{QUEUE}:{key}": value for key, value in found.items() if value is not MISSING}


async def run_job(
    herd: Herd,
    name: str,
    payload: Any = None,
    *,
    model: ScriptedModel | str | None = None,
    credentials: Mapping[str, str] | None = None,
    **opts: Any,
) -> JobRun:
    """Run one attempt of a job: payload, steps, agents, tools and errors are treated as in a worker.

    What needs a worker and its engines is missing: time limits, leases, caps per day, the ledger. `serving` has them.

    Parameters:
        herd: whose handler, or whose agent for `agent.run`.
        name: the job's name.
        payload: its data, as JSON has it, a dataclass or a pydantic model; `{}` when left out.
        model: what its agents call; a text is the base URL of any OpenAI-compatible service.
        credentials: what `ctx.credential` finds, by name, for the payload's tenant.
        opts: BullMQ's options by their long names, such as `attempts=3`.

    Raises:
        AssertionError: the scripted model was asked for more than its script has.
    """
    place = Place(herd, name, encode({} if payload is None else payload), model, credentials or {}, opts)
    return await place.attempt()


def described(outcome: Outcome) -> str:
    """How an attempt ended, in words."""
    if isinstance(outcome, Done):
        return outcome.value.decode()
    kind = f" ({outcome.kind})" if isinstance(outcome, Fail) else ""
    more = [text for text in (getattr(outcome, "reason", ""), getattr(outcome, "stack", "")) if text]
    return "\n".join([f"{type(outcome).__name__}{kind}", *more])


@dataclass(slots=True)
class Place:
    """Where the attempts of one job run.

    Attributes:
        started: how many attempts there were.
        spent: how many of them were used up by errors.
    """

    herd: Herd
    name: str
    raw: bytes
    model: ScriptedModel | str | None
    credentials: Mapping[str, str]
    opts: Mapping[str, Any]
    timestamp: int = field(default_factory=wall_ms)
    started: int = 0
    spent: int = 0

    async def attempt(
        self,
        steps: Sequence[Step] = (),
        meanwhile: Meanwhile | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> JobRun:
        """Run an attempt.

        Parameters:
            steps: what earlier ones have finished.
            meanwhile: what happened since the last one.
            on_step: called when a step was kept.

        Raises:
            AssertionError: the scripted model was asked for more than its script has.
        """
        given = meanwhile or Meanwhile()
        kept, queue = _Kept(steps, on_step, given.answers, self.timestamp), _Queue(given.results)
        agents = Agents(LLM(self._base_url, None, sleep=_no_pause), known=self.herd.agents)
        executor = Executor(
            {**self.herd.handlers, **built_in_handlers(agents.handle)},
            store=cast("Store", kept), wire=queue, runner=agents.run, vault=await self._vault(kept), worker="test",
            asking=Asking(notify=self.herd.notify), queue=QUEUE, timeout=0, idle_timeout=0, threads=4, crash_limit=2,
        )  # fmt: skip
        running = Running(self._job())
        try:
            with captured_events() as events:
                outcome = await executor.execute(running)
        finally:
            executor.close()
            await agents.close()
        if isinstance(self.model, ScriptedModel):
            self.model.check()
        usage = running.context.usage if running.context else Usage()
        return JobRun(
            outcome, kept.steps, kept.ran, usage, queue.progress, queue.lines, queue.children, kept.questions, events,
            self,
        )  # fmt: skip

    def _job(self) -> Job:
        self.started += 1
        return Job(
            id="1", name=self.name, raw=self.raw, opts=dict(self.opts), token=QUEUE, timestamp=self.timestamp,
            processed_on=wall_ms(), attempts_made=self.spent, attempts_started=self.started,
        )  # fmt: skip

    @property
    def _base_url(self) -> str:
        return self.model.base_url if isinstance(self.model, ScriptedModel) else self.model or NO_MODEL

    async def _vault(self, kept: _Kept) -> Vault:
        if not self.credentials:
            return NO_VAULT
        vault = Vault(KeyRing.of(Secret(base64.b64encode(secrets.token_bytes(32)).decode())), cast("Store", kept))
        for name, value in self.credentials.items():
            await vault.put(tenant_of(self.raw), name, Secret(value))
        return vault


class _Kept:
    """What the executor and the vault need of a store, in memory, for one attempt."""

    kind = "memory"

    def __init__(self, steps: Sequence[Step], on_step: Callable[[], None], answers: Answers, at: int) -> None:
        self.steps = list(steps)
        self.ran: list[str] = []
        self.questions: list[Ask] = []
        self._answers = answers
        self._at = at  # one moment for all, so that replays are alike
        self._on_step = on_step
        self._envelopes: dict[tuple[str, str], str] = {}

    async def begin(self, _: RunRecord) -> Begun:
        return Begun(allowed=True, output=None, steps=list(self.steps))

    async def record(self, _: RunRecord) -> bool:
        return True

    async def save_step(self, run_id: str, fence: int, step: Step, *, attempt_started_at: int = 0) -> bool:  # noqa: ARG002
        self.steps.append(step)
        self.ran.append(step.key)
        self._on_step()
        return True

    async def open_wait(
        self,
        question: Question,
        *,
        fence: int,  # noqa: ARG002
        attempt_started_at: int,  # noqa: ARG002
    ) -> tuple[WaitRow, bool]:
        expires_at = self._at + question.timeout_ms
        about = decode(question.about)
        told = self._answers.get(question.key, self._answers.get(question.id, MISSING))
        answer = told if isinstance(told, Answer) else Answer(told is True, None, "test", told is None, self._at)
        state = "open" if told is MISSING else "expired" if answer.expired else "answered"
        if state == "open":
            self.questions.append(Ask(question.id, question.key, about, expires_at, None))
        row = WaitRow(
            question.run_id, question.key, question.id, question.nonce, question.queue, question.job_id, question.job,
            question.tenant, question.inputs, about, state, self._at, expires_at, question.timeout_ms,
            answer.approved, answer.value, answer.message, answer.by, answer.at,
        )  # fmt: skip
        return row, state == "open"

    async def put_credential(self, tenant: str, name: str, envelope: str) -> bool:
        self._envelopes[tenant, name] = envelope
        return True

    async def get_credential(self, tenant: str, name: str) -> str | None:
        return self._envelopes.get((tenant, name))


class _Queue:
    """What a context needs of the queue, in memory."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.progress: list[Any] = []
        self.lines: list[str] = []
        self.children: list[Child] = []
        self._results = results

    async def update_progress(self, _: Job, value: Any) -> None:
        self.progress.append(value)

    async def add_log(self, _: Job, text: str) -> None:
        self.lines.append(text)

    async def children_values(self, _: Job) -> dict[str, Any]:
        return dict(self._results)

    async def add_child(self, _: Job, child_id: str, name: str, data: Any, opts: dict[str, Any]) -> str:
        self.children.append(Child(child_id, name, decode(encode(data)), opts))
        return child_id


async def _no_pause(_: float) -> None:
    await asyncio.sleep(0)
