"""ENCRYPTION_KEY: both keys live in every worker, all rows sealed anew while jobs run, then the old one goes."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from oxherd.app import build_store, keys_of
from oxherd.errors import RotationStopped
from oxherd.ops.rotate import TEST_JOB, Rotation, Scene, Words
from oxherd.ops.rotate_redis import linked
from oxherd.ops.rotate_state import Stage
from oxherd.ops.testjob import through_redis
from oxherd.settings import Secret, Settings
from oxherd.vault.crypto import Key
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import seal_field
from oxherd.vault.vault import Vault

NAME, PREVIOUS = "ENCRYPTION_KEY", "ENCRYPTION_KEYS_PREVIOUS"
PAGE = 1000  # rows in one statement
PROBES = 3  # jobs that a worker opens to prove a key


class EncryptionKey(Rotation):
    """See the module.

    Parameters:
        scene: what every rotation works with.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(NAME, scene)
        self.names = (NAME, PREVIOUS)

    async def look(self) -> Words:
        """See Rotation."""
        if not self.progress.old:
            await self.old_value(self.scene.settings.encryption_key)
        switched = await self.scene.consumers.look(self.names)
        async with self._vault(self.scene.settings.encryption_key, ()) as vault:
            counts = {} if vault is None else await vault.counts()
        rows = f"{sum(counts.values()):,} rows"
        return {
            Stage.NEW: "32 random bytes",
            Stage.INSTALL: f"put it into {PREVIOUS}, so that every worker can open what it seals: {switched}",
            Stage.PROVE: f"run {PROBES} jobs with a field that the new key sealed, and {PROBES} with the old one's",
            Stage.SWITCH: f"seal all credentials with the new key while workers read them ({rows}), "
            f"then make it {NAME} and the old one the first of {PREVIOUS}: {switched}",
            Stage.RETIRE: "seal what was put meanwhile and open every row without the old key; stop while an "
            f"unfinished job or a schedule has a field that the old key sealed; then remove it from {PREVIOUS}: "
            f"{switched}. Links to answer questions that were sent before the switch end here",
            Stage.BURY: "see that no consumer has the old key, and that no row is sealed with it",
        }

    async def new(self) -> None:
        """See Rotation."""
        old = await self.old_value(self.scene.settings.encryption_key)
        theirs = await self.scene.consumers.current(PREVIOUS)
        kept = theirs or Secret(",".join(each.reveal() for each in self.scene.settings.encryption_keys_previous))
        self.progress.old = {NAME: old, PREVIOUS: kept}
        self.progress.new = {NAME: Secret(base64.b64encode(secrets.token_bytes(32)).decode())}

    async def install(self) -> None:
        """Both keys live: the new one opens, the old one still seals."""
        await self.give({PREVIOUS: self._listed(self._new, *self._kept)}, "install")

    async def prove(self) -> None:
        """A worker opens what either of them sealed."""
        async with through_redis(self.scene.settings) as way:
            for key in (self._new, self._old):
                value, ring = secrets.token_hex(8), KeyRing.of(key)
                field = seal_field(value, ring, job=TEST_JOB, tenant=None, path=("probe",))
                ended = await way.run(TEST_JOB, {"probe": field}, patience=self.scene.patience, count=PROBES)
                if len(ended) < PROBES:
                    raise RotationStopped(f"no worker ran a test job within {self.scene.patience:.0f} s",
                                          hint="`oxherd gate status`, `oxherd jobs list`")  # fmt: skip
                if any(each.state != "completed" or each.value != {"probe": value} for each in ended):
                    raise RotationStopped(f"a worker can't open what the key {Key.of(key).id} sealed",
                                          hint="does every worker have the new variables?")  # fmt: skip

    async def switch(self) -> None:
        """See Rotation."""
        await self._rewrap(self._new, self._old)
        await self.give({NAME: self._new, PREVIOUS: self._listed(self._old, *self._kept)}, "switch")

    async def retire(self) -> None:
        """See Rotation."""
        await self._rewrap(self._new, self._old)
        await self._all_open(self._new)
        await self._nothing_waits_for(Key.of(self._old).id)
        self.no_way_back()
        await self.give({PREVIOUS: self._listed(*self._kept)}, "retire")

    async def bury(self) -> None:
        """See Rotation."""
        theirs = await self.scene.consumers.current(PREVIOUS)
        if theirs is not None and self._old in map(Secret, theirs.reveal().split(",")):
            raise RotationStopped(f"the old key is still in {PREVIOUS} of a consumer", hint="remove it there")
        async with self._vault(self._new, self._kept) as vault:
            known = {Key.of(each).id for each in (self._new, *self._kept)}
            strange = set() if vault is None else set(await vault.counts()) - known
        if strange:
            raise RotationStopped(
                f"rows are sealed with {', '.join(sorted(strange))}, which no worker has any more",
                hint="add that key to ENCRYPTION_KEYS_PREVIOUS",
            )

    async def back(self) -> None:
        """The old key seals again, everything; then the new one goes."""
        if "switch" in self.progress.given:
            await self.give({NAME: self._old, PREVIOUS: self._listed(self._new, *self._kept)}, "back")
        if self.progress.new:
            await self._rewrap(self._old, self._new)
        await self.undo()

    async def undo(self) -> None:
        """See Rotation."""
        if "install" in self.progress.given:
            await self._nothing_waits_for(Key.of(self._new).id)
            await self.give({PREVIOUS: self._listed(*self._kept)}, "undo")

    def settings_after(self) -> Settings:
        """See Rotation."""
        return replace(self.scene.settings, encryption_key=self._new, encryption_keys_previous=self._kept)

    @property
    def _old(self) -> Secret:
        return self.progress.old[NAME]

    @property
    def _new(self) -> Secret:
        return self.progress.new[NAME]

    @property
    def _kept(self) -> tuple[Secret, ...]:
        """What was in ENCRYPTION_KEYS_PREVIOUS before, and stays there."""
        return tuple(Secret(each.strip()) for each in self.progress.old[PREVIOUS].reveal().split(",") if each.strip())

    @staticmethod
    def _listed(*keys: Secret) -> Secret:
        return Secret(",".join(each.reveal() for each in keys))

    @asynccontextmanager
    async def _vault(self, active: Secret | None, others: tuple[Secret, ...]) -> AsyncIterator[Vault | None]:
        store = build_store(self.scene.settings)
        if store is None:
            yield None
            return
        await store.start()
        try:
            yield Vault(KeyRing.of(active, others), store)
        finally:
            await store.stop()

    async def _rewrap(self, to: Secret, source: Secret) -> None:
        """Seal every row with one key. Raises RotationStopped, naming what can't be opened."""
        async with self._vault(to, (source, *self._kept)) as vault:
            if vault is None:
                return
            result = await vault.rewrap(self._told("sealed anew"), page=PAGE)
            if result.faults or result.left:
                raise _unreadable(result.faults)

    async def _all_open(self, key: Secret) -> None:
        """Open every row without the old key. Raises RotationStopped."""
        async with self._vault(key, self._kept) as vault:
            if vault is not None and (faults := await vault.check(lambda _: None, page=PAGE)):
                raise _unreadable(faults)

    def _told(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.scene.tell(f"{done:,} of {total:,} {what}")

    async def _nothing_waits_for(self, key: str) -> None:
        """Raises RotationStopped where a job that has not ended, or a schedule, has a field that a key sealed."""
        ended, waiting = await self._fields(key)
        if waiting:
            names = ", ".join(f"{number} {name}" for name, number in waiting.most_common(5))
            raise RotationStopped(
                f"jobs and schedules wait with fields that the key {key} sealed: {names}",
                hint="let them end; where there are ever new ones, give their producer the new key",
            )
        if ended:
            self.scene.tell(
                f"{ended} jobs that have ended keep fields that the key {key} sealed: they can't be replayed"
            )

    async def _fields(self, key: str) -> tuple[int, Counter[str]]:
        """How many ended jobs have such a field, and how many that have not, by name."""
        mark, keys = f"oxherd1.{key}.".encode(), keys_of(self.scene.settings)
        ended, waiting, cursor = 0, Counter[str](), b"0"
        async with linked(self.scene.settings.redis_url) as link:
            while True:
                cursor, found = await link.call(
                    b"SCAN", cursor, b"MATCH", keys.base + b"*", b"COUNT", PAGE, b"TYPE", b"hash"
                )
                asked = (link.call(b"HMGET", each, b"data", b"finishedOn", b"name") for each in found)
                for data, finished, job in await asyncio.gather(*asked):
                    if mark in (data or b""):
                        if finished is None:
                            waiting[(job or b"schedule").decode()] += 1
                        else:
                            ended += 1
                if cursor == b"0":
                    return ended, waiting


def _unreadable(faults: Sequence[tuple[str, str, str]]) -> RotationStopped:
    shown = "; ".join(f"{name}{f' of {tenant}' if tenant else ''}: {why}" for tenant, name, why in faults[:3])
    more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
    return RotationStopped(
        f"{len(faults)} credentials can't be opened with either key: {shown}{more}",
        hint="add the key that sealed them to ENCRYPTION_KEYS_PREVIOUS, or put or remove them",
    )
