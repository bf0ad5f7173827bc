"""The store on a Postgres that `DATABASE_URL` names: direct, or through a session or transaction pooler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

import asyncpg
import orjson

from oxherd.errors import StoreUnreachable, UsageError
from oxherd.store import KeptAgent
from oxherd.store.address import CONNECT_SECONDS, FAULTS, parse
from oxherd.store.credentials import Credentials
from oxherd.store.journal import JournalStore
from oxherd.store.listing import Listing
from oxherd.store.migrate import require_version
from oxherd.store.rows import shown
from oxherd.store.spend import Spending
from oxherd.store.statements import statement
from oxherd.store.timeline import Timeline
from oxherd.store.waits import Waits

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

T = TypeVar("T")

STATEMENT_SECONDS = 15.0
CLOSE_SECONDS = 2.0
MOST_CONNECTIONS = 4  # one writes batches, the others claim runs and read

NO_SCHEMA = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)


class PostgresStore(JournalStore, Credentials, Spending, Timeline, Listing, Waits):
    """Runs and steps in Postgres, by asyncpg.

    Parameters:
        url: `postgresql://…`, text or Secret, with TLS as libpq writes it (`sslmode=verify-full&sslrootcert=…`). Port
            6543, or `pgbouncer=true`, means a transaction pooler.
        flush_ms: how long to let a batch grow after its first write, ms.

    Raises:
        UsageError: the URL's shape is wrong.
    """

    kind = "postgres"

    def __init__(self, url: str, *, flush_ms: float = 0) -> None:
        super().__init__(flush_ms=flush_ms)
        self._address = parse(url)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def start(self) -> None:
        """Connect and check the schema.

        Raises:
            StoreUnreachable: naming the host, never the password.
            UsageError: migrations are missing.
        """
        address = self._address
        try:
            self._pool = await asyncpg.create_pool(
                address.dsn.reveal(),
                min_size=1,
                max_size=MOST_CONNECTIONS,
                timeout=CONNECT_SECONDS,
                statement_cache_size=address.statement_cache_size,
                server_settings={"application_name": "oxherd"},
                reset=_leave_as_is,
            )
        except (*FAULTS, ValueError) as error:
            raise address.refused(error) from None
        try:
            require_version(await self._schema_version())
        except BaseException:
            await self.close()
            raise
        self._flusher.start()

    async def write_batch(self, runs: bytes | None, steps: bytes | None) -> str:
        """Write runs and steps in one transaction. Raises StoreRefused or StoreUnreachable."""
        arguments = (rows and rows.decode() for rows in (runs, steps))
        return cast(str, await self._value("write_batch", *arguments))

    async def begin_run(self, run: bytes) -> str:
        """Claim a run. Raises StoreRefused or StoreUnreachable."""
        return cast(str, await self._value("begin_run", run.decode()))

    async def agent(self, name: str, version: int | None = None) -> KeptAgent | None:
        """An agent in the `agents` table, or one of its versions, or None. Waits while the database is away."""
        question = ("agent", name) if version is None else ("agent_version", name, version)
        rows = await self._outage.patiently(lambda: self._rows(*question))
        return KeptAgent(rows[0]["version"], orjson.loads(rows[0]["definition"])) if rows else None

    async def ask_credentials(self, function: str, request: bytes) -> str:
        """Call one of the functions for credentials. Raises StoreRefused or StoreUnreachable."""
        return cast(str, await self._value(function, request.decode()))

    async def ask_spend(self, function: str, request: bytes) -> str:
        """Call one of the functions for the ledger. Raises StoreRefused or StoreUnreachable."""
        return cast(str, await self._value(function, request.decode()))

    async def ask_timeline(self, function: str, request: bytes) -> str:
        """Call one of the functions for timelines. Raises StoreRefused or StoreUnreachable."""
        return cast(str, await self._value(function, request.decode()))

    async def ask_listing(self, function: str, request: bytes) -> str:
        """Call one of the functions for lists. Raises StoreRefused or StoreUnreachable."""
        return cast(str, await self._value(function, request.decode()))

    async def ask_waits(self, function: str, request: bytes) -> str:
        """Call one of the functions for questions. Raises StoreRefused or StoreUnreachable."""
        return cast(str, await self._value(function, request.decode()))

    async def run(self, run_id: str) -> dict[str, object] | None:
        """One run as a row, for people, or None. Raises StoreUnreachable."""
        rows = await self._rows("run", run_id)
        return shown(dict(rows[0])) if rows else None

    async def _schema_version(self) -> int:
        try:
            async with self._connection() as connection, self._transaction(connection):
                return cast(int, await connection.fetchval(statement("schema_version"), timeout=STATEMENT_SECONDS))
        except NO_SCHEMA:
            return 0
        except asyncpg.InsufficientPrivilegeError as error:
            refused = self._address.unreachable(error)
            raise UsageError(refused.message, hint=refused.hint) from None
        except FAULTS as error:
            raise self._address.unreachable(error) from None

    async def _value(self, name: str, *arguments: Any) -> Any:
        return await self._ask(lambda connection: connection.fetchval(
            statement(name), *arguments, timeout=STATEMENT_SECONDS
        ))  # fmt: skip

    async def _rows(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        return await self._ask(lambda connection: connection.fetch(
            statement(name), *arguments, timeout=STATEMENT_SECONDS
        ))  # fmt: skip

    async def _ask(self, question: Callable[[PoolConnectionProxy[asyncpg.Record]], Awaitable[T]]) -> T:
        try:
            async with self._connection() as connection, self._transaction(connection):
                return await question(connection)
        except FAULTS as error:
            raise self._address.fault(error) from None

    def _transaction(self, connection: PoolConnectionProxy[asyncpg.Record]) -> Any:
        """Through a transaction pooler, what holds the preparing and the running of a statement on one session."""
        return connection.transaction() if self._address.pooled else nullcontext()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy[asyncpg.Record]]:
        if self._pool is None:
            raise StoreUnreachable("the store is not started")
        connection = await self._pool.acquire(timeout=CONNECT_SECONDS)
        try:
            yield connection
        except asyncpg.PostgresError:
            raise  # an answer: the connection is as good as before
        except BaseException:
            connection.terminate()  # a half-done exchange: waiting for its end could take for ever
            raise
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        """Let go of every connection. Twice is fine."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), CLOSE_SECONDS)
        except TimeoutError:
            pool.terminate()


async def _leave_as_is(_: object) -> None:
    """Instead of asyncpg's reset between uses, which costs a round trip: no statement of ours changes the session."""
