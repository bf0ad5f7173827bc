"""The openai SDK, streaming, with a loop of two calls around it."""

from openai import AsyncOpenAI
from tool import converse


async def connect(url, _):
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

    async def ask(messages, tools, heard):
        text, arguments, call = [], [], None
        stream = await client.chat.completions.create(
            model="openai/gpt-5-mini",
            messages=messages,
            max_tokens=1000,
            stream=True,
            stream_options={"include_usage": True},
            **({"tools": tools} if tools else {}),
        )
        async for chunk in stream:
            if not chunk.choices:
                continue
            delta = chunk.choices[0].delta
            if delta.content:
                text.append(delta.content)
                heard(delta.content)
            for piece in delta.tool_calls or ():
                call = call or piece.id
                arguments.append(piece.function.arguments)
        return "".join(text), call, "".join(arguments)

    async def run(said, heard, *, tools):
        return await converse(ask, said, heard, tools)

    return run
