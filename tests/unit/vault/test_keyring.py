from __future__ import annotations

import base64
import subprocess
import sys

import pytest

from oxherd.errors import Tampered, UnknownKey
from oxherd.settings import Secret
from oxherd.vault.crypto import Key, binding
from oxherd.vault.keyring import KeyRing

NOW, OLD, OLDER = (Secret(base64.b64encode(bytes([number] * 32)).decode()) for number in (1, 2, 3))
HERE = binding("oxherd/credential", "acme", "stripe")


def test_what_any_key_of_the_ring_sealed_can_be_opened():
    for key in (NOW, OLD, OLDER):
        assert KeyRing.of(NOW, [OLD, OLDER]).open(KeyRing.of(key).seal("hello", HERE), HERE) == "hello"


def test_the_active_key_seals():
    assert KeyRing.of(NOW, [OLD]).seal("hello", HERE).split(".")[1] == Key.of(NOW).id


def test_the_active_key_may_be_among_the_previous_ones():
    ring = KeyRing.of(NOW, [NOW, OLD])
    assert ring.open(ring.seal("hello", HERE), HERE) == "hello"


def test_an_unknown_key_is_named_with_those_there_are():
    with pytest.raises(UnknownKey) as caught:
        KeyRing.of(NOW, [OLD]).open(KeyRing.of(OLDER).seal("hello", HERE), HERE)
    ids = [Key.of(key).id for key in (OLDER, NOW, OLD)]
    assert caught.value.message == "the envelope was sealed with key {}; the keys here are {}, {}".format(*ids)
    assert "ENCRYPTION_KEYS_PREVIOUS" in caught.value.hint


def test_without_any_key_that_is_what_is_said():
    ring = KeyRing.of(None)
    for call in (lambda: ring.seal("hello", HERE), lambda: ring.open(KeyRing.of(OLD).seal("hello", HERE), HERE)):
        with pytest.raises(UnknownKey, match="ENCRYPTION_KEY is not set here"):
            call()


def test_a_key_id_that_was_exchanged_is_noticed():
    envelope = KeyRing.of(OLD).seal("hello", HERE).replace(Key.of(OLD).id, Key.of(NOW).id)
    with pytest.raises(Tampered):
        KeyRing.of(NOW, [OLD]).open(envelope, HERE)


def test_a_worker_without_secrets_does_not_pay_for_the_import_of_cryptography():
    code = "import sys, oxherd.vault.keyring; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
