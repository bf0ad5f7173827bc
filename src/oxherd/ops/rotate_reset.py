"""Secrets of which there can be only one at a time: intake is closed, the secret is reset, consumers follow."""

from __future__ import annotations

from abc import abstractmethod

from oxherd.app import queue_client
from oxherd.errors import RotationStopped
from oxherd.ops.rotate import AGAIN, Rotation, Words
from oxherd.ops.rotate_state import Stage

DRAIN = 120.0  # seconds for running jobs; what takes longer is run again by a later attempt


class Reset(Rotation):
    """A reset without overlap. There is no way back from it.

    Attributes:
        how: who resets what, in words.
    """

    one_way = True
    how = ""

    @abstractmethod
    async def find(self) -> None:
        """Find what is to be reset. Reads only. Raises RotationStopped."""

    @abstractmethod
    async def choose(self) -> None:
        """Remember the old value; choose the new one, where it is ours to choose."""

    @abstractmethod
    async def reset(self) -> None:
        """Reset it, once, and remember the new value."""

    @abstractmethod
    async def new_works(self) -> None:
        """Use the new value for real. Raises RotationStopped."""

    @abstractmethod
    async def old_is_refused(self) -> bool:
        """Whether the old value is."""

    async def look(self) -> Words:
        """See Rotation."""
        await self.find()
        return {
            Stage.NEW: "nothing yet: there can be only one at a time",
            Stage.INSTALL: f"close the intake gate and wait up to {DRAIN:.0f} s for running jobs; new ones wait",
            Stage.PROVE: "nothing: it can be proved only once it is in force",
            Stage.SWITCH: f"{self.how}. IRREVERSIBLE, and the old one is refused at once: from here until the "
            f"consumers run with the new one, nothing works. Then {await self.scene.consumers.look(self.names)}; use "
            "the new one for real; open the gate",
            Stage.RETIRE: "nothing: the reset did it",
            Stage.BURY: "see the old one refused",
        }

    async def new(self) -> None:
        """See Rotation."""
        await self.find()
        await self.choose()

    async def install(self) -> None:
        """Close the gate, unless somebody else did, and let running jobs end."""
        async with queue_client(self.settings_after()) as (_, admin):
            if await admin.gate() is None:
                self.progress.facts["closed_gate"] = True
                self.scene.keep()
                await admin.close_gate(f"{self.name} is being rotated")
            waited = 0.0
            while (active := (await admin.counts()).get("active", 0)) and waited < min(DRAIN, self.scene.patience):
                await self.scene.sleep(AGAIN)
                waited += AGAIN
        if active:
            self.scene.tell(f"{active} jobs still run; what they can't finish, a later attempt does")

    async def prove(self) -> None:
        """See Rotation."""

    async def switch(self) -> None:
        """See Rotation."""
        if not self.progress.new or not self.progress.facts.get("reset"):
            await self.reset()
            self.progress.facts["reset"] = True
            self.scene.keep()
        await self.new_works()
        await self.give(self.progress.new, "switch")
        await self._open_gate()

    async def retire(self) -> None:
        """See Rotation."""
        self.no_way_back()

    async def bury(self) -> None:
        """See Rotation."""
        if not await self.old_is_refused():
            raise RotationStopped(f"the old {self.name} is still taken, though it was reset")

    async def undo(self) -> None:
        """See Rotation. Nothing was reset yet."""
        await self._open_gate()

    async def _open_gate(self) -> None:
        if self.progress.facts.get("closed_gate"):
            async with queue_client(self.settings_after()) as (_, admin):
                await admin.open_gate()
