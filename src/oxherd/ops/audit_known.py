"""`.oxherd-audit.toml`: what was accepted, and this installation's secrets as fingerprints. It can be committed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from oxherd.errors import UsageError
from oxherd.settings import Secret

FILE = ".oxherd-audit.toml"
SHORTEST = 8  # characters; a shorter secret would be found in every text
_OPEN = b"oxherd: fingerprints without AUDIT_KEY"
_HEAD = """\
# Made by `oxherd audit`, to be committed. It holds no secrets: fingerprints are keyed hashes (AUDIT_KEY).
"""


class Marker:
    """Makes fingerprints.

    Parameters:
        key: AUDIT_KEY; without one, fingerprints can be confirmed by whoever guesses the value.
    """

    def __init__(self, key: Secret | None) -> None:
        self._key = base64.b64decode(key.reveal()) if key else _OPEN
        self.is_keyed = key is not None
        self.id = self._mac(b"the key itself")[:8]

    def _mac(self, value: bytes) -> str:
        return hashlib.blake2b(value, key=self._key, digest_size=16).hexdigest()

    def of(self, value: bytes) -> str:
        """The fingerprint of a secret: 32 hex digits."""
        return self._mac(b"secret\0" + value)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A finding that somebody looked at.

    Attributes:
        fingerprint: the secret's.
        reason: why it may stay.
        expires: the first day on which it counts again.
    """

    fingerprint: str
    reason: str
    expires: date


@dataclass(frozen=True, slots=True)
class Installed:
    """A secret of this installation, by its fingerprint.

    Attributes:
        variable: whose value it is, or is in.
        length: in characters; most texts need not be hashed then.
        fingerprint: the secret's.
    """

    variable: str
    length: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Known:
    """The file's content."""

    key: str = ""
    accepted: Mapping[str, Accepted] = field(default_factory=dict)
    installed: tuple[Installed, ...] = ()


def load(path: Path, marker: Marker) -> Known:
    """Read the file; nothing is known where there is none.

    Raises:
        UsageError: it is malformed, or its fingerprints were made with another AUDIT_KEY.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Known(marker.id)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name} can't be read: {error}") from None
    key = str(raw.get("key", ""))
    if key != marker.id:
        raise UsageError(
            f"the fingerprints in {path.name} were made with another AUDIT_KEY "
            f"({key or 'none'}, here it is {marker.id})",
            hint="set AUDIT_KEY to the one that the file was made with; secrets of your CI are a good place for it",
        )
    try:
        accepted = [_accepted(path, each) for each in raw.get("accepted", ())]
        installed = [
            Installed(str(e["variable"]), int(e["length"]), str(e["fingerprint"])) for e in raw.get("installed", ())
        ]
    except (TypeError, AttributeError, KeyError, ValueError):
        raise UsageError(
            f"{path.name}: [[accepted]] takes fingerprint, reason and expires, "
            "[[installed]] takes variable, length and fingerprint"
        ) from None
    return Known(key, {each.fingerprint: each for each in accepted}, tuple(installed))


def _accepted(path: Path, raw: Mapping[str, Any]) -> Accepted:
    mark, reason, expires = (raw.get(name) for name in ("fingerprint", "reason", "expires"))
    if not isinstance(mark, str) or not re.fullmatch(r"[0-9a-f]{32}", mark):
        raise UsageError(f"{path.name}: each [[accepted]] needs a fingerprint of 32 hex digits")
    if not isinstance(reason, str) or not reason.strip() or type(expires) is not date:
        raise UsageError(f"{path.name}: {mark} needs a reason, and a day on which it expires such as 2027-01-31")
    return Accepted(mark, reason.strip(), expires)


def save(path: Path, known: Known) -> None:
    """Write the file, whole or not at all."""
    lines = [_HEAD, f"key = {json.dumps(known.key)}", ""]
    for each in sorted(known.accepted.values(), key=lambda each: each.fingerprint):
        lines += [
            "[[accepted]]", f'fingerprint = "{each.fingerprint}"',
            f"reason = {json.dumps(each.reason, ensure_ascii=False)}", f"expires = {each.expires}", "",
        ]  # fmt: skip
    for one in sorted(known.installed, key=lambda one: (one.variable, one.fingerprint)):
        lines += [
            "[[installed]]", f'variable = "{one.variable}"', f"length = {one.length}",
            f'fingerprint = "{one.fingerprint}"', "",
        ]  # fmt: skip
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("\n".join(lines), "utf-8")
    draft.replace(path)


def fingerprints(secrets: Iterable[tuple[str, Secret]], marker: Marker) -> list[Installed]:
    """This installation's secrets as they are listed: those that are long enough to be told from a word."""
    made = {}
    for variable, secret in secrets:
        value = secret.reveal().encode(errors="surrogateescape")
        if len(value) >= SHORTEST:
            one = Installed(variable, len(value), marker.of(value))
            made[one.fingerprint] = one
    return list(made.values())


_TOKEN = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_+/.~%$!-]{7,}={0,2}")


class Recogniser:
    """Finds this installation's own secrets in texts.

    Those of this process's variables are looked for as they are. Those that are only known by fingerprint are compared
    with every word of the text that has the length of one.

    Parameters:
        marker: makes the fingerprints.
        here: this process's secrets.
        listed: fingerprints.
    """

    def __init__(self, marker: Marker, here: Iterable[tuple[str, Secret]], listed: Iterable[Installed]) -> None:
        self._marker = marker
        self._here = [
            (name, raw) for name, each in here if len(raw := each.reveal().encode(errors="surrogateescape")) >= SHORTEST
        ]
        self._listed = {each.fingerprint: each.variable for each in listed}
        self._lengths = frozenset(each.length for each in listed)

    def found(self, data: bytes) -> list[tuple[str, bytes, int]]:
        """Each secret in the text: its variable, its value, where it begins."""
        hits = [(name, value, at) for name, value in self._here if (at := data.find(value)) >= 0]
        if self._lengths:
            hits += self._by_fingerprint(data)
        return hits

    def _by_fingerprint(self, data: bytes) -> list[tuple[str, bytes, int]]:
        hits, tried = [], set()
        for match in _TOKEN.finditer(data):
            for word in (
                (match[0], *re.split(rb"[/.]", match[0])) if b"/" in match[0] or b"." in match[0] else (match[0],)
            ):
                if len(word) not in self._lengths or word in tried:
                    continue
                tried.add(word)
                variable = self._listed.get(self._marker.of(word))
                if variable is not None:
                    hits.append((variable, word, match.start()))
        return hits
