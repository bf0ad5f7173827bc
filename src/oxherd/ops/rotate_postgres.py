"""DATABASE_URL: a second role that acts as the first; on Supabase, where pools know one password, a reset."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import quote, unquote

import asyncpg

from oxherd.cloud.supabase_admin import SupabaseAdmin
from oxherd.errors import OxherdError, RotationStopped, StoreUnreachable, UsageError
from oxherd.ops.rotate import Rotation, Scene, Words
from oxherd.ops.rotate_reset import Reset
from oxherd.ops.rotate_state import Stage
from oxherd.settings import Secret, Settings
from oxherd.store.address import FAULTS, parse
from oxherd.store.postgres import PostgresStore

NAME = "DATABASE_URL"
ITERATIONS = 4096  # as Postgres's own `scram_iterations`

ABOUT = """
select r.rolsuper as super, base.rolname as base
from pg_roles r
left join pg_auth_members m on m.member = r.oid
left join pg_roles base on base.oid = m.roleid and 'role=' || base.rolname = any (r.rolconfig)
where r.rolname = $1
order by base.rolname nulls last limit 1
"""
MAY = "select rolsuper or rolcreaterole from pg_roles where rolname = current_user"
LEFT = "select count(*) from pg_stat_activity where usename = $1 and pid <> pg_backend_pid()"


def login_of(url: Secret) -> tuple[str, Secret]:
    """User and password in a URL."""
    userinfo = url.reveal().partition("://")[2].rpartition("@")[0]
    user, _, password = userinfo.partition(":")
    return unquote(user), Secret(unquote(password))


def with_login(url: Secret, user: str, password: Secret) -> Secret:
    """A URL with another login."""
    scheme, _, rest = url.reveal().partition("://")
    return Secret(f"{scheme}://{quote(user, safe='')}:{quote(password.reveal(), safe='')}@{rest.rpartition('@')[2]}")


def verifier(password: Secret) -> str:
    """What Postgres keeps of a password (RFC 5803), so that the password itself is in no statement and no log."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.reveal().encode(), salt, ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    salt64, stored64, server64 = (base64.b64encode(each).decode() for each in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


async def is_refused(url: Secret) -> bool:
    """Whether Postgres no longer takes a login: invalid_authorization_specification and its kind, class 28."""
    try:
        connection = await parse(url).connect()
    except StoreUnreachable as error:
        if "(28" in error.message:
            return True
        raise
    await connection.close()
    return False


async def works(url: Secret) -> None:
    """Start a store and read with it. Raises RotationStopped."""
    store = PostgresStore(url)
    try:
        await store.start()
        await store.audit(limit=1)
    except OxherdError as error:
        raise RotationStopped(f"the new login does not work: {error.message}", hint=error.hint) from None
    finally:
        await store.stop()


class PostgresRole(Rotation):
    """A role that is a member of the one that owns the tables and acts as it: what it makes belongs to that, too.

    Parameters:
        scene: what every rotation works with.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(NAME, scene)
        if scene.settings.database_url is None:
            raise UsageError(f"{NAME} is not set", hint="set it to the value of now")
        if scene.settings.database_admin_url is None:
            raise UsageError(
                "a login that may make roles is needed",
                hint="set DATABASE_ADMIN_URL; docs/rotation.md has the steps by hand",
            )
        self._here = scene.settings.database_url
        self._admin = parse(scene.settings.database_admin_url)
        self._role = f"oxherd_{scene.progress.id}"

    async def look(self) -> Words:
        """See Rotation."""
        if self.progress.stage is Stage.NEW:
            user, base = await self._find()
        else:
            user, base = self.progress.facts["user"], self.progress.facts["base"]
        end = f"switch {user}'s login off" if user == base else f"drop the role {user}"
        return {
            Stage.NEW: f"a role {self._role} with a password of 32 random bytes",
            Stage.INSTALL: f"make it a member of {base} that acts as {base}; both can log in from here on",
            Stage.PROVE: f"log in as it, see that it acts as {base}, check the schema and read",
            Stage.SWITCH: await self.scene.consumers.look(self.names),
            Stage.RETIRE: f"wait until no session of {user} is left, then switch {user}'s login off",
            Stage.BURY: f"see {user} refused, then {end}",
        }

    async def new(self) -> None:
        """See Rotation."""
        user, base = await self._find()
        theirs = await self.scene.consumers.current(NAME) or self._here
        password = Secret(secrets.token_urlsafe(32))
        self.progress.facts = {"user": user, "base": base}
        self.progress.old = {NAME: theirs}
        self.progress.new = {NAME: with_login(theirs, self._role, password)}

    async def install(self) -> None:
        """See Rotation."""
        _, password = login_of(self.progress.new[NAME])
        role, base = _quoted(self._role), _quoted(self.progress.facts["base"])
        await self._run(
            f"do $$ begin if not exists (select from pg_roles where rolname = '{self._role}') "
            f"then create role {role} nologin; end if; end $$",
            f"alter role {role} login password '{verifier(password)}'",
            f"grant {base} to {role}",
            f"alter role {role} set role = {base}",
        )

    async def prove(self) -> None:
        """See Rotation."""
        try:
            connection = await parse(self._new_here).connect()
        except StoreUnreachable as error:
            raise RotationStopped(f"the new login does not work: {error.message}", hint=error.hint) from None
        try:
            acts_as = await connection.fetchval("select current_user")
        finally:
            await connection.close()
        if acts_as != self.progress.facts["base"]:
            raise RotationStopped(f"the new role acts as {acts_as}, not as {self.progress.facts['base']}")
        await works(self._new_here)

    async def retire(self) -> None:
        """See Rotation."""
        user = self.progress.facts["user"]

        async def nobody_left() -> bool:
            return not await self._value(LEFT, user)

        await self.scene.until(nobody_left, f"somebody still works in Postgres as {user}",
                               hint="pg_stat_activity shows from where; switch them, too")  # fmt: skip
        self.no_way_back()
        await self._run(f"alter role {_quoted(user)} nologin password null")

    async def bury(self) -> None:
        """See Rotation."""
        user, base = self.progress.facts["user"], self.progress.facts["base"]
        old_user, old_password = login_of(self.progress.old[NAME])
        if not await is_refused(with_login(self._here, old_user, old_password)):
            raise RotationStopped(f"Postgres still takes the old login of {user}")
        if user != base:
            await self._run(f"drop role if exists {_quoted(user)}")

    async def undo(self) -> None:
        """See Rotation."""
        await self._run(f"drop role if exists {_quoted(self._role)}")

    def settings_after(self) -> Settings:
        """See Rotation."""
        return replace(self.scene.settings, database_url=self._new_here)

    @property
    def _new_here(self) -> Secret:
        _, password = login_of(self.progress.new[NAME])
        return with_login(self._here, self._role, password)

    async def _find(self) -> tuple[str, str]:
        """The role that logs in now, and the one that it acts as: itself, unless we made it."""
        user, password = login_of(self._here)
        theirs = await self.scene.consumers.current(NAME)
        if theirs is not None and login_of(theirs) != (user, password):
            raise RotationStopped(f"{NAME} here has another login than the one that is in use")
        if not await self._value(MAY):
            raise RotationStopped("DATABASE_ADMIN_URL's role may not make roles", hint="give it CREATEROLE")
        rows = await self._rows(ABOUT, user)
        if not rows:
            raise RotationStopped(f"Postgres has no role {user}")
        if rows[0]["super"]:
            raise RotationStopped(
                f"{user} is a superuser, which a worker needs as little as an attacker should have it",
                hint="make a role of its own for Oxherd, give it the tables (docs/database.md), and use that",
            )
        return user, rows[0]["base"] or user

    async def _run(self, *statements: str) -> None:
        async with self._connected() as connection, connection.transaction():
            for statement in statements:
                await connection.execute(statement)

    async def _value(self, query: str, *arguments: str) -> object:
        return next(iter((await self._rows(query, *arguments))[0].values()))

    async def _rows(self, query: str, *arguments: str) -> list[asyncpg.Record]:
        async with self._connected() as connection:
            return await connection.fetch(query, *arguments)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        connection = await self._admin.connect()
        try:
            yield connection
        except FAULTS as error:
            raise self._admin.fault(error) from None
        finally:
            await connection.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class SupabasePassword(Reset):
    """The password of Supabase's role `postgres`: its poolers know one at a time.

    Parameters:
        scene: what every rotation works with.
        api: Supabase's Management API.
    """

    how = "Supabase takes another password for the role postgres"

    def __init__(self, scene: Scene, api: SupabaseAdmin) -> None:
        super().__init__(NAME, scene)
        assert scene.settings.database_url is not None
        self._here = scene.settings.database_url
        self._api = api

    async def find(self) -> None:
        """Only the password of `postgres` can be set there."""
        user, _ = login_of(self._here)
        if user.partition(".")[0] != "postgres":
            raise RotationStopped(
                f"Supabase sets the password of postgres only, and {NAME} logs in as {user}",
                hint=f"alter role {user} password '…' in the SQL editor, then set {NAME}",
            )

    async def choose(self) -> None:
        """A password of 32 random bytes."""
        theirs = await self.scene.consumers.current(NAME) or self._here
        user, _ = login_of(theirs)
        self.progress.old = {NAME: theirs}
        self.progress.new = {NAME: with_login(theirs, user, Secret(secrets.token_urlsafe(32)))}

    async def reset(self) -> None:
        """Set it; the same one again, where a process died."""
        await self._api.set_database_password(login_of(self.progress.new[NAME])[1])

    async def new_works(self) -> None:
        """Log in with it; the poolers learn of it within some seconds."""

        async def taken() -> bool:
            return not await is_refused(self._new_here)

        await self.scene.until(taken, "the database does not take the new password")
        await works(self._new_here)

    async def old_is_refused(self) -> bool:
        """Whether the old password is."""
        return await is_refused(with_login(self._here, *login_of(self.progress.old[NAME])))

    def settings_after(self) -> Settings:
        """See Rotation."""
        if not self.progress.facts.get("reset"):
            return self.scene.settings
        return replace(self.scene.settings, database_url=self._new_here)

    @property
    def _new_here(self) -> Secret:
        return with_login(self._here, *login_of(self.progress.new[NAME]))
