"""What spans of generative AI are called and say, by OpenTelemetry's conventions, which Sentry follows. Pure.

Source: semantic-conventions-genai, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from oxherd.codec import encode
from oxherd.telemetry.events import AgentEnded, AgentStarted, ModelAsked, ModelCalled, ToolAsked, ToolCalled

Attributes = dict[str, Any]


def agent_begins(event: AgentStarted, conversation: str) -> Attributes:
    """Of a run of an agent; `conversation` is the same for all that belongs together."""
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": event.agent,
        "gen_ai.request.model": event.model,
        "gen_ai.conversation.id": conversation,
    }


def agent_ends(event: AgentEnded) -> Attributes:
    """What is known once it has ended; unknown is None."""
    return {
        "gen_ai.usage.input_tokens": event.input_tokens,
        "gen_ai.usage.output_tokens": event.output_tokens,
        "oxherd.model_calls": event.calls,
        "oxherd.cost_usd": event.cost_usd,
    }


def model_begins(event: ModelAsked, conversation: str, *, content: bool) -> Attributes:
    """Of a call of a model; `content` adds the conversation's words."""
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.name": event.agent,
        "gen_ai.conversation.id": conversation,
        **_service(event.service),
        **_request(event),
    }
    if content:
        about["gen_ai.input.messages"] = _messages(event.request.messages)
    return about


def model_ends(event: ModelCalled, *, content: bool) -> Attributes:
    """What is known once it has ended; unknown is None."""
    about = {
        "gen_ai.response.id": getattr(event.reply, "id", None),
        "gen_ai.response.model": event.answered_by,
        "gen_ai.response.finish_reasons": (event.finish_reason,) if event.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": event.first_token_s,
        "gen_ai.usage.input_tokens": event.input_tokens,
        "gen_ai.usage.output_tokens": event.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": event.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": event.reasoning_tokens,
        "oxherd.model.provider": event.provider,
        "oxherd.model.tries": event.tries,
        "oxherd.cost_usd": event.cost_usd,
    }
    if content and event.reply is not None:
        about["gen_ai.output.messages"] = _messages([event.reply.message], finish_reason=event.finish_reason)
    return about


def tool_begins(event: ToolAsked, *, content: bool) -> Attributes:
    """Of a call of a tool; `content` adds what it was given."""
    about = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": event.tool,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": event.call,
        "gen_ai.agent.name": event.agent,
    }
    if content:
        about["gen_ai.tool.call.arguments"] = event.arguments
    return about


def tool_ends(event: ToolCalled, *, content: bool) -> Attributes:
    """What is known once it has ended; `content` adds what it gave."""
    about: Attributes = {"oxherd.outcome": event.outcome}
    if content:
        about["gen_ai.tool.call.result"] = event.result
    return about


def _service(base_url: str) -> Attributes:
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    openrouter = host == "openrouter.ai" or host.endswith(".openrouter.ai")
    # Whose dialect of the API it is; who serves the model behind it is in the reply.
    return {
        "gen_ai.provider.name": "openrouter" if openrouter else "openai",
        "server.address": host,
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def _request(event: ModelAsked) -> Attributes:
    asked = event.request
    return {
        "gen_ai.request.model": event.model,
        "gen_ai.request.max_tokens": asked.max_tokens,
        "gen_ai.request.temperature": asked.temperature,
        "gen_ai.request.seed": asked.seed,
        "gen_ai.request.reasoning.level": (asked.reasoning or {}).get("effort"),
        "gen_ai.output.type": "json" if asked.response_format else "text",
    }


def _messages(messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
    """Chat messages in the conventions' form, as JSON."""
    return encode([{"role": message.get("role"), "parts": _parts(message), **more} for message in messages]).decode()


def _parts(message: Mapping[str, Any]) -> list[Attributes]:
    content = message.get("content")
    if message.get("role") == "tool":
        return [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    given = [{"type": "text", "content": content}] if isinstance(content, str) else list(content or ())
    asked = [
        {"type": "tool_call", "id": call["id"], **{name: call["function"][name] for name in ("name", "arguments")}}
        for call in message.get("tool_calls") or ()
    ]
    return [part for part in given if part.get("content") != ""] + asked
