from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

from fakes.journal import MemoryJournal, attempt_of
from fakes.openrouter import KEY, FakeOpenRouter
from oxherd.agents import LLM
from oxherd.context import Context
from oxherd.settings import Secret


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


@pytest.fixture
def attempt(journal: MemoryJournal) -> Callable[..., Context]:
    """Makes the context of a further attempt of the same job; all attempts share the journal."""

    return partial(attempt_of, journal)


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
