"""Random programs, killed at random writes and begun again until they are done."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oxherd.agents import Agent, tool
from oxherd.agents.chat import Reply, Request
from oxherd.agents.loop import run_agent
from oxherd.context import Context, Step, Usage, _within
from oxherd.job import Done, Drop, Job
from oxherd.store import Begun, RunRecord
from oxherd.worker.executor import Executor, Running
from oxherd.worker.handlers import make_handler

TURNS = 4  # a model's turns with tools, at most


class Killed(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Kill:
    """How an attempt ends early: at its n-th write."""

    at: int
    how: str  # before (nothing was written), after (it was, but nobody was told), lease (a later attempt has begun)


@dataclass
class Keeper:
    """The store of one run, which outlives the processes that write to it."""

    steps: dict[str, Step] = field(default_factory=dict)
    fence: int = 0
    output: str | None = None

    def begin(self, fence: int) -> Begun:
        assert fence >= self.fence
        self.fence = fence
        return Begun(allowed=True, output=self.output, steps=list(self.steps.values()))


class Process:
    """One process's way to the store, until it is killed."""

    kind, waiting, away_seconds = "memory", 0, 0.0

    def __init__(self, keeper: Keeper, kill: Kill | None) -> None:
        self._keeper = keeper
        self._kill = kill
        self._writes = 0
        self._dead = False

    async def begin(self, run: RunRecord) -> Begun:
        return self._keeper.begin(run.fence)

    async def save_step(self, run_id: str, fence: int, step: Step, *, attempt_started_at: int = 0) -> bool:
        def write() -> None:
            assert step.key not in self._keeper.steps, f"{step.key} was paid for twice"
            self._keeper.steps[step.key] = step

        return await self._write(fence, write)

    async def record(self, run: RunRecord) -> bool:
        def write() -> None:
            self._keeper.output = run.output if run.status == "completed" else None

        return await self._write(run.fence, write)

    async def _write(self, fence: int, write: Callable[[], None]) -> bool:
        await asyncio.sleep(0)
        self._writes += 1
        how = self._kill.how if self._kill and self._writes == self._kill.at else ""
        if how == "lease":
            self._keeper.fence += 1
        if self._dead or how == "before":
            self._die()
        if fence < self._keeper.fence:
            return False
        write()
        if how == "after":
            self._die()
        return True

    def _die(self) -> None:
        self._dead = True
        raise Killed


class Program:
    """A handler made from a tree: steps, steps in steps, branches side by side, agents with tools."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.keeper = Keeper()
        self.ran: Counter[str] = Counter()
        self.idempotency: dict[str, set[str]] = {}
        self._chance = random.Random()

    async def handle(self, ctx: Context, payload: dict[str, Any]) -> Any:
        return await self._run(ctx, self._tree, "p", 0)

    async def _run(self, ctx: Context, tree: Any, path: str, value: Any) -> Any:
        kind, inner = tree
        if kind == "leaf":
            return await ctx.step(path, self._work, ctx, value)
        if kind == "agent":
            return await self._agent(ctx, inner, path, value)
        if kind == "inside":
            return await ctx.step(path, self._nested, ctx, inner, value)
        if kind == "beside":
            return await asyncio.gather(*(self._late(ctx, each, f"{path}.{n}", value) for n, each in enumerate(inner)))
        for number, each in enumerate(inner):
            value = [number, await self._run(ctx, each, f"{path}.{number}", value)]
        return value

    async def _late(self, ctx: Context, tree: Any, path: str, value: Any) -> Any:
        for _ in range(self._chance.randrange(4)):  # another order on each attempt
            await asyncio.sleep(0)
        return await self._run(ctx, tree, path, value)

    async def _nested(self, ctx: Context, inner: Any, value: Any) -> Any:
        self._note(ctx)
        return await self._run(ctx, inner, "in", value)

    async def _work(self, ctx: Context, value: Any) -> int:
        self._note(ctx)
        for _ in range(self._chance.randrange(3)):
            await asyncio.sleep(0)
        return len(str(value))

    async def _agent(self, ctx: Context, script: list[int], path: str, value: Any) -> Any:
        @tool
        async def look(ctx: Context, what: int) -> str:
            """Look something up."""
            return f"{what} is {await self._work(ctx, what)}"

        run = await run_agent(ctx, Agent(path, "m", tools=[look]), f"begin with {value}", Scripted(self, script))
        return [run.output, run.usage.calls, len(run.messages)]

    def _note(self, ctx: Context | None) -> None:
        key = _within.get().prefix.removesuffix("/")
        assert key not in self.keeper.steps, f"{key} ran again after it had finished"
        self.ran[key] += 1
        if ctx is not None:
            self.idempotency.setdefault(key, set()).add(ctx.idempotency_key("effect"))


class Scripted:
    """A model that asks for so many tool calls per turn, then answers with all it was told."""

    base_url = "http://scripted"

    def __init__(self, program: Program, script: list[int]) -> None:
        self._program = program
        self._script = script

    async def chat(self, request: Request, _: Any, **__: Any) -> Reply:
        self._program._note(None)
        await asyncio.sleep(0)
        said = [message["content"] for message in request.messages if message["role"] != "assistant"]
        turn = sum(message["role"] == "assistant" for message in request.messages)
        message: dict[str, Any] = {"role": "assistant", "content": " / ".join(said)}
        if turn < len(self._script):
            message |= {"content": None, "tool_calls": [call(turn, n) for n in range(self._script[turn])]}
        return Reply(message, None, "m", None, None, Usage(1, 10, 2, None))


def call(turn: int, number: int) -> dict[str, Any]:
    function = {"name": "look", "arguments": f'{{"what": {turn * 10 + number}}}'}
    return {"id": f"c{turn}-{number}", "type": "function", "function": function}


async def attempt(program: Program, number: int, kill: Kill | None) -> Any:
    """One process's life. What it left running when it was killed is gone with it."""

    async def no_agents(*_: Any) -> None: ...

    executor = Executor(
        {"a": make_handler("a", program.handle)}, store=Process(program.keeper, kill), wire=None, runner=no_agents,
        worker="w", queue="q", timeout=0, idle_timeout=0, threads=1, crash_limit=99,
    )  # fmt: skip
    job = Job(id="1", name="a", raw=b"{}", opts={}, token="t", timestamp=7, attempts_started=number)
    try:
        return await executor.execute(Running(job))
    except Killed:
        return None
    finally:
        executor.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def to_the_end(program: Program, kills: list[Kill]) -> Done:
    number = 1
    for kill in [*kills, None]:
        outcome = await attempt(program, number, kill)
        if isinstance(outcome, Done):
            return outcome
        assert outcome is None or outcome == Drop(), outcome
        number = max(number, program.keeper.fence) + 1
    raise AssertionError("nobody killed it, and it did not end")


LEAF = st.just(("leaf", None))
AGENT = st.tuples(st.just("agent"), st.lists(st.integers(1, 3), max_size=TURNS))
TREES = st.recursive(
    LEAF | AGENT,
    lambda inner: (
        st.tuples(st.sampled_from(["then", "beside"]), st.lists(inner, min_size=1, max_size=4))
        | st.tuples(st.just("inside"), inner)
    ),
    max_leaves=8,
)
KILLS = st.lists(st.builds(Kill, st.integers(1, 8), st.sampled_from(["before", "after", "lease"])), max_size=8)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES, kills=KILLS)
def test_a_program_killed_anywhere_ends_as_if_nothing_had_happened(tree, kills):
    undisturbed, disturbed = Program(tree), Program(tree)
    expected = asyncio.run(to_the_end(undisturbed, []))
    assert asyncio.run(to_the_end(disturbed, kills)) == expected
    assert disturbed.keeper.steps.keys() == undisturbed.keeper.steps.keys() == undisturbed.ran.keys()
    assert set(undisturbed.ran.values()) <= {1}
    assert all(len(keys) == 1 for keys in disturbed.idempotency.values())
    assert disturbed.idempotency == undisturbed.idempotency


@settings(max_examples=50, deadline=None)
@given(tree=TREES)
def test_a_program_that_ended_replays_without_running_anything(tree):
    program = Program(tree)
    expected = asyncio.run(to_the_end(program, []))
    program.keeper.output, ran = None, program.ran.copy()
    assert asyncio.run(attempt(program, 2, None)) == expected
    assert program.ran == ran
