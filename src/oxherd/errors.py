"""Every error Oxherd raises, as one tree.

OxherdError                     hint: what to do next; exit_code: what the command line returns
├── UsageError                  the command or its arguments are wrong                            2
│   ├── SettingsError           one or more variables are missing or malformed (all listed)       2
│   └── AppImportError          `--app module:herd` could not be loaded                           2
├── Unreachable                 a service did not answer                                          3
│   ├── RedisUnreachable        Redis refused, timed out or dropped the connection
│   ├── StoreUnreachable        Postgres or Supabase did
│   ├── ModelUnreachable        the model service stayed away or overloaded for hours
│   ├── ToolsUnreachable        a server of tools did
│   └── ServiceUnreachable      a service around the worker, such as Sentry, did not answer
├── RedisRefused                Redis answered with an error (code: READONLY, OOM, NOAUTH, …)      3
├── ServiceRefused              a service around the worker, such as Sentry, refused              3
├── OperationUnderWay           somebody else is changing the same service                        1
├── RotationStopped             a secret's rotation can't go on as things are        1, 10 to 18
├── EmbeddedUnavailable         an embedded engine has no wheel here or did not start             3
├── NotFound                    nothing has that id or name                                       1
│   ├── JobNotFound             no job with that id on the queue                                  1
│   ├── ScheduleNotFound        no job scheduler with that id on the queue                        1
│   ├── ApprovalNotFound        nobody was asked such a question                                  1
│   └── BackupNotFound          no backup has that name                                           1
├── BackupDamaged               a backup is not what was stored, or can't be opened               1
├── BackupFailed                a backup or a restore ended without its result                    1
├── JobStateError               the job is not in the state the action needs                      1
├── KeyReused                   an idempotency key came with another request before               1
├── ApprovalClosed              it was answered already, has expired, or its job is gone          1
└── JobError                    how a job can end other than by returning                         1
    ├── Fatal                   fail now, whatever attempts are left (UnrecoverableError)
    │   ├── PayloadInvalid      the job's data does not fit the handler's type
    │   ├── UnknownJob          no handler has this job's name
    │   ├── ResultInvalid       the handler's return value cannot be written as JSON
    │   ├── StoreRefused        the database can't hold a row for what is in it
    │   ├── StepRepeated        the same step name twice in one run
│   ├── JournalMismatch     the program asks for other steps than those the run has kept
    │   ├── Quarantined         the job keeps killing its workers
    │   ├── VaultError          a credential or a sealed field can't be had
    │   │   ├── NoCredential    the tenant has none of that name
    │   │   ├── NotAnEnvelope   the text is no envelope, or one of a later format
    │   │   ├── Truncated       its end is missing
    │   │   ├── Tampered        it was changed, or is bound to another tenant, name or place
    │   │   ├── WrongKey        it was sealed with another key than the one given
    │   │   └── UnknownKey      it was sealed with a key that is not in the ring
    │   └── AgentError          an agent's run can't go on
    │       ├── UnknownAgent    no agent has that name
    │       ├── ModelRefused    the model's provider refused the call, and would again
    │       │   └── ContextTooLong  the conversation does not fit the model's context window
    │       ├── OutputInvalid   the answer never took the form that was asked for
    │       ├── ToolsFailed     its calls of tools failed, turn after turn
    │       ├── LoopDetected    it made the same calls again and again
    │       └── BudgetExceeded  the run reached its cap on steps or money, or a day's cap was reached
    │           └── DailyCapReached  the day's cap of everything together; workers close their intake gate
    ├── RetryLater              try again after `seconds`; no attempt is spent
    │   ├── OutOfCredit         the model service wants to be paid first; workers close their intake gate
    │   └── LimitsReached       the model service's limits leave no room for a while; nothing was asked
    ├── WaitForChildren         park the job until its children have finished
    ├── Waiting                 park the job until somebody has answered
    ├── JobTimeout              the total or idle time limit passed
    ├── JobCancelled            somebody cancelled the job
    └── LeaseLost               another worker owns the job now: stop, write nothing
"""

from __future__ import annotations

from typing import Any, Protocol


class OxherdError(Exception):
    """Base of all errors raised on purpose.

    Parameters:
        message: one sentence for a person, never holding a secret's value.
        hint: what to do next, or an empty string.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OxherdError):
    """The command or one of its arguments is wrong."""

    exit_code = 2


class SettingsError(UsageError):
    """One or more variables are missing or malformed.

    Parameters:
        faults: one line per variable: its name, what is wrong with its shape, the fix.
    """

    def __init__(self, faults: list[str]) -> None:
        noun = "variable is" if len(faults) == 1 else "variables are"
        lines = "\n".join(f"  - {fault}" for fault in faults)
        super().__init__(f"{len(faults)} {noun} missing or malformed:\n{lines}", hint="docs/settings.md lists them all")
        self.faults = faults


class AppImportError(UsageError):
    """`--app module:herd` could not be loaded."""


class Unreachable(OxherdError):
    """A service did not answer."""

    exit_code = 3


class RedisUnreachable(Unreachable):
    """Redis refused, timed out or dropped the connection."""


class StoreUnreachable(Unreachable):
    """The database refused, timed out or dropped the connection."""


class ModelUnreachable(Unreachable):
    """The model service stayed away, or overloaded, over many delays of the job; this costs an attempt."""


class ToolsUnreachable(Unreachable):
    """A server of tools (MCP) stayed away over many delays of the job; this costs an attempt."""


class ServiceUnreachable(Unreachable):
    """A service around the worker, such as Sentry, did not answer."""


class ServiceRefused(OxherdError):
    """A service around the worker, such as Sentry, refused; the message has its words.

    Parameters:
        status: the HTTP status, 0 where there was none.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class OperationUnderWay(OxherdError):
    """Somebody else is changing the same service; nothing was done."""


class RotationStopped(OxherdError):
    """A secret's rotation can't go on as things are; nothing that was done is lost.

    Parameters:
        exit_code: 1, or that of the diagnosis where a deployment with the new value is no good.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class RedisRefused(OxherdError):
    """Redis answered with an error.

    Parameters:
        code: the first word of Redis's error, such as `READONLY`, `OOM` or `NOSCRIPT`.
    """

    exit_code = 3

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class EmbeddedUnavailable(OxherdError):
    """An embedded engine has no wheel for this machine, or did not start."""

    exit_code = 3


class NotFound(OxherdError):
    """Nothing has that id or name."""


class JobNotFound(NotFound):
    """No job with that id on the queue."""


class ScheduleNotFound(NotFound):
    """No job scheduler with that id on the queue."""


class JobStateError(OxherdError):
    """The job is not in the state that the action needs."""


class KeyReused(OxherdError):
    """An idempotency key came with another request before."""


class ApprovalNotFound(NotFound):
    """Nobody was asked such a question."""


class BackupNotFound(NotFound):
    """No backup has that name."""


class BackupDamaged(OxherdError):
    """A backup is not what was stored, or can't be opened."""


class BackupFailed(OxherdError):
    """A backup or a restore ended without its result; the message has what PostgreSQL's program said."""


class ApprovalClosed(OxherdError):
    """The question was answered already, has expired, or its job is gone.

    Parameters:
        state: answered, expired or withdrawn.
    """

    def __init__(self, message: str, *, state: str) -> None:
        super().__init__(message)
        self.state = state


class JobError(OxherdError):
    """How a job can end other than by returning."""


class Fatal(JobError):
    """Raise it in a handler to fail the job now, whatever attempts are left."""


class PayloadInvalid(Fatal):
    """The job's data does not fit the handler's type."""


class UnknownJob(Fatal):
    """No handler has this job's name."""


class ResultInvalid(Fatal):
    """The handler's return value cannot be written as JSON."""


class StoreRefused(Fatal):
    """The database can't hold a row for what is in it; writing it again would not help."""


class StepRepeated(Fatal):
    """The same step name was used twice in one run."""


class JournalMismatch(Fatal):
    """The program asks for other steps than those that earlier attempts have kept: it was changed meanwhile.

    Parameters:
        kept, asked: both sides in words: place, key and inputs.
        hint: what to do next.
    """

    def __init__(self, *, kept: str, asked: str, hint: str) -> None:
        super().__init__(f"the program changed since this run began: kept is {kept}, asked for is {asked}", hint=hint)
        self.kept = kept
        self.asked = asked


class Quarantined(Fatal):
    """The job was taken out of circulation because its workers keep dying while they run it."""


class VaultError(Fatal):
    """A credential or a sealed field can't be had."""


class NoCredential(VaultError):
    """The tenant has no credential of that name."""


class NotAnEnvelope(VaultError):
    """The text is no envelope, or one of a format that this release does not know."""


class Truncated(VaultError):
    """The end of an envelope is missing."""


class Tampered(VaultError):
    """An envelope was changed after it was sealed, or is bound to another tenant, name or place."""


class WrongKey(VaultError):
    """An envelope was sealed with another key than the one it was to be opened with."""


class UnknownKey(VaultError):
    """An envelope was sealed with a key that is not in the ring; or no key is configured at all."""


class AgentError(Fatal):
    """An agent's run can't go on."""


class UnknownAgent(AgentError):
    """No agent has that name."""


class ModelRefused(AgentError):
    """The model's provider refused the call, and would refuse it again."""


class ContextTooLong(ModelRefused):
    """The conversation does not fit the model's context window."""


class OutputInvalid(AgentError):
    """The answer never took the form that was asked for."""


class Partial(Protocol):
    """What there is of a run that was stopped (an `oxherd.agents.loop.Run`)."""

    def summary(self) -> dict[str, Any]:
        """It as the run's record keeps it."""


class ToolsFailed(AgentError):
    """All calls of tools failed, turn after turn, whatever the model was told."""


class LoopDetected(AgentError):
    """The model made the same calls of tools again and again, also after it was told."""


class BudgetExceeded(AgentError):
    """The run reached its cap on steps or money, or its tenant, its agent or everything together the day's.

    Attributes:
        partial: the `Run` as far as it came: its messages, its usage, and the last words as its output; None before it
            began.
    """

    partial: Partial | None = None


class DailyCapReached(BudgetExceeded):
    """The day's cap of everything together was reached. Every job would meet this: workers close the intake gate."""


class RetryLater(JobError):
    """Raise it in a handler to be run again later without spending an attempt.

    Parameters:
        seconds: how long to wait, in seconds, such as an HTTP `Retry-After`.
        reason: why, for the log and the job's `failedReason`.
    """

    def __init__(self, seconds: float, reason: str = "asked to be retried later") -> None:
        super().__init__(reason)
        self.seconds = float(seconds)


class LimitsReached(RetryLater):
    """The model service's limits leave no room for a while: nothing was asked, and `seconds` is when there will be."""


class OutOfCredit(RetryLater):
    """The model service wants to be paid before it goes on. Every job would meet this: workers close the intake gate.

    Parameters:
        seconds: until the job is run again.
        reason: what the service said, and where to pay.
    """


class WaitForChildren(JobError):
    """Raise it in a handler after adding children: the job is run again when all have finished."""

    def __init__(self) -> None:
        super().__init__("waiting for its children")


class Waiting(JobError):
    """Raised by `ctx.wait_for` while there is no answer: the job is parked, and run again when there is one."""


class JobTimeout(JobError):
    """The job's total or idle time limit passed."""


class JobCancelled(JobError):
    """Somebody cancelled the job."""


class LeaseLost(JobError):
    """Another worker owns the job now: stop at once and write nothing."""
