"""Requests that may be sent twice and count once: an idempotency key remembers what the first one added."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from oxherd.errors import KeyReused
from oxherd.queue.connection import Link
from oxherd.queue.keys import Keys

KEPT_MS = 86_400_000  # a day


async def once(
    link: Link, keys: Keys, key: str, request: bytes, add: Callable[[str], Awaitable[list[str]]]
) -> tuple[list[str], bool]:
    """Add jobs, unless a request with this key has done so within a day.

    Parameters:
        key: the client's.
        request: what is asked for; another request must not come with the same key.
        add: adds the jobs under ids that begin with the given text, and returns their ids. It is called again when
            the first call was cut off: the same ids make BullMQ add no job twice.

    Returns:
        The ids, and whether it was an earlier request that added them.

    Raises:
        KeyReused: the key came with another request.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()
    place = keys.idempotency(digest)
    asked = hashlib.sha256(request).hexdigest()
    first = await link.call(b"SET", place, orjson.dumps({"asked": asked}), b"NX", b"PX", KEPT_MS)
    earlier = None if first else await link.call(b"GET", place)
    if earlier is not None:
        kept: dict[str, Any] = orjson.loads(earlier)
        if kept["asked"] != asked:
            raise KeyReused("this idempotency key came with another request", hint="use a new key for each request")
        if "ids" in kept:
            return list(kept["ids"]), True
    ids = await add(f"once-{digest[:32]}")
    await link.call(b"SET", place, orjson.dumps({"asked": asked, "ids": ids}), b"PX", KEPT_MS)
    return ids, False
