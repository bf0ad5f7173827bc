"""The provider that all contestants talk to, in a process of its own: server-sent events over HTTP/1.1, and no more.

A conversation with tools and without a tool's answer is told to call one; any other gets 50 chunks of text. How they
are sent is the first word of the user's message: `burst` (at once), `paced` (5 ms apart), `tokens` (50 a second for as
many seconds as the second word says, each with the moment at which it left) or `hold` (five, the rest on /release).
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path

import uvloop

CHUNKS = 50
HELD = 5
PACE = 0.005
TOKEN_PACE = 0.02
ABOUT = {"id": "gen-1795440000-QpWxRk", "provider": "OpenAI", "model": "openai/gpt-5-mini"}
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Generation-Id: gen-1795440000-QpWxRk\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(choices, **more) -> bytes:
    body = {**ABOUT, "object": "chat.completion.chunk", "created": 1795440000, "choices": choices, **more}
    return f"data: {json.dumps(body)}\n\n".encode()


def chunk(delta, finish_reason=None) -> bytes:
    told = {"finish_reason": finish_reason, "native_finish_reason": finish_reason, "logprobs": None}
    return event([{"index": 0, "delta": {"role": "assistant", **delta}, **told}])


def end(finish_reason: str) -> bytes:
    usage = {"prompt_tokens": 10, "completion_tokens": CHUNKS, "total_tokens": 10 + CHUNKS, "cost": 0.00014}
    details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}}
    sent = chunk({"content": ""}, finish_reason), event([], usage={**usage, **details}), b"data: [DONE]\n\n"
    return framed(b"".join(sent)) + b"0\r\n\r\n"


def tool_call() -> bytes:
    function = {"name": "look", "arguments": ""}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    parts = [chunk({"content": None, "tool_calls": [call]})]
    pieces = ('{"what"', ': "the ', 'ox"}')
    parts += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}) for text in pieces]
    return framed(b"".join(parts)) + end("tool_calls")


WORD = framed(chunk({"content": "plough "}))
BEFORE, AFTER = chunk({"content": "@"}).split(b"@")
CALL, END = tool_call(), end("stop")
COMMENT = framed(b": OPENROUTER PROCESSING\n\n")
loop: asyncio.AbstractEventLoop
held: list["Connection"] = []


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.waiting = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.write = transport.write

    def connection_lost(self, _) -> None:
        self.write = lambda _: None

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        head, found, rest = self.waiting.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        size = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0]) if b"content-length:" in lower else 0
        if len(rest) < size:
            return
        self.waiting = rest[size:]
        if head.startswith(b"POST") and b"/chat/completions" in head:
            self.answer(json.loads(rest[:size]))
        else:
            self.release()

    def answer(self, asked) -> None:
        messages = asked["messages"]
        said = next(message["content"] for message in messages if message["role"] == "user")
        how, *more = (said if isinstance(said, str) else said[0]["text"]).split()
        if asked.get("tools") and all(message["role"] != "tool" for message in messages):
            self.write(HEAD + COMMENT + CALL)
        elif how == "burst":
            self.write(HEAD + COMMENT + WORD * CHUNKS + END)
        elif how == "hold":
            self.write(HEAD + COMMENT + WORD * HELD)
            held.append(self)
        elif how == "paced":
            self.write(HEAD + COMMENT)
            self.paced(CHUNKS, loop.time())
        else:
            self.write(HEAD + COMMENT)
            begin = loop.time() + random.random() * TOKEN_PACE  # streams that began together do not stay in step
            loop.call_at(begin, self.tokens, int(float(more[0]) / TOKEN_PACE), begin)

    def paced(self, left: int, at: float) -> None:
        if left == 0:
            self.write(END)
            return
        self.write(WORD)
        loop.call_at(at + PACE, self.paced, left - 1, at + PACE)

    def tokens(self, left: int, at: float) -> None:
        if left == 0:
            self.write(END)
            return
        body = b"%b%d %b" % (BEFORE, time.monotonic_ns(), AFTER)
        self.write(b"%x\r\n%b\r\n" % (len(body), body))
        loop.call_at(at + TOKEN_PACE, self.tokens, left - 1, at + TOKEN_PACE)

    def release(self) -> None:
        for each in held:
            each.write(WORD * (CHUNKS - HELD) + END)
        held.clear()
        self.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def serve(port_file: Path) -> None:
    global loop  # noqa: PLW0603  the process is the provider
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=4096)
    port_file.with_suffix(".tmp").write_text(str(server.sockets[0].getsockname()[1]))
    port_file.with_suffix(".tmp").replace(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
