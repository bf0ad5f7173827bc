from __future__ import annotations

import base64
import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxherd.codec import decode, encode
from oxherd.errors import PayloadInvalid
from oxherd.settings import Secret
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import open_fields, seal_field

RING = KeyRing.of(Secret(base64.b64encode(bytes(range(32))).decode()))
OTHER = KeyRing.of(Secret(base64.b64encode(bytes(32)).decode()))
HERE = {"job": "order.pay", "tenant": "acme"}

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8).filter(
    lambda key: key != "$sealed"
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)


def sealed(value, *path, ring=RING, **elsewhere):
    return seal_field(value, ring, path=path, **{**HERE, **elsewhere})


def every_place(node, path=()):
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key, (*path, str(key))
        if isinstance(value, dict | list):
            yield from every_place(value, (*path, str(key)))


def test_a_sealed_field_is_opened_where_it_stands():
    data = {"order": 7, "card": sealed("4111 1111", "card"), "to": [{"iban": sealed({"n": 1}, "to", "0", "iban")}]}
    secrets = open_fields(data, RING, **HERE)
    assert data == {"order": 7, "card": "4111 1111", "to": [{"iban": {"n": 1}}]}
    assert [secret.reveal() for secret in secrets] == ["4111 1111"]


@given(st.dictionaries(text, values, min_size=1, max_size=4), st.data())
def test_any_value_at_any_place_of_any_payload_can_be_sealed(payload, data):
    wanted = copy.deepcopy(payload)
    node, key, path = data.draw(st.sampled_from(list(every_place(payload))))
    node[key] = sealed(node[key], *path)
    payload = decode(encode(payload))
    open_fields(payload, RING, **HERE)
    assert payload == wanted


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (sealed("x", "card", tenant="other"), "bound to another tenant, name or place"),
        (sealed("x", "card", tenant=None), "bound to another tenant, name or place"),
        (sealed("x", "card", job="order.echo"), "bound to another tenant, name or place"),
        (sealed("x", "note"), "bound to another tenant, name or place"),
        (sealed("x", "card", ring=OTHER), "sealed with key"),
        ({"$sealed": "4111 1111"}, "it is no envelope"),
        ({"$sealed": sealed("x", "card")["$sealed"][:-5]}, "truncated"),
        ({"$sealed": 5}, "and nothing else"),
        ({"$sealed": None}, "and nothing else"),
        ({**sealed("x", "card"), "more": 1}, "and nothing else"),
    ],
)
def test_a_field_that_can_not_be_opened_is_named_with_the_reason(field, why):
    with pytest.raises(PayloadInvalid, match=why) as caught:
        open_fields({"card": field}, RING, **HERE)
    assert caught.value.message.startswith("card: ")
    assert "4111" not in str(caught.value)


def test_a_field_deep_inside_is_named_by_the_way_to_it():
    with pytest.raises(PayloadInvalid, match=r"^pay\.cards\.1\.number: it is no envelope"):
        open_fields({"pay": {"cards": [{}, {"number": {"$sealed": "x"}}]}}, RING, **HERE)


def test_without_a_key_the_field_is_named_all_the_same():
    with pytest.raises(PayloadInvalid, match=r"^card: ENCRYPTION_KEY is not set here"):
        open_fields({"card": sealed("x", "card")}, KeyRing.of(None), **HERE)


def test_text_that_was_sealed_without_being_json_is_told_and_not_quoted():
    from oxherd.vault.crypto import binding

    envelope = RING.seal("4111 1111", binding("oxherd/payload", "acme", "order.pay", "card"))
    with pytest.raises(PayloadInvalid, match=r"^card: what was sealed is not JSON") as caught:
        open_fields({"card": {"$sealed": envelope}}, RING, **HERE)
    assert "4111" not in f"{caught.value} {caught.value.__cause__}"


def test_a_whole_payload_can_not_be_sealed():
    with pytest.raises(PayloadInvalid, match="not for the payload"):
        open_fields({"$sealed": "x"}, RING, **HERE)


def test_what_was_inside_an_envelope_is_not_opened_again():
    data = {"card": sealed({"$sealed": "x"}, "card")}
    open_fields(data, RING, **HERE)
    assert data == {"card": {"$sealed": "x"}}


def test_every_text_and_long_number_inside_an_envelope_is_a_secret():
    data = {"a": sealed({"b": ["one", 12, 123456, True, None, 1.25], "c": {"d": "two"}}, "a")}
    secrets = open_fields(data, RING, **HERE)
    assert sorted(secret.reveal() for secret in secrets) == ["123456", "one", "two"]


def test_deep_nesting_is_no_problem():
    data = inner = {}
    for _ in range(900):
        inner["a"] = inner = {}
    inner["card"] = sealed("x", *["a"] * 900, "card")
    open_fields(data, RING, **HERE)
    assert inner == {"card": "x"}
