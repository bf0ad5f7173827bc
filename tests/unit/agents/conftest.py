from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fakes.openrouter import KEY, FakeOpenRouter
from oxherd.agents import LLM
from oxherd.context import Context, Step
from oxherd.job import Job
from oxherd.settings import Secret


class MemoryJournal:
    """A run's steps, kept for the next attempt."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    def find(self, key: str) -> Step | None:
        return self.steps.get(key)

    async def save(self, step: Step) -> None:
        self.steps[step.key] = step


def no_agents(*_: Any) -> Any:
    raise AssertionError("this test runs no agent by ctx.run")


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


@pytest.fixture
def attempt(journal: MemoryJournal) -> Callable[..., Context]:
    """Makes the context of a further attempt of the same job; all attempts share the journal."""

    def make(runner: Any = no_agents) -> Context:
        job = Job(id="1", name="test", raw=b"{}", opts={}, token="t")
        return Context(job, journal=journal, wire=None, runner=runner)

    return make


@pytest.fixture
def ctx(attempt: Callable[..., Context]) -> Context:
    return attempt()


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenRouter]:
    async with FakeOpenRouter() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """The pauses between tries, which are noted and not waited for."""
    return []


@pytest.fixture
async def llm(fake: FakeOpenRouter, pauses: list[float]) -> AsyncIterator[LLM]:
    async def note(seconds: float) -> None:
        pauses.append(seconds)

    client = LLM(fake.url, Secret(KEY), openrouter=True, sleep=note)
    yield client
    await client.close()
