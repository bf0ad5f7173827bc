"""Runs of agents inside tools of other agents: who is inside whom, and what they have used together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from oxherd.agents.agent import Agent
from oxherd.context import Usage
from oxherd.errors import AgentError, BudgetExceeded

MAX_DEPTH = 5  # agents inside one another, the outermost included


class Tally:
    """What a run, or one of its tool calls, has used, the runs inside it included.

    Parameters:
        outer: of the tool call that the run is in, or of the run that the tool call is of; None for an outermost run.
        agent: the run's; None for a tool call.
        path: the whole prefix of the run's steps.

    Attributes:
        usage: tokens and money, replayed calls included.
        calls: of models, those that have not ended included.
        inner_calls: those of them that were made by runs inside this one.
    """

    def __init__(self, outer: Tally | None, agent: Agent | None = None, path: str = "") -> None:
        self.outer = outer
        self.agent = agent
        self.path = path
        self.usage = Usage()
        self.calls = 0
        self.inner_calls = 0

    def line(self) -> Iterator[Tally]:
        """This one, the one around it, and so on."""
        each: Tally | None = self
        while each is not None:
            yield each
            each = each.outer

    def runs(self) -> Iterator[tuple[Tally, Agent]]:
        """Those in the line that are runs, from the inside out."""
        return ((each, each.agent) for each in self.line() if each.agent is not None)

    def call(self, count: int = 1) -> None:
        """Count calls of a model that begin."""
        for each in self.line():
            each.calls += count
            each.inner_calls += 0 if each is self and each.agent is not None else count

    def add(self, usage: Usage) -> None:
        """Count what calls have cost."""
        for each in self.line():
            each.usage.add(usage)

    def check(self) -> None:
        """Raise BudgetExceeded where the run, or one that it is inside of, may call no model any more."""
        for each, agent in self.runs():
            _check(each, agent)


def _check(tally: Tally, agent: Agent) -> None:
    budget, cost = agent.budget, tally.usage.cost_usd
    if tally.calls >= budget.steps:
        inner = f", {tally.inner_calls} of them by agents inside it" if tally.inner_calls else ""
        raise BudgetExceeded(
            f"agent {agent.name!r} had no answer after {tally.calls} calls of the model{inner}",
            hint="raise budget.steps",
        )
    if budget.cap is not None and cost is not None and cost >= budget.cap:
        raise BudgetExceeded(
            f"agent {agent.name!r} has spent ${cost} of ${budget.cap} without an answer", hint="raise budget.usd"
        )


_around: ContextVar[Tally | None] = ContextVar("oxherd_tool_call", default=None)


def begin(agent: Agent, path: str) -> Tally:
    """The tally of a run that begins here, perhaps inside a tool of another run.

    Raises:
        AgentError: it would be inside itself, or too deep.
    """
    outer = _around.get()
    agents = [] if outer is None else [each for _, each in outer.runs()]
    way = " → ".join(each.name for each in (*reversed(agents), agent))
    if agent in agents:
        raise AgentError(f"agent {agent.name!r} is run by a tool of its own: {way}", hint="break the circle")
    if len(agents) >= MAX_DEPTH:
        raise AgentError(f"more than {MAX_DEPTH} agents inside one another: {way}", hint="make the tools flatter")
    return Tally(outer, agent, path)


@contextmanager
def inside(call: Tally) -> Iterator[Any]:
    """What runs meanwhile is inside that tool call."""
    token = _around.set(call)
    try:
        yield
    finally:
        _around.reset(token)
