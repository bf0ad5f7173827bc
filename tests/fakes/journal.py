"""A run's steps in memory, and the contexts of attempts that share them."""

from __future__ import annotations

from typing import Any

from oxherd.context import Context, Step
from oxherd.job import Job


class MemoryJournal:
    """Keeps the steps of one run for its next attempt."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}

    def find(self, key: str) -> Step | None:
        return self.steps.get(key)

    def at(self, place: str) -> Step | None:
        return next((step for step in reversed(self.steps.values()) if step.place == place), None)

    def within(self, key: str) -> list[Step]:
        return [step for name, step in self.steps.items() if name.startswith(f"{key}/")]

    async def save(self, step: Step) -> None:
        self.steps[step.key] = step


def no_agents(*_: Any) -> Any:
    raise AssertionError("this test runs no agent by ctx.run")


def attempt_of(journal: MemoryJournal, runner: Any = no_agents, **more: Any) -> Context:
    """The context of a further attempt of the same job."""
    job = Job(id="1", name="test", raw=b"{}", opts={}, token="t")
    return Context(job, journal=journal, wire=None, runner=runner, **more)
