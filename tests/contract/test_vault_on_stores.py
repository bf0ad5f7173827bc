"""The vault on both stores: a rewrap while others put, and a read while the database is away."""

from __future__ import annotations

import asyncio
import base64
import random

import asyncpg
import pytest
from test_store import KINDS, opened, set_up

from oxherd.settings import Secret
from oxherd.vault.crypto import Key
from oxherd.vault.keyring import KeyRing
from oxherd.vault.vault import Vault

NOW, OLD = (Secret(base64.b64encode(bytes([number] * 32)).decode()) for number in (1, 2))


@pytest.fixture
async def url(database_url: str) -> str:
    return await set_up(database_url)


@pytest.mark.parametrize("kind", KINDS)
async def test_two_rewraps_at_once_with_puts_and_removals_between_them_lose_and_undo_nothing(kind: str, url: str):
    async with opened(kind, url) as store:
        before, after = Vault(KeyRing.of(OLD), store), Vault(KeyRing.of(NOW, [OLD]), store)
        wanted = {f"n{number:03}": f"first {number}" for number in range(120)}
        await asyncio.gather(*(before.put("acme", name, Secret(value)) for name, value in wanted.items()))

        async def others(vault: Vault, names: list[str]) -> None:
            for name in names:
                wanted[name] = f"put by {vault.active_key} {name}"
                await vault.put("acme", name, Secret(wanted[name]))

        names = random.Random(1).sample(sorted(wanted), 60)
        rewraps = (after.rewrap(lambda *_: None, page=7) for _ in range(2))
        puts = (others(before, names[:20]), others(after, names[20:40]), before.put("beta", "new", Secret("new")))
        await asyncio.gather(*rewraps, *puts, *(after.remove("acme", name) for name in names[40:]))
        result = await after.rewrap(lambda *_: None)  # for what was put with the old key last of all

        assert (result.left, result.faults) == (0, [])
        assert set(await store.count_credentials()) == {Key.of(NOW).id}
        kept = {row.name: (await Vault(KeyRing.of(NOW), store).get("acme", row.name)).reveal()
                async for row in after.list("acme")}  # fmt: skip
        assert kept == {name: value for name, value in wanted.items() if name not in names[40:]}


@pytest.mark.parametrize("kind", KINDS)
async def test_reading_a_credential_waits_while_the_database_is_away(kind: str, url: str):
    async with opened(kind, url) as store:
        vault = Vault(KeyRing.of(NOW), store)
        await vault.put("acme", "stripe", Secret("sk-live-1"))
        admin = await asyncpg.connect(url)
        await admin.execute("alter table oxherd.credentials rename to away")
        reading = asyncio.create_task(vault.get("acme", "stripe"))
        done, _ = await asyncio.wait([reading], timeout=0.3)
        assert not done
        await admin.execute("alter table oxherd.away rename to credentials")
        assert (await asyncio.wait_for(reading, 10)).reveal() == "sk-live-1"
        await admin.close()
