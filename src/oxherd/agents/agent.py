"""What an agent is: a model, what it is told, its tools, the form of its answer, its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from oxherd.agents.form import Form, make_form
from oxherd.agents.schema import explain
from oxherd.agents.tools import Tool, tool
from oxherd.errors import PayloadInvalid, UsageError

CHOICES = ("auto", "required", "none")


@dataclass(frozen=True, slots=True)
class Budget:
    """What one run may use. Checked before each call of the model.

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
        tools: functions made with `@tool`; plain typed functions are taken too.
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

    Raises:
        UsageError: naming the field that is wrong.
    """

    name: str
    model: str
    instructions: str = ""
    tools: Sequence[Tool | Callable[..., Any]] = ()
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
    form: Form = field(init=False, repr=False, compare=False)
    toolbox: Mapping[str, Tool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "model"):
            if not getattr(self, name):
                raise UsageError(f"agent.{name}: must not be empty")
        if self.max_output_tokens < 1:
            raise UsageError("agent.max_output_tokens: must be at least 1")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise UsageError("agent.temperature: must be from 0 to 2")
        object.__setattr__(self, "form", make_form(self.output))
        object.__setattr__(self, "toolbox", _toolbox(self.tools))
        _check_choice(self.tool_choice, self.toolbox)

    @classmethod
    def inline(cls, definition: Mapping[str, Any], *, tools: Mapping[str, Tool], name: str = "inline") -> Agent:
        """An agent from data: a job's inline definition, or a row of the `agents` table.

        Parameters:
            definition: the attributes of an agent by name; `tools` by their names, `output` as a JSON schema.
            tools: those it may name.
            name: what it is called where the definition has no name.

        Raises:
            PayloadInvalid: naming each field that does not fit and what was expected there.
        """
        try:
            read = _Definition.model_validate({"name": name, **definition})
        except ValidationError as error:
            raise PayloadInvalid(explain(error, what="agent")) from None
        unknown = [each for each in read.tools if each not in tools]
        if unknown:
            known = ", ".join(sorted(tools)) or "none"
            raise PayloadInvalid(f"agent.tools: no tool {unknown[0]!r}; this worker has: {known}")
        try:
            return cls(
                **{key: getattr(read, key) for key in _Definition.model_fields if key not in {"tools", "budget"}},
                tools=tuple(tools[each] for each in read.tools),
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
    tools: list[str] = []
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


def _toolbox(tools: Iterable[Tool | Callable[..., Any]]) -> dict[str, Tool]:
    box: dict[str, Tool] = {}
    for each in tools:
        made = each if isinstance(each, Tool) else tool(each)
        if made.name in box:
            raise UsageError(f"agent.tools: two tools are called {made.name!r}")
        box[made.name] = made
    return box


def _check_choice(choice: str, toolbox: Mapping[str, Tool]) -> None:
    if choice not in CHOICES and choice not in toolbox:
        raise UsageError(f"agent.tool_choice: must be {', '.join(CHOICES)} or one of the agent's tools")
    if choice == "required" and not toolbox:
        raise UsageError("agent.tool_choice: is 'required', but the agent has no tools")
