"""From an error to what happens next: retry after a delay, or give up."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from typing import Any

from oxherd.codec import encode
from oxherd.errors import (
    BudgetExceeded,
    Fatal,
    JobCancelled,
    JobTimeout,
    JournalMismatch,
    LeaseLost,
    OxherdError,
    PayloadInvalid,
    Quarantined,
    RetryLater,
    UnknownJob,
    WaitForChildren,
    Waiting,
)
from oxherd.job import Delay, Drop, Fail, Job, Outcome, Park, Retry

FIRST_DELAY_MS = 1_000
LONGEST_DELAY_MS = 365 * 86_400_000
MAX_STACK = 8_000  # characters kept of one stack trace
MAX_REASON = 4_000  # characters kept of an error's message
Hide = Callable[[str], str]
KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (JobTimeout, "timeout"),
    (JobCancelled, "cancelled"),
    (PayloadInvalid, "invalid"),
    (UnknownJob, "unknown_job"),
    (Quarantined, "quarantined"),
    (JournalMismatch, "journal_mismatch"),
    (BudgetExceeded, "budget"),
)


def outcome_of(error: BaseException, job: Job, *, retries: int = 0, hide: Hide = str) -> Outcome:
    """What an error means for the job.

    Parameters:
        error: what the handler, or the worker on its behalf, raised.
        retries: the handler's own number of extra attempts, for jobs whose producer set none.
        hide: takes out of a text what nobody may read, such as a customer's key.
    """
    match error:
        case LeaseLost():
            return Drop()
        case WaitForChildren():
            return Park()
        case RetryLater():
            return Delay(_delay_ms(error.seconds * 1000), reason_of(error, hide))
        case BudgetExceeded(partial=partial) if partial is not None:
            output = encode(partial.summary())
            return Fail(reason_of(error, hide), stack_of(error, hide), kind_of(error), output)
        case Fatal() | JobCancelled():
            return Fail(reason_of(error, hide), stack_of(error, hide), kind_of(error))
        case _:
            return _retry_or_fail(error, job, retries, hide)


def is_waiting(error: BaseException | None) -> bool:
    """Whether an error says that an answer is missing: itself, as what it came from, or as all that a group holds."""
    match error:
        case None | Waiting():
            return error is not None
        case BaseExceptionGroup(exceptions=inner):
            return all(map(is_waiting, inner))
        case _:
            return is_waiting(error.__cause__) or is_waiting(error.__context__)


def _retry_or_fail(error: BaseException, job: Job, retries: int, hide: Hide) -> Outcome:
    producer_set = bool(job.opts.get("attempts"))
    allowed = job.attempts if producer_set else retries + 1
    if job.attempt >= allowed:
        return Fail(reason_of(error, hide), stack_of(error, hide), kind_of(error))
    backoff = job.opts.get("backoff")
    if backoff is None and not producer_set:
        backoff = {"type": "exponential", "delay": FIRST_DELAY_MS, "jitter": 0.5}
    return Retry(backoff_ms(backoff, job.attempt), reason_of(error, hide), stack_of(error, hide))


def backoff_ms(backoff: Any, attempt: int) -> int:
    """The pause before the next attempt, in ms.

    Parameters:
        backoff: a number (fixed ms), or `{"type": "fixed"|"exponential", "delay": ms, "jitter": 0..1}`. A custom type
            lives in the producer's code only, so it counts as fixed. None is no pause.
        attempt: the attempt that just failed, from 1.

    Source: BullMQ `src/classes/backoffs.ts`: exponential is `2^(attempt-1) * delay`; jitter j draws from
        [(1-j) * pause, pause].
    """
    if isinstance(backoff, int | float) and not isinstance(backoff, bool):
        return _delay_ms(backoff)
    if not isinstance(backoff, dict):
        return 0
    delay, jitter = _number(backoff.get("delay"), FIRST_DELAY_MS), min(_number(backoff.get("jitter"), 0.0), 1.0)
    pause = delay * 2.0 ** min(attempt - 1, 40) if backoff.get("type") == "exponential" else delay
    pause = min(pause, max(delay, 2**31))
    return _delay_ms(pause * (1 - jitter * random.random()))


def _delay_ms(pause: float) -> int:
    # Whatever a producer or a Retry-After header said, the due time must stay one that Redis can hold.
    return int(min(max(0.0, pause), LONGEST_DELAY_MS))  # this order turns NaN into 0


def _number(value: Any, default: float) -> float:
    return max(float(value), 0.0) if isinstance(value, int | float) and not isinstance(value, bool) else default


def reason_of(error: BaseException, hide: Hide = str) -> str:
    """One line for `failedReason`: the error's own words, or its type where it has none; its hint, if any."""
    words = _words_of(error, hide)
    text = words or type(error).__name__
    if isinstance(error, OxherdError):
        return f"{text} ({_sendable(hide(error.hint))})" if error.hint else text
    return text if words and type(error) in (Exception, RuntimeError) else f"{type(error).__name__}: {text}"


def _words_of(error: BaseException, hide: Hide) -> str:
    try:
        words = hide(str(error))  # before it is cut: half of a secret would not be found
    except Exception:  # noqa: BLE001  an error that can't even be printed still ends its job
        words = "(its message can't be printed)"
    return _sendable(words[:MAX_REASON])


def _sendable(text: str) -> str:
    # Half a surrogate pair, as broken JSON has them, is no text that Redis or Postgres would take.
    return text.encode("utf-8", "backslashreplace").decode()


def kind_of(error: BaseException) -> str:
    """What sort of failure it was, for logs and metrics."""
    return next((kind for wanted, kind in KINDS if isinstance(error, wanted)), "failed")


def stack_of(error: BaseException, hide: Hide = str) -> str:
    """The stack trace as text, its end kept where it is long."""
    return _sendable(hide("".join(traceback.format_exception(error)))[-MAX_STACK:])
