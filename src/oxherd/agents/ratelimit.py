"""A limiter that all workers share, per key and model: requests and tokens per window, and requests at once.

Nothing is configured. Limits are learned from what the service says about them in its answers, and from refusals.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oxherd.clock import mono, wall_ms
from oxherd.errors import LimitsReached
from oxherd.queue.connection import Link
from oxherd.queue.scripts import read_script
from oxherd.telemetry.events import LimiterWaited, emit

LUA = Path(__file__).parent / "lua"
AT_ONCE = 16  # requests to a model that nothing is known of; doubles with each round of answers until one is refused
MOST_AT_ONCE = 10_000
HALVING_MS = 1000  # requests sent together are refused together: one halving for all of them
HOLD_MS = 30_000  # after which a worker that died gives its places back; those of the living are renewed
REMEMBERED_MS = 6 * 3_600_000
SLACK_MS = 10  # by which two answers about one window may differ
LONGEST_BLOCK_MS = 60_000  # a refusal that asks for more may mean this one request
PATIENCE = 20.0  # seconds to wait for a place: longer waits give the slot back
SPREAD = 0.05  # of a wait, by chance: those who wait for the same moment do not all come in it
_EPOCH_MS = 1e11
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Quota:
    """What a service says about one of its limits.

    Attributes:
        limit: how many in a window.
        left: how many of them are left.
        ms: until the window ends, or until a bucket that fills little by little is full.
    """

    limit: int
    left: int
    ms: float


class Limiter:
    """Lets requests through as fast as their service takes them.

    Parameters:
        link: to the Redis that all workers share.
        prefix: what its keys begin with.
        account: whose limits these are: the service's address and key. Only a hash of it is used.
        at_once: requests to a model of which nothing is known yet.
    """

    def __init__(self, link: Link, prefix: bytes, account: str, *, at_once: int = AT_ONCE) -> None:
        self._link = link
        self._base = prefix + hashlib.blake2b(account.encode(), digest_size=8).hexdigest().encode() + b":"
        self._at_once = at_once
        self._acquire = read_script(LUA / "acquireCall-3.lua")
        self._learn = read_script(LUA / "learnLimits-3.lua")
        self._hold = read_script(LUA / "holdCalls-2.lua")
        self._held: dict[str, Pass] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, model: str, tokens: int) -> Pass:
        """Wait until a request may be sent.

        Parameters:
            model: its id.
            tokens: how many the request may use, input and output, for services that limit those.

        Raises:
            LimitsReached: that would take longer than a slot should be held for.
        """
        taken = Pass(self, self._keys(model), uuid.uuid4().hex, tokens)
        self._held[taken.id] = taken
        self._renew_later()
        try:
            await self._wait(taken, model)
        except BaseException:
            self.release(taken, answered=False)  # it may have been let through all the same
            raise
        taken.sent = mono()
        return taken

    async def learn(self, taken: Pass, status: int, headers: Mapping[str, str]) -> None:
        """Take over what an answer says about limits."""
        requests, tokens = quotas(headers)
        verdict = "ok" if status == 200 else "refused" if status == 429 else ""
        told = retry_after(headers)
        if told is None:
            told = 0 if requests else 1000
        told = min(told, LONGEST_BLOCK_MS) if verdict == "refused" else 0
        await self._link.insist(
            self._learn, *taken.keys, taken.id, taken.tokens, REMEMBERED_MS, HALVING_MS, self._at_once, MOST_AT_ONCE,
            verdict, round(told), SLACK_MS, round((mono() - taken.sent) * 1000), *_flat(requests), *_flat(tokens),
        )  # fmt: skip

    def release(self, taken: Pass, *, answered: bool) -> None:
        """Give the place of a request back that has ended. Not waited for: it would also expire.

        One that was answered counts as unanswered until `learn` knows what it left.
        """
        self._held.pop(taken.id, None)
        self._link.post(b"ZREM", taken.keys[1], taken.id)
        if not answered:
            self._link.post(b"ZREM", taken.keys[2], f"{taken.id}:{taken.tokens}")

    async def _wait(self, taken: Pass, model: str) -> None:
        waited, tries = 0.0, 1
        while wait := await self._link.insist(
            self._acquire, *taken.keys, taken.id, taken.tokens, HOLD_MS, self._at_once, REMEMBERED_MS
        ):
            pause = _pause(wait, tries)
            if waited + pause > PATIENCE:
                emit(LimiterWaited(model, waited, passed=False))
                raise LimitsReached(pause, f"the limits of {model} leave no room for some time")
            await asyncio.sleep(pause)
            waited, tries = waited + pause, tries + 1
        if waited:
            emit(LimiterWaited(model, waited, passed=True))

    def _renew_later(self) -> None:
        if self._timer is None and self._held:
            self._timer = asyncio.get_running_loop().call_later(HOLD_MS / 3000, self._renew)

    def _renew(self) -> None:
        self._timer = None
        by_model: dict[tuple[bytes, bytes], list[str | int]] = {}
        for taken in self._held.values():
            by_model.setdefault(taken.keys[1:], []).extend((taken.id, taken.tokens))
        for keys, ids in by_model.items():
            self._link.post(b"EVAL", self._hold.body, self._hold.numkeys, *keys, HOLD_MS, *ids)
        self._renew_later()

    def _keys(self, model: str) -> tuple[bytes, bytes, bytes]:
        base = self._base + model.encode("utf-8", "surrogateescape")
        return base, base + b":running", base + b":unanswered"


@dataclass(slots=True)
class Pass:
    """Leave to send one request.

    Attributes:
        limiter, keys, id, tokens: who gave it, for what.
        sent: monotonic seconds at which it was given.
    """

    limiter: Limiter
    keys: tuple[bytes, bytes, bytes]
    id: str
    tokens: int
    sent: float = 0.0


def quotas(headers: Mapping[str, str]) -> tuple[Quota | None, Quota | None]:
    """The limits on requests and on tokens, in OpenRouter's dialect or OpenAI's; None where none is told.

    OpenRouter tells `X-RateLimit-Limit`, `-Remaining` and `-Reset`, the last in epoch ms. OpenAI and its like tell
    `x-ratelimit-limit-requests` and so on, with the reset as a duration such as `6m0s`.
    """
    lower = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-ratelimit-")}
    return _quota(lower, "-requests") or _quota(lower, ""), _quota(lower, "-tokens")


def _quota(headers: Mapping[str, str], kind: str) -> Quota | None:
    try:
        limit = int(headers[f"x-ratelimit-limit{kind}"])
        left = int(headers[f"x-ratelimit-remaining{kind}"])
    except (KeyError, ValueError):
        return None
    ms = _ms(headers.get(f"x-ratelimit-reset{kind}", ""))
    return None if ms is None or limit < 1 else Quota(limit, max(left, 0), ms)


def _ms(text: str) -> float | None:
    parts = _DURATION.findall(text)
    if parts and "".join(f"{number}{unit}" for number, unit in parts) == text.strip():
        return sum(float(number) * _MS[unit] for number, unit in parts)
    try:
        number = float(text)
    except ValueError:
        return None
    return max(number - wall_ms(), 0.0) if number > _EPOCH_MS else max(number, 0.0) * 1000


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The ms that `Retry-After` asks to wait, or None. A date in it is left to the client's own pause."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    try:
        return max(float(text), 0.0) * 1000
    except ValueError:
        return None


def _pause(wait_ms: int, tries: int) -> float:
    """Seconds to wait before asking again. What has no moment of its own is asked for less and less often."""
    if wait_ms <= 50:
        return min(wait_ms * 1.5 ** min(tries - 1, 8), 1000.0) / 1000 * random.uniform(0.5, 1.5)
    return (wait_ms + random.uniform(0, min(wait_ms * SPREAD, 1000.0) + 5)) / 1000


def _flat(quota: Quota | None) -> tuple[str | int, ...]:
    return ("",) * 3 if quota is None else (quota.limit, quota.left, round(quota.ms))
