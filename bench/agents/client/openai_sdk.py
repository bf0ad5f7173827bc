"""The openai SDK, streaming, as its documentation shows it."""

from openai import AsyncOpenAI


async def connect(url):
    client = AsyncOpenAI(base_url=url, api_key="none")

    async def ask():
        text, usage = [], None
        stream = await client.chat.completions.create(
            model="openai/gpt-5-mini",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=1000,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices:
                text.append(chunk.choices[0].delta.content or "")
            usage = chunk.usage or usage
        assert usage.total_tokens > 0
        return "".join(text)

    return ask
