"""The OpenAI Agents SDK: an agent with a function tool, events streamed; its tracing off."""

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI


async def connect(url, _):
    set_tracing_disabled(True)

    @function_tool
    async def look(what: str) -> str:
        """Look something up."""
        return f"{what} is big"

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    model = OpenAIChatCompletionsModel(model="openai/gpt-5-mini", openai_client=client)
    settings = ModelSettings(max_tokens=1000, include_usage=True)
    plain = Agent(name="plain", model=model, model_settings=settings)
    agent = Agent(name="looker", model=model, model_settings=settings, tools=[look])

    async def run(said, heard, *, tools):
        result = Runner.run_streamed(agent if tools else plain, said)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                heard(event.data.delta)
        return result.final_output

    return run
