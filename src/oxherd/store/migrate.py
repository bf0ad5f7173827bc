"""Migrations: plain numbered SQL files, each run once, in order, in a transaction, by one process at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import asyncpg

from oxherd.errors import OxherdError, UsageError
from oxherd.store.address import FAULTS, Address, parse

# What a statement itself can be at fault for; the rest is the connection's or the server's fault.
MISFITS = (asyncpg.SyntaxOrAccessError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

OLDEST_SERVER = 14  # the functions are written in its grammar
LOCK = 0x6F7868657264  # "oxherd": one migrator at a time per database
RELOAD = "notify pgrst, 'reload schema'"  # PostgREST keeps the schema in a cache

MIGRATE = "run `oxherd db migrate`, or paste what `oxherd db sql` prints into Supabase's SQL editor"

SQL_HEAD = f"""\
-- Oxherd's schema, made by `oxherd db sql`. Paste it into Supabase's SQL editor and run it.
-- Running it again does nothing; after an upgrade it adds what is new.

begin;
select pg_advisory_xact_lock({LOCK});
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file.

    Attributes:
        number: its place in the order.
        name: the file's name without `.sql`, such as `001_runs`.
        text: its SQL.
    """

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationState:
    """A migration as a database has it.

    Attributes:
        number, name: which one.
        state: applied; pending; edited (applied, but the file has another text now); unknown (applied by a newer
            Oxherd, which is fine).
        applied_at: when, or None.
    """

    number: int
    name: str
    state: Literal["applied", "pending", "edited", "unknown"]
    applied_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Applied:
    name: str
    checksum: str
    applied_at: datetime


@cache
def migrations() -> tuple[Migration, ...]:
    """Every migration in order, without the bookkeeping that precedes them."""
    return _files()[1:]


def bookkeeping() -> Migration:
    """The schema and the table of applied migrations; safe to run at any time."""
    return _files()[0]


@cache
def _files() -> tuple[Migration, ...]:
    folder = files("oxherd.store") / "migrations"
    texts = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".sql")}
    return tuple(Migration(int(name[:3]), name.removesuffix(".sql"), texts[name]) for name in sorted(texts))


async def migrate(database_url: str) -> list[Migration]:
    """Bring a database's schema up to date.

    Parameters:
        database_url: text or Secret; through a transaction pooler is fine.

    Returns:
        The migrations that ran now, in order; an empty list where there was nothing to do.

    Raises:
        StoreUnreachable: the database did not answer.
        UsageError: an applied migration's file was edited, the login may not change the schema, or the server is older
            than Postgres 14.
        OxherdError: a migration does not fit what the database has; nothing of it was applied.
    """
    address = parse(database_url)
    connection = await address.connect()
    ran: list[Migration] = []
    try:
        _refuse_old(connection, address)
        await _prepare(connection)
        while (migration := await _run_next(connection)) is not None:
            ran.append(migration)
    except asyncpg.InsufficientPrivilegeError as error:
        raise _may_not(address, error) from None
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        await connection.close()
    return ran


async def status(database_url: str) -> list[MigrationState]:
    """Which migrations a database has and which it lacks. Changes nothing.

    Raises:
        StoreUnreachable: the database did not answer.
        UsageError: the login may not read the schema.
    """
    address = parse(database_url)
    connection = await address.connect()
    try:
        async with connection.transaction(readonly=True):
            return _states(await _applied(connection))
    except asyncpg.InsufficientPrivilegeError as error:
        raise _may_not(address, error) from None
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        await connection.close()


def sql() -> str:
    """All migrations as one text for an SQL editor, such as Supabase's; run again, it adds only what is new."""
    guarded = "\n".join(_guarded(migration) for migration in migrations())
    return f"{SQL_HEAD}\n{bookkeeping().text}\n{guarded}\n{RELOAD};\n\ncommit;\n"


def require_version(version: int) -> None:
    """Check that a database has every migration this release knows; one that has more is fine.

    Parameters:
        version: the number of its newest migration, 0 for none.

    Raises:
        UsageError: with the command to run.
    """
    newest = migrations()[-1].number
    if version < newest:
        lack = f"lacks migrations {version + 1} to {newest}" if version else "has no Oxherd tables yet"
        raise UsageError(f"the database {lack}", hint=MIGRATE)


def _guarded(migration: Migration) -> str:
    return (
        f"do $oxherd_{migration.number:03}$\nbegin\n"
        f"if not exists (select from oxherd.migrations where number = {migration.number}) then\n"
        f"execute $migration_{migration.number:03}$\n{migration.text}$migration_{migration.number:03}$;\n"
        f"insert into oxherd.migrations (number, name, checksum)\n"
        f"values ({migration.number}, '{migration.name}', '{migration.checksum}');\n"
        f"end if;\nend\n$oxherd_{migration.number:03}$;\n"
    )


def _refuse_old(connection: Connection, address: Address) -> None:
    found = connection.get_server_version()
    if found.major < OLDEST_SERVER:
        raise UsageError(
            f"Postgres {found.major}.{found.minor} at {address.shown} is too old for Oxherd's tables",
            hint=f"{OLDEST_SERVER} is the oldest that has what they need; upgrade the server",
        )


async def _prepare(connection: Connection) -> None:
    async with connection.transaction():
        await _lock(connection)
        await connection.execute(bookkeeping().text)


async def _run_next(connection: Connection) -> Migration | None:
    async with connection.transaction():
        await _lock(connection)  # ends with the transaction: a session's lock would not survive a pooler
        applied = await _applied(connection)
        _refuse_drift(applied)
        migration = next((each for each in migrations() if each.number not in applied), None)
        if migration is not None:
            await _run(connection, migration)
        return migration


async def _run(connection: Connection, migration: Migration) -> None:
    try:
        await connection.execute(migration.text)
    except MISFITS as error:
        raise OxherdError(
            f"migration {migration.name} does not fit this database: {error.message} ({error.sqlstate})",
            hint="nothing of it was applied; was something named like it made in schema oxherd by hand?",
        ) from None
    await connection.execute(
        "insert into oxherd.migrations (number, name, checksum) values ($1, $2, $3)",
        migration.number,
        migration.name,
        migration.checksum,
    )
    await connection.execute(RELOAD)


async def _lock(connection: Connection) -> None:
    await connection.execute(f"select pg_advisory_xact_lock({LOCK})")


async def _applied(connection: Connection) -> dict[int, _Applied]:
    if await connection.fetchval("select to_regclass('oxherd.migrations')") is None:
        return {}
    rows = await connection.fetch("select number, name, checksum, applied_at from oxherd.migrations")
    return {row["number"]: _Applied(row["name"], row["checksum"], row["applied_at"]) for row in rows}


def _states(applied: Mapping[int, _Applied]) -> list[MigrationState]:
    known = {migration.number: migration for migration in migrations()}
    states = []
    for number in sorted(known.keys() | applied.keys()):
        ran, migration = applied.get(number), known.get(number)
        name = migration.name if migration else applied[number].name
        states.append(MigrationState(number, name, _state(ran, migration), ran.applied_at if ran else None))
    return states


def _state(ran: _Applied | None, migration: Migration | None) -> Literal["applied", "pending", "edited", "unknown"]:
    if ran is None:
        return "pending"
    if migration is None:
        return "unknown"
    return "applied" if ran.checksum == migration.checksum else "edited"


def _refuse_drift(applied: Mapping[int, _Applied]) -> None:
    edited = [state.name for state in _states(applied) if state.state == "edited"]
    if edited:
        raise UsageError(
            f"migration {', '.join(edited)} was applied with another text than this release has",
            hint="restore the file as it was released and put the change into a migration of its own",
        )


def _may_not(address: Address, error: asyncpg.InsufficientPrivilegeError) -> UsageError:
    return UsageError(
        f"Postgres at {address.shown}: {error.message}", hint="migrate as the database's owner, on Supabase as postgres"
    )
