"""A database's address: how to connect, how to name it without its password, and what its errors mean."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

import asyncpg

from oxherd.errors import OxherdError, StoreRefused, StoreUnreachable, UsageError
from oxherd.settings import Secret

CONNECT_SECONDS = 10.0
TRANSACTION_POOLER_PORT = 6543

# libpq's and other clients' parameters that asyncpg would pass on to the server, which refuses them.
FOREIGN_PARAMETERS = {
    *("channel_binding", "connect_timeout", "gssencmode", "sslcompression", "tcp_user_timeout"),
    *("keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
    *("connection_limit", "pgbouncer", "pool_timeout", "schema", "supa"),
}

# Faults of the rows themselves: bad data, a broken constraint, a value past a limit. Everything else may pass.
ROW_FAULTS = ("22", "23", "54")


def is_row_fault(sqlstate: str) -> bool:
    """Whether an SQLSTATE blames what was written rather than the state of the database."""
    return sqlstate.startswith(ROW_FAULTS)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Postgres is and how to log in, parsed from `DATABASE_URL`.

    Attributes:
        dsn: the URL, cleaned for asyncpg.
        shown: host, port and database, for logs and errors.
        pooled: whether a transaction pooler answers there: no prepared statements, no session.
    """

    dsn: Secret
    shown: str
    pooled: bool

    @property
    def statement_cache_size(self) -> int:
        """What asyncpg calls it: a transaction pooler hands each statement to another session."""
        return 0 if self.pooled else 100

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """Open one connection.

        Raises:
            StoreUnreachable: naming the host and what to check.
            UsageError: the URL has a part that makes no sense, such as an unknown sslmode.
        """
        try:
            return await asyncpg.connect(
                self.dsn.reveal(), timeout=CONNECT_SECONDS, statement_cache_size=self.statement_cache_size
            )
        except (*FAULTS, ValueError) as error:
            raise self.refused(error) from None

    def refused(self, error: BaseException) -> OxherdError:
        """What a failure to connect means: UsageError where the URL makes no sense, else StoreUnreachable."""
        if isinstance(error, ValueError):
            return UsageError(f"DATABASE_URL can't be used: {error}", hint="docs/database.md has examples")
        return self.unreachable(error)

    def unreachable(self, error: BaseException) -> StoreUnreachable:
        """A failure to reach the database in a sentence, with what to check."""
        return StoreUnreachable(f"Postgres at {self.shown}: {_reason(error)}", hint=self._hint(error))

    def fault(self, error: BaseException) -> OxherdError:
        """What a failed statement means: StoreRefused where a row is at fault, else StoreUnreachable."""
        if isinstance(error, asyncpg.PostgresError) and is_row_fault(error.sqlstate or ""):
            return StoreRefused(f"the database refused a row: {_reason(error)}")
        return self.unreachable(error)

    def _hint(self, error: BaseException) -> str:
        for kind, hint in HINTS:
            if isinstance(error, kind):
                return hint
        if self.shown.startswith("db.") and ".supabase.co" in self.shown:
            return "Supabase's direct address is IPv6 only: use the session pooler's, see docs/database.md"
        return "check that it is running and that DATABASE_URL names the right host, port, sslmode and certificates"


HINTS: tuple[tuple[type[asyncpg.PostgresError], str], ...] = (
    (asyncpg.InvalidAuthorizationSpecificationError, "check user and password in DATABASE_URL"),
    (asyncpg.InvalidCatalogNameError, "check the database's name at the end of DATABASE_URL"),
    (asyncpg.TooManyConnectionsError, "raise max_connections, or connect through a pooler"),
    (asyncpg.InsufficientPrivilegeError, "log in as the tables' owner or grant what docs/database.md lists"),
    (asyncpg.PostgresError, "the server's own log may say more"),
)

FAULTS = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, TimeoutError, asyncio.IncompleteReadError),
)


def parse(url: str) -> Address:
    """Parse a `postgresql://` URL. Special characters in the password may be left as they are, except `%`.

    Parameters:
        url: text or Secret, such as `postgresql://user:p@ss/word@host:5432/app?sslmode=require`.

    Raises:
        UsageError: its shape is wrong; the message has no part of it.
    """
    text = url.reveal() if isinstance(url, Secret) else url
    scheme, mark, rest = text.partition("://")
    if not mark or scheme not in {"postgres", "postgresql"}:
        raise UsageError("the database's URL must begin with postgresql://")
    userinfo, at, address = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    place, _, query = address.partition("?")
    hosts, _, database = place.partition("/")
    parameters = dict(parse_qsl(query))
    kept = {name: value for name, value in parameters.items() if name not in FOREIGN_PARAMETERS}
    user, colon, password = userinfo.partition(":")
    login = f"{_quoted(user)}{colon}{_quoted(password)}{at}"
    pooled = f":{TRANSACTION_POOLER_PORT}" in hosts or parameters.get("pgbouncer") == "true"
    return Address(
        dsn=Secret(f"postgresql://{login}{hosts}/{database}?{urlencode(kept)}".rstrip("?")),
        shown=f"{hosts or parameters.get('host', 'localhost')}/{unquote(database)}",
        pooled=pooled,
    )


def _quoted(text: str) -> str:
    return quote(unquote(text), safe="")


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncpg.PostgresError):
        return f"{error.message} ({error.sqlstate})"  # not str(error): its details quote rows
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, asyncpg.InternalClientError):
        return "the server ended the session"  # asyncpg noticed in the middle and speaks of its own states
    return str(error) or type(error).__name__
