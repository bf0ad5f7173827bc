"""The keys of a process: one seals, all of them open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from oxherd.errors import UnknownKey
from oxherd.settings import Secret
from oxherd.vault.crypto import Key, read, seal, unseal


class KeyRing:
    """`ENCRYPTION_KEY`, and those it replaced.

    Parameters:
        active: seals; None where no key is configured.
        previous: open what they sealed before they were replaced.
    """

    def __init__(self, active: Key | None, previous: Iterable[Key] = ()) -> None:
        self._active = active
        self._keys = {key.id: key for key in (*previous, *((active,) if active else ()))}

    @classmethod
    def of(cls, active: Secret | None, previous: Iterable[Secret] = ()) -> Self:
        """From the variables' values."""
        return cls(Key.of(active) if active is not None else None, map(Key.of, previous))

    @property
    def active(self) -> Key:
        """The key that seals. Raises UnknownKey where none is configured."""
        if self._active is None:
            raise UnknownKey("ENCRYPTION_KEY is not set here", hint="set it to the key that sealed the envelopes")
        return self._active

    def derived(self, label: bytes) -> list[bytes]:
        """A key of 32 bytes for another purpose from each of the keys, the active one's first; none without a key.

        Parameters:
            label: names the purpose; two labels give two unrelated keys.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        active = [] if self._active is None else [self._active]
        return [
            HKDF(SHA256(), 32, salt=None, info=label).derive(key.raw)
            for key in (*active, *(key for key in self._keys.values() if key not in active))
        ]

    def seal(self, text: str, bound_to: bytes) -> str:
        """Encrypt with the active key. Raises UnknownKey where there is none."""
        return seal(text, self.active, bound_to)

    def open(self, envelope: str, bound_to: bytes) -> str:
        """The text in an envelope that any of the keys sealed.

        Raises:
            UnknownKey: naming the key's id and those that are here.
            NotAnEnvelope, Truncated, Tampered: see `crypto.unseal`.
        """
        key_id, _ = read(envelope)
        key = self._keys.get(key_id)
        if key is None:
            raise self._unknown(key_id)
        return unseal(envelope, key, bound_to)

    def _unknown(self, key_id: str) -> UnknownKey:
        ours = f"the keys here are {self.active.id}" + "".join(
            f", {each}" for each in self._keys if each != self.active.id
        )
        return UnknownKey(
            f"the envelope was sealed with key {key_id}; {ours}",
            hint="set ENCRYPTION_KEY to that key, or add it to ENCRYPTION_KEYS_PREVIOUS",
        )
