"""What a model service knows besides chat: its models and prices, what a generation cost, embeddings. Pure.

Source: OpenRouter's `GET /models`, `GET /generation` and `POST /embeddings`; the first and last as OpenAI has them.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from oxherd.agents.chat import Malformed, read_money, read_usage
from oxherd.context import Usage


@dataclass(frozen=True, slots=True)
class Model:
    """A model on offer. What its service does not tell is None; a price below zero is one that nobody knows yet.

    Attributes:
        id: what requests call it.
        input_price, output_price: US dollars per token.
        cache_read_price, cache_write_price: the same, for input that is found in or put into the prompt cache.
        reasoning_price: the same, where thinking has its own.
        request_price, image_price: US dollars per request and per image.
        context_tokens: how many tokens question and answer may have together.
        max_output_tokens: how many the answer may have.
        parameters: the request fields it knows.
        expires: the day it may be gone, such as `2027-01-31`.
    """

    id: str
    input_price: Decimal | None
    output_price: Decimal | None
    cache_read_price: Decimal | None
    cache_write_price: Decimal | None
    reasoning_price: Decimal | None
    request_price: Decimal | None
    image_price: Decimal | None
    context_tokens: int | None
    max_output_tokens: int | None
    parameters: frozenset[str]
    expires: str | None


@dataclass(frozen=True, slots=True)
class Generation:
    """The service's own record of a call: what it was billed, also when its stream broke.

    Attributes:
        id: as `Try.id`.
        model: who answered.
        provider: who served it.
        usage: tokens as the provider counts and bills them, and money.
        finish_reason: how it ended, or None.
        cancelled: whether its client left before the end.
    """

    id: str
    model: str | None
    provider: str | None
    usage: Usage
    finish_reason: str | None
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Texts as vectors, in the order of the texts."""

    vectors: list[list[float]]
    model: str | None
    usage: Usage


def read_models(body: Any) -> dict[str, Model]:
    """The models on offer by id; entries that make no sense are left out.

    Raises:
        Malformed: there is no list.
    """
    return {each["id"]: _model(each) for each in _data(body, list) if isinstance(each, dict) and each.get("id")}


def read_generation(body: Any) -> Generation:
    """Read a generation's record.

    Raises:
        Malformed: there is none.
    """
    data: dict[str, Any] = _data(body, dict)
    counted = {
        "prompt_tokens": _first(data, "native_tokens_prompt", "tokens_prompt"),
        "completion_tokens": _first(data, "native_tokens_completion", "tokens_completion"),
        "cost": data.get("total_cost"),
        "is_byok": data.get("is_byok"),
        "cost_details": {"upstream_inference_cost": data.get("upstream_inference_cost")},
    }
    return Generation(
        id=str(data.get("id") or ""),
        model=data.get("model"),
        provider=data.get("provider_name"),
        usage=read_usage(counted),
        finish_reason=data.get("finish_reason"),
        cancelled=bool(data.get("cancelled")),
    )


def read_embeddings(body: Any, count: int) -> Embeddings:
    """Read the vectors of `count` texts.

    Raises:
        Malformed: there are fewer or more.
    """
    listed = [each for each in _data(body, list) if isinstance(each, dict)]
    listed.sort(key=lambda each: each.get("index") or 0)
    if len(listed) != count:
        raise Malformed(f"{len(listed)} vectors for {count} texts")
    return Embeddings(
        [_vector(each.get("embedding")) for each in listed], body.get("model"), read_usage(body.get("usage"))
    )


def _data(body: Any, kind: type) -> Any:
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, kind):
        raise Malformed("the answer holds no data")
    return data


def _first(data: Mapping[str, Any], *names: str) -> Any:
    return next((data[name] for name in names if data.get(name) is not None), None)


def _model(told: Mapping[str, Any]) -> Model:
    price, top = _part(told, "pricing"), _part(told, "top_provider")
    # The provider that most requests go to may take less than the model could.
    contexts = [size for size in (told.get("context_length"), top.get("context_length")) if isinstance(size, int)]
    parameters = told.get("supported_parameters")
    return Model(
        id=told["id"],
        input_price=read_money(price.get("prompt")),
        output_price=read_money(price.get("completion")),
        cache_read_price=read_money(price.get("input_cache_read")),
        cache_write_price=read_money(price.get("input_cache_write")),
        reasoning_price=read_money(price.get("internal_reasoning")),
        request_price=read_money(price.get("request")),
        image_price=read_money(price.get("image")),
        context_tokens=min(contexts, default=None),
        max_output_tokens=top.get("max_completion_tokens"),
        parameters=frozenset(parameters) if isinstance(parameters, list) else frozenset(),
        expires=told.get("expiration_date"),
    )


def _part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = whole.get(name)
    return part if isinstance(part, dict) else {}


def _vector(told: Any) -> list[float]:
    if isinstance(told, str):  # little-endian floats of 4 bytes, which some services send unasked
        try:
            return [number for (number,) in struct.iter_unpack("<f", b64decode(told, validate=True))]
        except (ValueError, struct.error):
            raise Malformed("a vector can't be read") from None
    if not isinstance(told, list):
        raise Malformed("a vector is missing")
    return told
