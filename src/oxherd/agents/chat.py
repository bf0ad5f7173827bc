"""One call of a model: what is asked, and the reply, read forgivingly. Pure.

Source: OpenAI's chat completions as OpenRouter, llama.cpp, vLLM and Ollama serve them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from oxherd.codec import decode, encode
from oxherd.context import Usage

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked.

    Attributes:
        model: its id.
        messages: the conversation, the system message first.
        max_tokens: the limit of the reply.
        tools: their definitions.
        tool_choice: None for the model's own choice, or what must be called, in the API's form.
        response_format: the form of the answer, None for free text.
        temperature: None for the model's default.
        seed: for models that can repeat themselves.
        reasoning: how much to think, such as `{"effort": "low"}` or `{"max_tokens": 2000}`; others than OpenRouter are
            sent the effort alone.
        user: a stable name of the end user, best a hash: providers act on abuse by it.
        models: fallbacks. This and what follows, OpenRouter only. A fallback may be dearer: `provider` can cap that.
        provider: how to choose among providers, such as `{"order": ["azure"], "max_price": {"completion": 10}}`.
        session_id: requests of one session go to one provider, whose prompt cache then knows the beginning.
        metadata: up to 16 texts by name, shown beside the generation.
        cache: mark the prompt's end to be cached, for providers that want a mark; `parts.text` marks elsewhere.
    """

    model: str
    messages: Sequence[Message]
    max_tokens: int
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    temperature: float | None = None
    seed: int | None = None
    reasoning: Mapping[str, Any] | None = None
    user: str | None = None
    models: Sequence[str] = ()
    provider: Mapping[str, Any] | None = None
    session_id: str | None = None
    metadata: Mapping[str, str] | None = None
    cache: bool = False

    def body(self, *, openrouter: bool, stream: bool = False) -> dict[str, Any]:
        """The request as JSON-able data, without what is not set.

        Parameters:
            openrouter: whether the service knows OpenRouter's own fields; others refuse or ignore them.
            stream: whether the reply shall come in chunks.
        """
        asked: dict[str, Any] = {"model": self.model, "messages": self.messages, "max_tokens": self.max_tokens}
        asked |= self._set("tools", "tool_choice", "response_format", "temperature", "seed", "user")
        if stream:
            asked["stream"] = True
        if openrouter:
            return asked | self._own()
        if stream:
            asked["stream_options"] = {"include_usage": True}  # which OpenRouter always does
        if self.reasoning and self.reasoning.get("effort"):
            asked["reasoning_effort"] = self.reasoning["effort"]
        return asked

    def _own(self) -> dict[str, Any]:
        """OpenRouter's own fields."""
        asked = self._set("reasoning", "models", "session_id", "metadata")
        needs = {"require_parameters": True} if self.tools or self.response_format else {}
        if provider := {**needs, **(self.provider or {})}:
            asked["provider"] = provider  # without the need, a provider that knows neither may be picked
        if self.cache:
            asked["cache_control"] = {"type": "ephemeral"}
        return asked

    def _set(self, *fields: str) -> dict[str, Any]:
        return {field: value for field in fields if (value := getattr(self, field)) not in (None, ())}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` is JSON as it wrote it, perhaps invalid."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    Attributes:
        message: the assistant's message; with `echo`, what the next call sends back.
        finish_reason: stop, length, content_filter, tool_calls or None. The tool calls decide, not this: some
            providers say `stop` beside them.
        model: who really answered, which a fallback may change.
        id: the generation's id, the key to OpenRouter's record of it.
        provider: who served the model, or None.
        usage: of this call.
    """

    message: Message
    finish_reason: str | None
    model: str | None
    id: str | None
    provider: str | None
    usage: Usage

    @property
    def text(self) -> str:
        """What it said in words."""
        return words_of(self.message.get("content"))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls it asks for, in its order."""
        calls = self.message.get("tool_calls", ())
        return [ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]

    def echo(self) -> Message:
        """The message as later calls send it back.

        Arguments that are no JSON object become `{}`: providers that parse them would refuse the whole conversation.
        """
        if "tool_calls" not in self.message:
            return self.message
        return {**self.message, "tool_calls": [_parsable(call) for call in self.message["tool_calls"]]}

    def dump(self) -> dict[str, Any]:
        """As JSON-able data, for the journal."""
        kept = {key: getattr(self, key) for key in ("message", "finish_reason", "model", "id", "provider")}
        return {**kept, "usage": dump_usage(self.usage)}

    @classmethod
    def load(cls, kept: Mapping[str, Any]) -> Reply:
        """From the journal."""
        rest = {key: kept[key] for key in ("message", "finish_reason", "model", "id", "provider")}
        return cls(**rest, usage=load_usage(kept["usage"]))


def dump_usage(usage: Usage) -> dict[str, Any]:
    """Tokens and money as JSON-able data, for the journal."""
    return {key: getattr(usage, key) for key in ("calls", "input_tokens", "output_tokens", "cost_usd")}


def load_usage(kept: Mapping[str, Any]) -> Usage:
    """Tokens and money from the journal."""
    cost = None if kept["cost_usd"] is None else Decimal(kept["cost_usd"])
    return Usage(kept["calls"], kept["input_tokens"], kept["output_tokens"], cost)


class Malformed(Exception):
    """A reply is not what the API promises."""


def read_reply(body: Mapping[str, Any], *, generation: str | None = None) -> Reply:
    """Read a whole (not streamed) answer that holds no error.

    Parameters:
        body: the parsed body.
        generation: the `X-Generation-Id` header.

    Raises:
        Malformed: there is no message in it.
    """
    choice = first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Malformed("the answer holds no message")
    return Reply(
        message=read_message(message),
        finish_reason=choice.get("finish_reason"),
        model=body.get("model"),
        id=body.get("id") or generation,
        provider=body.get("provider"),
        usage=read_usage(body.get("usage")),
    )


def first_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first choice, or an empty one."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def read_usage(usage: Any) -> Usage:
    """Tokens and cost of one call. What is not told is 0 tokens and an unknown cost."""
    told = usage if isinstance(usage, dict) else {}
    cached = _count(_details(told, "prompt_tokens_details").get("cached_tokens"))
    reasoning = _count(_details(told, "completion_tokens_details").get("reasoning_tokens"))
    counted = (_count(told.get("prompt_tokens")), _count(told.get("completion_tokens")))
    return Usage(1, *counted, _cost(told), cached, reasoning)


def _details(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = usage.get(name)
    return details if isinstance(details, dict) else {}


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _cost(usage: Mapping[str, Any]) -> Decimal | None:
    cost = read_money(usage.get("cost"))
    if cost is None or not usage.get("is_byok"):
        return cost
    # With the customer's own provider key, `cost` is OpenRouter's fee alone.
    upstream = read_money(_details(usage, "cost_details").get("upstream_inference_cost"))
    return None if upstream is None else cost + upstream


def read_money(value: Any) -> Decimal | None:
    """US dollars, from a JSON number or a string; None where it is neither, or below zero.

    repr gives a float's shortest text: the digits that were sent.
    """
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        money = Decimal(value if isinstance(value, str) else repr(value))
    except InvalidOperation:
        return None
    return money if money.is_finite() and money >= 0 else None


def words_of(content: Any) -> str:
    """The words in a message's content, which is text or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)


def read_message(message: Mapping[str, Any]) -> Message:
    """An assistant's message as it is kept and sent back: what providers refuse or don't need is left out."""
    calls = [_call(call) for call in message.get("tool_calls") or () if isinstance(call, dict)]
    content = message.get("content")
    kept: Message = {"role": "assistant", "content": content or None if calls else content or ""}
    if calls:
        kept["tool_calls"] = calls
    if message.get("reasoning_details"):
        kept["reasoning_details"] = message["reasoning_details"]  # unchanged and in order: they are signed
    if message.get("refusal"):
        kept["refusal"] = message["refusal"]
    return kept


def _call(call: Mapping[str, Any]) -> Message:
    told = call.get("function")
    function = told if isinstance(told, dict) else {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else encode(arguments or {}).decode()  # Ollama sends an object
    named = {"name": str(function.get("name") or ""), "arguments": text.strip() or "{}"}
    return {"id": call.get("id") or f"call_{uuid.uuid4().hex[:16]}", "type": "function", "function": named}


def _parsable(call: Message) -> Message:
    try:
        if isinstance(decode(call["function"]["arguments"]), dict):
            return call
    except ValueError:
        pass
    return {**call, "function": {**call["function"], "arguments": "{}"}}
