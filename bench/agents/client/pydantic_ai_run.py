"""pydantic-ai: an agent without tools, its answer streamed as text."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def connect(url):
    model = OpenAIChatModel("openai/gpt-5-mini", provider=OpenAIProvider(base_url=url, api_key="none"))
    agent = Agent(model, model_settings={"max_tokens": 1000})

    async def ask():
        async with agent.run_stream("hello") as result:
            text = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return "".join(text)

    return ask
