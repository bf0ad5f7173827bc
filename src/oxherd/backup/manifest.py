"""What a backup says of itself: readable without a key, signed with one, its last object to be written."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import orjson

from oxherd.errors import BackupDamaged, BackupNotFound
from oxherd.vault.keyring import KeyRing

FORMAT = 1
FILE = "manifest.json"
LABEL = b"oxherd backup manifest 1"
REPORT_LABEL = b"oxherd backup report 1"


@dataclass(frozen=True, slots=True)
class Part:
    """One stored object: its name below the backup's, its bytes, and their SHA-256, hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One stream, cut into parts: compressed with zstd, then encrypted with age as a whole.

    Attributes:
        kind: database or queue.
        raw: bytes before compression.
        parts: in order.
    """

    kind: str
    raw: int
    parts: tuple[Part, ...]

    @property
    def stored(self) -> int:
        """Bytes as they are stored."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole backup.

    Attributes:
        name: its own; they sort by time.
        taken_at: the moment of its snapshot, wall ms: what was committed before is in it.
        seconds: how long it took.
        oxherd: the version that made it.
        database: name, server (version in words), major, encoding, schemas (None: all but managed ones), excluded,
            migration (its number, 0 without Oxherd's tables), client, supabase.
        tables: rows by table, as `schema.table`.
        queue: name, prefix, keys, counts by state; None where it was left out.
        pieces: what is stored.
        recipients: the public keys that it is encrypted to.
        sealed: base64 of age: what a restored database is compared with (`facts`), and nobody else should read.
        signature: see `signed`.
    """

    name: str
    taken_at: int
    seconds: float
    oxherd: str
    database: Mapping[str, Any]
    tables: Mapping[str, int]
    queue: Mapping[str, Any] | None
    pieces: tuple[Piece, ...]
    recipients: Sequence[str]
    sealed: str
    signature: str = ""
    format: int = field(default=FORMAT)

    @property
    def stored(self) -> int:
        """Bytes as they are stored."""
        return sum(piece.stored for piece in self.pieces)

    @property
    def raw(self) -> int:
        """Bytes before compression."""
        return sum(piece.raw for piece in self.pieces)

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(self.tables.values())

    def piece(self, kind: str) -> Piece | None:
        """The stream of that kind."""
        return next((piece for piece in self.pieces if piece.kind == kind), None)

    def signed(self, ring: KeyRing) -> Manifest:
        """The same with an HMAC-SHA-256 under a key derived from ENCRYPTION_KEY; without one it stays unsigned.

        Encryption to a public key hides a backup, but anybody could make one: this tells ours from others'.
        """
        return dataclasses.replace(self, signature=signature(dataclasses.asdict(self), ring, LABEL))

    def check(self, ring: KeyRing) -> str:
        """Whether it is ours, as `check` has it. Raises BackupDamaged."""
        return check(dataclasses.asdict(self), ring, LABEL, f"the manifest of {self.name}")

    def as_bytes(self) -> bytes:
        """It as it is stored."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2)


def read(raw: bytes, name: str) -> Manifest:
    """A stored manifest.

    Raises:
        BackupDamaged: it can't be read.
    """
    try:
        data = orjson.loads(raw)
        if data["format"] != FORMAT:
            raise BackupDamaged(
                f"{name} has format {data['format']}, this release reads {FORMAT}", hint="upgrade Oxherd"
            )
        pieces = tuple(
            Piece(each["kind"], each["raw"], tuple(Part(**part) for part in each["parts"])) for each in data["pieces"]
        )
        return Manifest(**{**data, "pieces": pieces})
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise BackupDamaged(f"the manifest of {name} can't be read: {type(error).__name__}") from None


def find(names: Sequence[str], wanted: str) -> str:
    """A backup's whole name from the beginning of it, or `latest`.

    Raises:
        BackupNotFound: none or several begin like that.
    """
    if not names:
        raise BackupNotFound("there is no backup yet", hint="oxherd backup create")
    if wanted == "latest":
        return max(names)
    found = [name for name in names if name.startswith(wanted)]
    if wanted in found or len(found) == 1:
        return wanted if wanted in found else found[0]
    raise BackupNotFound(
        f"no backup is called {wanted}" if not found else f"{len(found)} backups begin with {wanted}",
        hint="oxherd backup list",
    )


def signature(data: Mapping[str, Any], ring: KeyRing, label: bytes) -> str:
    """The signature of what is stored as JSON, with the active key; empty without one.

    Parameters:
        data: it; a signature that it has already does not count.
        ring: the keys.
        label: the kind of document: a signature of one kind is none of another.
    """
    keys = ring.derived(label)
    return mac(keys[0], _body(data)) if keys else ""


def is_ours(data: Mapping[str, Any], ring: KeyRing, label: bytes) -> bool:
    """Whether a key of the ring signed it; True where there is none to tell by. Parameters as for `signature`."""
    keys, told = ring.derived(label), str(data.get("signature", ""))
    return not keys or any(hmac.compare_digest(mac(key, _body(data)), told) for key in keys)


def check(data: Mapping[str, Any], ring: KeyRing, label: bytes, what: str) -> str:
    """Whether it is ours: `signed`, or `unsigned` where there is no key to tell by.

    Parameters:
        data, ring, label: as for `signature`.
        what: it, for the error.

    Raises:
        BackupDamaged: it was changed, not signed at all, or signed with a key that is not here.
    """
    if is_ours(data, ring, label):
        return "signed" if ring.derived(label) else "unsigned"
    if not data.get("signature"):
        raise BackupDamaged(
            f"{what} has no signature, so anybody may have made it",
            hint="if it was made before ENCRYPTION_KEY was set, and you trust it: leave ENCRYPTION_KEY out this once",
        )
    raise BackupDamaged(
        f"{what} was changed, or signed with another ENCRYPTION_KEY",
        hint="add the key that was in use then to ENCRYPTION_KEYS_PREVIOUS; else take another backup",
    )


def _body(data: Mapping[str, Any]) -> bytes:
    return canonical({**data, "signature": ""})


def oxherd_version() -> str:
    """This release's."""
    return version("oxherd")


def mac(key: bytes, body: bytes) -> str:
    """HMAC-SHA-256, hex."""
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON that is the same for the same value."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def to_text(raw: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(raw).decode()
