"""Support tickets: an agent looks orders up, pays back what a person approves, and answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from oxherd import Budget, Context, Herd, tool
from oxherd.context import Ask

herd = Herd()
ORDERS = {"ada@example.com": {"number": "A-17", "cents": 4900, "state": "lost on its way"}}  # stands for your database


class Ticket(BaseModel):
    email: str
    text: str


class Goodwill(BaseModel):
    number: str
    cents: int
    why: str


class Triage(BaseModel):
    topic: Literal["delivery", "refund", "other"]
    urgent: bool
    reply: str


@tool
async def find_order(email: str) -> dict[str, object]:
    """Find a customer's last order.

    Args:
        email: the customer's address.
    """
    return ORDERS.get(email, {"error": "no order by this address"})


@tool(approve=True)
async def refund(ctx: Context, number: str, cents: int) -> str:
    """Pay money back for an order. A person has to approve it, which may take hours.

    Args:
        number: the order's number.
        cents: how much.
    """
    return await pay_back(number, cents, key=ctx.idempotency_key("refund"))


async def pay_back(number: str, cents: int, *, key: str) -> str:
    """Stands for your payment service, which knows by `key` what it has done already."""
    return f"{cents / 100:.2f} paid back for {number}"


support = herd.agent(
    "support",
    model="openai/gpt-5-mini",
    instructions="You triage support tickets. Look the order up. Offer a refund only for what was lost.",
    tools=[find_order, refund],
    output=Triage,
    max_output_tokens=400,
    budget=Budget(usd=0.05, steps=8),
)


@herd.job("ticket.triage", timeout="10m", retries=3)
async def triage(ctx: Context, ticket: Ticket) -> Triage:
    run = await ctx.run(support, f"From {ticket.email}:\n{ticket.text}")
    return run.output


@herd.job("ticket.goodwill", retries=3)
async def goodwill(ctx: Context, case: Goodwill) -> str:
    """A colleague wants to give money back, without any model: a second one has to agree."""
    answer = await ctx.wait_for("second-look", timeout="24h", about=case)
    if not answer.approved:
        return f"nothing paid: {answer.message or 'nobody looked at it in time'}"
    return await ctx.step("pay", pay_back, case.number, case.cents, key=ctx.idempotency_key("pay"))


@herd.on_approval
async def tell(ctx: Context, ask: Ask) -> None:
    """Stands for a message to your team."""
    await ctx.log(f"{ask.name} waits for you: {ask.about}; oxherd approvals approve {ask.id}")
