"""What models cost, from the service's own list, and the most that a call can cost. Unknown is None, never 0."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from oxherd.agents.chat import Request
from oxherd.agents.records import Model
from oxherd.clock import mono
from oxherd.codec import encode
from oxherd.errors import ModelRefused, RetryLater

FRESH = 3600.0  # seconds for which a list is not asked for again
STALE = 86_400.0  # seconds for which an old list will do while no newer one can be had
PAUSE = 30.0  # seconds between attempts to replace a list
OWN_WORDS = 1024  # tokens that providers may add of their own, such as how to use tools
TEXTS = frozenset({"text", "input_text", "refusal"})

Fetch = Callable[[], Awaitable[Mapping[str, Model]]]


class Prices:
    """The price list, fetched when it is first asked for and kept for an hour.

    Parameters:
        fetch: gets the models on offer by id, such as `LLM.models`.
        time: monotonic seconds.
    """

    def __init__(self, fetch: Fetch, *, time: Callable[[], float] = mono) -> None:
        self._fetch = fetch
        self._time = time
        self._models: Mapping[str, Model] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def age(self) -> float:
        """Seconds since the list was fetched; infinity where there is none."""
        return self._time() - self._fetched_at

    async def of(self, model: str) -> Model | None:
        """A model with its prices, or None where the list does not have it.

        Raises:
            ModelRefused, RetryLater: the list can't be had, and there is none from the last day.
        """
        return (await self._list()).get(model)

    async def window(self, models: Iterable[str]) -> int | None:
        """How many tokens question and answer may have together in all of these models; None where it is unknown.

        Raises:
            ModelRefused, RetryLater: as `of`.
        """
        found = [await self.of(name) for name in models]
        windows = [model.context_tokens for model in found if model is not None and model.context_tokens]
        return min(windows, default=None)

    async def ceiling(self, request: Request) -> Decimal | None:
        """The most that one try of a call can cost, in US dollars.

        The input counts a token for each byte, which is more than any tokenizer makes of it; the output counts up to
        its limit; of the model and its fallbacks, the dearest counts. None where the price of any of them is unknown.

        Raises:
            ModelRefused, RetryLater: as `of`.
        """
        dearest = Decimal(0)
        for name in (request.model, *request.models):
            model = await self.of(name)
            ceiling = None if model is None else most(model, request)
            if ceiling is None:
                return None
            dearest = max(dearest, ceiling)
        return dearest

    async def _list(self) -> Mapping[str, Model]:
        async with self._lock:
            now = self._time()
            if now - self._fetched_at > FRESH and now - self._tried_at > PAUSE:
                await self._renew(now)
            if now - self._fetched_at > STALE:
                raise RetryLater(PAUSE, "the list of prices could not be had, and a cap needs it")
            return self._models

    async def _renew(self, now: float) -> None:
        try:
            self._models = await self._fetch()
        except (ModelRefused, RetryLater):
            self._tried_at = now
            if now - self._fetched_at > STALE:
                raise
        else:
            self._fetched_at = now


def most(model: Model, request: Request) -> Decimal | None:
    """The most that one try can cost with this model, in US dollars; None where it can't be known."""
    if model.input_price is None or model.output_price is None:
        return None
    tokens = input_bound(request, model.context_tokens)
    if tokens is None:
        return None
    read = max(model.input_price, model.cache_write_price or Decimal(0))
    written = max(model.output_price, model.reasoning_price or Decimal(0))
    images = (model.image_price or Decimal(0)) * _others(request.messages)
    return read * tokens + written * request.max_tokens + (model.request_price or Decimal(0)) + images


def input_bound(request: Request, context_tokens: int | None) -> int | None:
    """No fewer tokens than the request's input has; None where nothing bounds them.

    What is no text, such as an image, may be any number of tokens: then only the model's context bounds them.
    """
    if _others(request.messages):
        return context_tokens
    size = OWN_WORDS + len(encode([request.messages, request.tools, request.response_format]))
    return size if context_tokens is None else min(size, context_tokens)


def _others(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many parts of the messages are no text."""
    listed = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return sum(not isinstance(part, Mapping) or part.get("type") not in TEXTS for parts in listed for part in parts)
