"""Takes the orders that producer.ts adds."""

from __future__ import annotations

from pydantic import BaseModel

from oxherd import Context, Herd

herd = Herd()
clerk = herd.agent(
    "clerk",
    model="openai/gpt-5-mini",
    instructions="Answer the customer's note in one sentence.",
    max_output_tokens=100,
)


class Order(BaseModel):
    number: int
    note: str
    card: str  # sealed by the producer, opened by the worker


@herd.job("order.check", retries=2)
async def check(ctx: Context, order: Order) -> dict[str, object]:
    await ctx.progress({"stage": "reading", "number": order.number})
    run = await ctx.run(clerk, order.note)
    return {"number": order.number, "card": f"ends in {order.card[-4:]}", "reply": run.output}
