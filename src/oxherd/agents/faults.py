"""What a failed model call means, decided once. Pure.

Source: OpenRouter's errors (`error.metadata.error_type`, `error.availability`), OpenAI's codes, llama.cpp's types.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from oxherd.clock import wall_ms
from oxherd.errors import LimitsReached, ModelUnreachable, OutOfCredit, OxherdError, RetryLater, Unreachable
from oxherd.job import Job

CHECK_URL = "check OPENROUTER_BASE_URL: it ends before /chat/completions"
STATUS_PAGE = "see https://status.openrouter.ai"
MAX_MESSAGE = 300  # characters of a provider's message that are kept: it may repeat the prompt
TOO_LONG = frozenset(
    {"context_length_exceeded", "token_limit_exceeded", "string_too_long", "exceed_context_size_error"}
)
MODERATED = frozenset({"content_policy_violation", "refusal"})
# For errors that come in the body of a 200 and have no numeric code. What is not here counts as passing.
STATUS_OF_TYPE = {
    **dict.fromkeys(TOO_LONG, 400),
    "max_tokens_exceeded": 400,
    "invalid_request": 400,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "authentication": 401,
    "payment_required": 402,
    "permission_denied": 403,
    **dict.fromkeys(MODERATED, 403),
    "not_found": 404,
    "timeout": 408,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "unprocessable": 422,
    "rate_limit_exceeded": 429,
}
LATER = 30.0  # seconds until the job is run again when the service said nothing
LONGEST_LATER = 3600.0  # seconds; what `LATER` doubles up to, from one delay of the job to the next
LONGEST_TOLD = 86_400.0  # seconds; free models' limits reset once a day, whoever asks for more is wrong
PATIENT_DELAYS = 12  # of one job; together with the next line, the bound of delays that cost no attempt
PATIENT_FOR = 6 * 3600.0  # seconds
_EPOCH_MS = 1e11  # OpenRouter's moment of reset is in epoch milliseconds; a smaller number is another service's dialect
_AFFORDABLE = re.compile(r"can only afford (\d+)")


class Verdict(Enum):
    """What to do about a fault."""

    RETRY = "try again soon"
    AFFORD = "try again once, with the output limit that the credit covers"
    PARK = "try again much later: somebody has to pay first"
    REFUSE = "give up: the same call would fail again"


class Fault(Exception):
    """A model call failed.

    Attributes:
        verdict: what to do.
        message: what happened, for a person.
        hint: what a person can do.
        retry_after: seconds the service asked to wait, or None.
        affordable: output tokens that the remaining credit covers, with AFFORD.
        status: the HTTP status that it counts as; 0 where there was no answer.
        too_long: whether the conversation does not fit the model's context window.
    """

    def __init__(
        self,
        verdict: Verdict,
        message: str,
        *,
        hint: str = "",
        retry_after: float | None = None,
        affordable: int = 0,
        status: int = 0,
        too_long: bool = False,
    ) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message
        self.hint = hint
        self.retry_after = retry_after
        self.affordable = affordable
        self.status = status
        self.too_long = too_long


def fault_of(status: int, headers: Mapping[str, str], body: Any) -> Fault:
    """What an error answer means.

    Parameters:
        status: the HTTP status; 200 where the error came in the body of a success.
        headers: of the answer, any case.
        body: the parsed body, or None where it is no JSON.
    """
    error = _error(body)
    kind = _kind(error)
    status = _status(status, error, kind)
    fault = _judge(status, headers, error, kind)
    fault.status = status
    return fault


def later(retry_after: float | None) -> float:
    """Seconds until a job is run again. With jitter: many jobs must not come back at once."""
    return min(max(retry_after or 0.0, LATER), LONGEST_TOLD) * random.uniform(1.0, 1.25)


def lengthened(
    error: RetryLater, job: Job, *, last: type[Unreachable] = ModelUnreachable, hint: str = STATUS_PAGE
) -> OxherdError | RetryLater:
    """The delay for a job that may have been delayed before: each is longer than the last, and they are not for ever.

    Returns:
        A RetryLater, or, past the bound, the `last` error, which costs the job an attempt.
    """
    if isinstance(error, OutOfCredit | LimitsReached):
        return error  # the closed gate keeps it waiting; or it knows when there is room
    # Also after a deploy: a little more patience then.
    returns = job.attempts_started - job.attempts_made - job.parked - 1
    if returns >= PATIENT_DELAYS and job.waited_ms > PATIENT_FOR * 1000:
        return last(f"{error} (after {returns} delays)", hint=hint)
    grown = min(LATER * 2.0 ** min(returns, 20), LONGEST_LATER) * random.uniform(1.0, 1.25)
    return RetryLater(max(error.seconds, grown), str(error))


def _judge(status: int, headers: Mapping[str, str], error: Mapping[str, Any], kind: str) -> Fault:
    said = str(error.get("message") or "no reason given")[:MAX_MESSAGE]
    provider = _part(error, "metadata").get("provider_name")
    message = f"the model service answered {status}: {said}" + (f" (from {provider})" if provider else "")
    if status == 402:
        return _of_credit(message, said)
    if _is_passing(status, error):
        return Fault(Verdict.RETRY, message, retry_after=_wait(headers, error))
    if kind in TOO_LONG or "maximum context length" in said:
        hint = "shorten the input, or use a model with a larger context window"
        return Fault(Verdict.REFUSE, f"the conversation is too long for the model: {said}", hint=hint, too_long=True)
    if status == 401:
        # Without what was said: some services repeat a part of the key.
        return Fault(Verdict.REFUSE, "the model service refused the key", hint="check OPENROUTER_API_KEY")
    if status == 403:
        return _of_refusal(message, error, kind)
    docs = str(_part(error, "availability").get("docs_url") or "")
    return Fault(Verdict.REFUSE, message, hint=docs if error else CHECK_URL)


def _error(body: Any) -> Mapping[str, Any]:
    """The error's own object. Ollama sends text in its place, vLLM sends `detail`."""
    if not isinstance(body, Mapping):
        return {}
    text = body.get("error") or body.get("detail")
    return {"message": text} if isinstance(text, str) else _part(body, "error") or body


def _of_credit(message: str, said: str) -> Fault:
    hint = "add credit at https://openrouter.ai/settings/credits, or raise the key's limit"
    found = _AFFORDABLE.search(said)
    if found:
        return Fault(Verdict.AFFORD, message, hint=hint, affordable=int(found[1]))
    return Fault(Verdict.PARK, message, hint=hint)


def _of_refusal(message: str, error: Mapping[str, Any], kind: str) -> Fault:
    reasons = _part(error, "metadata").get("reasons")
    if isinstance(reasons, list) and reasons:
        named = ", ".join(str(reason) for reason in reasons[:5])
        return Fault(Verdict.REFUSE, f"{message} (flagged: {named})")
    hint = "" if kind in MODERATED else "check that OPENROUTER_API_KEY may use this model"
    return Fault(Verdict.REFUSE, message, hint=hint)


def _part(whole: Any, name: str) -> Mapping[str, Any]:
    part = whole.get(name) if isinstance(whole, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _kind(error: Mapping[str, Any]) -> str:
    """The named type of an error, wherever the service put it."""
    code = error.get("code")
    places = (_part(error, "metadata").get("error_type"), error.get("error_type"), error.get("type"), code)
    return next((place for place in places if isinstance(place, str) and place), "")


def _status(status: int, error: Mapping[str, Any], kind: str) -> int:
    """The status that counts: a body of its own says more than the 200 or 4xx it came with."""
    for told in (_number(error.get("code")), _number(error.get("http_status"))):
        if told is not None and 400 <= told < 600:
            return int(told)
    if status >= 300:
        return status
    return STATUS_OF_TYPE.get(kind, 500)


def _is_passing(status: int, error: Mapping[str, Any]) -> bool:
    retryable = _part(error, "availability").get("retryable")
    if isinstance(retryable, bool):
        return retryable
    return status in {408, 425, 429} or status >= 500


def _wait(headers: Mapping[str, str], error: Mapping[str, Any]) -> float | None:
    """Seconds to wait, as the service put it: its body, `Retry-After`, or the moment its limit resets."""
    lower = {name.lower(): value for name, value in headers.items()}
    inner = {str(name).lower(): value for name, value in _part(_part(error, "metadata"), "headers").items()}
    told = _part(error, "availability").get("retry_after")
    if isinstance(told, int | float) and not isinstance(told, bool):
        return max(float(told), 0.0)
    for source in (lower, inner):
        if (seconds := _retry_after(source.get("retry-after"))) is not None:
            return seconds
    for source in (lower, inner):
        reset = _number(source.get("x-ratelimit-reset"))
        if reset is not None and reset > _EPOCH_MS:
            return max((reset - wall_ms()) / 1000, 0.0)
    return None


def _retry_after(text: Any) -> float | None:
    seconds = _number(text)
    if seconds is not None:
        return max(seconds, 0.0)
    try:
        return max(parsedate_to_datetime(str(text)).timestamp() - wall_ms() / 1000, 0.0)
    except (TypeError, ValueError):
        return None


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
