"""Plans: what would be done, shown before it is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    Attributes:
        action: create, update or keep.
        what: what it is done to, in words.
        detail: what changes, in words; empty where nothing does.
        apply: does it; None where there is nothing to do.
    """

    action: str
    what: str
    detail: str = ""
    apply: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they are done."""

    steps: tuple[Step, ...]

    @property
    def is_empty(self) -> bool:
        """Whether all is as it should be."""
        return all(step.apply is None for step in self.steps)

    async def run(self, told: Callable[[Step], None]) -> None:
        """Do all steps, telling each when it is done. The first that fails ends it; a new plan goes on from there."""
        for step in self.steps:
            if step.apply is not None:
                await step.apply()
                told(step)
