"""A handler that is written with pydantic-ai: Oxherd keeps its model and tool calls as steps."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_ai import Agent, ModelResponse, RunContext
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider

from oxherd import Context, Herd
from oxherd.context import Usage

herd = Herd()
agent = Agent(
    deps_type=Context,
    instructions="Answer questions about orders in one sentence.",
    model_settings={"max_tokens": 100},
)
RESPONSE = TypeAdapter(ModelResponse)


class Question(BaseModel):
    text: str


class Kept(WrapperModel):
    """A model whose replies are steps of the job: a later attempt gets them from the journal."""

    def __init__(self, model: OpenAIChatModel, ctx: Context) -> None:
        super().__init__(model)
        self.ctx = ctx
        self.calls = 0

    async def request(self, messages: Any, model_settings: Any, model_request_parameters: Any) -> ModelResponse:
        self.calls += 1
        usage = Usage()

        async def ask(_: Any) -> Any:
            reply = await self.wrapped.request(messages, model_settings, model_request_parameters)
            usage.add(Usage(1, reply.usage.input_tokens, reply.usage.output_tokens, None))
            return RESPONSE.dump_python(reply, mode="json")

        # What is new in the conversation is the step's input, without its timestamps, which are new each time.
        new = [getattr(part, "content", None) for part in messages[-1].parts]
        kept = await self.ctx.step(f"model-{self.calls}", ask, new, kind="model", usage=usage)
        return RESPONSE.validate_python(kept)


@agent.tool
async def find_order(run: RunContext[Context], number: str) -> str:
    """Find out where an order is.

    Args:
        run: the run.
        number: the order's number, such as A-17.
    """
    # The call's id is in the model's reply, which is kept: it is the same on every attempt.
    return await run.deps.step(f"find_order-{run.tool_call_id}", look_up, number, kind="tool")


async def look_up(number: str) -> str:
    """Stands for your database."""
    return f"{number} is on its way and will arrive tomorrow"


@herd.job("order.question", retries=3)
async def answer(ctx: Context, question: Question) -> str:
    provider = OpenAIProvider(
        base_url=os.environ.get("OPENROUTER_BASE_URL", "https://openrouter.ai/api/v1"),
        api_key=os.environ.get("OPENROUTER_API_KEY", "none"),
    )
    model = Kept(OpenAIChatModel("openai/gpt-5-mini", provider=provider), ctx)
    run = await agent.run(question.text, model=model, deps=ctx)
    return run.output
