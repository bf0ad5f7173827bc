"""Links that answer a question: whoever has one may, once. docs/approvals.md says what that means.

    base64url(id, nonce, expiry in ms, HMAC-SHA-256 over these cut to 16 bytes)

The key is derived from ENCRYPTION_KEY by HKDF (RFC 5869) under a label of its own, so it opens no envelope. A link is
checked without the database: those who try at random reach nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from functools import cached_property
from typing import NamedTuple

from oxherd.errors import ApprovalNotFound
from oxherd.settings import Secret
from oxherd.vault.keyring import KeyRing

LABEL = b"oxherd approval link 1"
ID_BYTES = NONCE_BYTES = 8
EXPIRY_BYTES = 6
MAC_BYTES = 16
_BODY = ID_BYTES + NONCE_BYTES + EXPIRY_BYTES
_NO_LINK = "this link answers no question: it is not complete, or was made with another key"


class Claim(NamedTuple):
    """What a link is for.

    Attributes:
        wait_id: the question.
        nonce: of the asking that it answers.
    """

    wait_id: str
    nonce: str


class Links:
    """Makes and reads links.

    Parameters:
        ring: its active key signs, and what any of its keys signed is accepted.
        public_url: where people reach this worker, such as `https://oxherd.example.com`; None where they do not.
    """

    def __init__(self, ring: KeyRing, public_url: str | None) -> None:
        self._ring = ring
        self._public_url = public_url

    def url(self, wait_id: str, nonce: str, expires_at: int) -> Secret | None:
        """The link for a question, or None without a key or an address.

        Parameters:
            wait_id, nonce: of the question, hex of 8 bytes each.
            expires_at: wall ms.
        """
        if self._public_url is None or not self._keys:
            return None
        body = bytes.fromhex(wait_id) + bytes.fromhex(nonce) + expires_at.to_bytes(EXPIRY_BYTES, "big")
        token = _base64url(body + _mac(self._keys[0], body))
        return Secret(f"{self._public_url}/approvals/{token}")

    def read(self, token: str) -> Claim:
        """What a link's token is for. Raises ApprovalNotFound where none of the keys has signed it."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        body, mac = raw[:_BODY], raw[_BODY:]
        signed = [hmac.compare_digest(_mac(key, body), mac) for key in self._keys]
        if not any(signed) or _base64url(raw) != token:
            raise ApprovalNotFound(_NO_LINK)
        return Claim(body[:ID_BYTES].hex(), body[ID_BYTES : ID_BYTES + NONCE_BYTES].hex())

    @cached_property
    def _keys(self) -> list[bytes]:
        return self._ring.derived(LABEL)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:MAC_BYTES]


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
