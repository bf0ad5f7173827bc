"""The least there can be: aiohttp and orjson, a loop of two calls. No limits, no errors, nothing kept."""

import aiohttp
import orjson
from tool import converse

HEADERS = {"Authorization": "Bearer none", "Content-Type": "application/json"}


async def connect(url, _):
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS)

    async def ask(messages, tools, heard):
        body = {"model": "openai/gpt-5-mini", "messages": messages, "stream": True, "max_tokens": 1000}
        if tools:
            body["tools"] = tools
        text, arguments, call = [], [], None
        async with session.post(f"{url}/chat/completions", data=orjson.dumps(body)) as response:
            async for delta in deltas(response):
                if delta.get("content"):
                    text.append(delta["content"])
                    heard(delta["content"])
                for piece in delta.get("tool_calls", ()):
                    call = call or piece["id"]
                    arguments.append(piece["function"]["arguments"])
        return "".join(text), call, "".join(arguments)

    async def run(said, heard, *, tools):
        return await converse(ask, said, heard, tools)

    return run


async def deltas(response):
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            chunk = orjson.loads(line[6:])
            if chunk["choices"]:
                yield chunk["choices"][0]["delta"]
