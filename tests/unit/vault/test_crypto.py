from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxherd.errors import NotAnEnvelope, Tampered, Truncated, VaultError, WrongKey
from oxherd.settings import Secret
from oxherd.vault.crypto import Key, binding, read, seal, unseal

KEY = Key.of(Secret(base64.b64encode(bytes(range(32))).decode()))
OTHER = Key.of(Secret(base64.b64encode(bytes(32)).decode()))
HERE = binding("oxherd/credential", "acme", "stripe")
ENVELOPE_TEXT = string.ascii_letters + string.digits + "-_."

parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def opened(envelope: str) -> str | None:
    """The text, or None where it is noticed that the envelope is not as it was."""
    try:
        return unseal(envelope, KEY, HERE)
    except VaultError:
        return None


def test_the_format_is_what_the_documentation_says():
    head, key_id, size, sealed = seal("hello", KEY, HERE).split(".")
    assert (head, key_id, size) == ("oxherd1", "59f7e044", str(12 + 5 + 16))
    assert len(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))) == 33


def test_a_key_shows_its_id_and_not_itself():
    assert repr(KEY) == "Key(id='59f7e044')"


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(parts))
def test_what_was_sealed_opens_with_the_same_key_at_the_same_place(text, place):
    assert unseal(seal(text, KEY, binding(*place)), KEY, binding(*place)) == text


def test_no_two_envelopes_of_one_text_are_alike():
    assert len({seal("same", KEY, HERE) for _ in range(100)}) == 100


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.data())
def test_any_changed_character_is_noticed(text, data):
    envelope = seal(text, KEY, HERE)
    place = data.draw(st.integers(0, len(envelope) - 1))
    other = data.draw(st.one_of(st.sampled_from(ENVELOPE_TEXT), st.characters()).filter(lambda c: c != envelope[place]))
    assert opened(envelope[:place] + other + envelope[place + 1 :]) is None


def test_every_flipped_bit_is_noticed():
    envelope = seal("the secret", KEY, HERE)
    for place, character in enumerate(envelope):
        for bit in range(8):
            assert opened(envelope[:place] + chr(ord(character) ^ 1 << bit) + envelope[place + 1 :]) is None


@pytest.mark.parametrize("text", ["", "x", "xx"])
def test_every_other_last_character_is_noticed_also_where_its_last_bits_mean_nothing(text):
    envelope = seal(text, KEY, HERE)
    for other in set(ENVELOPE_TEXT) - {envelope[-1]}:
        assert opened(envelope[:-1] + other) is None


@given(st.text(string.ascii_letters, max_size=60))
def test_every_truncation_is_told_as_one(text):
    envelope = seal(text, KEY, HERE)
    for size in range(len("oxherd1."), len(envelope)):
        with pytest.raises(Truncated):
            unseal(envelope[:size], KEY, HERE)


@given(st.text(ENVELOPE_TEXT, min_size=1))
def test_anything_appended_is_noticed(more):
    assert opened(seal("the secret", KEY, HERE) + more) is None


@given(st.text())
def test_any_text_that_is_no_envelope_is_refused(text):
    with pytest.raises(VaultError):
        unseal(text, KEY, HERE)
    with pytest.raises(VaultError):
        unseal("oxherd1." + text, KEY, HERE)


@given(st.lists(parts, max_size=4), st.lists(parts, max_size=4))
def test_an_envelope_opens_at_no_other_place(here, there):
    envelope = seal("the secret", KEY, binding(*here))
    if [*here] != [*there] and (here or [""]) != (there or [""]):
        with pytest.raises(Tampered):
            unseal(envelope, KEY, binding(*there))


@pytest.mark.parametrize("part", ["a\0b", "half \ud83d pair"])
def test_a_place_that_could_be_taken_for_another_is_refused(part):
    with pytest.raises(VaultError, match="NUL"):
        binding("oxherd/credential", part)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda e: "sk-live-1234", NotAnEnvelope, "it is no envelope"),
        (lambda e: "", NotAnEnvelope, "it is no envelope"),
        (lambda e: e.replace("oxherd1", "oxherd2"), NotAnEnvelope, "format 2, which this release does not know"),
        (lambda e: e[:-1], Truncated, "50 of 51 characters"),
        (lambda e: e[:12], Truncated, "within its head"),
        (lambda e: e[:-4] + "AAAA", Tampered, "changed after it was sealed, or is bound to another tenant"),
        (lambda e: e + "A", Tampered, "its length is not"),
        (lambda e: e[:-4] + "+===", Tampered, "characters that none has"),
        (lambda e: e.replace(KEY.id, OTHER.id), WrongKey, f"sealed with key {OTHER.id}, it can't be opened with key"),
        (lambda e: "oxherd1.59f7e044.5.AAAAAAA", Tampered, "its length is not"),
    ],
)
def test_each_fault_has_an_error_of_its_own(change, error, said):
    with pytest.raises(VaultError, match=said) as caught:
        unseal(change(seal("the secret", KEY, HERE)), KEY, HERE)
    assert type(caught.value) is error


def test_no_error_quotes_what_it_was_given():
    for text in ("hunter2", "oxherd1.hunter2", "oxherd1.59f7e044.40.hunter2", "oxherd1.59f7e044.40.hunter2" + 60 * "+"):
        with pytest.raises(VaultError) as caught:
            unseal(text, KEY, HERE)
        assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_bytes_that_are_no_text_are_told():
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    sealed = bytes(12) + AESGCM(KEY.raw).encrypt(bytes(12), b"\xff\xfe", HERE)
    text = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
    with pytest.raises(VaultError, match=r"no UTF-8"):
        unseal(f"oxherd1.{KEY.id}.{len(sealed)}.{text}", KEY, HERE)


def test_an_envelope_can_be_read_without_any_key():
    key_id, sealed = read(seal("abc", KEY, HERE))
    assert (key_id, len(sealed)) == (KEY.id, 31)
