"""Where runs and steps are kept: the Store protocol and the records it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from oxherd.context import Step


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as it stands now; written at its start (where it matters) and at the end of each attempt.

    Attributes:
        id: `<queue>/<job id>@<enqueued ms>`: a job id that is used again later is another run.
        fence: the attempt's fencing number; a write with a lower one than the row has is refused.
        attempt: which attempt, from 1 (deploys and crashes do not count).
        status: running, completed, failed, retrying, delayed, handed_back, parked (for its children) or waiting (for an
            answer).
        input: the payload as the producer wrote it.
        output: the result as JSON, for completed runs; for those that a budget stopped, what they had.
        error, kind, stack: for the rest.
        *_at: wall ms, 0 where it has not happened.
    """

    id: str
    queue: str
    job_id: str
    name: str
    tenant: str | None
    status: str
    fence: int
    attempt: int
    attempts: int
    worker: str
    input: str
    output: str | None
    error: str | None
    kind: str | None
    stack: str | None
    enqueued_at: int
    started_at: int
    finished_at: int
    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """What the store knows of a run when a later attempt begins.

    Attributes:
        allowed: False where an attempt with a higher fencing number has begun: stop, write nothing.
        output: the result, where an earlier process stored it and died before it told the queue; else None.
        steps: the finished steps of earlier attempts.
    """

    allowed: bool
    output: str | None
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class KeptAgent:
    """An agent that the product's app keeps in the `agents` table, as it was in one of its versions.

    Attributes:
        version: counts the edits, from 1.
        definition: see `Agent.inline`.
    """

    version: int
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """One credential as it is stored: sealed.

    Attributes:
        tenant: whose it is, empty for nobody's in particular.
        name: what handlers call it.
        envelope: the sealed value.
        key_id: which key sealed it.
        created_at, updated_at: wall ms; updated when a value is put, not when it gets another key.
    """

    tenant: str
    name: str
    envelope: str
    key_id: str
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class SpendSum:
    """A line of the report on what was spent.

    Attributes:
        key: the day, tenant, agent or model; None for calls without a tenant.
        calls: how many tries of model calls.
        input_tokens, output_tokens: as far as they are known.
        cost_usd: of the settled ones.
        open: how many are not settled yet, and reserved_usd what is set aside for them.
        unknown: how many have a bill that will never be known. They are not in `cost_usd`.
    """

    key: str | None
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    open: int
    reserved_usd: Decimal
    unknown: int


@dataclass(frozen=True, slots=True)
class SpendRow:
    """One try of a model call in the ledger.

    Attributes:
        id: its own.
        run_id, step, fence: the run, the step, and the attempt's fencing number.
        tenant: whom it was for, or None.
        agent: its name.
        model: what was asked for, or who answered, once that is known.
        state: reserved (its bill is not known yet), settled, or unknown (its bill will never be known).
        at: when it began, wall ms.
        generation_id: the model service's, or None.
        input_tokens, output_tokens: None until they are known.
        reserved_usd: what was set aside for it; None where no cap applied or the price is unknown.
        cost_usd: None unless it is settled.
    """

    id: str
    run_id: str
    step: str
    fence: int
    tenant: str | None
    agent: str
    model: str
    state: str
    at: int
    generation_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    reserved_usd: Decimal | None = None
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; None for any.

    Attributes:
        status, name, tenant, job_id, worker: exactly this one.
        since, until: started from `since` on and before `until`, wall ms.
    """

    status: str | None = None
    name: str | None = None
    tenant: str | None = None
    job_id: str | None = None
    worker: str | None = None
    since: int | None = None
    until: int | None = None


ANY_RUN = RunFilter()


@dataclass(frozen=True, slots=True)
class RunPage:
    """A part of the list of runs.

    Attributes:
        runs: as rows, for people, without `input`, `output` and `stack`.
        next: where the page after this one begins; None at the end. A page may be empty and have one: only so many
            runs are looked at.
    """

    runs: list[dict[str, object]]
    next: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Who did what, and what came of it.

    Attributes:
        actor: how they were known: `token`, `session`, `loopback`.
        source: from where: an address.
        action: its name, such as `cancelJob`.
        target: what it was done to.
        detail: what was asked for, without payloads and secrets.
        outcome: the HTTP status that was answered.
    """

    actor: str
    source: str
    action: str
    target: str
    detail: Mapping[str, Any]
    outcome: int


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operator or a schedule did, once it has ended.

    Attributes:
        kind: deploy, backup, verify, restore, rotation or drill.
        target: what it was done to: a backup's name, a service, a variable.
        outcome: `ok` or `failed`.
        seconds: how long it took.
        summary: its figures, without secrets; names are up to the kind.
    """

    kind: str
    target: str
    outcome: str
    seconds: float
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """What a job asks a person.

    Attributes:
        run_id, key: the run, and the step that the answer will be.
        id: what people call it, the same for the same run and key.
        nonce: in the links of this asking, so that they answer no other one.
        queue, job_id, job, tenant: whose it is; `job` is the job's name.
        inputs: digest of what is asked.
        about: what the person is shown, as JSON.
        timeout_ms: how long it stands.
    """

    run_id: str
    key: str
    id: str
    nonce: str
    queue: str
    job_id: str
    job: str
    tenant: str | None
    inputs: str
    about: str
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class WaitRow:
    """A question as it is stored, and its answer.

    Attributes:
        about: what the person is shown, decoded.
        state: open, answered, expired, or withdrawn (its job was gone before anybody answered).
        asked_at, expires_at: wall ms, by the database's clock.
        left_ms: until it expires, as of this reading; 0 once it has.
        approved, value, message, by, answered_at: the answer; None or empty where there is none.
        others: as in Question.
    """

    run_id: str
    key: str
    id: str
    nonce: str = field(repr=False)
    queue: str
    job_id: str
    job: str
    tenant: str | None
    inputs: str
    about: Any
    state: str
    asked_at: int
    expires_at: int
    left_ms: int
    approved: bool | None
    value: Any
    message: str
    by: str
    answered_at: int | None


class Store(Protocol):
    """Two implementations, one suite: `store.postgres.PostgresStore` and `store.supabase.SupabaseStore`.

    Writes from all running jobs that are waiting together go out as one statement (group commit). While the database
    is away, writes wait and are tried again; they are idempotent, so a repeated one changes nothing.
    """

    kind: str

    async def start(self) -> None:
        """Connect and check the schema. Raises StoreUnreachable, or UsageError when migrations are missing."""

    async def stop(self) -> None:
        """Write what waits (bounded by a few seconds), then close. Twice is fine."""

    async def begin(self, run: RunRecord) -> Begun:
        """Claim the run for this attempt and fetch what earlier ones left. Durable when it returns.

        Raises:
            StoreRefused: the row can't be stored for what is in it. So do `record` and `save_step`.
        """

    async def record(self, run: RunRecord) -> bool:
        """Write the run. Durable when it returns. False: a later attempt has begun, nothing was written."""

    async def save_step(self, run_id: str, fence: int, step: Step, *, attempt_started_at: int = 0) -> bool:
        """Write a finished step. Durable when it returns. False: a later attempt has begun, nothing was written.

        Parameters:
            run_id, fence: the run's id and the attempt's fencing number.
            step: the step.
            attempt_started_at: when the attempt started, wall ms. It tells a job that was retried by hand with its
                counters reset (a low fence, but started after the run had ended) from a worker that lost its lease.
        """

    async def agent(self, name: str, version: int | None = None) -> KeptAgent | None:
        """An agent that the product's app keeps in the `agents` table, or None. Waits while away.

        Parameters:
            name: the agent's.
            version: one that it had, deleted or not; as it is now when left out.
        """

    async def put_credential(self, tenant: str, name: str, envelope: str) -> bool:
        """Store an envelope in place of any that is there; whether there was none.

        Raises:
            StoreRefused: it is no envelope, or a text can't be stored.
            StoreUnreachable: as all that follow here.
        """

    async def get_credential(self, tenant: str, name: str) -> str | None:
        """One envelope, or None. Waits while away."""

    async def remove_credential(self, tenant: str, name: str) -> bool:
        """Forget one; whether it was there."""

    async def list_credentials(
        self,
        *,
        limit: int,
        after: tuple[str, str] | None = None,
        tenant: str | None = None,
        but_key: str | None = None,
    ) -> list[CredentialRow]:
        """A page in the order of tenant and name.

        Parameters:
            limit: how many.
            after: tenant and name of the last one on the page before.
            tenant: of this one only.
            but_key: those that another key than this one sealed.
        """

    async def count_credentials(self) -> dict[str, int]:
        """How many each key sealed, by the key's id."""

    async def swap_credentials(self, swaps: Sequence[tuple[str, str, str, str]]) -> int:
        """Replace envelopes that are still the ones that were read; how many.

        Parameters:
            swaps: tenant, name, the envelope that was read, the one to replace it; none twice.
        """

    async def write_spend(self, rows: Sequence[SpendRow]) -> None:
        """Write to the ledger, no id twice. A settled row stays as it is. Raises StoreRefused, StoreUnreachable."""

    async def unsettled_spend(self, *, before: int, run_id: str | None = None, limit: int = 100) -> list[SpendRow]:
        """Rows of the ledger whose bill is not known yet, the oldest first. Raises StoreUnreachable.

        Parameters:
            before: those that began before this moment, wall ms.
            run_id: of this run only.
            limit: how many.
        """

    async def spend_report(self, *, by: str, since: int, until: int) -> list[SpendSum]:
        """What was spent, summed. Raises StoreUnreachable.

        Parameters:
            by: day (UTC), tenant, agent or model.
            since, until: of calls that began in between, wall ms; the first counts, the last does not.
        """

    async def open_wait(
        self, question: Question, *, fence: int, attempt_started_at: int
    ) -> tuple[WaitRow, bool] | None:
        """Ask, or look what became of an earlier asking: that one counts, with its text and its time.

        Durable when it returns; waits while the database is away.

        Parameters:
            question: what is asked.
            fence, attempt_started_at: of the attempt that asks, as for `save_step`.

        Returns:
            The row, and whether it was made just now; None where a later attempt has begun.

        Raises:
            StoreRefused: a text can't be stored.
        """

    async def answer_wait(
        self, wait_id: str, *, approved: bool, value: bytes | None, message: str, by: str, nonce: str | None = None
    ) -> tuple[WaitRow, bool] | None:
        """Answer an open question. The first answer wins, and none comes after its time, by the database's clock.

        Parameters:
            wait_id: the question's id.
            approved: yes or no.
            value: more than that, as JSON.
            message, by: words, and who said them.
            nonce: of this asking only.

        Returns:
            The row as it is now, and whether this was the answer; None where there is no such question.

        Raises:
            StoreRefused, StoreUnreachable: nothing was written, or it is not known (ask again).
        """

    async def get_wait(self, wait_id: str) -> WaitRow | None:
        """One question, or None. Raises StoreUnreachable, as do the next two."""

    async def list_waits(self, *, queue: str, state: str, limit: int) -> list[WaitRow]:
        """A queue's questions in one state: the open ones by when they expire, others the newest first."""

    async def withdraw_waits(self, wait_ids: Sequence[str]) -> None:
        """Close those of these questions that are open: their jobs are gone."""

    async def run(self, run_id: str) -> dict[str, object] | None:
        """One run as a row, for people; None where there is none. Raises StoreUnreachable.

        Names are those of RunRecord: times in wall ms, `output` decoded, `cost_usd` a Decimal.
        """

    async def runs(
        self, *, queue: str, limit: int = 50, wanted: RunFilter = ANY_RUN, after: tuple[int, str] | None = None
    ) -> RunPage:
        """A page of a queue's runs, the newest first. Raises StoreUnreachable, as do all that follow.

        Parameters:
            queue: its name.
            limit: how many at most.
            wanted: which.
            after: the `next` of the page before.
        """

    async def write_audit(self, line: AuditLine) -> None:
        """Keep who did what. Raises StoreRefused."""

    async def audit(self, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """A page of who did what, the newest first: fields of AuditLine, `id` and `at` (wall ms).

        Parameters:
            limit: how many.
            before: the id of the last line on the page before.
        """

    async def write_operation(self, operation: Operation) -> None:
        """Keep what an operator or a schedule did. Raises StoreRefused."""

    async def operations(self, kind: str, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """A page of one kind of operations, the newest first: fields of Operation, `id` and `at` (its end, wall ms).

        Parameters:
            kind: see Operation.
            limit: how many.
            before: the id of the last one on the page before.
        """

    async def agents(self, *, limit: int, after: str = "") -> list[dict[str, Any]]:
        """A page of the agents that the product's app keeps: `name`, `version`, `definition`, `updated_at` (wall ms).

        Parameters:
            limit: how many.
            after: the name of the last one on the page before.
        """

    async def find_run(self, queue: str, job_id: str) -> str | None:
        """The id of a job id's newest run, or None. Raises StoreUnreachable, as do the next two."""

    async def steps(self, run_id: str, *, outputs: bool = False) -> list[dict[str, object]]:
        """The finished steps of a run as rows, for people, in the order in which they finished.

        Names are those of Step: usage spread out, `size` of the output in bytes, `output` decoded where asked for.
        """

    async def drop_steps(self, run_id: str, key: str) -> list[str]:
        """Forget a step, all that finished after it, and those inside it, so that they are run again.

        Only for a run that has ended: one that is running would not notice.

        Returns:
            Their keys, none where there is no such step.
        """

    @property
    def waiting(self) -> int:
        """Writes that are not durable yet."""

    @property
    def away_seconds(self) -> float:
        """How long writes have been failing, 0.0 while all is well."""
