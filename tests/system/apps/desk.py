"""An agent whose tool is another agent, whose tools come from a server of tools in a process of its own."""

from __future__ import annotations

import os

import quick  # noqa: F401  short leases

from oxherd import MCP, Agent, Herd

shop = MCP.stdio(
    os.environ["SHOP_PYTHON"],
    os.environ["SHOP"],
    env={"SHOP_STATE": os.environ["SHOP_STATE"]},
    name="shop",
    prefix="shop",
    tools=["buy"],
)
buyer = Agent("buyer", "small", description="Buys things.", tools=[shop])
herd = Herd()
herd.agent("desk", model="large", tools=[buyer])
