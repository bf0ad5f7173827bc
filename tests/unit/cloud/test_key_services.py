"""The clients of services that make keys, and that their doubles refuse what the published schemas refuse."""

from __future__ import annotations

import pytest

from fakes import key_services
from fakes.key_services import REF, FakeOpenRouterKeys, FakeSupabaseApi, FakeUpstash
from oxherd.cloud import rest
from oxherd.cloud.openrouter_admin import OpenRouterAdmin
from oxherd.cloud.supabase_admin import SupabaseAdmin
from oxherd.cloud.upstash import Upstash
from oxherd.errors import ServiceRefused, ServiceUnreachable
from oxherd.settings import Secret

pytestmark = pytest.mark.skipif(not key_services.OPENROUTER.path.exists(), reason=key_services.OPENROUTER.absent)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr(rest.asyncio, "sleep", at_once)


async def test_all_pages_of_keys_are_read():
    async with FakeOpenRouterKeys() as fake:
        for number in range(201):
            fake.make(f"key {number}")
        async with OpenRouterAdmin(fake.url, Secret(fake.management_key)) as api:
            assert len(await api.keys()) == 201


async def test_a_busy_service_is_asked_again_and_a_lost_write_is_not_repeated():
    async with FakeOpenRouterKeys() as fake, OpenRouterAdmin(fake.url, Secret(fake.management_key)) as api:
        fake.next_answers = [(500, {}), (429, {})]
        assert await api.keys() == []
        fake.next_answers = [(500, {"error": {"message": "it may have been made"}})]
        with pytest.raises(ServiceUnreachable, match="POST /keys: HTTP 500"):
            await api.create_key({"name": "x"})
        assert fake.rows == {}


async def test_the_schemas_refuse_what_the_services_would():
    async with FakeOpenRouterKeys() as fake, OpenRouterAdmin(fake.url, Secret(fake.management_key)) as api:
        with pytest.raises(ServiceRefused, match="limit_reset"):
            await api.create_key({"name": "x", "limit_reset": "hourly"})
        with pytest.raises(ServiceRefused, match="budget: is not known"):
            await api.create_key({"name": "x", "budget": 1})
    async with FakeSupabaseApi() as fake, SupabaseAdmin(fake.url, Secret(fake.token), REF) as api:
        with pytest.raises(ServiceRefused, match="does not match"):
            await api.create_secret_key("with-a-hyphen", "")
        with pytest.raises(ServiceRefused, match="HTTP 400"):
            await api.set_database_password(Secret("abc"))
        fake.legacy = None
        assert await api.legacy_enabled() is False  # the endpoint is about to go
        assert await api.delete_key("00000000-0000-0000-0000-000000000000", reason="gone") is False


async def test_a_wrong_login_is_told_with_what_to_check():
    async with FakeSupabaseApi() as fake, SupabaseAdmin(fake.url, Secret("sbp_wrong"), REF) as api:
        with pytest.raises(ServiceRefused, match="HTTP 401: Unauthorized") as refused:
            await api.api_keys()
        assert (refused.value.status, "SUPABASE_ACCESS_TOKEN" in refused.value.hint) == (401, True)
    async with FakeUpstash("x", "p", None) as fake, Upstash(fake.url, "ops@example.com", Secret("wrong")) as api:
        with pytest.raises(ServiceRefused, match="HTTP 401: Unauthorized"):
            await api.databases()
