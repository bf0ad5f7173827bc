"""The envelope that a secret travels and rests in: AES-256-GCM, pure functions. docs/vault.md has the format.

    oxherd1.<key id>.<bytes>.<nonce, ciphertext and tag in base64url>

It says itself which key opens it, and how long it must be, so that what went wrong can be told apart.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from oxherd.errors import NotAnEnvelope, Tampered, Truncated, VaultError, WrongKey
from oxherd.settings import Secret

MARK = "oxherd1."
KEY_ID_TAG = b"oxherd key id\0"  # so that the id is no hash of the key that another program may publish
NONCE_BYTES = 12
TAG_BYTES = 16

_WHOLE = re.compile(r"oxherd1\.([0-9a-f]{8})\.([1-9][0-9]{0,9})\.([A-Za-z0-9_-]*)")
_BEGINNING = re.compile(r"oxherd1\.([0-9a-f]{0,8}|[0-9a-f]{8}\.([1-9][0-9]{0,9})?)")
_LATER = re.compile(r"oxherd([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Key:
    """An encryption key and what envelopes call it.

    Attributes:
        id: eight hex digits, derived from the key.
        raw: the 32 bytes.
    """

    id: str
    raw: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: Secret) -> Key:
        """The key that a variable holds as base64."""
        raw = base64.b64decode(secret.reveal())
        return cls(hashlib.sha256(KEY_ID_TAG + raw).hexdigest()[:8], raw)


def binding(*place: str) -> bytes:
    """What an envelope is bound to: it opens nowhere else.

    Parameters:
        place: what it is for, the tenant (empty for none), then a name or the way to a field.

    Raises:
        VaultError: a part holds NUL, which separates the parts, or half a surrogate pair.
    """
    try:
        if any("\0" in part for part in place):
            raise ValueError
        return "\0".join(place).encode()
    except ValueError:  # UnicodeEncodeError is one
        raise VaultError("a tenant, a name or a field's name holds NUL or is no valid Unicode") from None


def seal(text: str, key: Key, bound_to: bytes) -> str:
    """Encrypt a text into an envelope that opens with this key and at this place only."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # here: 40 ms that most commands need not pay

    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = nonce + AESGCM(key.raw).encrypt(nonce, text.encode(), bound_to)
    return f"{MARK}{key.id}.{len(sealed)}.{_base64url(sealed)}"


def unseal(envelope: str, key: Key, bound_to: bytes) -> str:
    """The text in an envelope.

    Raises:
        NotAnEnvelope, Truncated, Tampered, WrongKey: no message holds any part of envelope or text.
    """
    key_id, sealed = read(envelope)
    if key_id != key.id:
        raise WrongKey(f"the envelope was sealed with key {key_id}, it can't be opened with key {key.id}")
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        return AESGCM(key.raw).decrypt(nonce, rest, bound_to).decode()
    except InvalidTag:
        raise Tampered(
            "the envelope was changed after it was sealed, or is bound to another tenant, name or place",
            hint="docs/vault.md says what an envelope is bound to",
        ) from None
    except UnicodeDecodeError:
        raise VaultError("what the envelope holds is no UTF-8", hint="seal text; base64 what is none") from None


def read(envelope: str) -> tuple[str, bytes]:
    """The id of the key that sealed an envelope, and its sealed bytes, not opened.

    Raises:
        NotAnEnvelope, Truncated, Tampered: as far as that shows without the key.
    """
    if not envelope.startswith(MARK):
        later = _LATER.match(envelope)
        said = f"it is of format {later[1]}, which this release does not know" if later else "it is no envelope"
        raise NotAnEnvelope(f"{said}; one begins with {MARK!r}")
    parts = _WHOLE.fullmatch(envelope)
    if parts is None:
        if _BEGINNING.fullmatch(envelope):
            raise Truncated("the envelope ends within its head")
        raise Tampered("the envelope holds characters that none has at that place")
    return parts[1], _sealed(parts[3], int(parts[2]))


def _sealed(text: str, size: int) -> bytes:
    wanted = -(-size * 4 // 3)
    if len(text) < wanted:
        raise Truncated(f"the envelope is truncated: {len(text)} of {wanted} characters are there")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) % 4 != 1 else b""
    # A last character may have bits that mean nothing; whoever flips one is noticed, too.
    if len(raw) != size or size < NONCE_BYTES + TAG_BYTES or _base64url(raw) != text:
        raise Tampered("the envelope was changed: its length is not the one it was sealed with")
    return raw


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
