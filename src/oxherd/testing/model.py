"""A model service that answers by a script, over HTTP: the real client, any framework, other processes can call it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from oxherd.agents.chat import words_of

if TYPE_CHECKING:
    from aiohttp import web

COST = 0.001  # US dollars: what an answer costs unless the script says otherwise
LETTERS_PER_TOKEN = 4  # how tokens are counted: roughly, but always the same
SHOWN = 300  # characters of a message that a failure shows
LEAVE = 0.1  # seconds that requests which still run at the end are given
_ROLE_WIDTH = 11


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that a model was sent.

    Attributes:
        body: all of it, as it was sent.
    """

    body: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Which model was asked."""
        return str(self.body.get("model"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation."""
        return list(self.body.get("messages", ()))

    @property
    def text(self) -> str:
        """The words of the last message."""
        return words_of(self.messages[-1].get("content")) if self.messages else ""

    @property
    def tools(self) -> list[str]:
        """The names of the tools on offer."""
        return [tool["function"]["name"] for tool in self.body.get("tools", ())]

    def __str__(self) -> str:
        return "\n".join([f"to {self.model}:", *(f"  {line}" for line in map(_line, self.messages))])


@dataclass(frozen=True, slots=True)
class _Answer:
    message: dict[str, Any]
    finish_reason: str
    cost: float | None
    pause: float = 0.0
    cut: bool = False  # the stream ends before its end


@dataclass(frozen=True, slots=True)
class _Failure:
    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Silence:
    """No answer, for as long as the client waits."""


Reply = _Answer | _Failure | _Silence
Script = Reply | str | Callable[[Asked], "Reply | str"]


def says(text: str, *, cost: float | None = COST, pause: float = 0.0, finish_reason: str = "stop") -> Reply:
    """An answer in words.

    Parameters:
        text: what the model says; JSON where the agent has an output form.
        cost: in US dollars; None for a service that does not tell.
        pause: seconds between the words, for clients that stream.
        finish_reason: `length` for an answer that was cut at its limit.
    """
    return _Answer({"role": "assistant", "content": text}, finish_reason, cost, pause)


def calls(*wanted: tuple[str, Any], text: str | None = None, cost: float | None = COST) -> Reply:
    """An answer that calls tools.

    Parameters:
        wanted: a pair for each call: the tool's name, and its arguments as data, or as the text that is sent.
        text: what the model says beside the calls.
        cost: in US dollars; None for a service that does not tell.
    """
    made = [
        {"type": "function", "function": {"name": name, "arguments": given if isinstance(given, str) else _json(given)}}
        for name, given in wanted
    ]
    return _Answer({"role": "assistant", "content": text, "tool_calls": made}, "tool_calls", cost)


def fails(status: int, message: str = "no", *, retry_after: float | None = None) -> Reply:
    """An error answer.

    Parameters:
        status: the HTTP status, such as 429 or 503.
        message: what the service says about it.
        retry_after: seconds for its `Retry-After` header.
    """
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
    return _Failure(status, {"error": {"code": status, "message": message}}, headers)


def breaks(text: str, *, cost: float | None = COST) -> Reply:
    """An answer whose connection breaks in the middle; it is billed all the same."""
    return _Answer({"role": "assistant", "content": text}, "stop", cost, cut=True)


def hangs() -> Reply:
    """No answer: until the client gives up, or its job is cancelled."""
    return _Silence()


class ScriptedModel:
    """Answers chat completions by a script, as a context manager.

    Its end fails the test where replies are left that nobody asked for, or more was asked for than it has. It runs in a
    thread of its own: it answers while the test's event loop is blocked, and to tests that have none.

    Parameters:
        script: the replies in order: made by `says`, `calls`, `fails`, `breaks` or `hangs`, a text (for `says`), or a
            function of the request (`Asked`) that returns one of these. A function is called in the model's thread.
        answer: such a function for every request, in place of a script. For agents that run side by side, whose
            requests come in no certain order.

    Attributes:
        asked: the requests so far, in order.
    """

    def __init__(self, *script: Script, answer: Callable[[Asked], Reply | str] | None = None) -> None:
        self.asked: list[Asked] = []
        self._script: list[Script] = list(script)
        self._answer = answer
        self._next = 0
        self._surplus: Asked | None = None
        self._costs: list[float | None] = []
        self._thread: threading.Thread | None = None

    def script(self, *replies: Script) -> None:
        """What to reply next, after what is there."""
        self._script += replies

    @property
    def base_url(self) -> str:
        """What OPENROUTER_BASE_URL takes, and other clients' `base_url`. Any key is accepted."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def cost(self) -> float:
        """What it billed so far, in US dollars; broken answers included."""
        return sum(cost or 0.0 for cost in self._costs)

    @property
    def position(self) -> int:
        """How many replies of the script were given."""
        return self._next

    def rewind(self, position: int) -> None:
        """Give the replies from `position` on again."""
        self._next = position

    def check(self, *, all_used: bool = False) -> None:
        """Fail, once, where more was asked for than the script has.

        Parameters:
            all_used: also fail where replies are left.

        Raises:
            AssertionError: with the conversations.
        """
        surplus, self._surplus = self._surplus, None
        if surplus is not None:
            raise AssertionError(
                f"the model was asked once more than its script of {len(self._script)} has replies,\n{surplus}"
            )
        left = len(self._script) - self._next
        if all_used and left:
            heard = "\n".join(map(str, self.asked)) or "it was asked nothing"
            raise AssertionError(
                f"{left} of the model's {len(self._script)} replies were not asked for, the first of them:\n"
                f"  {_shown_reply(self._script[self._next])}\nwhat was asked:\n{heard}"
            )

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="scripted-model", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        if kind is None:
            self.check(all_used=True)

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        from aiohttp import web

        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=LEAVE, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port: int = runner.addresses[0][1]
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        asked = Asked(json.loads(await request.read()))
        self.asked.append(asked)
        try:
            reply = self._reply_to(asked)
        except Exception as error:  # noqa: BLE001  a fault of the test's own function: its job tells
            reply = fails(400, f"the script raised {type(error).__name__}: {error}")
        match reply:
            case _Failure():
                return web.json_response(reply.body, status=reply.status, headers=reply.headers)
            case _Silence():
                await asyncio.Event().wait()
                raise AssertionError  # nobody sets it
            case _Answer():
                self._costs.append(reply.cost)
                about = {"id": f"gen-{len(self.asked)}", "created": 1, "model": asked.model}
                if asked.body.get("stream"):
                    return await _stream(request, reply, about, _usage(asked, reply))
                if reply.cut:
                    assert request.transport is not None
                    request.transport.abort()
                return web.json_response(_whole(reply, about, _usage(asked, reply)))

    def _reply_to(self, asked: Asked) -> Reply:
        if self._answer is not None:
            return _reply(self._answer, asked)
        if self._next >= len(self._script):
            self._surplus = asked
            return fails(400, "the scripted model has no reply left")
        self._next += 1
        return _reply(self._script[self._next - 1], asked)


def _reply(scripted: Script, asked: Asked) -> Reply:
    made = scripted(asked) if callable(scripted) else scripted
    return says(made) if isinstance(made, str) else made


# -- on the wire


def _whole(reply: _Answer, about: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    message = {**reply.message}
    if "tool_calls" in message:
        message["tool_calls"] = _numbered(message["tool_calls"], about)
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}


async def _stream(
    request: web.Request, reply: _Answer, about: dict[str, Any], usage: dict[str, Any]
) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    deltas = list(_deltas(reply.message, about))
    for delta in deltas[: len(deltas) // 2 or 1] if reply.cut else deltas:
        await response.write(_event(about, delta))
        if reply.pause:
            await asyncio.sleep(reply.pause)
    if reply.cut:
        assert request.transport is not None
        request.transport.close()
        return response
    await response.write(_event(about, {}, finish_reason=reply.finish_reason))
    await response.write(_event(about, None, usage=usage) + b"data: [DONE]\n\n")
    return response


def _deltas(message: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    words = (message["content"] or "").split(" ")
    yield from ({"content": word if number == 0 else f" {word}"} for number, word in enumerate(words))
    for index, call in enumerate(_numbered(message.get("tool_calls", ()), about)):
        yield {"tool_calls": [{"index": index, **call, "function": {**call["function"], "arguments": ""}}]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": call["function"]["arguments"]}}]}


def _event(about: Mapping[str, Any], delta: dict[str, Any] | None, *, usage: Any = None, **choice: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None, **choice}]
    chunk = {**about, "object": "chat.completion.chunk", "choices": choices}
    return f"data: {_json(chunk if usage is None else chunk | {'usage': usage})}\n\n".encode()


def _numbered(made: Sequence[dict[str, Any]], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls with ids that no other answer has."""
    return [{"id": f"call-{about['id'].removeprefix('gen-')}-{number}", **call} for number, call in enumerate(made, 1)]


def _usage(asked: Asked, reply: _Answer) -> dict[str, Any]:
    read, written = len(_json(asked.messages)), len(_json(reply.message))
    counts = [max(letters // LETTERS_PER_TOKEN, 1) for letters in (read, written)]
    usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
    return usage if reply.cost is None else usage | {"cost": reply.cost}


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


# -- for people


def _line(message: Mapping[str, Any]) -> str:
    asked_for = [call["function"] for call in message.get("tool_calls", ())]
    calls = [f"calls {function['name']}({function['arguments']})" for function in asked_for]
    text = " ".join(filter(None, [words_of(message.get("content")), *calls]))
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return f"{message.get('role', '?'):<{_ROLE_WIDTH}}{shown}"


def _shown_reply(scripted: Script) -> str:
    match scripted:
        case _Answer():
            return _line(scripted.message)
        case _Failure():
            return f"an error {scripted.status}"
        case _Silence():
            return "silence"
        case str():
            return _line({"role": "assistant", "content": scripted})
        case _:
            return f"a function, {getattr(scripted, '__name__', scripted)!s}"
