"""The provider that all clients talk to: a process of its own that streams one reply of 50 chunks, each by itself."""

import asyncio
import json
import sys
from pathlib import Path

import uvloop
from aiohttp import web

CHUNKS = 50
WORDS = ("The", "ox", "is", "strong", "and", "slow", "and", "pulls", "the", "plough", "all", "day", ".")
ABOUT = {"id": "gen-1795440000-QpWxRk", "provider": "OpenAI", "model": "openai/gpt-5-mini"}


def event(choices: list[object], **more: object) -> bytes:
    body = {**ABOUT, "object": "chat.completion.chunk", "created": 1795440000, "choices": choices, **more}
    return f"data: {json.dumps(body)}\n\n".encode()


def content(text: str, finish_reason: str | None = None) -> bytes:
    delta = {"role": "assistant", "content": text}
    told = {"finish_reason": finish_reason, "native_finish_reason": finish_reason, "logprobs": None}
    return event([{"index": 0, "delta": delta, **told}])


def reply() -> list[bytes]:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": CHUNKS,
        "total_tokens": 10 + CHUNKS,
        "cost": 0.00014,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    words = [content(f"{WORDS[number % len(WORDS)]} ") for number in range(CHUNKS)]
    last = b"".join((content("", "stop"), event([], usage=usage), b"data: [DONE]\n\n"))
    return [b": OPENROUTER PROCESSING\n\n", *words, last]


class Provider:
    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.reply = reply()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        if not asked.get("stream"):
            return web.json_response({"error": {"code": 400, "message": "this provider only streams"}}, status=400)
        headers = {"Content-Type": "text/event-stream", "X-Generation-Id": ABOUT["id"]}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for piece in self.reply if self.pace else [b"".join(self.reply)]:
            await response.write(piece)
            await asyncio.sleep(self.pace)
        return response


async def serve(port_file: Path, pace: float) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", Provider(pace).complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port_file.with_suffix(".tmp").write_text(str(runner.addresses[0][1]))
    port_file.with_suffix(".tmp").replace(port_file)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
