"""One run of an agent: the model and its tools in turn until there is an answer. Each call is a journaled step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from oxherd.agents.agent import Agent
from oxherd.agents.chat import Message, Reply, Request, ToolCall, dump_usage, load_usage, words_of
from oxherd.agents.faults import lengthened
from oxherd.agents.form import Misfit
from oxherd.agents.history import SMALL, History, room
from oxherd.agents.ledger import Ledger
from oxherd.agents.llm import LLM, OnDelta, Try
from oxherd.agents.mcp import Servers, read_object
from oxherd.agents.nesting import Tally, begin, inside
from oxherd.agents.repeats import Repeats
from oxherd.agents.tools import ArgumentsInvalid, Tool, ToolFailed
from oxherd.clock import mono
from oxherd.codec import encode
from oxherd.context import Context, Delta, Usage
from oxherd.errors import (
    BudgetExceeded,
    ContextTooLong,
    JobError,
    ModelRefused,
    OutputInvalid,
    PayloadInvalid,
    RetryLater,
    ToolsFailed,
    ToolsUnreachable,
    UsageError,
    Waiting,
)
from oxherd.telemetry.events import (
    AgentEnded,
    AgentStarted,
    Ending,
    ModelAsked,
    ModelCalled,
    ToolAsked,
    ToolCalled,
    spanning,
)

REPAIRS = 2  # how often a wrong answer is sent back
TOOL_FAULTS = 5  # turns in a row whose tool calls may all fail
MAX_FAULT_TEXT = 500  # characters of an error that the model is told
MAX_NAME = 100  # characters of a tool's name that errors repeat
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(slots=True)
class Run:
    """How a run went.

    Attributes:
        output: the answer, in the agent's form.
        agent: its name.
        model: who answered last, which a fallback may change.
        messages: the whole conversation.
        usage: tokens and money, replayed calls and those of agents inside its tools included.
        steps: how often the agent itself has called the model.
        finish_reason: of the last call; `length` says that the text was cut at `max_output_tokens`.
    """

    output: Any = None
    agent: str = ""
    model: str | None = None
    messages: list[Message] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    steps: int = 0
    finish_reason: str | None = None

    def summary(self) -> dict[str, Any]:
        """It without the conversation, which is in the steps: what the built-in job returns and a record holds."""
        usage = self.usage
        return {
            "output": self.output,
            "agent": self.agent,
            "model": self.model,
            "usage": {
                "calls": usage.calls,
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cost_usd": usage.cost_usd,
            },
            "steps": self.steps,
            "finish_reason": self.finish_reason,
        }


async def run_agent(
    ctx: Context,
    agent: Agent,
    input: str | list[Message],  # noqa: A002  the field's word
    llm: LLM,
    *,
    scope: str | None = None,
    ledger: Ledger | None = None,
    servers: Servers | None = None,
) -> Run:
    """Run an agent to its answer.

    Parameters:
        ctx: the job's; its journal replays what earlier attempts have paid for.
        agent: the definition.
        input: text, or chat messages.
        llm: the model service.
        scope: the prefix of its steps, from `ctx.scope`; one by the agent's name when left out.
        ledger: where money is set aside and calls are booked; without it, the run's own cap is looked at between calls.

        servers: connections to servers of tools, for agents that have any.

    Raises:
        PayloadInvalid: the input is neither.
        BudgetExceeded: a cap was reached before there was an answer; its `partial` is the run so far.
        OutputInvalid: the answer did not take the agent's form.
        ToolsFailed, LoopDetected: calls of tools kept failing, or kept repeating.
        AgentError: the agent is inside itself, or too deep inside others.
        ModelRefused, OutOfCredit: see `LLM.chat`.
        RetryLater, ModelUnreachable: the same, longer each time the job comes back; past a bound it costs an attempt.
        ToolsUnreachable: the same of a server of tools.
    """
    scope = scope or ctx.scope(agent.name)
    return await _Loop(ctx, agent, llm, opening(agent, input), scope, ledger, servers).run()


def opening(agent: Agent, input: object) -> list[Message]:  # noqa: A002
    """The messages that a run begins with: the agent's instructions, then the input. Raises PayloadInvalid."""
    system = [{"role": "system", "content": agent.instructions}] if agent.instructions else []
    if isinstance(input, str):
        return [*system, {"role": "user", "content": input}]
    if not isinstance(input, list) or not input:
        raise PayloadInvalid("input: must be text or a list of at least one message")
    for index, message in enumerate(input):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise PayloadInvalid(f"input.{index}: must be an object whose role is one of {', '.join(ROLES)}")
    return [*system, *input]


class _Loop:
    """The state of one run."""

    def __init__(
        self,
        ctx: Context,
        agent: Agent,
        llm: LLM,
        messages: list[Message],
        scope: str,
        ledger: Ledger | None,
        servers: Servers | None,
    ) -> None:
        if agent.servers and servers is None:
            raise UsageError(f"agent {agent.name!r} has servers of tools, so run_agent needs servers=")
        self._ctx = ctx
        self._agent = agent
        self._llm = llm
        self._servers = servers
        self._tally = begin(agent, ctx.key_of(scope))
        self._run = Run(agent=agent.name, messages=messages, usage=self._tally.usage)
        self._scope = scope
        self._books = None if ledger is None else ledger.books(ctx, self._tally)
        self._session = ctx.idempotency_key("session")  # one provider for all calls, so that its cache is hit
        # How much of the conversation is in earlier steps: each compares and holds what is new alone, so the journal
        # grows with the conversation, not with its square. Instructions are no part of it: they may be edited.
        self._kept = 1 if agent.instructions else 0
        self._tool_calls = 0
        self._faults = 0
        self._history = History(messages)
        self._repeats = Repeats(agent.loop_limit)
        self._repairs = 0

    async def run(self) -> Run:
        run, agent = self._run, self._agent

        def ending(how: Ending) -> AgentEnded:
            usage = run.usage
            cost = None if usage.cost_usd is None else float(usage.cost_usd)
            return AgentEnded(
                self._ctx.job.id, agent.name, agent.model, how.outcome, run.steps, usage.input_tokens,
                usage.output_tokens, cost, how.seconds, how.error,
            )  # fmt: skip

        with spanning(AgentStarted(self._ctx.job.id, agent.name, agent.model), ending):
            return await self._answer()

    async def _answer(self) -> Run:
        try:
            return await self._take_turns()
        except BudgetExceeded as error:
            self._run.output = next((said for said in map(_said, reversed(self._run.messages)) if said), None)
            error.partial = self._run
            raise

    async def _take_turns(self) -> Run:
        while True:
            self._tally.check()
            reply = await self._ask()
            if reply.tool_calls:
                await self._use_tools(reply.tool_calls)
            elif self._is_answered(reply):
                return self._run

    async def _ask(self) -> Reply:
        run = self._run
        run.steps += 1
        self._tally.call()
        usage = Usage()

        async def call(_: list[Message]) -> Any:
            cut = await self._fit(name)
            try:
                reply, cut = await self._say(name, cut)
            except RetryLater as error:
                raise lengthened(error, self._ctx.job) from error.__cause__
            usage.add(reply.usage)
            return reply.dump() | ({"history": cut} if cut else {})

        name = f"model-{run.steps}"
        kept = await self._ctx.step(
            f"{self._scope}/{name}", call, run.messages[self._kept :], kind="model", usage=usage
        )
        self._take_over(kept.get("history"))
        reply = Reply.load(kept)
        self._tally.add(reply.usage)
        run.messages.append(reply.echo())
        self._history.count(reply.usage)
        self._kept = len(run.messages)
        run.model, run.finish_reason = reply.model or self._agent.model, reply.finish_reason
        return reply

    async def _say(self, name: str, cut: Message | None) -> tuple[Reply, Message | None]:
        """Send the conversation; once more where it turns out to be too long. Returns also where it is cut, if anew."""
        show = partial(self._show, self._ctx.key_of("").removesuffix("/"))
        key = f"{self._tally.path}/{name}"
        try:
            return await self._chat(key, show, await self._request()), cut
        except ContextTooLong:
            at = self._history.shorter(self._history.tokens() // 2) if self._agent.history else None
            if at is None:
                raise
            self._history.restore(cut := {**(cut or {}), **self._history.kept(at)})
        return await self._chat(key, show, await self._request()), cut

    async def _fit(self, name: str) -> Message | None:
        """Shorten what is sent of the conversation if it nears the context window. Returns where it is cut, if anew."""
        agent, history = self._agent, self._history
        size = history.tokens()
        window = await self._window(size) if agent.history else None
        if window is None or size <= (limit := room(window, agent.max_output_tokens)):
            return None
        at = history.shorter(limit // 2)  # by more than there must be, so that the prompt's cache is of use for a while
        if at is None:
            return None
        cut: Message = history.kept(at)
        if agent.history == "summarise":
            # A step of its own, so that it is kept when the call after it is cut short; that one then keeps it, too.
            usage = Usage()
            sum_up = partial(self._sum_up, name, at, usage)
            cut = await self._ctx.step("summary", sum_up, kind="model", usage=usage)
        history.restore(cut)
        return cut

    async def _sum_up(self, name: str, at: int, usage: Usage) -> Message:
        agent = self._agent
        request = Request(
            model=agent.model, messages=self._history.to_sum_up(at), max_tokens=agent.max_output_tokens,
            models=agent.models, reasoning=agent.reasoning, provider=agent.provider,
        )  # fmt: skip
        show = partial(self._show, self._ctx.key_of("").removesuffix("/"))
        try:
            reply = await self._chat(f"{self._tally.path}/{name}/summary", show, request)
        except ContextTooLong:
            return self._history.kept(at)  # then without one
        except RetryLater as error:
            raise lengthened(error, self._ctx.job) from error.__cause__
        usage.add(reply.usage)
        return {**self._history.kept(at, reply.text), "usage": dump_usage(usage)}

    async def _window(self, size: int) -> int | None:
        agent = self._agent
        prices = self._books.ledger.prices if self._books else None
        if agent.context_window is not None or prices is None or size < SMALL:
            return agent.context_window
        try:
            return await prices.window((agent.model, *agent.models))
        except (ModelRefused, RetryLater):  # no reason not to call: perhaps it fits
            return None

    def _take_over(self, cut: Message | None) -> None:
        """Cut the conversation as the call that has just ended, or was replayed, did."""
        if cut is None:
            return
        self._history.restore(cut)
        if "usage" in cut:
            self._tally.call()
            self._tally.add(load_usage(cut["usage"]))

    async def _chat(self, key: str, show: OnDelta, request: Request) -> Reply:
        reply: Reply | None = None
        tries: list[Try] = []
        ids = (self._ctx.job.id, self._agent.name, request.model)
        with spanning(
            ModelAsked(*ids, request=request, service=self._llm.base_url),
            lambda how: _model_called(ids, how, tries, reply),
        ):
            reply = await self._call_model(key, show, request, tries)
        return reply

    async def _call_model(self, key: str, show: OnDelta, request: Request, tries: list[Try]) -> Reply:
        if self._books is None:
            return await self._llm.chat(request, show, tries=tries)
        call = await self._books.call(key, request)
        return await self._llm.chat(request, show, tries=tries, on_generation=call.told, around=call.around)

    def _show(self, key: str, delta: Delta) -> None:
        self._ctx.alive_at = mono()
        if self._ctx.feed is not None:
            self._ctx.feed.delta(key, delta)

    async def _request(self) -> Request:
        agent = self._agent
        choice = _choice(agent.tool_choice) if self._run.steps == 1 else None
        must_call = choice is not None and choice != "none"
        return Request(
            model=agent.model,
            messages=self._history.view(),
            max_tokens=agent.max_output_tokens,
            tools=[tool.definition() for tool in (await self._tools()).values()],
            tool_choice=choice,
            # Not together with a demand to call: llama.cpp would follow the format and ignore the demand.
            response_format=None if must_call else agent.form.response_format(),
            temperature=agent.temperature,
            models=agent.models,
            reasoning=agent.reasoning,
            seed=agent.seed,
            provider=agent.provider,
            cache=agent.cache,
            session_id=self._session,
        )

    async def _tools(self) -> Mapping[str, Tool]:
        """All tools there are now. Those of servers may change; a replay asks for none, so it needs no server."""
        agent = self._agent
        if self._servers is None:
            return agent.toolbox
        try:
            return await self._servers.tools(agent.servers, agent.toolbox)
        except RetryLater as error:
            raise lengthened(error, self._ctx.job, last=ToolsUnreachable, hint="see the events mcp.lost") from error

    async def _use_tools(self, calls: list[ToolCall]) -> None:
        refused = self._repeats.refusals(self._run.agent, calls)
        # All are waited for, also when one fails for good: what the others did is kept, not done again.
        ended = await asyncio.gather(*map(self._use, calls, refused), return_exceptions=True)
        # What fails for good comes before what a person is asked: the answer would be of no use.
        errors = [result for result in ended if isinstance(result, BaseException)]
        errors.sort(key=lambda error: isinstance(error, Waiting))
        results: list[Mapping[str, Any]] = []
        for call, result in zip(calls, ended, strict=True):
            if isinstance(result, BaseException):
                raise errors[0]
            results.append(result)
            self._run.messages.append({"role": "tool", "tool_call_id": call.id, "content": result["content"]})
        self._count_faults(calls[-1], results)

    async def _use(self, call: ToolCall, refused: str) -> Mapping[str, Any]:
        self._tool_calls += 1
        if refused:
            return _fault(refused)
        if not self._agent.servers and call.name not in self._agent.toolbox:
            return _no_tool(call.name, self._agent.toolbox)
        number = self._tool_calls
        if self._needs_approval(call.name) and (refusal := await self._refusal(call, number)):
            return refusal
        name = f"{self._scope}/tool-{number}-{call.name[:MAX_NAME]}"
        inner = Tally(self._tally)
        ran = partial(self._call_tool, inner, call.id)
        kept: Mapping[str, Any] = await self._ctx.step(name, ran, call.name, call.arguments, kind="tool")
        if "usage" in kept and not inner.calls:  # replayed: what ran inside it has not counted itself
            usage = load_usage(kept["usage"])
            inner.call(usage.calls)
            inner.add(usage)
        return kept

    async def _refusal(self, call: ToolCall, number: int) -> Message | None:
        """What the model is told where a person does not let it make the call; None where it may be made.

        The person sees the arguments as the tool will get them, defaults included, and approves these alone.
        """
        try:
            tool = self._agent.toolbox.get(call.name)
            arguments = read_object(call.arguments) if tool is None else tool.read(call.arguments)
        except ArgumentsInvalid:
            return None  # there is nothing to approve: the call will only tell what is wrong
        answer = await self._ctx.wait_for(
            f"{self._scope}/approve-{number}-{call.name}",
            about={"agent": self._agent.name, "tool": call.name, "arguments": arguments},
        )
        if answer.approved:
            return None
        if answer.expired:
            return _fault("this call needs a person's approval, and nobody answered in time; it was not made")
        words = f": {answer.message}" if answer.message else ""
        return _fault(f"a person denied this call; it was not made{words}")

    def _needs_approval(self, name: str) -> bool:
        tool = self._agent.toolbox.get(name)
        if tool is not None:
            return tool.approve
        return any(each.approve and each.may_offer(name) for each in self._agent.servers)

    async def _call_tool(self, inner: Tally, call_id: str, name: str, arguments: str) -> Any:
        result: Mapping[str, Any] = {}
        ids = (self._ctx.job.id, self._agent.name, name, call_id)

        def ending(how: Ending) -> ToolCalled:
            outcome = "told" if result and not result["ok"] else how.outcome
            return ToolCalled(*ids, outcome, how.seconds, how.error, result=result.get("content", ""))

        with inside(inner), spanning(ToolAsked(*ids, arguments=arguments), ending):
            result = await self._result_of(name, arguments)
        return {**result, "usage": dump_usage(inner.usage)} if inner.calls else result

    async def _result_of(self, name: str, arguments: str) -> Message:
        tools = self._agent.toolbox if name in self._agent.toolbox else await self._tools()
        if name not in tools:
            return _no_tool(name, tools)
        try:
            return {"ok": True, "content": await tools[name].run(self._ctx, arguments)}
        except ArgumentsInvalid as error:
            return _fault(f"the arguments do not fit: {error}; they were: {arguments}")
        except ToolFailed as error:
            return _fault(self._ctx.hide(str(error)))
        except JobError:
            raise  # Fatal, RetryLater and their like are meant for the worker, not for the model
        except Exception as error:  # noqa: BLE001  whatever else a tool raises, the model is told
            return _fault(self._ctx.hide(f"{type(error).__name__}: {error}"))  # it is journaled and sent to the model

    def _count_faults(self, last: ToolCall, results: list[Mapping[str, Any]]) -> None:
        """Count turns, not calls: what was wrong with calls that a model makes at once, it learns at once."""
        self._faults = 0 if any(result["ok"] for result in results) else self._faults + 1
        if self._faults >= TOOL_FAULTS:
            raise ToolsFailed(
                f"agent {self._run.agent!r}: every tool call failed in {self._faults} turns in a row, the last of "
                f"{last.name[:MAX_NAME]!r}: {results[-1]['content']}"
            )

    def _is_answered(self, reply: Reply) -> bool:
        try:
            self._run.output = self._agent.form.read(reply.text)
        except Misfit as misfit:
            self._send_back(str(misfit), reply)
            return False
        return True

    def _send_back(self, why: str, reply: Reply) -> None:
        cut = " It was cut at the output limit." if reply.finish_reason == "length" else ""
        if self._repairs >= REPAIRS:
            raise OutputInvalid(
                f"agent {self._run.agent!r} did not answer in its form after {self._repairs} corrections: {why}{cut}"[
                    :1000
                ]
            )
        self._repairs += 1
        schema = encode(self._agent.form.schema).decode()
        text = f"Your answer does not fit: {why[:MAX_FAULT_TEXT]}.{cut} Answer again, with JSON only, by this schema: "
        self._run.messages.append({"role": "user", "content": text + schema})


def told_of(kind: str, output: Any) -> Mapping[str, Any] | None:
    """What followers are told of a finished step's result: the text of a model's reply, or what a tool returned.

    Parameters:
        kind: the step's.
        output: as it is kept; users' own steps of these kinds may hold anything.
    """
    match kind, output:
        case "model", {"message": {"content": content}}:
            return {"text": words_of(content)}
        case "tool", {"ok": bool(ok), "content": str(content)}:
            return {"ok": ok, "content": content}
        case _:
            return None


def _said(message: Message) -> str:
    return words_of(message.get("content")) if message.get("role") == "assistant" else ""


def _choice(choice: str) -> str | Message | None:
    if choice == "auto":
        return None
    return choice if choice in {"required", "none"} else {"type": "function", "function": {"name": choice}}


def _model_called(ids: tuple[str, str, str], how: Ending, tries: list[Try], reply: Reply | None) -> ModelCalled:
    usage = reply.usage if reply is not None else Usage()
    return ModelCalled(
        *ids,
        outcome=how.outcome,
        answered_by=(reply.model if reply is not None else None) or "",
        provider=(reply.provider if reply is not None else None) or "",
        finish_reason=(reply.finish_reason if reply is not None else None) or "",
        tries=len(tries),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=None if reply is None or usage.cost_usd is None else float(usage.cost_usd),
        seconds=how.seconds,
        first_token_s=tries[-1].first_token_s if tries else None,
        error=how.error,
        reply=reply,
    )


def _no_tool(name: str, tools: Iterable[str]) -> Message:
    return _fault(f"there is no tool {name[:MAX_NAME]!r}; the tools are: {', '.join(tools) or 'none'}")


def _fault(why: str) -> Message:
    return {"ok": False, "content": f"Error: {why[:MAX_FAULT_TEXT]}"}
