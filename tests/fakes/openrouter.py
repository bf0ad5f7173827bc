"""An OpenRouter that takes nothing on trust: every request must fit the published schema and make sense as a
conversation. It answers by a script, streams where it is asked to, and keeps its own bill.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from jsonschema import Draft202012Validator

CONTRACT = Path(__file__).resolve().parents[3] / "shared" / "contracts" / "openrouter.openapi.json"
KEY = "sk-or-v1-not-a-real-key"
PRICE = Decimal("0.0002")  # US dollars for each answer

Body = dict[str, Any]


@cache
def published() -> Draft202012Validator | None:
    """The schema of a chat request as OpenRouter publishes it, or None where the contract is not at hand."""
    return _published({"$ref": "#/components/schemas/ChatRequest"})


@cache
def published_embeddings() -> Draft202012Validator | None:
    """The same of a request for embeddings."""
    if not CONTRACT.exists():
        return None
    post = json.loads(CONTRACT.read_text())["paths"]["/embeddings"]["post"]
    return _published(post["requestBody"]["content"]["application/json"]["schema"])


def _published(root: Body) -> Draft202012Validator | None:
    if not CONTRACT.exists():
        return None
    return Draft202012Validator({**root, "components": json.loads(CONTRACT.read_text())["components"]})


def fields_of_a_request() -> set[str]:
    validator = published()
    return set(validator.schema["components"]["schemas"]["ChatRequest"]["properties"]) if validator else set()


def says(text: str | None, **extra: Any) -> Body:
    """An answer in words; `extra` goes into the message."""
    return answer({"role": "assistant", "content": text, **extra}, "stop")


def calls(*wanted: tuple[str, Any], finish_reason: str = "tool_calls", **extra: Any) -> Body:
    """An answer that calls tools: pairs of a name and its arguments, as data or as the JSON that is sent."""
    listed = [
        {
            "id": f"call_{index}_{name}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for index, (name, given) in enumerate(wanted)
    ]
    return answer({"role": "assistant", "content": None, "tool_calls": listed, **extra}, finish_reason)


def answer(message: Body, finish_reason: str | None, **extra: Any) -> Body:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "native_finish_reason": finish_reason}
    return {"object": "chat.completion", "created": 1, "provider": "Fake", "choices": [choice], **extra}


class Refuses:
    """An error answer."""

    def __init__(self, status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> None:
        self.status = status
        self.headers = headers or {}
        self.body = {"error": {"code": status, "message": message, **error}}


class Drops:
    """Closes the connection without an answer."""


class Streams:
    """A stream as it goes over the wire: bytes are sent, an event is waited for, a number is a pause in seconds.

    With `cut`, the connection then breaks; otherwise the stream ends in good order. Only with `named` does the header
    tell the generation's id.
    """

    def __init__(self, *pieces: bytes | asyncio.Event | float, cut: bool = False, named: bool = True) -> None:
        self.pieces = pieces
        self.cut = cut
        self.named = named


class Cuts:
    """Streams an answer up to a part of its bytes, be it amid a character; then the connection breaks."""

    def __init__(self, reply: Body, part: float) -> None:
        self.reply = reply
        self.part = part


Answer = Body | Refuses | Drops | Streams | Cuts | bytes | Callable[[Body], Any]


def event(data: Body | str) -> bytes:
    """A server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def chunk(delta: Body | None = None, finish_reason: str | None = None, **extra: Any) -> bytes:
    """The event of a chunk."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    return event({"id": "gen-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **extra})


DONE = event("[DONE]")
ALIVE = b": OPENROUTER PROCESSING\n\n"


def streamed(body: Body) -> bytes:
    """A whole answer as the stream that OpenRouter would send."""
    about = {key: body[key] for key in ("id", "model", "provider") if key in body} | {"object": "chat.completion.chunk"}
    events = [ALIVE]
    for choice in body.get("choices", ()):
        told = {key: choice[key] for key in ("finish_reason", "error") if key in choice}
        deltas = [*_deltas(choice["message"]), {}]
        events += [event({**about, "choices": [{"index": 0, "delta": delta}]}) for delta in deltas[:-1]]
        events.append(event({**about, "choices": [{"index": 0, "delta": {"content": ""}, **told}]}))
    return b"".join((*events, event({**about, "choices": [], "usage": body.get("usage")}), DONE))


def _deltas(message: Body) -> Iterator[Body]:
    yield {"role": "assistant", "content": ""}
    for key in ("reasoning", "refusal"):
        if message.get(key):
            yield {"content": "", key: message[key]}
    if message.get("reasoning_details"):
        yield {"content": "", "reasoning_details": message["reasoning_details"]}
    content = message.get("content") or ""
    yield from ({"content": content[at : at + 3]} for at in range(0, len(content), 3))
    for index, call in enumerate(message.get("tool_calls", ())):
        given = call["function"]["arguments"]
        yield {"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]}
        for at in range(0, len(given), 5):
            yield {"tool_calls": [{"index": index, "function": {"arguments": given[at : at + 5]}}]}


class FakeOpenRouter:
    """Serves `/api/v1` on loopback, as an async context manager.

    Parameters:
        answers: what to answer once the script has nothing more; without it, a further request is a fault.
        models: what to answer whoever asks for the list of models and the script has nothing more.
        pace: seconds between the events of an answer that is streamed.

    Attributes:
        requests: the bodies it was sent.
        bill: what it charged, in US dollars.
        bills: the same by generation, also of those whose stream broke.
        faults: what was wrong with requests; leaving the context raises when there is any.
        sent: the generations whose answer was sent to its end.
        hung_up: set when a client leaves before the end.
        late: how many look-ups of a generation find nothing before the first finds its record.
    """

    def __init__(
        self, answers: Callable[[Body], Answer] | None = None, *, models: Body | None = None, pace: float = 0.0
    ) -> None:
        self._answers = answers
        self._models = models
        self._pace = pace
        self.requests: list[Body] = []
        self.bills: dict[str, Decimal] = {}
        self.sent: set[str] = set()
        self.faults: list[str] = []
        self.hung_up = asyncio.Event()
        self.late = 0
        self._script: list[Answer] = []
        self._signed: dict[str, Any] = {}

    def script(self, *answers: Answer) -> None:
        """What to answer next, in order."""
        self._script += answers

    @property
    def bill(self) -> Decimal:
        return sum(self.bills.values(), Decimal(0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api/v1"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/api/v1/chat/completions", self._complete)
        app.router.add_post("/api/v1/embeddings", self._embed)
        app.router.add_get("/api/v1/generation", self._look_up)
        app.router.add_get("/api/v1/models", self._list)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self._runner.cleanup()
        if kind is None:
            assert self.faults == [], self.faults
            assert self._script == [], "answers that nobody asked for"

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        faults = [*self._faults_of_call(request), *self._faults_of(body)]
        self.requests.append(body)
        if not self._script and self._answers is None:
            faults.append("a request more than the script has answers")
        if faults:
            self.faults += faults
            return web.json_response({"error": {"code": 400, "message": "; ".join(faults)}}, status=400)
        try:
            return await self._send(request, self._script.pop(0) if self._script else self._answers, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.hung_up.set()
            raise

    async def _send(self, request: web.Request, reply: Answer, body: Body) -> web.StreamResponse:
        match reply:
            case Refuses():
                return web.json_response(reply.body, status=reply.status, headers=reply.headers)
            case Drops():
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case bytes():
                return web.Response(body=reply, content_type="application/json")
            case Streams() | Cuts():
                return await self._stream(request, self._charged(reply, body))
            case dict():
                return await self._answer(request, self._billed(reply, body), stream=bool(body.get("stream")))
            case _:
                return await self._send(request, reply(body), body)

    async def _answer(self, request: web.Request, reply: Body, *, stream: bool) -> web.StreamResponse:
        if stream:
            return await self._stream(request, self._paced(streamed(reply)))
        return web.json_response(reply, headers={"X-Generation-Id": self._id()})

    def _charged(self, reply: Streams | Cuts, body: Body) -> Streams:
        if isinstance(reply, Streams):
            self.bills[self._id()] = PRICE  # from the first token on, whoever leaves
            return reply
        whole = streamed(self._billed(reply.reply, body))
        return self._paced(whole[: int(len(whole) * reply.part)], cut=True)

    async def _stream(self, request: web.Request, reply: Streams) -> web.StreamResponse:
        generation = self._id()
        named = {"X-Generation-Id": generation} if reply.named else {}
        response = web.StreamResponse(headers={**named, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in reply.pieces:
            match piece:
                case bytes():
                    await response.write(piece)
                case asyncio.Event():
                    await piece.wait()
                case _:
                    await asyncio.sleep(piece)
        if reply.cut:
            assert request.transport is not None
            request.transport.close()
        else:
            self.sent.add(generation)
        return response

    def _paced(self, sent: bytes, *, cut: bool = False) -> Streams:
        if not self._pace:
            return Streams(sent, cut=cut)
        parts = sent.split(b"\n\n")
        whole = [part + b"\n\n" for part in parts[:-1]] + parts[-1:]
        return Streams(*(piece for part in whole for piece in (part, self._pace)), cut=cut)

    async def _look_up(self, request: web.Request) -> web.StreamResponse:
        self.faults += self._faults_of_call(request)
        bill = self.bills.get(request.query["id"])
        if bill is None or self.late > 0:
            self.late -= 1
            return web.json_response({"error": {"code": 404, "message": "Generation not found"}}, status=404)
        tokens = {"native_tokens_prompt": 11, "native_tokens_completion": 6, "tokens_prompt": 10}
        told = {"id": request.query["id"], "model": "m", "provider_name": "Fake", "finish_reason": None}
        return web.json_response({"data": {**told, **tokens, "total_cost": float(bill), "cancelled": True}})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.faults += self._faults_of_call(request)
        reply = self._script.pop(0) if self._script else self._models
        assert isinstance(reply, dict | Refuses)
        return await self._send(request, reply, {}) if isinstance(reply, Refuses) else web.json_response(reply)

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        validator = published_embeddings()
        self.faults += [f"{e.json_path}: {e.message}" for e in validator.iter_errors(body)] if validator else []
        return await self._list(request)

    def _billed(self, reply: Body, body: Body) -> Body:
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cost": float(PRICE)}
        reply = {"id": self._id(), "model": body["model"], "usage": usage, **reply}
        told = (reply["usage"] or {}).get("cost", PRICE)  # what it does not tell, it charges all the same
        self.bills[self._id()] = Decimal(str(told))
        for choice in reply.get("choices", ()):
            for call in choice["message"].get("tool_calls", ()):
                self._signed[call["id"]] = choice["message"].get("reasoning_details")
        return reply

    def _id(self) -> str:
        return f"gen-{len(self.requests)}"

    def _faults_of_call(self, request: web.Request) -> list[str]:
        faults = []
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            faults.append("the key is missing or wrong")
        if request.content_type != "application/json":
            faults.append("the content type is not JSON")
        return faults

    def _faults_of(self, body: Body) -> list[str]:
        validator = published()
        faults = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(body)] if validator else []
        if validator and (unknown := set(body) - fields_of_a_request()):
            faults.append(f"fields that OpenRouter does not know: {unknown}")
        if not (body.get("max_tokens") or body.get("max_completion_tokens")):
            faults.append("no output limit: OpenRouter would reserve credit for the largest possible answer")
        demanding = body.get("tools") or body.get("response_format")
        if demanding and not body.get("provider", {}).get("require_parameters"):
            faults.append("without provider.require_parameters, a provider that ignores tools may be picked")
        return faults + self._faults_of_talk(body)

    def _faults_of_talk(self, body: Body) -> list[str]:
        faults, open_calls = [], set[str]()
        for message in body["messages"]:
            if message["role"] == "tool":
                if message["tool_call_id"] not in open_calls:
                    faults.append(f"an answer to a call that is not open: {message['tool_call_id']}")
                open_calls.discard(message["tool_call_id"])
                continue
            if open_calls:
                faults.append(f"calls without an answer: {open_calls}")
            for call in message.get("tool_calls", ()):
                open_calls.add(call["id"])
                faults += self._faults_of_echo(message, call)
        if open_calls:
            faults.append(f"calls without an answer: {open_calls}")
        return faults

    def _faults_of_echo(self, message: Body, call: Body) -> list[str]:
        faults = []
        if call["id"] in self._signed and message.get("reasoning_details") != self._signed[call["id"]]:
            faults.append("reasoning_details were not sent back unchanged")
        try:
            json.loads(call["function"]["arguments"])
        except ValueError:
            faults.append("arguments that are no JSON were sent back: some providers refuse the conversation")
        return faults
