"""The store over a Supabase project's REST interface (PostgREST), for where no direct connection can be had.

Schema `oxherd` must be among the project's exposed schemas; docs/database.md has the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import orjson

from oxherd.errors import OxherdError, StoreRefused, StoreUnreachable, UsageError
from oxherd.settings import Secret
from oxherd.store import KeptAgent
from oxherd.store.address import is_row_fault
from oxherd.store.credentials import Credentials
from oxherd.store.journal import JournalStore
from oxherd.store.listing import Listing
from oxherd.store.migrate import MIGRATE, require_version
from oxherd.store.rows import shown
from oxherd.store.spend import Spending
from oxherd.store.timeline import Timeline
from oxherd.store.waits import Waits

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 15.0  # above the 8 s after which the server itself gives a statement up
SCHEMA = "oxherd"

WHOLE = (
    "id,queue,job_id,name,tenant,status,fence,attempt,attempts,worker,error,kind,enqueued_at,started_at,finished_at,"
    "model_calls,input_tokens,output_tokens,cost_usd::text,input,output::text,stack"
)

KEY = "check SUPABASE_SERVICE_ROLE_KEY: it must be this project's service_role or secret key"

# PostgREST's code or the HTTP status → what to do about it, where waiting alone won't help.
REMEDIES: Mapping[str, str] = {
    "PGRST106": "add `oxherd` to the exposed schemas (Project Settings → Data API), see docs/database.md",
    "PGRST202": MIGRATE,
    "PGRST205": MIGRATE,
    "42P01": MIGRATE,
    "42501": "use the service_role or a secret key; docs/database.md lists the grants it needs",
    "401": KEY,
    "PGRST301": KEY,
    "404": "check SUPABASE_URL: it must be https://<project>.supabase.co",
}
NOT_SET_UP = {"PGRST106", "PGRST205", "42P01", "42501"}


class _NotSetUp(StoreUnreachable):
    """It answers, but the schema or the grants are missing. A running worker waits for them as in any outage."""


class SupabaseStore(JournalStore, Credentials, Spending, Timeline, Listing, Waits):
    """Runs and steps in Supabase, by HTTP.

    Parameters:
        url: `https://<project>.supabase.co`.
        key: the service_role key (a JWT) or a secret key (`sb_secret_…`), text or Secret.
        flush_ms: how long to let a batch grow after its first write, ms.
    """

    kind = "supabase"

    def __init__(self, url: str, key: str, *, flush_ms: float = 0) -> None:
        super().__init__(flush_ms=flush_ms)
        self._base = f"{url.rstrip('/')}/rest/v1"
        self._host = urlsplit(url).netloc.rpartition("@")[2]
        self._key = key if isinstance(key, Secret) else Secret(key)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Connect and check the schema.

        Raises:
            StoreUnreachable: naming the host, never the key.
            UsageError: migrations or grants are missing, or the schema is not exposed.
        """
        import aiohttp  # here: it costs 0.2 s, which a worker on DATABASE_URL need not pay

        self._session = aiohttp.ClientSession(
            headers=_login(self._key) | {"Accept-Profile": SCHEMA, "Content-Profile": SCHEMA},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=CONNECT_SECONDS),
        )
        try:
            require_version(await self._schema_version())
        except _NotSetUp as error:
            await self.close()
            raise UsageError(error.message, hint=error.hint) from None
        except BaseException:
            await self.close()
            raise
        self._flusher.start()

    async def write_batch(self, runs: bytes | None, steps: bytes | None) -> bytes:
        """Write runs and steps in one transaction. Raises StoreRefused or StoreUnreachable."""
        return await self._call("write_batch", b'{"runs":%b,"steps":%b}' % (runs or b"null", steps or b"null"))

    async def begin_run(self, run: bytes) -> bytes:
        """Claim a run. Raises StoreRefused or StoreUnreachable."""
        return await self._call("begin_run", b'{"run":%b}' % run)

    async def agent(self, name: str, version: int | None = None) -> KeptAgent | None:
        """An agent in the `agents` table, or one of its versions, or None. Waits while the database is away."""
        table, filters = "agents", [("name", f"eq.{name}")]
        if version is not None:
            table, filters = "agent_versions", [*filters, ("version", f"eq.{version}")]
        rows = await self._outage.patiently(lambda: self._select(table, ("select", "version,definition"), *filters))
        return KeptAgent(**rows[0]) if rows else None

    async def ask_credentials(self, function: str, request: bytes) -> bytes:
        """Call one of the functions for credentials. Raises StoreRefused or StoreUnreachable."""
        return await self._call(function, b'{"request":%b}' % request)

    async def ask_spend(self, function: str, request: bytes) -> bytes:
        """Call one of the functions for the ledger. Raises StoreRefused or StoreUnreachable."""
        return await self._call(function, b'{"request":%b}' % request)

    async def ask_timeline(self, function: str, request: bytes) -> bytes:
        """Call one of the functions for timelines. Raises StoreRefused or StoreUnreachable."""
        return await self._call(function, b'{"request":%b}' % request)

    async def ask_listing(self, function: str, request: bytes) -> bytes:
        """Call one of the functions for lists. Raises StoreRefused or StoreUnreachable."""
        return await self._call(function, b'{"request":%b}' % request)

    async def ask_waits(self, function: str, request: bytes) -> bytes:
        """Call one of the functions for questions. Raises StoreRefused or StoreUnreachable."""
        return await self._call(function, b'{"request":%b}' % request)

    async def run(self, run_id: str) -> dict[str, object] | None:
        """One run as a row, for people, or None. Raises StoreUnreachable."""
        rows = await self._select("runs", ("select", WHOLE), ("id", f"eq.{run_id}"))
        return shown(rows[0]) if rows else None

    async def _schema_version(self) -> int:
        rows = await self._select("migrations", ("select", "number"), ("order", "number.desc"), ("limit", "1"))
        return cast(int, rows[0]["number"]) if rows else 0

    async def _select(self, table: str, *parameters: tuple[str, str]) -> list[dict[str, Any]]:
        answer = await self._request("GET", f"/{table}", params=parameters)
        return cast(list[dict[str, Any]], orjson.loads(answer))

    async def _call(self, function: str, arguments: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        return await self._request("POST", f"/rpc/{function}", data=arguments, headers=headers)

    async def _request(self, method: str, path: str, **options: Any) -> bytes:
        if self._session is None:
            raise StoreUnreachable("the store is not started")
        import aiohttp

        url = self._base + path
        try:
            async with self._session.request(method, url, allow_redirects=False, **options) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise StoreUnreachable(
                f"Supabase at {self._host}: {_reason(error)}",
                hint="check SUPABASE_URL and that the project is not paused",
            ) from None
        if response.status != 200:
            raise self._fault(response.status, body)
        return body

    def _fault(self, status: int, body: bytes) -> OxherdError:
        code, message = _said(status, body)
        if is_row_fault(code) or code == "PGRST102" or status == 413:
            return StoreRefused(f"the database refused a row: {message} ({code or status})")
        hint = REMEDIES.get(code) or REMEDIES.get(str(status)) or "the project's logs may say more"
        kind = _NotSetUp if code in NOT_SET_UP else StoreUnreachable
        return kind(f"Supabase at {self._host}: {message} ({code or status})", hint=hint)

    async def close(self) -> None:
        """Let go of every connection. Twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _login(key: Secret) -> dict[str, str]:
    """The headers that carry the key. New keys are no JWTs: as a bearer token PostgREST would refuse them."""
    value = key.reveal()
    legacy = {"Authorization": f"Bearer {value}"} if value.startswith("eyJ") else {}
    return {"apikey": value, **legacy}


def _said(status: int, body: bytes) -> tuple[str, str]:
    """Code and message of an error's body: PostgREST's has both, the gateway's only a message, a proxy's is HTML."""
    try:
        answer = orjson.loads(body)
        return str(answer.get("code") or ""), str(answer.get("message") or f"HTTP {status}")
    except (ValueError, AttributeError):
        return "", f"HTTP {status}"


def _reason(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
