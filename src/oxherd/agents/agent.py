"""What an agent is: a model, what it is told, its tools, the form of its answer, its limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from oxherd.agents.form import Form, make_form
from oxherd.agents.history import MODES
from oxherd.agents.mcp import MCP
from oxherd.agents.schema import explain
from oxherd.agents.tools import Tool, ToolFailed, tool, tool_of
from oxherd.context import Context
from oxherd.errors import (
    BudgetExceeded,
    DailyCapReached,
    LoopDetected,
    OutputInvalid,
    PayloadInvalid,
    ToolsFailed,
    UsageError,
)

T = TypeVar("T")
CHOICES = ("auto", "required", "none")
_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")  # what a tool's name can't have
_INPUT = "The task in words, with all that the agent needs to know: it sees nothing else."


@dataclass(frozen=True, slots=True)
class Budget:
    """What one run may use, the runs of agents inside it included. Checked before each call of the model.

    Attributes:
        usd: no further call once the run has cost this much, in US dollars; None for no cap. A model whose cost nobody
            tells, such as a local one, is bounded by `steps` alone.
        steps: how often the model may be called.
    """

    usd: Decimal | float | None = None
    steps: int = 12

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError("budget.steps: must be at least 1")
        try:
            cap = Decimal(0) if self.cap is None else self.cap
        except InvalidOperation:
            raise UsageError("budget.usd: must be a number of US dollars") from None
        if not cap.is_finite() or cap < 0:
            raise UsageError("budget.usd: must not be negative or infinite; None is no cap")

    @property
    def cap(self) -> Decimal | None:
        """`usd` as a decimal: 0.05 is five cents, not 0.05000000000000000277."""
        return None if self.usd is None else Decimal(str(self.usd))


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent's definition.

    Attributes:
        name: what jobs call it; also the prefix of its steps.
        model: the model's id, such as `openai/gpt-5-mini`.
        instructions: the system message; empty for none.
        description: what it is good for, for other agents that have it as a tool.
        tools: functions made with `@tool`; plain typed functions are taken too, other agents, see `as_tool`, and
            servers of tools, see `MCP`.
        output: the answer's form: `str` for text, a type that pydantic validates, or a JSON schema. Wrong answers are
            sent back with what is wrong, twice at most.
        budget: what one run may use.
        temperature: 0 to 2; None leaves it to the model.
        max_output_tokens: the limit of each reply; OpenRouter asks for credit up to it before it answers.
        models: fallbacks, tried in order when `model` fails. OpenRouter only.
        tool_choice: for the first call of the model: `auto`, `required` (some tool), `none`, or a tool's name. Later
            calls are always `auto`, or a run that must call a tool would never end.
        reasoning: how much to think, such as `{"effort": "low"}`.
        seed: for models that can repeat themselves.
        provider: how OpenRouter chooses among providers, such as `{"order": ["azure"], "sort": "price"}`.
        cache: mark the conversation's end to be cached, for providers that want a mark. OpenRouter only.
        history: what to do with a conversation that nears the context window: `trim` leaves out the oldest turns,
            `summarise` has the model replace them by a summary, which is a paid call; None sends all of it.
        context_window: how many tokens question and answer may have together; None for what OpenRouter's list of models
            says. Elsewhere, what is unknown is found out when the service refuses, and trimmed once.
        loop_limit: how often the model may make the same call with the same arguments, without any new call in
            between. The call that reaches it is not made: the model is told so, once; after that, LoopDetected ends
            the run. None for no limit.

    Raises:
        UsageError: naming the field that is wrong.
    """

    name: str
    model: str
    instructions: str = ""
    description: str = ""
    tools: Sequence[Tool | Callable[..., Any] | Agent | MCP] = ()
    output: Any = str
    budget: Budget = field(default_factory=Budget)
    temperature: float | None = None
    max_output_tokens: int = 4096
    models: Sequence[str] = ()
    tool_choice: str = "auto"
    reasoning: Mapping[str, Any] | None = None
    seed: int | None = None
    provider: Mapping[str, Any] | None = None
    cache: bool = False
    history: str | None = "trim"
    context_window: int | None = None
    loop_limit: int | None = 3
    form: Form = field(init=False, repr=False, compare=False)
    toolbox: Mapping[str, Tool] = field(init=False, repr=False, compare=False)
    servers: Sequence[MCP] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "model"):
            if not getattr(self, name):
                raise UsageError(f"agent.{name}: must not be empty")
        if self.max_output_tokens < 1:
            raise UsageError("agent.max_output_tokens: must be at least 1")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise UsageError("agent.temperature: must be from 0 to 2")
        if self.history not in MODES:
            raise UsageError("agent.history: must be 'trim', 'summarise' or None")
        if self.context_window is not None and self.context_window < 1:
            raise UsageError("agent.context_window: must be at least 1")
        if self.loop_limit is not None and self.loop_limit < 2:
            raise UsageError("agent.loop_limit: must be at least 2; None is no limit")
        object.__setattr__(self, "form", make_form(self.output))
        object.__setattr__(self, "servers", tuple(each for each in self.tools if isinstance(each, MCP)))
        object.__setattr__(self, "toolbox", _toolbox(each for each in self.tools if not isinstance(each, MCP)))
        if not self.servers:  # whose tools are known once they are asked
            _check_choice(self.tool_choice, self.toolbox)

    def as_tool(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: str | float | None = None,
        approve: bool = False,
    ) -> Tool:
        """The agent as a tool for other agents, which asks it in words and reads its answer.

        It sees nothing of the conversation but what it is asked. Its calls are steps of their own inside the tool's
        step, and count toward the budgets of all agents around it, too. Where it gives up (its own budget, its tools,
        a loop, the form of its answer), the asking model is told.

        Parameters:
            name: of the tool; the agent's, if left out.
            description: what the asking model is told about it; the agent's, if left out.
            timeout: how long one answer may take, such as "5m" or seconds; None for no limit of its own.
            approve: whether each call waits for a person to approve it.
        """

        async def ask(ctx: Context, input: str) -> Any:  # noqa: A002  the field's word
            try:
                return (await ctx.run(self, input)).output
            except DailyCapReached:
                raise  # which nobody gets around
            except (BudgetExceeded, LoopDetected, OutputInvalid, ToolsFailed) as error:
                raise ToolFailed(f"the agent gave up: {error}") from error

        made = tool_of(ask, name=name or _NO_NAME.sub("_", self.name)[:64], timeout=timeout, approve=approve)
        made.schema["properties"]["input"]["description"] = _INPUT
        told = description or self.description or f"Ask the agent {self.name!r}."
        return replace(made, description=told, agent=self)

    def described(self) -> dict[str, Any]:
        """The definition for people, as JSON-able data: tools by their names, without what is left to its default."""
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.init and each.name != "name"}
        shown |= {"tools": sorted(self.toolbox), "budget": asdict(self.budget), "output": self.form.schema}
        return {name: value for name, value in shown.items() if value not in (None, "", (), [], False)}

    @classmethod
    def inline(
        cls,
        definition: Mapping[str, Any],
        *,
        tools: Mapping[str, Tool],
        servers: Mapping[str, MCP] | None = None,
        name: str = "inline",
    ) -> Agent:
        """An agent from data: a job's inline definition, or a row of the `agents` table.

        It can use the servers of tools that the product's own agents have, and bring none: a command would let whoever
        adds jobs run programs here, and a URL would let them reach what only this machine can.

        Parameters:
            definition: the attributes of an agent by name; `tools` by their names, `mcp` as the names of servers,
                `output` as a JSON schema.
            tools: those it may name.
            servers: those it may name.
            name: what it is called where the definition has no name.

        Raises:
            PayloadInvalid: naming each field that does not fit and what was expected there.
        """
        try:
            read = _Definition.model_validate({"name": name, **definition})
        except ValidationError as error:
            raise PayloadInvalid(explain(error, what="agent")) from None
        named: list[Tool | MCP] = [_find("tools", "tool", each, tools) for each in read.tools]
        named += [_find("mcp", "MCP server", each, servers or {}) for each in read.mcp]
        try:
            return cls(
                **{
                    key: getattr(read, key) for key in _Definition.model_fields if key not in {"tools", "mcp", "budget"}
                },
                tools=tuple(named),
                budget=Budget(**dict(read.budget)),
            )
        except UsageError as error:
            raise PayloadInvalid(error.message) from None


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    usd: float | None = None
    steps: int = 12


class _Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    model: str
    instructions: str = ""
    description: str = ""
    tools: list[str] = []
    mcp: list[str] = []
    output: dict[str, Any] | None = None
    budget: _Limits = _Limits()
    temperature: float | None = None
    max_output_tokens: int = 4096
    models: list[str] = []
    tool_choice: str = "auto"
    reasoning: dict[str, Any] | None = None
    seed: int | None = None
    provider: dict[str, Any] | None = None
    cache: bool = False
    history: str | None = "trim"
    context_window: int | None = None
    loop_limit: int | None = 3


def _find(field: str, what: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise PayloadInvalid(f"agent.{field}: no {what} {name!r}; this worker has: {listed}")
    return known[name]


def _toolbox(tools: Iterable[Tool | Callable[..., Any] | Agent]) -> dict[str, Tool]:
    box: dict[str, Tool] = {}
    for each in tools:
        made = each.as_tool() if isinstance(each, Agent) else each if isinstance(each, Tool) else tool(each)
        if made.name in box:
            raise UsageError(f"agent.tools: two tools are called {made.name!r}")
        box[made.name] = made
    return box


def _check_choice(choice: str, toolbox: Mapping[str, Tool]) -> None:
    if choice not in CHOICES and choice not in toolbox:
        raise UsageError(f"agent.tool_choice: must be {', '.join(CHOICES)} or one of the agent's tools")
    if choice == "required" and not toolbox:
        raise UsageError("agent.tool_choice: is 'required', but the agent has no tools")
