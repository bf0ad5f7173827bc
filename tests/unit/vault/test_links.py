from __future__ import annotations

import base64
import secrets
import string

import pytest

from oxherd.errors import ApprovalNotFound
from oxherd.settings import Secret
from oxherd.vault.keyring import KeyRing
from oxherd.vault.links import Claim, Links

WAIT, NONCE, UNTIL = "0123456789abcdef", "fedcba9876543210", 1_763_899_200_000
SITE = "https://oxherd.example.com"


def a_key() -> Secret:
    return Secret(base64.b64encode(secrets.token_bytes(32)).decode())


def links(*keys: Secret, url: str | None = SITE) -> Links:
    return Links(KeyRing.of(keys[0] if keys else None, keys[1:]), url)


def token_of(made: Links) -> str:
    url = made.url(WAIT, NONCE, UNTIL)
    assert url is not None
    return url.reveal().removeprefix(f"{SITE}/approvals/")


def test_a_link_leads_to_its_question_and_fits_a_chat_line():
    made = links(a_key())
    token = token_of(made)
    assert made.read(token) == Claim(WAIT, NONCE)
    assert len(token) == 51
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_a_link_is_hidden_where_it_is_printed():
    assert str(links(a_key()).url(WAIT, NONCE, UNTIL)) == "***"


def test_no_link_is_made_without_a_key_or_an_address():
    assert links().url(WAIT, NONCE, UNTIL) is None
    assert links(a_key(), url=None).url(WAIT, NONCE, UNTIL) is None


def test_a_link_outlives_the_replacement_of_the_key():
    old, new = a_key(), a_key()
    token = token_of(links(old))
    assert links(new, old).read(token).wait_id == WAIT
    with pytest.raises(ApprovalNotFound):
        links(new).read(token)
    assert token_of(links(new, old)) == token_of(links(new)), "new ones are signed with the new key"
    assert token_of(links(new, new, old)) == token_of(links(new)), "also where it is among the previous ones"


def test_every_changed_character_is_noticed():
    made = links(a_key())
    token = token_of(made)
    for at, right in enumerate(token):
        for wrong in {"A", "_", chr(ord(right) ^ 1)} - {right}:
            with pytest.raises(ApprovalNotFound):
                made.read(token[:at] + wrong + token[at + 1 :])


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "A", lambda t: t + "=", lambda t: f" {t}", lambda _: ""]
)
def test_a_link_that_is_not_whole_is_refused(change):
    made = links(a_key())
    with pytest.raises(ApprovalNotFound, match="not complete"):
        made.read(change(token_of(made)))


@pytest.mark.parametrize("token", ["", "x", "ü" * 51, "A" * 51, "%00", "A" * 100_000])
def test_nonsense_is_refused_with_and_without_a_key(token):
    for made in (links(a_key()), links()):
        with pytest.raises(ApprovalNotFound):
            made.read(token)


def test_the_key_of_links_is_not_the_key_of_envelopes():
    key = a_key()
    (derived,) = KeyRing.of(key).derived(b"label")
    assert derived != base64.b64decode(key.reveal())
    assert derived != KeyRing.of(key).derived(b"other label")[0]
    assert len(derived) == 32
