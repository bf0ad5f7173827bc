"""Sealed fields: parts of a payload that a producer encrypted, and that only the handler gets to see.

`{"$sealed": "oxherd1.…"}` stands where the value would stand. docs/vault.md has the format and a producer's code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oxherd.codec import decode, encode
from oxherd.errors import PayloadInvalid, VaultError
from oxherd.settings import Secret
from oxherd.vault.crypto import binding
from oxherd.vault.keyring import KeyRing

MARK = "$sealed"
RAW_MARK = b'"$sealed"'  # what a payload holds that may have such fields
LABEL = "oxherd/payload"
SHORTEST_NUMBER = 6  # digits: a shorter number would be hidden from every date and duration, too


def seal_field(value: Any, ring: KeyRing, *, job: str, tenant: str | None, path: tuple[str, ...]) -> dict[str, str]:
    """What a producer puts into a payload in a value's place.

    Parameters:
        value: anything that JSON can hold.
        ring: its active key seals.
        job: the job's name.
        tenant: the payload's `tenant`, or None.
        path: the way to the field: names, and places in lists from 0.

    Raises:
        UnknownKey: no key is configured.
    """
    return {MARK: ring.seal(encode(value, what="the field").decode(), _bound_to(job, tenant, path))}


def open_fields(data: dict[str, Any], ring: KeyRing, *, job: str, tenant: str | None) -> list[Secret]:
    """Put the values of sealed fields in their places, and return what must now be kept out of logs and errors.

    Parameters:
        data: a payload; changed in place.
        ring: any of its keys opens.
        job: the job's name.
        tenant: the payload's `tenant`, or None.

    Raises:
        PayloadInvalid: naming the field that can't be opened, and why.
    """
    if MARK in data:
        raise PayloadInvalid(f"{MARK} stands for the value of a field, not for the payload")
    secrets: list[Secret] = []
    todo: list[tuple[Any, tuple[str, ...]]] = [(data, ())]
    while todo:
        node, path = todo.pop()
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            place = (*path, str(key))
            if isinstance(value, dict) and MARK in value:
                node[key] = _opened(value, ring, job, tenant, place)
                secrets += _secrets_of(node[key])
            elif isinstance(value, dict | list):
                todo.append((value, place))
    return secrets


def _opened(field: Mapping[str, Any], ring: KeyRing, job: str, tenant: str | None, path: tuple[str, ...]) -> Any:
    name, envelope = ".".join(path), field[MARK]
    if len(field) != 1 or not isinstance(envelope, str):
        raise PayloadInvalid(f'{name}: a sealed field is {{"{MARK}": "<envelope>"}} and nothing else')
    try:
        return decode(ring.open(envelope, _bound_to(job, tenant, path)))
    except VaultError as error:
        raise PayloadInvalid(f"{name}: {error.message}", hint=error.hint) from None
    except ValueError:  # its message would quote the value
        raise PayloadInvalid(f"{name}: what was sealed is not JSON", hint="seal JSON.stringify(value)") from None


def _bound_to(job: str, tenant: str | None, path: tuple[str, ...]) -> bytes:
    return binding(LABEL, tenant or "", job, *path)


def _secrets_of(value: Any) -> Iterator[Secret]:
    match value:
        case dict():
            for each in value.values():
                yield from _secrets_of(each)
        case list():
            for each in value:
                yield from _secrets_of(each)
        case str():
            yield Secret(value)
        case int() | float() if len(text := str(value)) >= SHORTEST_NUMBER:
            yield Secret(text)
