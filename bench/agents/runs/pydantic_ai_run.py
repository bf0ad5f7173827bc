"""pydantic-ai: an agent with a tool, its answer streamed as text."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def connect(url, _):
    model = OpenAIChatModel("openai/gpt-5-mini", provider=OpenAIProvider(base_url=url, api_key="none"))
    plain = Agent(model, model_settings={"max_tokens": 1000})
    agent = Agent(model, model_settings={"max_tokens": 1000})

    @agent.tool_plain
    async def look(what: str) -> str:
        """Look something up."""
        return f"{what} is big"

    async def run(said, heard, *, tools):
        text = []
        async with (agent if tools else plain).run_stream(said) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                text.append(piece)
                heard(piece)
        return "".join(text)

    return run
