"""Rotations in tests: run whole, or by processes that die before they can save what they have just done."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from oxherd import settings as variables
from oxherd.ops.plan import Plan
from oxherd.ops.rotate_known import Wanted, prepared
from oxherd.ops.rotate_state import Locks, StateFile
from oxherd.settings import Secret


class Died(BaseException):
    """What kill -9 does, without a process of its own."""


@dataclass
class Says:
    """A person who answers yes, or no while `yes` is False, and enters `values`."""

    yes: bool = True
    values: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def confirms(self, question: str, *, again: bool) -> bool:
        self.asked.append(question)
        return self.yes

    def value(self, prompt: str) -> Secret:
        return Secret(self.values.pop(0))


@dataclass
class Rotating:
    """Rotations from one folder with one environment."""

    folder: Path
    environ: dict[str, str]
    sleep: Any
    person: Says = field(default_factory=Says)
    told: list[str] = field(default_factory=list)
    patience: float = 2.0
    test_job: bool = False

    def wanted(self, name: str, **more: Any) -> Wanted:
        settings = variables.load(self.environ, needs=())
        keys = tuple(each for each in (settings.encryption_key, *settings.encryption_keys_previous) if each)
        return Wanted(
            name, self.folder, Locks(keys, None if keys else Secret("passphrase")), test_job=self.test_job, **more
        )

    def _prepared(self, name: str, **more: Any) -> Any:
        settings = variables.load(self.environ, needs=())
        return prepared(
            self.wanted(name, **more), settings, self.person, self.told.append, sleep=self.sleep, patience=self.patience
        )

    async def plan(self, name: str, **more: Any) -> Plan:
        async with self._prepared(name, **more) as rotator:
            return await rotator.plan()

    async def run(self, name: str, **more: Any) -> list[str]:
        """To its end; the stages that were done."""
        done: list[str] = []
        async with self._prepared(name, **more) as rotator:
            await (await rotator.plan()).run(lambda step: done.append(step.action))
        return done

    async def roll_back(self, name: str, **more: Any) -> None:
        async with self._prepared(name, resume=True, **more) as rotator:
            await rotator.roll_back()

    async def die_at_every_save(self, name: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> int:
        """Processes that each save once and die instead of saving again, until one comes to the end; how many."""
        save, deaths = StateFile.save, 0
        saved = 0

        def dying(file: StateFile, progress: Any) -> None:
            nonlocal saved
            if saved:
                raise Died
            saved += 1
            save(file, progress)

        while True:
            saved = 0
            with monkeypatch.context() as patched, suppress(Died):
                patched.setattr(StateFile, "save", dying)
                await self.run(name, resume=self.begun(name), **more)
                return deaths
            deaths += 1
            assert deaths < 40, "it comes no further"

    def begun(self, name: str) -> bool:
        return (self.folder / f"{name}.rotation").exists()
