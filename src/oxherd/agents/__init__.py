"""Agents: definitions, the run loop, tools, and the client of the model service."""

from __future__ import annotations

from oxherd.agents.agent import Agent, Budget
from oxherd.agents.llm import LLM
from oxherd.agents.loop import Run
from oxherd.agents.mcp import MCP
from oxherd.agents.runner import Agents
from oxherd.agents.tools import Tool, tool

__all__ = ["LLM", "MCP", "Agent", "Agents", "Budget", "Run", "Tool", "tool"]
