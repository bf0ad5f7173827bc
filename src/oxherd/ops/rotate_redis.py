"""REDIS_URL: a second user beside the first, where Redis's users can be changed; else a reset without overlap."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import quote

from oxherd.app import keys_of
from oxherd.cloud.upstash import Upstash
from oxherd.errors import RedisRefused, RotationStopped
from oxherd.ops.rotate import Rotation, Scene, Words
from oxherd.ops.rotate_reset import Reset
from oxherd.ops.rotate_state import ORDER, Stage
from oxherd.queue.connection import Link
from oxherd.settings import RedisTarget, Secret, Settings, parse_redis_url

NAME = "REDIS_URL"
CLOSED = frozenset({"WRONGPASS", "NOAUTH"})


def url_of(target: RedisTarget, user: str | None, password: Secret) -> Secret:
    """A Redis's URL with another login."""
    login = f"{quote(user or '', safe='')}:{quote(password.reveal(), safe='')}@"
    if target.path:
        return Secret(f"unix://{login}{quote(target.path)}?db={target.db}")
    host = f"[{target.host}]" if ":" in target.host else target.host
    return Secret(f"{'rediss' if target.tls else 'redis'}://{login}{host}:{target.port}/{target.db}")


@asynccontextmanager
async def linked(target: RedisTarget) -> AsyncIterator[Link]:
    """A connection for some commands. Raises RedisUnreachable, RedisRefused."""
    link = Link(target, "rotate")
    try:
        await link.start()
        yield link
    finally:
        await link.stop()


async def is_refused(target: RedisTarget) -> bool:
    """Whether Redis no longer takes a login."""
    try:
        async with linked(target) as link:
            await link.call(b"PING")
    except RedisRefused as error:
        if error.code in CLOSED:
            return True
        raise
    return False


async def works(target: RedisTarget, settings: Settings, mark: str) -> None:
    """Write, read, run a script and delete under both of our prefixes. Raises RotationStopped."""
    keys = keys_of(settings)
    try:
        async with linked(target) as link:
            for key in (keys.base + f"rotation-{mark}".encode(), keys.gate + f"-rotation-{mark}".encode()):
                await link.call(b"SET", key, mark, b"EX", 60)
                said = await link.call(b"EVAL", b"return redis.call('get', KEYS[1])", 1, key)
                await link.call(b"DEL", key)
                if said != mark.encode():
                    raise RotationStopped("Redis gave back something else than was written with the new login")
            await link.call(b"XLEN", keys.events)
    except RedisRefused as error:
        raise RotationStopped(f"Redis refuses the new login: {error.message}", hint=error.hint) from None


class RedisUser(Rotation):
    """A second ACL user with the rules of the first.

    Parameters:
        scene: what every rotation works with.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(NAME, scene)
        self._here = scene.settings.redis_url
        self._user = f"oxherd-{scene.progress.id}"

    async def look(self) -> Words:
        """See Rotation."""
        old = self.progress.facts.get("user") or self._here.username or "default"
        if self.progress.stage is Stage.NEW:
            theirs = await self._theirs()
            async with linked(self._admin) as link:
                await self._rules(link, old)
                await self._can_be_kept(link)
            if (theirs.username or "default", theirs.password) != (old, self._here.password):
                raise RotationStopped(f"{NAME} here has another login than the one that is in use")
        end = "switch the user default off" if old == "default" else f"delete the user {old}"
        return {
            Stage.NEW: f"a user {self._user} with a password of 32 random bytes",
            Stage.INSTALL: f"ACL SETUSER {self._user} with the rules of {old}, and save it; both can log in from here",
            Stage.PROVE: "log in as it; write, read, run a script and delete",
            Stage.SWITCH: await self.scene.consumers.look(self.names),
            Stage.RETIRE: f"wait until no connection of {old} is left, then switch {old} off",
            Stage.BURY: f"see {old} refused, then {end}",
        }

    async def new(self) -> None:
        """See Rotation."""
        theirs = await self._theirs()
        password = Secret(secrets.token_urlsafe(32))
        self.progress.facts["user"] = theirs.username or "default"
        self.progress.old = {NAME: url_of(theirs, theirs.username, theirs.password or Secret(""))}
        self.progress.new = {NAME: url_of(theirs, self._user, password)}

    async def install(self) -> None:
        """See Rotation."""
        digest = hashlib.sha256(self._password.reveal().encode()).hexdigest()  # so that no log of commands has it
        async with linked(self._admin) as link:
            rules = await self._rules(link, self.progress.facts["user"])
            await link.call(b"ACL", b"SETUSER", self._user, b"reset", b"on", f"#{digest}", *rules)
            await self._save(link)

    async def prove(self) -> None:
        """See Rotation."""
        await works(self._new_here, self.scene.settings, self.progress.id)

    async def retire(self) -> None:
        """See Rotation."""
        user = self.progress.facts["user"]
        await self.scene.until(self._nobody_left, f"somebody still works in Redis as {user}",
                               hint="CLIENT LIST shows from where; switch them, too")  # fmt: skip
        self.no_way_back()
        async with linked(self._admin) as link:
            await link.call(b"ACL", b"SETUSER", user, b"off")
            await self._save(link)

    async def bury(self) -> None:
        """See Rotation."""
        user, old = self.progress.facts["user"], parse_redis_url(self.progress.old[NAME].reveal())
        here = replace(self._here, username=old.username, password=old.password)
        if not await is_refused(here):
            raise RotationStopped(f"Redis still takes the old login of {user}, though it is off")
        if user != "default":
            async with linked(self._admin) as link:
                await link.call(b"ACL", b"DELUSER", user)
                await self._save(link)

    async def undo(self) -> None:
        """See Rotation."""
        async with linked(self._old_admin) as link:
            await link.call(b"ACL", b"DELUSER", self._user)
            await self._save(link)

    def settings_after(self) -> Settings:
        """See Rotation."""
        return replace(self.scene.settings, redis_url=self._new_here)

    async def _theirs(self) -> RedisTarget:
        value = await self.scene.consumers.current(NAME)
        return self._here if value is None else parse_redis_url(value.reveal())

    @property
    def _password(self) -> Secret:
        password = parse_redis_url(self.progress.new[NAME].reveal()).password
        assert password is not None
        return password

    @property
    def _new_here(self) -> RedisTarget:
        return replace(self._here, username=self._user, password=self._password)

    @property
    def _old_admin(self) -> RedisTarget:
        return self.scene.settings.redis_admin_url or self._here

    @property
    def _admin(self) -> RedisTarget:
        """Who changes users: near the end the old login may be off already, and the new one has the same rules."""
        late = ORDER.index(self.progress.stage) > ORDER.index(Stage.PROVE)
        return self.scene.settings.redis_admin_url or (self._new_here if late else self._here)

    async def _rules(self, link: Link, user: str) -> list[str]:
        """What a user may do, without passwords. Raises RotationStopped where we may not ask."""
        try:
            lines = [line.decode() for line in await link.call(b"ACL", b"LIST")]
        except RedisRefused as error:
            raise RotationStopped(
                f"this login may not look at Redis's users: {error.message}",
                hint="set REDIS_ADMIN_URL to a login that may, or rotate by hand as docs/rotation.md says",
            ) from None
        found = next((line for line in lines if line.split(" ", 2)[1] == user), None)
        if found is None:
            raise RotationStopped(f"Redis has no user {user}")
        words = re.findall(r"\([^)]*\)|\S+", found.split(" ", 2)[2])
        return [word for word in words if word not in {"on", "off", "nopass"} and word[0] not in "#<>!"]

    async def _can_be_kept(self, link: Link) -> None:
        file = await self._config(link, b"aclfile")
        if not file and not await self._has_config_file(link):
            raise RotationStopped(
                "this Redis keeps its users in memory only: after its next restart the new one would be gone",
                hint="start it with an aclfile, or with a configuration file",
            )

    async def _config(self, link: Link, name: bytes) -> bytes:
        try:
            said = await link.call(b"CONFIG", b"GET", name)
        except RedisRefused:
            return b"unknown"  # whether it can be saved shows when it is
        return bytes(said[1]) if said else b""

    async def _has_config_file(self, link: Link) -> bool:
        info = await link.call(b"INFO", b"server")
        return bool(re.search(rb"^config_file:\S", info, re.MULTILINE))

    async def _save(self, link: Link) -> None:
        try:
            await link.call(b"ACL", b"SAVE")
        except RedisRefused:
            try:
                await link.call(b"CONFIG", b"REWRITE")
            except RedisRefused as error:
                raise RotationStopped(
                    f"Redis can't keep its users over a restart: {error.message}", hint="start it with an aclfile"
                ) from None

    async def _nobody_left(self) -> bool:
        user = self.progress.facts["user"]
        async with linked(self._admin) as link:
            mine = await link.call(b"CLIENT", b"ID")
            clients = (await link.call(b"CLIENT", b"LIST")).decode().splitlines()
        return not any(f" user={user} " in f"{each} " and not each.startswith(f"id={mine} ") for each in clients)


class UpstashPassword(Reset):
    """A reset at Upstash: the old password is refused at once, so intake is closed around it.

    Parameters:
        scene: what every rotation works with.
        api: Upstash.
    """

    how = "Upstash resets the password"

    def __init__(self, scene: Scene, api: Upstash) -> None:
        super().__init__(NAME, scene)
        self._api = api
        self._here = scene.settings.redis_url

    async def find(self) -> None:
        """Which database it is."""
        slug = self._here.host.partition(".")[0]
        found = [each for each in await self._api.databases() if each["endpoint"] in {self._here.host, slug}]
        if len(found) != 1:
            raise RotationStopped(f"this Upstash account has no database at {self._here.host}",
                                  hint="are UPSTASH_EMAIL and UPSTASH_API_KEY of the same account?")  # fmt: skip
        self.progress.facts["database"] = found[0]["database_id"]

    async def choose(self) -> None:
        """Remember the old URL; Upstash makes the new password."""
        theirs = await self.scene.consumers.current(NAME)
        target = self._here if theirs is None else parse_redis_url(theirs.reveal())
        self.progress.old = {NAME: url_of(target, target.username, target.password or Secret(""))}

    async def reset(self) -> None:
        """Reset, unless a process that died has done so: Upstash then has another password than the old one."""
        target = parse_redis_url(self.progress.old[NAME].reveal())
        database = self.progress.facts["database"]
        password = await self._api.password(database)
        if password is None or password == target.password:
            password = await self._api.reset_password(database)
        if password is None:
            raise RotationStopped(
                "Upstash has reset the password and does not say what it is now",
                hint="look it up in Upstash's console and set REDIS_URL by hand",
            )
        self.progress.new = {NAME: url_of(target, target.username, password)}

    async def new_works(self) -> None:
        """Log in with the new password."""
        await works(self.settings_after().redis_url, self.scene.settings, self.progress.id)

    async def old_is_refused(self) -> bool:
        """Whether the old password is."""
        old = parse_redis_url(self.progress.old[NAME].reveal())
        return await is_refused(replace(self._here, username=old.username, password=old.password))

    def settings_after(self) -> Settings:
        """See Rotation."""
        if NAME not in self.progress.new:
            return self.scene.settings
        new = parse_redis_url(self.progress.new[NAME].reveal())
        return replace(self.scene.settings, redis_url=replace(self._here, username=new.username, password=new.password))
