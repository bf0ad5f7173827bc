from __future__ import annotations

import base64
import traceback
from dataclasses import dataclass

import pytest

from oxherd.errors import NoCredential, NotAnEnvelope, Tampered, Truncated, UnknownKey, UsageError
from oxherd.settings import Secret
from oxherd.vault.crypto import Key
from oxherd.vault.keyring import KeyRing
from oxherd.vault.vault import LARGEST, Vault

NOW, OLD, OLDER = (Secret(base64.b64encode(bytes([number] * 32)).decode()) for number in (1, 2, 3))


@dataclass
class Row:
    tenant: str
    name: str
    envelope: str
    created_at: int = 0
    updated_at: int = 0

    @property
    def key_id(self) -> str:
        return self.envelope.split(".")[1]


class Rows:
    """Credentials in memory, with a moment before each swap in which a test can do something."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.before_swap = []
        self.swaps = 0

    async def put_credential(self, tenant, name, envelope):
        new = (tenant, name) not in self.rows
        self.rows[tenant, name] = Row(tenant, name, envelope)
        return new

    async def get_credential(self, tenant, name):
        return self.rows[tenant, name].envelope if (tenant, name) in self.rows else None

    async def remove_credential(self, tenant, name):
        return self.rows.pop((tenant, name), None) is not None

    async def list_credentials(self, *, limit, after=None, tenant=None, but_key=None):
        wanted = [
            Row(row.tenant, row.name, row.envelope)
            for place, row in sorted(self.rows.items())
            if (after is None or place > after) and tenant in {None, row.tenant} and row.key_id != but_key
        ]
        return wanted[:limit]

    async def count_credentials(self):
        keys = [row.key_id for row in self.rows.values()]
        return {key: keys.count(key) for key in keys}

    async def swap_credentials(self, swaps):
        if self.before_swap:
            await self.before_swap.pop(0)()
        self.swaps += 1
        done = 0
        for tenant, name, old, new in swaps:
            if (tenant, name) in self.rows and self.rows[tenant, name].envelope == old:
                self.rows[tenant, name].envelope = new
                done += 1
        return done


@pytest.fixture
def rows() -> Rows:
    return Rows()


def vault(rows, key=NOW, *previous) -> Vault:
    return Vault(KeyRing.of(key, previous), rows)


async def test_a_credential_comes_back_as_it_was_put_and_is_a_secret(rows):
    assert await vault(rows).put("acme", "stripe", Secret("sk-live-1"))
    assert not await vault(rows).put("acme", "stripe", Secret("sk-live-2"))
    value = await vault(rows).get("acme", "stripe")
    assert (str(value), value.reveal()) == ("***", "sk-live-2")


async def test_what_is_stored_does_not_hold_the_value(rows):
    await vault(rows).put("acme", "stripe", Secret("sk-live-1"))
    (row,) = rows.rows.values()
    assert row.envelope.startswith("oxherd1.")
    assert "sk-live-1" not in str(row)


async def test_tenants_do_not_see_each_other_s_credentials(rows):
    await vault(rows).put("acme", "stripe", Secret("of-acme"))
    await vault(rows).put(None, "stripe", Secret("of-nobody"))
    assert (await vault(rows).get("acme", "stripe")).reveal() == "of-acme"
    assert (await vault(rows).get(None, "stripe")).reveal() == "of-nobody"
    with pytest.raises(NoCredential, match="tenant 'other' has no credential 'stripe'"):
        await vault(rows).get("other", "stripe")


async def test_an_envelope_that_was_moved_to_another_row_does_not_open(rows):
    await vault(rows).put("acme", "stripe", Secret("of-acme"))
    envelope = rows.rows["acme", "stripe"].envelope
    for tenant, name in (("evil", "stripe"), ("acme", "other"), ("", "stripe")):
        rows.rows[tenant, name] = Row(tenant, name, envelope)
        with pytest.raises(Tampered, match=f"^credential '{name}' of "):
            await vault(rows).get(tenant, name)


async def test_each_fault_keeps_its_class_and_names_the_credential(rows):
    await vault(rows, OLD).put("acme", "stripe", Secret("of-acme"))
    with pytest.raises(UnknownKey, match=f"credential 'stripe' of tenant 'acme': .*{Key.of(OLD).id}.*{Key.of(NOW).id}"):
        await vault(rows).get("acme", "stripe")
    rows.rows["acme", "stripe"].envelope = rows.rows["acme", "stripe"].envelope[:-3]
    with pytest.raises(Truncated, match="credential 'stripe' of tenant 'acme'"):
        await vault(rows, OLD).get("acme", "stripe")


async def test_without_a_store_that_is_what_is_said():
    with pytest.raises(NoCredential, match="there is none") as caught:
        await Vault(KeyRing.of(NOW), None).get("acme", "stripe")
    assert "--no-store" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("n" * 201, "x"), ("a\nb", "x"), ("a", ""), ("a", "x" * (LARGEST + 1))]
)
async def test_a_name_or_value_that_can_not_be_kept_is_refused(rows, name, value):
    with pytest.raises(UsageError, match=r"a credential's (name|value) has 1 to"):
        await vault(rows).put("acme", name, Secret(value))
    assert rows.rows == {}


async def test_no_traceback_shows_a_value(rows):
    await vault(rows).put("acme", "stripe", Secret("sk-live-1"))
    rows.rows["acme", "stripe"].envelope = "oxherd2.x"
    try:
        await vault(rows).get("acme", "stripe")
    except NotAnEnvelope as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "oxherd2" in shown
    assert "sk-live-1" not in shown


async def test_all_credentials_are_listed_page_by_page(rows, monkeypatch):
    monkeypatch.setattr("oxherd.vault.vault.PAGE", 3)
    for number in range(10):
        await vault(rows).put("acme" if number < 7 else None, f"n{number}", Secret("x"))
    assert len([row async for row in vault(rows).list()]) == 10
    assert [row.name async for row in vault(rows).list("acme")] == [f"n{number}" for number in range(7)]


class TestARewrap:
    async def fill(self, rows, count=25, key=OLD):
        for number in range(count):
            await vault(rows, key).put("acme", f"n{number:02}", Secret(f"value-{number}"))

    async def test_seals_everything_with_the_active_key(self, rows):
        await self.fill(rows)
        await self.fill(rows, 3, key=NOW)
        told = []
        result = await vault(rows, NOW, OLD).rewrap(lambda *progress: told.append(progress), page=10)
        assert (result.done, result.left, result.faults) == (22, 0, [])
        assert told == [(10, 22), (20, 22), (22, 22)]
        assert await rows.count_credentials() == {Key.of(NOW).id: 25}
        assert (await vault(rows).get("acme", "n07")).reveal() == "value-7"

    async def test_with_nothing_to_do_does_nothing(self, rows):
        await self.fill(rows, key=NOW)
        result = await vault(rows).rewrap(lambda *_: None)
        assert (result.done, result.left, rows.swaps) == (0, 0, 0)

    async def test_goes_on_where_another_was_interrupted(self, rows):
        await self.fill(rows)

        def interrupt(done, total):
            if done == 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await vault(rows, NOW, OLD).rewrap(interrupt, page=10)
        told = []
        result = await vault(rows, NOW, OLD).rewrap(lambda *progress: told.append(progress), page=10)
        assert (result.done, result.left, told) == (5, 0, [(5, 5)])

    @pytest.mark.parametrize("key", [NOW, OLD])
    async def test_never_undoes_a_put_that_happens_meanwhile(self, rows, key):
        await self.fill(rows)

        async def put() -> None:
            await vault(rows, key).put("acme", "n03", Secret("put meanwhile"))
            await vault(rows, key).put("aaaa", "new", Secret("new meanwhile"))
            await vault(rows, key).remove("acme", "n04")

        rows.before_swap = [put]
        result = await vault(rows, NOW, OLD).rewrap(lambda *_: None, page=10)
        assert (result.left, await rows.count_credentials()) == (0, {Key.of(NOW).id: 25})
        assert (await vault(rows).get("acme", "n03")).reveal() == "put meanwhile"
        assert (await vault(rows).get("aaaa", "new")).reveal() == "new meanwhile"
        with pytest.raises(NoCredential):
            await vault(rows).get("acme", "n04")

    async def test_reports_what_it_can_not_open_and_does_the_rest(self, rows):
        await self.fill(rows, 3)
        await vault(rows, OLDER).put("acme", "n01", Secret("lost"))
        rows.rows["acme", "n02"].envelope = rows.rows["acme", "n02"].envelope[:-3]
        result = await vault(rows, NOW, OLD).rewrap(lambda *_: None, page=2)
        assert (result.done, result.left) == (1, 2)
        assert [(tenant, name) for tenant, name, _ in result.faults] == [("acme", "n01"), ("acme", "n02")]
        assert Key.of(OLDER).id in result.faults[0][2]
        assert "truncated" in result.faults[1][2]

    async def test_without_a_key_is_refused(self, rows):
        await self.fill(rows)
        with pytest.raises(UnknownKey):
            await vault(rows, None).rewrap(lambda *_: None)
