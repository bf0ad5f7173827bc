"""A run's questions in memory, for contexts, and a person who answers them."""

from __future__ import annotations

from typing import Any

from oxherd.context import Answer, Ask, Asked, Notify

NOON = 1_763_899_200_000


class MemoryWaits:
    """Keeps the questions of one run for its next attempt."""

    def __init__(self, notify: Notify | None = None) -> None:
        self.notify = notify
        self.asked: dict[str, tuple[str, Any]] = {}  # inputs and what is asked about, by key
        self.given: dict[str, Answer] = {}
        self.lasts: dict[str, Any] = {}

    async def open(self, key: str, *, inputs: str, about: Any, lasts: str | float | None) -> Asked:
        kept, shown = self.asked.setdefault(key, (inputs, about))
        self.lasts.setdefault(key, lasts)
        return Asked(Ask(f"id of {key}", key, shown, NOON + 60_000, None), kept, self.given.get(key), NOON, 60_000)

    def answer(
        self, key: str, *, approved: bool = True, value: Any = None, message: str = "", expired: bool = False
    ) -> None:
        by = "" if expired else "ana"
        self.given[key] = Answer(approved and not expired, value, by, expired, NOON + 5_000, message)
