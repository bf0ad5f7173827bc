"""What it costs at least: aiohttp and orjson as their documentation uses them. No limits, no errors, text only."""

import aiohttp
import orjson


async def connect(url):
    session = aiohttp.ClientSession()
    body = {"model": "openai/gpt-5-mini", "messages": [{"role": "user", "content": "hello"}], "stream": True}

    async def ask():
        text, usage = [], None
        headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}
        async with session.post(f"{url}/chat/completions", data=orjson.dumps(body), headers=headers) as response:
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = orjson.loads(line[6:])
                if chunk["choices"]:
                    text.append(chunk["choices"][0]["delta"]["content"])
                usage = chunk.get("usage") or usage
        assert usage["cost"] > 0
        return "".join(text)

    return ask
