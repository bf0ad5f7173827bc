"""Whether the services that the variables name are there and let us in. Each is asked, none is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from oxherd.app import build_store, build_vault
from oxherd.clock import mono
from oxherd.errors import OxherdError, RedisRefused, VaultError
from oxherd.ops.verify import Check, Outcome
from oxherd.queue.connection import Link
from oxherd.settings import Settings

PATIENCE = 10.0  # seconds for one answer
LOW_CREDIT = 1.0  # US dollars


async def probe(settings: Settings) -> list[Check]:
    """Ask all of them, one after the other."""
    probes: tuple[tuple[str, Callable[[Settings], Awaitable[Check]]], ...] = (
        ("redis", _redis), ("database", _database), ("supabase", _supabase), ("encryption key", _canary),
        ("openrouter", _openrouter),
    )  # fmt: skip
    found = []
    for name, ask in probes:
        begun = mono()
        try:
            check = await ask(settings)
        except OxherdError as error:
            check = _said("failed", error.message, error.hint)
        found.append(Check(name, check.outcome, check.found, check.fix, round(mono() - begun, 3)))
    return found


def _said(outcome: Outcome, found: str, fix: str = "") -> Check:
    return Check("", outcome, found, fix)


async def _redis(settings: Settings) -> Check:
    if getattr(settings, "redis_url", None) is None:
        return _said("skipped", "REDIS_URL is not set")
    link = Link(settings.redis_url, "cli")
    try:
        await link.start()
        await link.call(b"PING")
        info = (await link.call(b"INFO", b"server")).decode("utf-8", "replace")
        lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        version = (
            f"Valkey {lines['valkey_version']}" if "valkey_version" in lines else f"Redis {lines.get('redis_version')}"
        )
        return _policy(version, await _setting(link, b"maxmemory-policy"))
    finally:
        await link.stop()


async def _setting(link: Link, name: bytes) -> str | None:
    try:
        reply = await link.call(b"CONFIG", b"GET", name)
    except RedisRefused:  # hosted Redis may not tell
        return None
    return reply[1].decode() if reply else None


def _policy(version: str, policy: str | None) -> Check:
    if policy is None:
        return _said(
            "passed", f"{version}; its eviction policy is not told", "look in its console: it must be noeviction"
        )
    if policy != "noeviction":
        return _said(
            "failed", f"{version}, maxmemory-policy {policy}: jobs vanish when memory is full", "set noeviction"
        )
    return _said("passed", f"{version}, noeviction")


async def _database(settings: Settings) -> Check:
    store = build_store(settings)
    if store is None:
        return _said("skipped", "neither DATABASE_URL nor SUPABASE_URL is set")
    try:
        await store.start()  # checks the schema, too
    finally:
        await store.stop()
    return _said("passed", f"{store.kind} answers, and is migrated")


async def _canary(settings: Settings) -> Check:
    """Open what is stored: any credential that a key sealed proves that the right one is configured."""
    store = build_store(settings)
    if settings.encryption_key is None or store is None:
        return _said("skipped", "ENCRYPTION_KEY or a database is not set")
    try:
        await store.start()
        rows = await store.list_credentials(limit=1)
        if not rows:
            return _said("skipped", "no credential is stored yet, so there is nothing to open")
        try:
            await build_vault(settings, store).get(rows[0].tenant or None, rows[0].name)
        except VaultError as error:
            return _said(
                "failed", f"it does not open a stored credential: {error}", error.hint or "put the old key back"
            )
    finally:
        await store.stop()
    return _said("passed", "it opens a stored credential")


async def _supabase(settings: Settings) -> Check:
    url, key = settings.supabase_url, settings.supabase_service_role_key
    if url is None or key is None:
        return _said("skipped", "SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are not set")
    # Only a service key lists users; what a key may is asked, not read from it: new keys say nothing of themselves.
    headers = {"apikey": key.reveal()} | (
        {} if key.reveal().startswith("sb_") else {"authorization": f"Bearer {key.reveal()}"}
    )
    status, _ = await _get(f"{url}/rest/v1/", headers, "Supabase")
    if status in {401, 403}:
        return _said("failed", f"REST refuses the key with HTTP {status}", "copy the service-role or secret key again")
    admin, _ = await _get(f"{url}/auth/v1/admin/users?per_page=1", headers, "Supabase")
    if admin == 200:
        return _said("passed", f"REST answers with HTTP {status}; the key acts as service_role")
    return _said(
        "failed", f"REST answers, but the key is no service key (HTTP {admin})", "use the service-role or secret key"
    )


async def _openrouter(settings: Settings) -> Check:
    key = settings.openrouter_api_key
    if key is None:
        return _said("skipped", "OPENROUTER_API_KEY is not set")
    status, said = await _get(
        f"{settings.openrouter_base_url}/key", {"authorization": f"Bearer {key.reveal()}"}, "OpenRouter"
    )
    if status in {401, 403}:
        return _said("failed", f"the key is refused with HTTP {status}", "make a new one at https://openrouter.ai/keys")
    data = said.get("data")
    if status != 200 or not isinstance(data, dict):
        return _said("skipped", f"HTTP {status}: the service at OPENROUTER_BASE_URL does not tell of keys")
    if data.get("is_management_key"):
        return _said("failed", "it is a management key, which can't call models", "use an ordinary key")
    left = data.get("limit_remaining")
    if left is not None and left < LOW_CREDIT:
        return _said("warned", f"valid, with ${left:.2f} left of its limit", "raise the key's limit")
    return _said("passed", "valid, " + ("without a limit of its own" if left is None else f"with ${left:.2f} left"))


async def _get(url: str, headers: dict[str, str], who: str) -> tuple[int, dict[str, Any]]:
    import aiohttp
    import orjson

    from oxherd.errors import ServiceUnreachable

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session,
            session.get(url, headers={"user-agent": "oxherd", **headers}, allow_redirects=False) as response,
        ):
            text = await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ServiceUnreachable(f"{who} does not answer: {type(error).__name__}") from None
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        said = {}
    return status, said if isinstance(said, dict) else {}
