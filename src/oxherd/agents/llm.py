"""The client of a model service: OpenRouter, or anything that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from oxherd.agents.chat import Malformed, Reply, Request, first_choice, read_reply
from oxherd.agents.faults import Fault, Verdict, fault_of
from oxherd.codec import decode, encode
from oxherd.errors import ModelRefused, RetryLater
from oxherd.settings import Secret

if TYPE_CHECKING:
    from aiohttp import ClientSession

TRIES = 4  # of one call, the first included
FIRST_PAUSE = 0.5  # seconds; doubles with each try
PATIENCE = 20.0  # seconds a call may spend on pauses: longer ones give the slot back
LATER = 30.0  # seconds until the job is run again when the service said nothing
PARKED = 900.0  # seconds until the job is run again when somebody has to pay first
CONNECT_TIMEOUT = 10.0  # seconds
TOTAL_TIMEOUT = 600.0  # seconds; reasoning models think for minutes before their first byte
LEAST_OUTPUT = 16  # tokens; some providers refuse a lower limit


class LLM:
    """Calls models over one pooled HTTP session, which is opened by the first call.

    Parameters:
        base_url: such as `https://openrouter.ai/api/v1`.
        api_key: sent as a bearer token; local servers need none.
        openrouter: whether the service knows OpenRouter's own fields; by the address when left out.
        sleep: waits between tries.
    """

    def __init__(
        self,
        base_url: str,
        api_key: Secret | None,
        *,
        openrouter: bool | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        host = urlsplit(base_url).hostname or ""
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._needs_key = host == "openrouter.ai" or host.endswith(".openrouter.ai")
        self._openrouter = self._needs_key if openrouter is None else openrouter
        self._api_key = api_key
        self._sleep = sleep
        self._session: ClientSession | None = None

    async def close(self) -> None:
        """Close the session. Twice, or before any call, is fine."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def chat(self, request: Request) -> Reply:
        """Call a model; passing faults are tried again here, with pauses, up to a bound.

        Raises:
            ModelRefused: the same call would fail again: the key, the model's name, the content, its length.
            RetryLater: the service is busy, away, or out of credit; no attempt of the job is spent.
        """
        if self._needs_key and self._api_key is None:
            raise ModelRefused(
                "OPENROUTER_API_KEY is not set, so no model can be called",
                hint="set it, or point OPENROUTER_BASE_URL at another OpenAI-compatible service",
            )
        spent = 0.0
        for tried in range(1, TRIES + 1):
            try:
                return await self._once(request)
            except Fault as fault:
                request, pause = self._answer_to(fault, request, tried, PATIENCE - spent)
            await self._sleep(pause)
            spent += pause
        raise AssertionError  # the last try's fault was raised

    def _answer_to(self, fault: Fault, request: Request, tried: int, patience: float) -> tuple[Request, float]:
        """What to ask next and after how many seconds, or the error that ends the call."""
        match fault.verdict:
            case Verdict.REFUSE:
                raise ModelRefused(f"{request.model}: {fault.message}", hint=fault.hint) from fault
            case Verdict.AFFORD if tried < TRIES and LEAST_OUTPUT <= fault.affordable < request.max_tokens:
                return replace(request, max_tokens=fault.affordable), 0.0
            case Verdict.PARK | Verdict.AFFORD:
                raise RetryLater(PARKED, f"{fault.message} ({fault.hint})") from fault
            case Verdict.RETRY:
                pause = fault.retry_after
                if pause is None:
                    pause = FIRST_PAUSE * 2 ** (tried - 1) * random.uniform(0.5, 1.5)
                if tried >= TRIES or pause > patience:
                    raise RetryLater(_later(fault.retry_after), fault.message) from fault
                return request, pause

    async def _once(self, request: Request) -> Reply:
        status, headers, body = await self._post(encode(request.body(openrouter=self._openrouter)))
        error = body.get("error") if isinstance(body, dict) else None
        if status != 200 or error:
            raise fault_of(status, headers, body)
        if not isinstance(body, dict):
            raise Fault(Verdict.RETRY, "the model service answered something that is no JSON object")
        return _reply(body, headers)

    async def _post(self, payload: bytes) -> tuple[int, dict[str, str], Any]:
        session = await self._open()
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.reveal()}"
        from aiohttp import ClientError

        try:
            async with session.post(self._url, data=payload, headers=headers, allow_redirects=False) as response:
                raw = await response.read()
                return response.status, dict(response.headers), _json(raw)
        except TimeoutError:
            raise Fault(Verdict.RETRY, "the model service did not answer in time", retry_after=LATER) from None
        except ClientError as error:
            raise Fault(Verdict.RETRY, f"the model service could not be reached: {error}") from None

    async def _open(self) -> ClientSession:
        if self._session is None:
            # In a thread, and only now: the import takes a while, and workers without agents never need it.
            aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0),  # the worker's concurrency is the limit
                    timeout=aiohttp.ClientTimeout(total=TOTAL_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
                )
        return self._session


def _later(retry_after: float | None) -> float:
    return max(retry_after or 0.0, LATER) * random.uniform(1.0, 1.25)  # many jobs must not come back at once


def _json(raw: bytes) -> Any:
    try:
        return decode(raw)
    except ValueError:
        return None  # a proxy's HTML page


def _reply(body: dict[str, Any], headers: dict[str, str]) -> Reply:
    choice = first_choice(body)
    if choice.get("error"):
        raise fault_of(200, headers, choice)
    if choice.get("finish_reason") == "error":
        raise Fault(Verdict.RETRY, "the model's provider broke off")
    try:
        reply = read_reply(body, generation=headers.get("X-Generation-Id"))
    except Malformed as error:
        raise Fault(Verdict.RETRY, f"the model service: {error}") from None
    return _complete(reply)


def _complete(reply: Reply) -> Reply:
    """The reply, if it says anything."""
    if reply.text or reply.tool_calls:
        return reply
    if reply.message.get("refusal") or reply.finish_reason == "content_filter":
        said = reply.message.get("refusal") or "the provider's content filter withheld the answer"
        raise Fault(Verdict.REFUSE, f"the model refused: {said}")
    if reply.finish_reason == "length":
        raise Fault(
            Verdict.REFUSE, "the whole output limit went into reasoning", hint="raise the agent's max_output_tokens"
        )
    if not reply.finish_reason:
        raise Fault(Verdict.RETRY, "the model answered nothing")  # which OpenRouter does not charge
    return reply
