"""Whoever uses a secret, and how they get another: services on Railway, and all else by hand."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from oxherd.cloud.railway import PENDING, Place, Railway
from oxherd.errors import RotationStopped
from oxherd.ops.deploy import SETTLE, TIMEOUT, Watched, follow_up, watch
from oxherd.ops.rotate import Consumers, Person
from oxherd.ops.rotate_state import write_privately
from oxherd.settings import Secret

Held = AbstractAsyncContextManager[None]
LOOK = 2.0  # seconds between looks; more where Railway's limit is near


class OnRailway:
    """Services on Railway: their variables in one call, one deployment each, watched until nothing old runs.

    Parameters:
        api: Railway.
        places: the services.
        tell: is told what happens.
        lock: holds a service while it is switched.
        settle: seconds for which a deployment has to stay up before it is believed.
    """

    def __init__(
        self,
        api: Railway,
        places: Sequence[Place],
        tell: Callable[[str], None],
        lock: Callable[[Place], Held],
        *,
        settle: float = SETTLE,
    ) -> None:
        self._settle = settle
        self._lock = lock
        self._api = api
        self._places = places
        self._tell = tell

    async def look(self, names: tuple[str, ...]) -> str:
        """See Consumers."""
        for place in self._places:
            written = await self._api.variables(place, unrendered=True)
            if refers := [name for name in names if name in written and "${{" in written[name].reveal()]:
                raise RotationStopped(
                    f"{', '.join(refers)} of {place} refers to a variable of another service: a value written there "
                    "would cut that tie",
                    hint="give --service the one that the reference names, and rotate it there",
                )
        where = ", ".join(map(str, self._places))
        return f"write {' and '.join(names)} of {where} without deploying, redeploy once, watch until only that runs"

    async def current(self, name: str) -> Secret | None:
        """See Consumers."""
        found = [values[name] for place in self._places if name in (values := await self._api.variables(place))]
        if any(each != found[0] for each in found):
            raise RotationStopped(f"the services have different values of {name}", hint="rotate one service at a time")
        return found[0] if found and found[0].reveal() else None

    async def give(self, values: Mapping[str, Secret], memo: dict[str, Any], keep: Callable[[], None]) -> None:
        """See Consumers. A deployment that fails is forgotten, so that the next try makes another."""
        for place in self._places:
            mine = memo.setdefault(place.service_id, {})
            if not mine.get("serves"):
                async with self._lock(place):
                    await self._give(place, values, mine, keep)

    def doubt(self, memo: dict[str, Any]) -> None:
        """See Consumers. That only a deployment with the values serves was seen, so there is nothing to doubt."""

    async def _give(
        self, place: Place, values: Mapping[str, Secret], mine: dict[str, Any], keep: Callable[[], None]
    ) -> None:
        if "before" not in mine:
            await self._api.write_variables(place, values, skip_deploys=True)
            mine["before"] = await self._newest(place)
            keep()
        if "deployment" not in mine:
            mine["deployment"] = await self._deploy(place, mine)
            keep()
        self._tell(f"{place}: deployment {mine['deployment']}")
        done = await self._until_alone(place, mine["deployment"])
        if done.diagnosis is None:
            mine["serves"] = True
        elif done.deployment.status not in PENDING | {"NEEDS_APPROVAL"}:  # those may get up yet
            mine.clear()
        keep()
        if done.diagnosis is not None:
            raise _no_good(place, done)

    async def _newest(self, place: Place) -> str:
        found = await self._api.deployments(place, limit=1)
        return found[0].id if found else ""

    async def _deploy(self, place: Place, mine: dict[str, Any]) -> str:
        # Whatever is newer than the write has the new values, whoever asked for it: also we, before we died.
        if (newest := await self._newest(place)) != mine["before"]:
            return newest
        return (await follow_up(self._api, place, lambda: self._api.redeploy(place))).id

    async def _until_alone(self, place: Place, id: str) -> Watched:  # noqa: A002  the API's word
        """Watch a deployment until no other one of the service runs any more. Raises RotationStopped: one does on."""
        done, waited = await watch(self._api, await self._api.deployment(id), settle=self._settle, told=self._tell), 0.0
        while done.diagnosis is None:
            active = (await self._api.service_instance(place)).active
            if {each.id for each in active} <= {id}:
                break
            if waited >= TIMEOUT:
                raise RotationStopped(f"{place}: an older deployment still runs beside {id}",
                                      hint="`oxherd deploy status` shows it; remove it at Railway")  # fmt: skip
            pause = self._api.pace(LOOK)
            await self._api.sleep(pause)
            waited += pause
            done = await watch(self._api, await self._api.deployment(id), settle=0)
        return done


def _no_good(place: Place, done: Watched) -> RotationStopped:
    found = done.diagnosis
    assert found is not None
    said = f"{place}: the deployment {done.deployment.id} with the new value is {done.deployment.status}"
    return RotationStopped(
        "\n".join((f"{said}: {found.cause}: {found.summary}", *found.quoted)), hint=found.fix, exit_code=found.exit_code
    )


class ByHand:
    """Everything else: the values go into a file, and a person says when all that use them run with them.

    Parameters:
        target: the file, 0600, removed in the end; or a named pipe, into which they are written.
        person: who does it.
        tell: is told what to do. Never a value.
    """

    def __init__(self, target: Path, person: Person, tell: Callable[[str], None]) -> None:
        self._target = target
        self._person = person
        self._tell = tell

    async def look(self, names: tuple[str, ...]) -> str:
        """See Consumers."""
        return f"put {' and '.join(names)} into {self._target} for you to set wherever they are used, and wait for you"

    async def current(self, name: str) -> Secret | None:  # noqa: ARG002  nobody knows
        """See Consumers."""
        return None

    async def give(self, values: Mapping[str, Secret], memo: dict[str, Any], keep: Callable[[], None]) -> None:
        """See Consumers."""
        names, again = " and ".join(values), memo.get("told", False)
        if not again or not self._target.exists():
            self._write(values)
            memo["told"] = True
            keep()
        self._tell(f"Set {names} wherever it is used, as {self._target} has it, and restart what uses it.")
        if not self._person.confirms(f"Does everything that uses {names} run with that?", again=again):
            raise RotationStopped(f"{names} waits for you to set it", hint="once it is set everywhere, add --done")
        if not _is_pipe(self._target):
            self._target.unlink(missing_ok=True)

    def doubt(self, memo: dict[str, Any]) -> None:
        """See Consumers."""
        memo.clear()

    def _write(self, values: Mapping[str, Secret]) -> None:
        text = "".join(f"{name}={shlex.quote(value.reveal())}\n" for name, value in values.items()).encode()
        if _is_pipe(self._target):
            with self._target.open("wb") as pipe:
                pipe.write(text)
        else:
            write_privately(self._target, text)


def _is_pipe(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except FileNotFoundError:
        return False


class Several:
    """One kind of consumers after the other."""

    def __init__(self, parts: Mapping[str, Consumers]) -> None:
        self._parts = parts

    async def look(self, names: tuple[str, ...]) -> str:
        """See Consumers."""
        return "; then ".join([await each.look(names) for each in self._parts.values()])

    async def current(self, name: str) -> Secret | None:
        """See Consumers."""
        for each in self._parts.values():
            if (value := await each.current(name)) is not None:
                return value
        return None

    async def give(self, values: Mapping[str, Secret], memo: dict[str, Any], keep: Callable[[], None]) -> None:
        """See Consumers."""
        for kind, each in self._parts.items():
            part = memo.setdefault(kind, {})
            if not part.get("over"):
                await each.give(values, part, keep)
                part["over"] = True
                keep()

    def doubt(self, memo: dict[str, Any]) -> None:
        """See Consumers."""
        for kind, each in self._parts.items():
            part = memo[kind]
            part["over"] = False
            each.doubt(part)
