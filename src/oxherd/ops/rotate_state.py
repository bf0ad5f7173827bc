"""How far a rotation has come, on disk and encrypted, so that a death at any moment loses no secret.

A file has a key of its own, which is sealed for whoever may go on: `ENCRYPTION_KEY`, the key that replaces it where
that is what is rotated, and a passphrase. So the file opens before, during and after a new `ENCRYPTION_KEY`.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from oxherd.clock import wall_ms
from oxherd.errors import RotationStopped, UsageError, VaultError
from oxherd.ops.recording import operator
from oxherd.settings import Secret
from oxherd.vault.crypto import Key, binding, read, seal, unseal

FORMAT = "oxherd rotation 1"
LABEL, SLOT = "oxherd/rotation", "oxherd/rotation-key"
SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20}


class Stage(StrEnum):
    """What a rotation does next."""

    NEW = "new"
    INSTALL = "install"
    PROVE = "prove"
    SWITCH = "switch"
    RETIRE = "retire"
    BURY = "bury"
    RECORD = "record"


ORDER = tuple(Stage)


@dataclass(slots=True)
class Progress:
    """A rotation on its way.

    Attributes:
        name: the variable.
        id: of this rotation, 8 hex digits; what is made elsewhere is named after it, so that it is found again.
        began_at: wall ms.
        stage: what is to be done next.
        old, new: values of variables as consumers had them, and as they are to have them.
        facts: what the rotation of this secret has to remember.
        given: how far each switch of consumers has come.
        retiring: the old value is being retired: there is no way back.
        rolling_back: somebody wants the old value back.
        by: who began it, and where.
    """

    name: str
    id: str
    began_at: int
    stage: Stage = Stage.NEW
    old: dict[str, Secret] = field(default_factory=dict)
    new: dict[str, Secret] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    retiring: bool = False
    rolling_back: bool = False
    by: str = ""

    @classmethod
    def begin(cls, name: str) -> Progress:
        """A rotation that has done nothing yet."""
        return cls(name, secrets.token_hex(4), wall_ms(), by=operator())


@dataclass(frozen=True, slots=True)
class Locks:
    """What opens and closes state files.

    Attributes:
        keys: `ENCRYPTION_KEY`, then those before it; any opens, the first closes.
        passphrase: opens and closes, too.
    """

    keys: tuple[Secret, ...] = ()
    passphrase: Secret | None = None


class StateFile:
    """One rotation's file.

    Parameters:
        folder: where it is.
        name: of the secret.
        locks: what opens and closes it.
    """

    def __init__(self, folder: Path, name: str, locks: Locks) -> None:
        self.path = folder / f"{name}.rotation"
        self._name = name
        self._locks = locks

    def head(self) -> Mapping[str, Any] | None:
        """What it says without a key: name, id, stage, began_at, saved_at; None where there is no file."""
        try:
            said = orjson.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            said = None
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise RotationStopped(f"{self.path} is no state of a rotation that this release knows")
        return said

    def load(self) -> Progress:
        """The rotation.

        Raises:
            RotationStopped: there is none.
            UsageError: it opens with another key or passphrase.
        """
        head = self.head()
        if head is None:
            raise RotationStopped(f"no rotation of {self._name} is under way", hint=f"oxherd rotate {self._name}")
        body = orjson.loads(unseal(head["body"], self._open(head["slots"]), binding(LABEL, self._name)))
        for part in ("old", "new"):
            body[part] = {name: Secret(value) for name, value in body[part].items()}
        return Progress(**{**body, "stage": Stage(body["stage"])})

    def save(self, progress: Progress) -> None:
        """Replace the file by one that holds all of it, durably, readable for its owner alone."""
        key = secrets.token_bytes(32)
        bare = {each: getattr(progress, each) for each in Progress.__slots__}
        for part in ("old", "new"):
            bare[part] = {name: value.reveal() for name, value in bare[part].items()}
        data = {
            "format": FORMAT, "name": progress.name, "id": progress.id, "stage": progress.stage,
            "began_at": progress.began_at, "saved_at": wall_ms(), "slots": self._close(key, progress),
            "body": seal(orjson.dumps(bare).decode(), _key(key), binding(LABEL, self._name)),
        }  # fmt: skip
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_privately(self.path, orjson.dumps(data))

    def remove(self) -> None:
        """Forget the rotation; it is over."""
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from rotating the same secret from this folder meanwhile.

        Raises:
            RotationStopped: somebody does.
            UsageError: the folder can't be made, or not be written to.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.path.with_suffix(".lock").open("a")
        except OSError as error:
            raise UsageError(
                f"no state can be kept in {self.path.parent}: {error.strerror}", hint="--state DIR"
            ) from None
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RotationStopped(
                    f"{self._name} is being rotated by another process", hint="oxherd rotate --status"
                ) from None
            yield

    def _open(self, slots: Sequence[Mapping[str, str]]) -> Key:
        ours = {key.id: key for key in map(Key.of, self._locks.keys)}
        for slot in slots:
            if (salt := slot.get("salt")) is not None:
                key = self._phrase_key(bytes.fromhex(salt)) if self._locks.passphrase is not None else None
            else:
                key = ours.get(read(slot["key"])[0])
            if key is not None:
                with contextlib.suppress(VaultError):
                    return _key(base64.b64decode(unseal(slot["key"], key, binding(SLOT, self._name))))
        kinds = " or ".join(
            "its passphrase (--passphrase-file)" if "salt" in slot else f"the ENCRYPTION_KEY {read(slot['key'])[0]}"
            for slot in slots
        )
        raise UsageError(f"the state of {self._name}'s rotation opens with {kinds}, and with nothing that is here")

    def _close(self, key: bytes, progress: Progress) -> list[dict[str, str]]:
        text, place = base64.b64encode(key).decode(), binding(SLOT, self._name)
        mine = [*self._locks.keys[:1], *(each["ENCRYPTION_KEY"] for each in (progress.old, progress.new)
                                         if "ENCRYPTION_KEY" in each)]  # fmt: skip
        known = {each.id: each for each in map(Key.of, mine)}
        slots = [{"key": seal(text, each, place)} for each in known.values()]
        if self._locks.passphrase is not None:
            slots.append({"salt": self._salt.hex(), "key": seal(text, self._phrase_key(self._salt), place)})
        if not slots:
            raise UsageError(
                "the state of a rotation is kept encrypted, and there is nothing to encrypt it with",
                hint="set ENCRYPTION_KEY, or give --passphrase-file",
            )
        return slots

    @cached_property
    def _salt(self) -> bytes:
        return secrets.token_bytes(16)

    def _phrase_key(self, salt: bytes) -> Key:
        assert self._locks.passphrase is not None
        return _key(hashlib.scrypt(self._locks.passphrase.reveal().encode(), salt=salt, dklen=32, **SCRYPT))


def _key(raw: bytes) -> Key:
    return Key.of(Secret(base64.b64encode(raw).decode()))


def write_privately(path: Path, data: bytes) -> None:
    """Replace a file whole, so that nobody ever sees half of it, with the mode 0600."""
    part = path.with_name(path.name + ".tmp")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  a descriptor
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def under_way(folder: Path) -> list[Mapping[str, Any]]:
    """What each state file in a folder says without a key, by name."""
    files = sorted(folder.glob("*.rotation"))
    return [head for file in files if (head := StateFile(folder, file.stem, Locks()).head()) is not None]
