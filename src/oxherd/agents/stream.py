"""A streamed reply: server-sent events out of bytes, and the reply put together from its chunks. Pure.

Source: the WHATWG's event stream format; chunks as OpenRouter, llama.cpp, vLLM, Ollama and Gemini send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from oxherd.agents.chat import Malformed, Reply, first_choice, read_message, read_usage, words_of
from oxherd.agents.faults import Fault, Verdict, fault_of
from oxherd.codec import decode, encode
from oxherd.context import CallDelta, Delta

MAX_LINE = 64 * 2**20  # bytes; a generated image in one event has a few million, an endless line would fill the memory
JOINED = {"reasoning.text": "text", "reasoning.summary": "summary"}  # which field of these comes in pieces


class EventParser:
    """Takes bytes as they come, split anywhere, and gives the data of each event that is complete.

    Comments, which are only there to keep a connection alive, and other fields are dropped.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the beginning of a line
        self._size = 0
        self._data: list[bytes] = []  # the lines of an event
        self._after_return = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that this piece completes.

        Raises:
            Malformed: a line has no end.
        """
        if self._after_return and piece:
            piece = piece.removeprefix(b"\n")  # the other half of a line's end
            self._after_return = False
        if not piece:
            return []
        self._after_return = piece.endswith(b"\r")
        lines = piece.splitlines()
        if self._rest:
            lines = self._continued(piece, lines)
        if not piece.endswith((b"\n", b"\r")):
            self._keep(lines.pop())
        return self._events(lines)

    def finish(self) -> list[bytes]:
        """The event that the end of the stream completes, if there is one."""
        last, self._rest = b"".join(self._rest), []
        return self._events([last, b""])

    def _continued(self, piece: bytes, lines: list[bytes]) -> list[bytes]:
        if len(lines) == 1 and not piece.endswith((b"\n", b"\r")):
            return lines
        lines[0] = b"".join((*self._rest, lines[0]))
        self._rest, self._size = [], 0
        return lines

    def _keep(self, rest: bytes) -> None:
        self._rest.append(rest)
        self._size += len(rest)
        if self._size > MAX_LINE:
            raise Malformed("a line of the stream does not end")

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events, data = [], self._data
        for line in lines:
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
            elif line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        return events


class Assembly:
    """Puts a reply together from the data of its events.

    Attributes:
        began: whether any of the answer has come, be it text, reasoning or a tool call.
        done: whether the stream said that it is complete.
        usage: what it said about tokens and cost, as it came; None until then.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.began = False
        self.done = False
        self.usage: Mapping[str, Any] | None = None
        self._headers = headers
        self._about: dict[str, Any] = {}
        self._chunks = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._details: list[dict[str, Any]] = []
        self._calls: list[dict[str, Any]] = []
        self._slots: dict[Any, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._heard = (0, 0)
        self._called = False  # whether a tool call has grown since
        self._calls_told: list[int] = []  # how many pieces of each were told

    def add(self, event: bytes) -> None:
        """Take the data of the next event; what comes after the end is ignored.

        Raises:
            Fault: it is an error.
            Malformed: it is no chunk.
        """
        if self.done:
            return
        if event == b"[DONE]":
            self.done = True
            return
        try:
            chunk = decode(event)
        except ValueError:
            raise Malformed("a chunk of the stream is no JSON") from None
        if not isinstance(chunk, dict):
            raise Malformed("a chunk of the stream is no JSON object")
        self._take(chunk)

    @property
    def id(self) -> str | None:
        """The generation's id, once a chunk told it."""
        return self._about.get("id")

    def news(self, tried: int) -> Delta | None:
        """What came of text, reasoning and tool calls since the last call, or None."""
        texts, thoughts = self._heard
        if len(self._text) == texts and len(self._reasoning) == thoughts and not self._called:
            return None
        self._heard = (len(self._text), len(self._reasoning))
        calls = self._new_calls() if self._called else ()
        return Delta(
            "".join(self._text[texts:]), "".join(self._reasoning[thoughts:]), tried, calls, partial(self._so_far, tried)
        )

    def _new_calls(self) -> tuple[CallDelta, ...]:
        self._called = False
        told = self._calls_told
        told += [-1] * (len(self._calls) - len(told))
        news = []
        for index, slot in enumerate(self._calls):
            if (count := len(slot["arguments"])) > told[index]:
                news.append(_call_delta(index, slot, max(told[index], 0)))
                told[index] = count
        return tuple(news)

    def _so_far(self, tried: int) -> Delta:
        calls = tuple(_call_delta(index, slot, 0) for index, slot in enumerate(self._calls))
        return Delta("".join(self._text), "".join(self._reasoning), tried, calls)

    def reply(self) -> Reply:
        """The whole reply. Whether it is complete is for the caller to know.

        Raises:
            Malformed: the stream held no message.
        """
        if not self._chunks:
            raise Malformed("the stream was empty")
        message: dict[str, Any] = {"content": "".join(self._text), "refusal": "".join(self._refusal)}
        message |= {"tool_calls": [_call(call) for call in self._calls], "reasoning_details": self._details}
        return Reply(
            message=read_message(message),
            finish_reason=self._finish_reason,
            model=self._about.get("model"),
            id=self.id or self._headers.get("X-Generation-Id"),
            provider=self._about.get("provider"),
            usage=read_usage(self.usage),
        )

    def _take(self, chunk: dict[str, Any]) -> None:
        # First, whatever else is wrong: a stream that breaks off has been paid for all the same.
        if usage := chunk.get("usage"):
            self.usage = usage
        if chunk.get("error"):
            raise fault_of(200, self._headers, chunk)
        self._chunks += 1
        if "model" not in self._about:
            self._about |= {key: chunk[key] for key in ("id", "model", "provider") if chunk.get(key)}
        choice = first_choice(chunk)
        if choice:
            self._take_choice(choice)

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        if choice.get("error"):
            raise fault_of(200, self._headers, choice)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._take_delta(delta)
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason == "error":
                raise Fault(Verdict.RETRY, "the model's provider broke off")
            self._finish_reason = reason

    def _take_delta(self, delta: dict[str, Any]) -> None:
        if content := delta.get("content"):
            self._text.append(content if isinstance(content, str) else words_of(content))
            self.began = True
        if len(delta) > 1 + ("role" in delta) or not content:  # most are nothing but a role and text
            self._take_rest(delta)

    def _take_rest(self, delta: dict[str, Any]) -> None:
        thought = delta.get("reasoning") or delta.get("reasoning_content")  # vLLM's and llama.cpp's word
        if isinstance(thought, str) and thought:
            self._reasoning.append(thought)
            self.began = True
        if isinstance(refusal := delta.get("refusal"), str):
            self._refusal.append(refusal)
        for detail in _objects(delta.get("reasoning_details")):
            self._take_detail(detail)
        for call in _objects(delta.get("tool_calls")):
            self._take_call(call)

    def _take_detail(self, detail: dict[str, Any]) -> None:
        """Join the pieces of one detail; a late signature belongs to the text of its index, wherever that is."""
        self.began = True
        field = JOINED.get(str(detail.get("type")))
        earlier = self._unsigned(detail) if field else None
        if field is None or earlier is None:
            self._details.append(detail)
            return
        text = (earlier.get(field) or "") + (detail.get(field) or "")
        earlier |= {key: value for key, value in detail.items() if value is not None}
        if field in earlier:
            earlier[field] = text

    def _unsigned(self, detail: dict[str, Any]) -> dict[str, Any] | None:
        """The detail that this one continues. A signature ends one: what follows it is the next."""
        for earlier in reversed(self._details):
            if earlier.get("type") != detail.get("type") or earlier.get("index") != detail.get("index"):
                continue
            same = not detail.get("id") or detail["id"] == earlier.get("id", detail["id"])
            return earlier if same and not earlier.get("signature") else None
        return None

    def _take_call(self, call: dict[str, Any]) -> None:
        """Join the pieces of a tool call by its index. Some services number none, or all of them 0."""
        self.began = self._called = True
        slot = self._slots.get(call.get("index"))
        told = call.get("id")
        if slot is None or (told and slot["id"] and told != slot["id"]):
            slot = self._slots[call.get("index")] = {"id": None, "name": None, "arguments": []}
            self._calls.append(slot)
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        slot["id"] = slot["id"] or told
        slot["name"] = slot["name"] or function.get("name")
        arguments = function.get("arguments")
        if arguments:
            slot["arguments"].append(arguments if isinstance(arguments, str) else encode(arguments).decode())


def _objects(listed: Any) -> list[dict[str, Any]]:
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _call_delta(index: int, slot: dict[str, Any], since: int) -> CallDelta:
    return CallDelta(index, slot["id"], slot["name"], "".join(slot["arguments"][since:]))


def _call(slot: dict[str, Any]) -> dict[str, Any]:
    return {"id": slot["id"], "function": {"name": slot["name"], "arguments": "".join(slot["arguments"])}}
