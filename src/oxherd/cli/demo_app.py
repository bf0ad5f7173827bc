"""The demo's herd: what a product would write. `oxherd demo` runs its worker with `--app oxherd.cli.demo_app:herd`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from oxherd import Context, Herd, tool
from oxherd.embedded.model import Model

herd = Herd()

STOCK = {"yoke": 12, "plough": 3, "cart": 0}


class Triage(BaseModel):
    """What the model must answer with."""

    topic: Literal["delivery", "invoice", "login", "other"]
    urgent: bool
    weeks_waited: int


class Question(BaseModel):
    """Payload of `stock.ask`."""

    item: Literal["yoke", "plough", "cart"]


class Invoice(BaseModel):
    """Payload of `invoice.send`."""

    number: int
    to: str


@tool
def stock_of(item: Literal["yoke", "plough", "cart"]) -> int:
    """Look up how many pieces of an item are in stock.

    Args:
        item: the item's name.
    """
    return STOCK[item]


triage = herd.agent(
    "triage",
    model=Model.name,
    instructions="Answer in JSON: the topic of the customer's message, whether it is urgent, the weeks they waited.",
    output=Triage,
    max_output_tokens=120,
    temperature=0.0,
)

# A model this small does not know when to call a tool, so it is told to; the arguments are its own.
clerk = herd.agent(
    "clerk",
    model=Model.name,
    tools=[stock_of],
    tool_choice="stock_of",
    max_output_tokens=60,
    temperature=0.0,
)


@herd.job("stock.ask")
async def ask(ctx: Context, question: Question) -> dict[str, Any]:
    """A handler that runs an agent; the tool call is one of the run's journaled steps."""
    run = await ctx.run(clerk, f"How many pieces of the item '{question.item}' do you have?")
    found = [message["content"] for message in run.messages if message["role"] == "tool"]
    return {"answer": run.output, "stock_of": found}


@herd.job("invoice.send")
async def send(_ctx: Context, invoice: Invoice) -> None:
    """A handler that fails, as things do."""
    raise ConnectionError(f"the mail server refused invoice {invoice.number} to {invoice.to}: mailbox full")
