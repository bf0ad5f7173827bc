"""Runs agents by name or definition, for handlers (`ctx.run`) and for the built-in job `agent.run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from oxherd.agents.agent import Agent
from oxherd.agents.ledger import Ledger
from oxherd.agents.llm import LLM
from oxherd.agents.loop import Run, run_agent
from oxherd.agents.mcp import MCP, Servers
from oxherd.agents.tools import Tool
from oxherd.context import Context
from oxherd.errors import PayloadInvalid, UnknownAgent
from oxherd.settings import Secret
from oxherd.store import KeptAgent

Lookup = Callable[[str, int | None], Awaitable[KeptAgent | None]]


def _expect(kinds: tuple[type, ...], words: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise ValueError(words)  # noqa: TRY004  pydantic turns ValueErrors into its own
        return value

    return BeforeValidator(check)


@dataclass(frozen=True, slots=True)
class AgentRunPayload:
    """The payload of the built-in job `agent.run`.

    Attributes:
        agent: an agent's name, or an inline definition, see `Agent.inline`.
        input: text, or chat messages.
        tenant: whom the run is for.
        metadata: the producer's own; kept with the run.
        max_usd: what this run may cost, in US dollars, where that is less than the agent's own budget.
    """

    agent: Annotated[Any, _expect((str, dict), "must be an agent's name or an object that defines one")]
    input: Annotated[Any, _expect((str, list), "must be text or a list of messages")]
    tenant: str | None = None
    metadata: dict[str, Any] | None = None
    max_usd: Annotated[Decimal, Field(ge=0)] | None = None


class Agents:
    """Finds agents and runs them.

    Parameters:
        llm: the model service.
        known: the product's own agents by name; inline definitions may use their tools.
        lookup: an agent that is kept elsewhere, such as in the store's `agents` table: as it is now, or as it was in a
            version; None where there is nowhere else.

    Attributes:
        llm: the model service.
        ledger: where calls are booked, once the app has set it; without one, caps hold for single runs only.
        servers: connections to servers of tools.
    """

    def __init__(self, llm: LLM, *, known: Mapping[str, Agent], lookup: Lookup | None = None) -> None:
        self.llm = llm
        self.ledger: Ledger | None = None
        self.servers = Servers()
        self._known = known
        self._lookup = lookup

    @classmethod
    def build(
        cls, base_url: str, api_key: Secret | None, *, known: Mapping[str, Agent], lookup: Lookup | None = None
    ) -> Agents:
        """With a client for the model service at `base_url`."""
        return cls(LLM(base_url, api_key), known=known, lookup=lookup)

    async def start(self) -> None:
        """Begin to settle what workers that died have left in the ledger."""
        if self.ledger is not None:
            await self.ledger.start()

    async def close(self) -> None:
        """Write what the ledger still has, and close the connections to models and servers of tools. Twice is fine."""
        if self.ledger is not None:
            await self.ledger.stop()
        await self.llm.close()
        await self.servers.close()  # last: bills are not to wait for programs that take their time

    async def resolve(self, ctx: Context, agent: Agent | str | Mapping[str, Any], scope: str) -> Agent:
        """The agent itself, from its name or definition; the product's own come before those kept elsewhere.

        Those kept elsewhere may be edited at any time: which version a run uses is one of its steps, so that it is on
        record, and a later attempt goes on with the version that the run began with.

        Parameters:
            ctx: the run's.
            agent: an agent, the name of one, or a definition.
            scope: the prefix of the run's steps.

        Raises:
            UnknownAgent: naming the agents there are.
            PayloadInvalid: the definition does not fit; also when `agent` is something else altogether.
        """
        match agent:
            case Agent():
                return agent
            case str():
                return self._known.get(agent) or await self._kept(ctx, agent, scope)
            case Mapping():
                return Agent.inline(agent, tools=self._tools(), servers=self._sources())
            case _:
                raise PayloadInvalid("agent: must be an Agent, an agent's name or an object that defines one")

    async def run(self, ctx: Context, agent: Any, input: Any, *, max_usd: Decimal | None = None) -> Run:  # noqa: A002
        """What `ctx.run` does, with a cap on its cost; see `run_agent` for what it raises."""
        # Before anything is awaited: of two runs at once, their order decides who is called what, not the database.
        scope = ctx.scope(_name_of(agent))
        found = _capped(await self.resolve(ctx, agent, scope), max_usd)
        return await run_agent(ctx, found, input, self.llm, scope=scope, ledger=self.ledger, servers=self.servers)

    async def handle(self, ctx: Context, payload: AgentRunPayload) -> dict[str, Any]:
        """The built-in job `agent.run`."""
        return (await self.run(ctx, payload.agent, payload.input, max_usd=payload.max_usd)).summary()

    async def _kept(self, ctx: Context, name: str, scope: str) -> Agent:
        if self._lookup is None:
            raise self._unknown(name)
        lookup, now = self._lookup, None

        async def version_of() -> int:
            nonlocal now
            now = await lookup(name, None)
            if now is None:
                raise self._unknown(name)
            return now.version

        version = await ctx.step(f"{scope}/version", version_of, kind="agent")
        kept = now or await lookup(name, version)
        if kept is None:
            raise UnknownAgent(f"version {version} of agent {name!r}, which this run began with, is kept no more")
        definition = {**kept.definition, "name": name}
        return Agent.inline(definition, tools=self._tools(), servers=self._sources())

    def _unknown(self, name: str) -> UnknownAgent:
        known = ", ".join(sorted(self._known)) or "none"
        return UnknownAgent(
            f"no agent is called {name!r}; this worker's own are: {known}",
            hint="is --app the right module, or is its row missing in the agents table?",
        )

    def _tools(self) -> dict[str, Tool]:
        """The tools that definitions may name: those of the product's own agents, unless two differ under one name."""
        tools: dict[str, Tool] = {}
        clashing: set[str] = set()
        for each in (tool for agent in self._known.values() for tool in agent.toolbox.values()):
            if not _same(tools.setdefault(each.name, each), each):
                clashing.add(each.name)
        return {name: each for name, each in tools.items() if name not in clashing}

    def _sources(self) -> dict[str, MCP]:
        """The servers of tools that definitions may name, likewise."""
        found = {id(each): each for agent in self._known.values() for each in agent.servers}.values()
        counts = Counter(each.name for each in found)
        return {each.name: each for each in found if counts[each.name] == 1}


def _same(one: Tool, other: Tool) -> bool:
    return one.function is other.function or (one.agent is not None and one.agent is other.agent)


def _name_of(agent: Any) -> str:
    match agent:
        case Agent(name=str(name)) | str(name) | {"name": str(name)}:
            return name
        case _:
            return "inline"


def _capped(agent: Agent, usd: Decimal | None) -> Agent:
    own = agent.budget.cap
    if usd is None or (own is not None and own <= usd):
        return agent
    return replace(agent, budget=replace(agent.budget, usd=usd))
