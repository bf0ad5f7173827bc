"""What the API takes and gives, as pydantic models: they check requests, and the OpenAPI document is made from them.

Times are milliseconds since the Unix epoch, money is text (US dollars, to the last digit), null is "not known" or
"none".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
Id = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]+$")]
Millis = Annotated[int, Field(ge=0, le=2**43, description="Milliseconds since the Unix epoch.")]
Dollars = Annotated[str, Field(description="US dollars, to the last digit.", examples=["0.00012345"])]
Cursor = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000, pattern=r"^[A-Za-z0-9_-]+$"),
    Field(description="The `next` of the page before."),
]
Next = Annotated[
    str | None,
    Field(
        description="The cursor of the next page; null at the end. A page may be empty and have one: "
        "only so many entries are looked at for one page."
    ),
]
Limit = Annotated[int, Field(ge=1, le=200, description="At most so many.")]
StateName = Literal["active", "prioritized", "wait", "delayed", "waiting-children", "failed", "completed"]
Payload = Annotated[dict[str, Any], Field(description="The payload that the handler gets.")]


class Taken(BaseModel):
    """What a request brings: nothing that is not named here."""

    model_config = ConfigDict(extra="forbid", defer_build=True)  # building all of them would cost the start 0.1 s


class Given(BaseModel):
    """What an answer holds."""

    model_config = ConfigDict(defer_build=True)


# -- jobs


class Backoff(Taken):
    """The pause before another attempt."""

    type: Literal["fixed", "exponential"] = "fixed"
    delay: int = Field(ge=0, le=2**41, description="Milliseconds; doubled each time when exponential.")
    jitter: float = Field(default=0, ge=0, le=1, description="Which share of it is left to chance.")


class Keep(Taken):
    """Which ended jobs the queue keeps."""

    count: int | None = Field(default=None, ge=0, le=2**31, description="At most so many.")
    age: int | None = Field(default=None, ge=0, le=2**31, description="For so many seconds.")


class Deduplication(Taken):
    """While a job with this id is kept, another one is not added."""

    id: Text
    ttl: int | None = Field(default=None, ge=1, le=2**41, description="Milliseconds for which that holds.")


class JobOptions(Taken):
    """How a job is to be treated; BullMQ's options under their own names."""

    job_id: str | None = Field(
        default=None, min_length=1, max_length=200, pattern=r"^[0-9]*[^0-9:\x00][^:\x00]*$",
        description="An id of your own, no whole number and without a colon: "
        "while the first job with it is kept, no second is added.",
    )  # fmt: skip
    priority: int | None = Field(
        default=None,
        ge=0,
        le=2_097_151,
        description="1 is the most urgent; jobs without one run before those with one.",
    )
    delay: int | None = Field(default=None, ge=0, le=2**41, description="Milliseconds from now.")
    attempts: int | None = Field(default=None, ge=1, le=1_000_000)
    backoff: Backoff | None = None
    lifo: bool | None = Field(default=None, description="Before the jobs that wait already.")
    remove_on_complete: bool | Keep | None = None
    remove_on_fail: bool | Keep | None = None
    deduplication: Deduplication | None = None

    def for_bullmq(self) -> dict[str, Any]:
        """The same as `Producer.add` takes it."""
        given = self.model_dump(exclude_none=True)
        return {_BULLMQ.get(name, name): value for name, value in given.items()}


_BULLMQ = {"job_id": "jobId", "remove_on_complete": "removeOnComplete", "remove_on_fail": "removeOnFail"}


class NewJob(Taken):
    """A job to add."""

    name: Text = Field(description="Which handler runs it.", examples=["agent.run"])
    data: Payload = Field(default_factory=dict)
    options: JobOptions = Field(default_factory=JobOptions)


class NewJobs(Taken):
    """Jobs to add, in this order."""

    jobs: list[NewJob] = Field(min_length=1, max_length=1000)


class Added(Given):
    """A job that was added."""

    id: str


class AddedMany(Given):
    """Jobs that were added, in the order in which they were asked for."""

    ids: list[str]


class JobSummary(Given):
    """A job as lists show it."""

    id: str
    name: str
    state: str
    tenant: str | None = Field(description="From the payload; null also where that has more than 64 KiB.")
    attempts_made: int
    attempts: int
    stalled: int = Field(description="How many workers it has lost.")
    priority: int
    delay: int
    timestamp: int = Field(description="When it was added.")
    processed_on: int | None
    finished_on: int | None
    failed_reason: str | None = Field(description="In lists its first 1,000 bytes.")
    parent: str | None
    scheduler: str | None


class Job(JobSummary):
    """All the queue knows of a job."""

    data: Any
    opts: dict[str, Any] = Field(description="BullMQ's options as the queue has them.")
    attempts_started: int
    progress: Any
    returnvalue: Any
    stacktrace: list[str]
    logs: list[str]


class JobPage(Given):
    """A page of jobs."""

    jobs: list[JobSummary]
    next: Next


class JobQuery(Taken):
    """Which jobs."""

    state: StateName | None = Field(default=None, description="All of them, in the order in which they matter.")
    name: Text | None = None
    tenant: Text | None = None
    since: Millis | None = Field(default=None, description="Ended from this moment on; for failed and completed.")
    until: Millis | None = Field(default=None, description="Ended before this moment; for failed and completed.")
    limit: Limit = 50
    cursor: Cursor | None = None

    @model_validator(mode="after")
    def _times_are_of_ended_jobs(self) -> JobQuery:
        if (self.since is not None or self.until is not None) and self.state not in {"failed", "completed"}:
            raise ValueError("since and until need state=failed or state=completed")
        return self


class JobId(Taken):
    """Which job."""

    id: Id


class Done(Given):
    """What became of it."""

    id: str
    done: str = Field(description="waiting, stopping, removed or promoted")


# -- dead letters


class DeadQuery(Taken):
    """How many to look at."""

    limit: Annotated[int, Field(ge=1, le=1000, description="Of the newest so many.")] = 1000


class DeadGroup(Given):
    """Dead letters with the same name and the same reason, numbers in it aside."""

    fingerprint: str
    name: str
    reason: str
    count: int
    newest: int
    ids: list[str]


class DeadGroups(Given):
    """Dead letters, the largest group first."""

    groups: list[DeadGroup]


class DeadChoice(Taken):
    """Which dead letters: by `ids`, or by `name`, `fingerprint` or both, or `all`."""

    ids: list[Id] | None = Field(default=None, min_length=1, max_length=1000)
    name: Text | None = None
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")] | None = None
    all: Literal[True] | None = None
    limit: Annotated[int, Field(ge=1, le=1000, description="At most so many in this request.")] = 1000
    cursor: Cursor | None = None

    @model_validator(mode="after")
    def _one_way_of_choosing(self) -> DeadChoice:
        ways = (self.ids is not None, self.name is not None or self.fingerprint is not None, self.all is not None)
        if sum(ways) != 1:
            raise ValueError("choose by ids, by name and fingerprint, or all: exactly one of these")
        return self


class DeadDone(Given):
    """What was done; repeat with `next` as the cursor until it is null."""

    ids: list[str]
    gone: list[str] = Field(description="Chosen ones that are no dead letters.")
    next: Next


# -- runs


class RunQuery(Taken):
    """Which runs."""

    status: Literal["running", "completed", "failed", "retrying", "delayed", "handed_back", "parked"] | None = None
    name: Text | None = None
    tenant: Text | None = None
    job_id: Text | None = None
    worker: Text | None = None
    since: Millis | None = Field(default=None, description="Started from this moment on.")
    until: Millis | None = Field(default=None, description="Started before this moment.")
    limit: Limit = 50
    cursor: Cursor | None = None


class RunSummary(Given):
    """A run as lists show it."""

    id: str
    queue: str
    job_id: str
    name: str
    tenant: str | None
    status: str
    fence: int = Field(description="The attempt's fencing number.")
    attempt: int
    attempts: int
    worker: str
    error: str | None
    kind: str | None
    enqueued_at: int
    started_at: int
    finished_at: int = Field(description="0 while it runs.")
    model_calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Dollars | None


class Step(Given):
    """A finished step."""

    key: str
    kind: str
    place: str | None
    inputs: str = Field(description="A digest of them.")
    attempt: int
    started_at: int
    ms: float
    model_calls: int | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Dollars | None
    size: int = Field(description="Of the output, in bytes.")
    output: Any = Field(default=None, description="Where it was asked for.")


class Run(RunSummary):
    """A run with all that is known of it."""

    input: str = Field(description="The payload as its producer wrote it.")
    output: Any
    stack: str | None
    steps: list[Step] = Field(description="In the order in which they finished.")


class RunPage(Given):
    """A page of runs."""

    runs: list[RunSummary]
    next: Next


class RunRead(Taken):
    """Which run, and how much of it."""

    id: Annotated[Id, Field(description="A run's id, or a job's: then its newest run is meant.")]
    outputs: Literal["true", "false"] = Field(default="false", description="With the outputs of steps.")


class RunId(Taken):
    """Which run."""

    id: Annotated[Id, Field(description="A run's id, or a job's: then its newest run is meant.")]


class Replay(Taken):
    """From where."""

    fork_from: Text | None = Field(
        default=None, description="The key of a step: it and what finished after it are run, and paid for, anew."
    )


class Replayed(Given):
    """What will be run."""

    run_id: str
    job_id: str
    kept: int = Field(description="How many steps come from the journal.")
    dropped: list[str] = Field(description="Keys of the steps that are run anew.")


class Following(Taken):
    """Which run."""

    id: Annotated[Id, Field(description="A job's id, or a run's.")]


# -- approvals


class ApprovalQuery(Taken):
    """Which questions."""

    state: Literal["open", "answered", "expired", "withdrawn"] = "open"
    limit: Limit = 50


class ApprovalId(Taken):
    """Which question."""

    id: Id


class Approval(Given):
    """A question that a job asks people, and its answer."""

    id: str
    key: str = Field(description="Its name in the run.")
    run_id: str
    job_id: str
    job: str = Field(description="The job's name.")
    tenant: str | None
    about: Any = Field(description="What the person is shown.")
    state: str
    asked_at: int
    expires_at: int
    left_ms: int = Field(description="Until it expires.")
    approved: bool | None
    value: Any
    message: str
    by: str
    answered_at: int | None


class Approvals(Given):
    """Questions: open ones by when they expire, others the newest first."""

    approvals: list[Approval]


class ApprovalAnswer(Taken):
    """An answer."""

    approved: bool
    message: Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")] = ""
    value: Any = Field(default=None, description="More than yes or no, for the job.")
    by: Text | None = Field(default=None, description="Who answers; how they are logged in when left out.")


# -- queues and workers


class QueueName(Taken):
    """Which queue."""

    queue: Id


class Counts(Given):
    """How many jobs are in each state."""

    active: int
    prioritized: int
    wait: int
    delayed: int
    waiting_children: int = Field(alias="waiting-children")
    failed: int
    completed: int


class Queue(Given):
    """A queue."""

    name: str
    counts: Counts
    paused: bool = Field(description="Whether the workers' intake gate is closed.")
    reason: str | None = Field(description="Why.")


class Queues(Given):
    """The queues of this server."""

    queues: list[Queue]


class Pause(Taken):
    """Why."""

    reason: Text = Field(examples=["restoring the database"])


class Drain(Taken):
    """What to remove for good."""

    confirm: Text = Field(description="The queue's name once more, as jobs that wait are removed for good.")
    delayed: bool = Field(default=False, description="Those that wait for their time, too.")


class Drained(Given):
    """What was removed; repeat until `left` is 0."""

    removed: int
    left: int


class Worker(Given):
    """A worker's last sign of life."""

    id: str
    host: str
    pid: int
    version: str
    commit: str
    started: int
    concurrency: int
    in_flight: int
    finished: int
    loop_lag: float = Field(description="Seconds.")
    gate: str | None
    draining: bool
    seen: int = Field(description="Milliseconds ago.")
    alive: bool = Field(description="Whether that is no more than 90 s.")


class Workers(Given):
    """The workers of the queue, and those that died within the last hour."""

    workers: list[Worker]


# -- agents, spend, credentials


class Agent(Given):
    """An agent."""

    name: str
    source: Literal["code", "table"] = Field(description="Defined by the product's program, or in `oxherd.agents`.")
    version: int | None = Field(description="Of those in the table.")
    updated_at: int | None
    definition: dict[str, Any]


class AgentPage(Given):
    """A page of agents: those of the program first."""

    agents: list[Agent]
    next: Next


class PageQuery(Taken):
    """Which page."""

    limit: Limit = 50
    cursor: Cursor | None = None


class SpendQuery(Taken):
    """Which sums."""

    by: Literal["day", "tenant", "agent", "model"] = "day"
    days: Annotated[int, Field(ge=1, le=3660, description="Of so many days (UTC), today included.")] = 30


class SpendLine(Given):
    """A sum."""

    key: str | None = Field(description="The day, tenant, agent or model; null for calls without a tenant.")
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Dollars
    open: int = Field(description="How many calls have no bill yet.")
    reserved_usd: Dollars = Field(description="What is set aside for them.")
    unknown: int = Field(description="How many have a bill that will never be known; they are not in the cost.")


class Spend(Given):
    """What model calls cost."""

    lines: list[SpendLine]


class CredentialQuery(Taken):
    """Which credentials."""

    tenant: Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class Credential(Given):
    """A credential's name; no answer has its value."""

    tenant: str | None
    name: str
    key: str = Field(description="Which encryption key seals it.")
    created_at: int
    updated_at: int


class CredentialPage(Given):
    """A page of credentials."""

    credentials: list[Credential]
    next: Next


# -- schedules


class ScheduleId(Taken):
    """Which schedule."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^:\x00]+$")]


class NewSchedule(Taken):
    """When, and what."""

    every: int | None = Field(default=None, ge=1000, le=2**41, description="Milliseconds between runs.")
    pattern: Text | None = Field(
        default=None,
        description="A cron pattern of five fields, or six with the seconds first.",
        examples=["0 3 * * *"],
    )
    tz: Text | None = Field(default=None, description="The pattern's IANA time zone; UTC when left out.")
    limit: int | None = Field(default=None, ge=1, le=2**31, description="At most so many runs.")
    start: Millis | None = None
    end: Millis | None = None
    job: NewJob

    @model_validator(mode="after")
    def _one_rhythm(self) -> NewSchedule:
        if (self.every is None) == (self.pattern is None):
            raise ValueError("a schedule needs exactly one of every and pattern")
        given = self.job.options.model_fields_set & {"job_id", "delay", "deduplication"}
        if given:
            raise ValueError(f"job.options.{min(given)}: the scheduler sets it for each job")
        return self


class Schedule(Given):
    """A job scheduler."""

    id: str
    name: str
    every: int | None
    pattern: str | None
    tz: str | None
    limit: int | None
    start: int | None
    end: int | None
    count: int
    next: int | None = Field(description="When it fires; null while it is paused.")
    paused: bool
    data: Any
    opts: dict[str, Any]


class Schedules(Given):
    """The job schedulers: the next to fire first, then the paused ones."""

    schedules: list[Schedule]


# -- service levels and alerts


class Objective(Given):
    """How a promise stands."""

    name: str
    sli: str = Field(description="What is measured: see docs/slo.md.")
    promise: str = Field(description="As a sentence.")
    target: float = Field(description="The share of good events that was promised.")
    threshold_s: float | None = Field(description="Seconds, where durations are measured.")
    window_s: float = Field(description="Seconds over which the promise holds, until now.")
    job: str | None = Field(description="Of jobs of this name only.")
    reached: float | None = Field(description="The share of good events; null where nothing happened.")
    events: float
    bad: float = Field(description="How many of them broke the promise.")
    budget_left: float = Field(description="1 is all of the error budget; below 0 the promise is broken.")
    severity: Literal["page", "ticket"] | None = Field(description="Of the worst burning that alerts now.")
    burn_rates: dict[str, float | None] = Field(
        description="By window, such as `3600s`: how many times as fast as it may the budget burns."
    )


class Objectives(Given):
    """How the promises stand, those with the least budget left first."""

    objectives: list[Objective]
    counted_since: int | None = Field(description="Null where nothing was counted yet.")


class SeriesQuery(Taken):
    """Which chart."""

    span: Literal["1h", "6h", "24h", "7d", "30d"] = Field(default="1h", description="How long a time, until now.")
    job: Text | None = Field(default=None, description="Of jobs of this name only.")


class Quantiles(Given):
    """What 50, 95 and 99 % of some durations do not exceed, to 12 %; null where nothing happened."""

    p50: float | None
    p95: float | None
    p99: float | None


class SeriesPoint(Given):
    """What happened in one step."""

    at: int = Field(description="When it begins.")
    ms: int = Field(description="How long it is: the newest one is not over yet.")
    attempts: int
    errors: int = Field(description="Attempts that ended in an error.")
    completed: int = Field(description="Jobs.")
    failed: int = Field(description="Jobs that failed for good.")
    wait_ms: Quantiles
    run_ms: Quantiles


class Series(Given):
    """A chart, the oldest point first; nothing from before the queue was counted. Workers write every 15 seconds."""

    points: list[SeriesPoint]


class AlertQuery(Taken):
    """Which alerts."""

    state: Literal["firing", "silenced", "pending", "past"] | None = Field(
        default=None, description="All that are not over when left out: firing, silenced, and pending."
    )


class Alert(Given):
    """Something that is wrong, or was."""

    key: str
    kind: str
    subject: str = Field(description="What it is about, such as an objective's name.")
    severity: Literal["page", "ticket"]
    state: Literal["firing", "silenced", "pending", "past"] = Field(
        description="People were told of it; they are left in peace; nobody was told yet; it is over."
    )
    summary: str
    about: str = Field(description="What it means.")
    runbook: str = Field(description="Where the page is that says what to do.")
    since: int
    seen: int = Field(description="When it was last there.")


class Silence(Given):
    """Nobody is told of some alerts for a while."""

    pattern: str
    until: int
    by: str
    reason: str


class Silences(Given):
    """Silences that have not ended."""

    silences: list[Silence]


class Alerts(Given):
    """Alerts: those that page first, then the oldest; of those that are over, the newest first, 500 at most."""

    alerts: list[Alert]


class NewSilence(Taken):
    """Of which alerts nobody is to be told, and for how long."""

    pattern: Text = Field(
        description="An alert's key or kind; `*` stands for anything.", examples=["queue-age", "slo-*"]
    )
    seconds: int = Field(ge=60, le=2_592_000, description="For how long.", examples=[7200])
    reason: Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00]*$")] = ""
    by: Text | None = Field(default=None, description="Who asks for it; how they are logged in when left out.")


class SilencePattern(Taken):
    """Which silence."""

    pattern: Id


# -- the audit log and logins


class AuditLine(Given):
    """Who did what."""

    id: int
    at: int
    actor: str
    source: str
    action: str
    target: str
    detail: dict[str, Any]
    outcome: int = Field(description="The HTTP status that was answered.")


class AuditPage(Given):
    """A page of the audit log, the newest first."""

    lines: list[AuditLine]
    next: Next


class Login(Taken):
    """A token."""

    token: Text


class Session(Given):
    """Who asks."""

    actor: str
    scope: Literal["read", "act"]
    csrf: str | None = Field(description="The value of the header `x-csrf-token` that a session's actions need.")
    expires: int | None


class Nothing(Given):
    """Nothing more to say."""


class FieldProblem(Given):
    """What is wrong with a field."""

    field: str
    detail: str


class ProblemDetails(Given):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""
    errors: list[FieldProblem] = Field(default_factory=list)
