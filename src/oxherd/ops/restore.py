"""Restoring: into an empty database, or beside the live one and then in its place; the queue into an empty one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import asyncpg

from oxherd.backup import create, facts, queue, restore, runs, tools, verify
from oxherd.backup.create import Told, quiet
from oxherd.clock import mono
from oxherd.embedded.postgres import quoted
from oxherd.errors import BackupFailed, JobStateError, StoreUnreachable, UsageError
from oxherd.ops.plan import Plan, Step
from oxherd.queue.consumer import Consumer
from oxherd.queue.keys import Keys
from oxherd.settings import Secret, Settings
from oxherd.store.address import FAULTS, Address

LONGEST = 63  # bytes of a name in Postgres
# Settings that are lists of names: in the catalog they are as SQL wants them, others are plain text. As in pg_dump.
LISTS = frozenset(
    {"local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
     "temp_tablespaces", "unix_socket_directories"}
)  # fmt: skip
# What a server says of a collation that it does not have, or of a kind of collation.
LACKING = (
    asyncpg.FeatureNotSupportedError, asyncpg.InvalidParameterValueError, asyncpg.PostgresSyntaxError,
    asyncpg.WrongObjectTypeError,
)  # fmt: skip
GONE = ("08", "57")  # of a connection that ended
NEWER_RUNS = """
    select job_id, name, status, (extract(epoch from finished_at) * 1000)::bigint as finished_at, output::text, error
    from oxherd.runs where queue = $1 and {condition} order by finished_at"""


@dataclass
class Outcome:
    """What restoring came to.

    Attributes:
        database: where the backup is now; kept: what the live one is called now, or None.
        rows: how many were restored.
        seconds: how long it took.
        roles, left_out: see `restore.Filled`.
        unlike: what the database itself has otherwise: a collation the server lacks, settings or rights it refuses.
        finished: jobs that ended after the backup, by the journal that was there before; they are not run again.
        repeated: jobs that were on their way then or since: what they had paid for after the backup is paid again.
        unread: why neither is known: what keeps the live journal from being read; empty where it was.
        interrupted, lost: of the queue, see `queue.Placed`.
    """

    database: str = ""
    kept: str | None = None
    rows: int = 0
    seconds: float = 0.0
    roles: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    repeated: list[dict[str, Any]] = field(default_factory=list)
    unread: str = ""
    interrupted: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """What is restored into.

    Attributes:
        address: the database.
        name: its name, which is typed to confirm.
        there: whether it exists; empty: whether it has no table.
        supabase: whether it is one of Supabase's.
        at: when it was looked at; names of what is made beside it have it.
    """

    address: Address
    name: str
    there: bool
    empty: bool
    supabase: bool
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


async def look(settings: Settings, into: str | None) -> Target:
    """Look at the database that is restored into.

    Parameters:
        settings: the variables.
        into: its whole URL, or its name on DATABASE_URL's server; DATABASE_URL's own when left out.

    Raises:
        StoreUnreachable, UsageError: it can't be.
    """
    if into is not None and "://" in into:
        address = tools.address_of(into)
    else:
        address = runs.database_of(settings) if into is None else _sibling(runs.database_of(settings), into)
    name = _name(address)
    async with _connected(_beside(address)) as connection:
        there = await connection.fetchval("select exists (select from pg_catalog.pg_database where datname = $1)", name)
    if not there:
        return Target(address, name, there=False, empty=True, supabase=False)
    async with _connected(address) as connection:
        server = await create.look(connection)
        try:
            await restore.refuse_full(connection, address.shown)
        except UsageError:
            return Target(address, name, there=True, empty=False, supabase=server.supabase)
    return Target(address, name, there=True, empty=True, supabase=server.supabase)


def plan(backup: restore.Opened, target: Target, outcome: Outcome, *, table: str | None, told: Told = quiet) -> Plan:
    """What will be done.

    Parameters:
        backup: of `restore.unlock`.
        target: of `look`.
        outcome: is filled in while the steps are done.
        table: only this one.
        told: how far it is.

    Raises:
        UsageError: it can't be done there.
    """
    outcome.database, outcome.rows = target.name, backup.manifest.rows
    rows = f"{outcome.rows} rows of {len(backup.manifest.tables)} tables, from {backup.manifest.name}"
    if table is not None:
        restore.refuse_unknown(backup, table)
        outcome.rows = backup.manifest.tables[table]
        step = partial(_fill, backup, target.address, outcome, table, told)
        return Plan((Step("create", f"table {table} in {target.name}", f"{outcome.rows} rows", step),))
    if target.empty:
        steps = (
            []
            if target.there
            else [Step("create", f"database {target.name}", "", partial(_make, target.address, backup, outcome))]
        )
        fill = partial(_fill, backup, target.address, outcome, None, told)
        dress = partial(_dress, target.address, backup.facts["database"], outcome)
        return Plan(
            (
                *steps,
                Step("restore", f"into {target.name}, which is empty", rows, fill),
                Step("set", f"what ALTER DATABASE and GRANT had set for {target.name}", "", dress),
            )
        )
    if target.supabase:
        raise UsageError(
            f"{target.address.shown} is Supabase's and has tables; its database can't be swapped",
            hint="restore into a new project with --into, or go back in time with its own backups (docs/backups.md)",
        )
    return _swap(backup, target, outcome, rows, told)


def _swap(backup: restore.Opened, target: Target, outcome: Outcome, rows: str, told: Told) -> Plan:
    stamp = f"{target.at:%Y%m%d%H%M%S}"
    beside, before = _named(target.name, f"_new_{stamp}"), _named(target.name, f"_before_{stamp}")
    address = _sibling(target.address, beside)
    outcome.kept = before
    return Plan(
        (
            Step("create", f"database {beside}", "beside the live one", partial(_make, address, backup, outcome)),
            Step("restore", f"into {beside}", rows, partial(_fill, backup, address, outcome, None, told)),
            Step(
                "swap", f"{target.name} and {beside}", f"sessions are cut off; what is live now stays as {before}",
                partial(_rename, target.address, target.name, beside, before, outcome),
            ),
        )
    )  # fmt: skip


async def newer(address: Address, queue_name: str, since: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Jobs of a journal that ended after a moment, and those that have not ended.

    Parameters:
        address: the database; one without Oxherd's tables has none.
        queue_name: of this queue.
        since: wall ms.
    """
    async with _connected(address) as connection:
        if await connection.fetchval("select to_regclass('oxherd.runs') is null"):
            return [], []
        at = datetime.fromtimestamp(since / 1000, UTC)
        ended = await connection.fetch(
            NEWER_RUNS.format(condition="status in ('completed', 'failed') and finished_at > $2"), queue_name, at
        )
        open_ = await connection.fetch(
            NEWER_RUNS.format(condition="status not in ('completed', 'failed') and (started_at > $2 or exists "
            "(select from oxherd.steps s where s.run_id = runs.id and s.started_at > $2))"), queue_name, at
        )  # fmt: skip
    return [dict(row) for row in ended], [dict(row) for row in open_]


async def put_queue_back(backup: restore.Opened, settings: Settings, address: Address | None) -> Outcome:
    """Write the backup's queue into the configured one, which has to be empty.

    Parameters:
        backup: of `restore.unlock`.
        settings: where Redis is, and the queue's name.
        address: the database whose journal tells what has ended since; None where there is none.

    Raises:
        UsageError: the queue is not empty, or the backup has none.
        RedisUnreachable, RedisRefused: only a part was written.
    """
    if backup.manifest.queue is None:
        raise UsageError(f"{backup.manifest.name} was taken without the queue")
    began, taken_at = mono(), backup.manifest.taken_at
    ended = [] if address is None else (await newer(address, backup.manifest.queue["name"], taken_at))[0]
    known = {
        row["job_id"].encode(): queue.Ended(
            row["status"], row["finished_at"], (row["output"] or row["error"] or "null").encode()
        )
        for row in ended
    }
    chunks = await asyncio.to_thread(verify.queue_chunks, backup)
    keys = Keys(settings.job_queue_name, settings.job_queue_prefix)
    consumer = Consumer(
        settings.redis_url, keys, worker="restore", name="restore", lock_ms=30_000, holds=lambda *_: True,
        adopt=lambda _: None, on_back=lambda: None,
    )  # fmt: skip
    await consumer.start()
    try:
        placed = await queue.put_back(consumer, chunks, known)
    finally:
        await consumer.stop()
    shown = {job_id.decode(): how for job_id, how in placed.finished.items()}
    return Outcome(
        database=f"queue {keys.queue}", rows=backup.manifest.queue["jobs"], seconds=round(mono() - began, 3),
        finished=[_brief(row) for row in ended if row["job_id"] in shown],
        interrupted=[each.decode() for each in placed.interrupted], lost=[each.decode() for each in placed.lost],
    )  # fmt: skip


async def restore_database(
    backup: restore.Opened, settings: Settings, target: Target, work: Plan, outcome: Outcome, told: Any
) -> Outcome:
    """Do what was planned; and say which jobs the restored journal does not know of."""
    began = mono()
    if target.there and not target.empty:
        try:
            ended, open_ = await newer(target.address, settings.job_queue_name, backup.manifest.taken_at)
        except StoreUnreachable as error:  # damage is what backups are for: it must not keep one from being restored
            outcome.unread = str(error)
        else:
            outcome.finished, outcome.repeated = [_brief(row) for row in ended], [_brief(row) for row in open_]
    await work.run(told)
    outcome.seconds = round(mono() - began, 3)
    return outcome


async def _make(address: Address, backup: restore.Opened, outcome: Outcome) -> None:
    """Make it, sorting as the one that was backed up did where the server can."""
    name, encoding = _name(address), backup.manifest.database["encoding"]
    empty = f"create database {quoted(name)} template template0 encoding {facts.literal(encoding)}"
    async with _connected(_beside(address)) as connection:
        row = backup.facts["database"]["row"]
        try:
            await connection.execute(f"{empty} {_locale(row, connection.get_server_version().major)}")
        except LACKING:
            await connection.execute(empty)
            locale = row.get("datlocale") or row.get("daticulocale") or row["datcollate"]
            outcome.unlike.append(f"the server lacks its collation {locale}, and sorts text in its own way")


def _locale(row: Mapping[str, Any], major: int) -> str:
    """A row of pg_database as options of `create database`."""
    provider, kinds = row.get("datlocprovider", "c"), {"c": "libc", "i": "icu", "b": "builtin"}
    words = [f"lc_collate {facts.literal(row['datcollate'])} lc_ctype {facts.literal(row['datctype'])}"]
    if major >= 15 or provider != "c":  # older ones know no other
        words.append(f"locale_provider {kinds[provider]}")
    if provider != "c":
        words.append(f"{kinds[provider]}_locale {facts.literal(row.get('datlocale') or row['daticulocale'])}")
    if row.get("daticurules"):
        words.append(f"icu_rules {facts.literal(row['daticurules'])}")
    return " ".join(words)


async def _dress(address: Address, wanted: Mapping[str, Any], outcome: Outcome) -> None:
    """Give a database what `facts.database` found at another one; what is refused is told, and no fault."""
    name = quoted(_name(address))
    lines = [("its limit", f"alter database {name} connection limit {int(wanted['row']['datconnlimit'])}")]
    lines += [("its comment", f"comment on database {name} is {facts.literal(wanted['comment'] or '')}")]
    for role, settings in wanted["settings"]:
        whose = f"role {quoted(role)} in database" if role else "database"
        for each in settings:
            setting, _, value = each.partition("=")
            shown = value if setting in LISTS else facts.literal(value)
            lines.append((f"the setting {setting}", f"alter {whose} {name} set {quoted(setting)} to {shown}"))
    if wanted["grants"] is not None:
        lines += [("its rights", f"revoke all on database {name} from public")]
    for role, right, may_grant in wanted["grants"] or ():
        line = f"grant {right} on database {name} to {quoted(role) if role else 'public'}"
        lines += [(f"the right {right} of {role or 'public'}", f"{line} with grant option" if may_grant else line)]
    async with _connected(_beside(address)) as connection:
        if await connection.fetchval("select current_setting('is_superuser') = 'on'"):  # as of all that is in it
            lines.append(("its owner", f"alter database {name} owner to {quoted(wanted['owner'])}"))
        for what, line in lines:
            try:
                await connection.execute(line)
            except asyncpg.PostgresError as error:
                if not error.sqlstate or error.sqlstate.startswith(GONE):
                    raise
                outcome.unlike.append(f"{what} was not set ({error.sqlstate})")


async def _fill(backup: restore.Opened, address: Address, outcome: Outcome, table: str | None, told: Told) -> None:
    filled = await restore.fill(backup, address, table=table, told=told)
    outcome.roles, outcome.left_out = filled.roles, filled.left_out
    if table is None:
        faults = await restore.compare(backup, address, filled)
        if faults:
            raise BackupFailed(
                f"what was restored differs from the backup: {'; '.join(faults[:3])}",
                hint=f"nothing live was touched; look at {address.shown}, then drop it",
            )


async def _rename(address: Address, live: str, beside: str, before: str, outcome: Outcome) -> None:
    async with _connected(_beside(address)) as connection:
        if not await connection.fetchval(f"select pg_catalog.pg_try_advisory_lock({create.LOCK})"):
            raise JobStateError("another restore is being done on this server")
        await _dress(_sibling(address, beside), await facts.database(connection, live), outcome)
        await connection.execute(f"alter database {quoted(live)} with allow_connections false")
        try:
            await connection.execute(
                "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity "
                "where datname in ($1, $2)",
                live, beside,
            )  # fmt: skip
            async with connection.transaction():
                await connection.execute(f"alter database {quoted(live)} rename to {quoted(before)}")
                await connection.execute(f"alter database {quoted(beside)} rename to {quoted(live)}")
        except BaseException:
            await connection.execute(f"alter database {quoted(live)} with allow_connections true")
            raise
        await connection.execute(f"alter database {quoted(before)} with allow_connections true")


@contextlib.asynccontextmanager
async def _connected(address: Address) -> AsyncIterator[Any]:
    connection = await address.connect()
    try:
        yield connection
    except FAULTS as error:
        raise address.unreachable(error) from None
    finally:
        with contextlib.suppress(*FAULTS):
            await connection.close(timeout=5)


def _name(address: Address) -> str:
    return unquote(urlsplit(address.dsn.reveal()).path.lstrip("/"))


def _beside(address: Address) -> Address:
    """A database of the same server from which this one can be made, changed and renamed."""
    return _sibling(address, "template1" if _name(address) == "postgres" else "postgres")


def _sibling(address: Address, database: str) -> Address:
    """Another database of the same server."""
    parts = urlsplit(address.dsn.reveal())
    host = address.shown.rpartition("/")[0]
    return replace(
        address, dsn=Secret(parts._replace(path=f"/{quote(database, safe='')}").geturl()), shown=f"{host}/{database}"
    )


def _named(name: str, ending: str) -> str:
    return name.encode()[: LONGEST - len(ending)].decode(errors="ignore") + ending


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("job_id", "name", "status", "finished_at")}
