"""Replacing a secret: one engine for all of them. docs/rotation.md has the story.

new → install → prove → switch → retire → bury → record. Each stage may be done again: the state is saved after it, so a
process that dies amid a stage repeats it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from oxherd.clock import wall_ms
from oxherd.errors import OxherdError, RotationStopped, UsageError
from oxherd.ops.lock import reserve, set_free
from oxherd.ops.plan import Plan, Step
from oxherd.ops.recording import record
from oxherd.ops.rotate_state import ORDER, Progress, Stage, StateFile
from oxherd.ops.testjob import through_redis
from oxherd.settings import Secret, Settings
from oxherd.store import Operation

PATIENCE = 120.0  # seconds for what is to become so by itself: the last connection closed, a key no longer taken
TEST_JOB = "oxherd.echo"
AGAIN = 1.0  # seconds between two looks at it

Words = Mapping[Stage, str]


class Consumers(Protocol):
    """Whoever uses the secret, and how they get another."""

    async def look(self, names: tuple[str, ...]) -> str:
        """How they are switched, in words. Reads only. Raises where it could not be done."""

    async def current(self, name: str) -> Secret | None:
        """The value that they have now; None where that can't be read, or there is none."""

    async def give(self, values: Mapping[str, Secret], memo: dict[str, Any], keep: Callable[[], None]) -> None:
        """Return when all of them run with these values.

        Parameters:
            values: of variables; an empty one unsets.
            memo: what an earlier call that died had done; what this one has.
            keep: saves it.
        """

    def doubt(self, memo: dict[str, Any]) -> None:
        """Have the next `give` ask people again: what they said to be done was not, as the new value's proof showed."""


class Person(Protocol):
    """Whoever sits at the terminal."""

    def confirms(self, question: str, *, again: bool) -> bool:
        """Whether they say yes.

        Parameters:
            question: what is asked.
            again: an earlier run of this rotation has asked it and was not answered.
        """

    def value(self, prompt: str) -> Secret:
        """A secret from them."""


@dataclass(slots=True)
class Scene:
    """What every rotation works with.

    Attributes:
        progress: how far it has come.
        keep: saves that.
        consumers: whom to switch.
        person: whom to ask.
        settings: those of this process.
        tell: says something to whoever watches.
        sleep: waits for so many seconds.
        patience: seconds for what is to become so by itself.
        test_job: run a job on the queue after every switch, to see that a worker runs with the new value.
    """

    progress: Progress
    keep: Callable[[], None]
    consumers: Consumers
    person: Person
    settings: Settings
    tell: Callable[[str], None]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    patience: float = PATIENCE
    test_job: bool = True

    async def until(self, look: Callable[[], Awaitable[bool]], otherwise: str, *, hint: str = "") -> None:
        """Look again and again until it is so. Raises RotationStopped with those words where it does not become so."""
        left = self.patience
        while not await look():
            if left <= 0:
                raise RotationStopped(otherwise, hint=hint)
            await self.sleep(AGAIN)
            left -= AGAIN


class Rotation(ABC):
    """One secret's way from the old value to the new. A stage may be asked for again after a death in its middle.

    Attributes:
        name: the variable.
        names: all variables that consumers get.
        one_way: from the switch on there is no way back.
    """

    one_way = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        self.names: tuple[str, ...] = (name,)
        self.scene = scene
        self.progress = scene.progress

    @abstractmethod
    async def look(self) -> Words:
        """What each stage will do, in words. Reads only.

        Raises:
            OxherdError: it could not be done, and why.
        """

    @abstractmethod
    async def new(self) -> None:
        """Choose the new value, or its name, without telling anybody."""

    @abstractmethod
    async def install(self) -> None:
        """Make the new value work beside the old."""

    @abstractmethod
    async def prove(self) -> None:
        """Use the new value for real. Raises RotationStopped where it does not work."""

    async def switch(self) -> None:
        """Give consumers the new value."""
        await self.give(self.progress.new, "switch")

    @abstractmethod
    async def retire(self) -> None:
        """Have the old value refused. Raises RotationStopped where somebody still uses it."""

    @abstractmethod
    async def bury(self) -> None:
        """Try the old value: it must be refused. Then remove what is left of it."""

    @abstractmethod
    async def undo(self) -> None:
        """Remove the new value where it was installed."""

    async def back(self) -> None:
        """Give consumers the old value again, then remove the new one."""
        if "switch" in self.progress.given:
            await self.give(self.progress.old, "back")
        await self.undo()

    def no_way_back(self) -> None:
        """Say that the old value is about to be refused. Call it when all was looked at, before anything is done."""
        if not self.progress.retiring:
            self.progress.retiring = True
            self.scene.keep()

    def settings_after(self) -> Settings:
        """This process's settings once the old value is dead."""
        return self.scene.settings

    async def give(self, values: Mapping[str, Secret], label: str) -> None:
        """Switch consumers, once for each label."""
        memo = self.progress.given.setdefault(label, {})
        if not memo.get("over"):
            await self.scene.consumers.give(values, memo, self.scene.keep)
            memo["over"] = True
            self.scene.keep()

    def doubt(self) -> None:
        """Not all consumers have the new value, though it was given to them."""
        memo = self.progress.given.get("switch", {})
        if memo.pop("over", False):
            self.scene.consumers.doubt(memo)
            self.scene.keep()

    async def old_value(self, here: Secret | None) -> Secret:
        """The value to replace: the one that consumers have.

        Raises:
            RotationStopped: this process has another, so it is not clear which is meant.
            UsageError: nobody has one.
        """
        theirs = await self.scene.consumers.current(self.name)
        if theirs is None and here is None:
            raise UsageError(f"{self.name} is set neither here nor where it is used", hint="set it to the value of now")
        if theirs is not None and here is not None and theirs != here:
            raise RotationStopped(
                f"{self.name} here is not the one that is in use, so it is not clear which is to be replaced",
                hint=f"set {self.name} here to what the consumers have, or unset it",
            )
        chosen = theirs or here
        assert chosen is not None
        return chosen


class Rotator:
    """Takes a rotation through its stages.

    Parameters:
        rotation: of the secret.
        file: where its state is kept.
    """

    def __init__(self, rotation: Rotation, file: StateFile) -> None:
        self._rotation = rotation
        self._file = file
        self._progress = rotation.progress
        self._tell_of_lock = rotation.scene.tell

    async def plan(self) -> Plan:
        """What is left to do. Reads only."""
        if self._progress.rolling_back:
            raise RotationStopped(
                f"{self._progress.name} is on its way back to the old value",
                hint=f"oxherd rotate {self._progress.name} --rollback",
            )
        await self._rotation.scene.consumers.look(self._rotation.names)  # who can't be switched is told first
        words = dict(await self._rotation.look())
        words[Stage.RECORD] = "one line in the audit log, one operation"
        words[Stage.SWITCH] += "; from here on never roll a deployment back: that would bring the old value back"
        done = ORDER[: ORDER.index(self._progress.stage)]
        return Plan(
            tuple(
                Step(
                    stage, self._progress.name, words[stage], None if stage in done else self._doing(stage)
                )
                for stage in ORDER
            )
        )  # fmt: skip

    def _doing(self, stage: Stage) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            async with self._alone() as begins:
                if stage is Stage.RECORD:
                    await self._record("ok")
                    self._file.remove()
                    return
                try:
                    await getattr(self._rotation, stage)()
                    if stage is Stage.SWITCH:
                        await self._verify()
                except OxherdError as error:
                    if stage is Stage.SWITCH:
                        self._rotation.doubt()
                    if not begins:  # where it has not begun, there is nothing to go on with
                        error.hint = "; ".join(filter(None, (error.hint, self._way_out(stage))))
                    raise
                self._progress.stage = ORDER[ORDER.index(stage) + 1]
                self._file.save(self._progress)

        return do

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """The secret is this rotation's, from its first stage until it is over. Whether it begins with that stage.

        Raises OperationUnderWay.
        """
        name, began = self._progress.name, datetime.fromtimestamp(self._progress.began_at / 1000, UTC)
        holder = {
            "command": f"rotate {name}", "who": self._progress.by, "since": began.isoformat(" ", "seconds"),
            "why": f"rotation {self._progress.id}",
        }  # fmt: skip
        begins = self._file.head() is None
        if begins:
            self._file.save(self._progress)  # first: whoever dies now can go on, and so free the secret again
        try:
            await reserve(self._settings, name, holder, self._tell_of_lock)
            self._tell_of_lock = lambda _: None  # once is enough
            yield begins
        except (Exception, asyncio.CancelledError, KeyboardInterrupt):
            if begins:
                self._file.remove()
            raise
        finally:
            if self._file.head() is None:  # it is over, or has not begun
                await set_free(self._settings, name, holder)

    @property
    def _settings(self) -> Settings:
        """Those that work at this stage."""
        progress = self._progress
        is_late = ORDER.index(progress.stage) > ORDER.index(Stage.SWITCH) and not progress.rolling_back
        return self._rotation.settings_after() if is_late else self._rotation.scene.settings

    async def _verify(self) -> None:
        """Run a job on the configured queue: whoever was switched must take it. Raises RotationStopped."""
        scene, settings = self._rotation.scene, self._rotation.settings_after()
        if not scene.test_job or getattr(settings, "redis_url", None) is None:
            return
        async with through_redis(settings) as way:
            ended = await way.run(TEST_JOB, {"rotated": self._progress.name}, patience=scene.patience)
        if [each.state for each in ended] != ["completed"]:
            raise RotationStopped(
                f"after the switch no worker ran a test job on {settings.job_queue_name}",
                hint="`oxherd verify` says why; where no worker is meant to run, add --no-test-job",
            )

    def _way_out(self, stage: Stage) -> str:
        name = self._progress.name
        again = f"then `oxherd rotate {name} --resume`"
        return again if self._final(stage) else f"{again}, or `oxherd rotate {name} --rollback`"

    def _final(self, stage: Stage) -> bool:
        return self._progress.retiring or (self._rotation.one_way and ORDER.index(stage) >= ORDER.index(Stage.SWITCH))

    async def roll_back(self) -> None:
        """Give consumers the old value again and remove the new one.

        Raises:
            RotationStopped: the old value is being retired already.
        """
        if self._final(self._progress.stage):
            raise RotationStopped(
                f"the old {self._progress.name} is retired already: there is no way back",
                hint=f"oxherd rotate {self._progress.name} --resume; then rotate it anew, if need be",
            )
        async with self._alone():
            self._progress.rolling_back = True
            self._file.save(self._progress)
            await self._rotation.back()
            await self._record("failed")
            self._file.remove()

    async def _record(self, outcome: str) -> None:
        rotation, progress = self._rotation, self._progress
        rolled_back = progress.rolling_back
        settings = rotation.scene.settings if rolled_back else rotation.settings_after()
        summary = {"id": progress.id, "variables": list(rotation.names), "rolled_back": rolled_back}
        seconds = (wall_ms() - progress.began_at) / 1000
        operation = Operation("rotation", progress.name, outcome, seconds, summary)
        await record(settings, "rotate", operation, rotation.scene.tell)
