"""What a message's content can hold besides plain text: images, files, and marks for the prompt cache. Pure."""

from __future__ import annotations

import base64
from typing import Any

Part = dict[str, Any]


def text(words: str, *, cache: bool = False) -> Part:
    """Words as one part of a message.

    Parameters:
        words: what it says.
        cache: whether the prompt up to here shall be cached; put it behind what is long and always the same.
    """
    part = {"type": "text", "text": words}
    return {**part, "cache_control": {"type": "ephemeral"}} if cache else part


def image(source: str | bytes, *, kind: str = "image/png", detail: str | None = None) -> Part:
    """An image.

    Parameters:
        source: its address, which the provider opens, or its bytes.
        kind: the media type of bytes.
        detail: `low`, `high` or None for the model's choice: how closely to look, and so what it costs.
    """
    shown = {"url": _address(source, kind)}
    return {"type": "image_url", "image_url": {**shown, "detail": detail} if detail else shown}


def file(name: str, source: str | bytes, *, kind: str = "application/pdf") -> Part:
    """A document.

    Parameters:
        name: with its ending, by which providers tell what it is.
        source: its address or its bytes.
        kind: the media type of bytes.
    """
    return {"type": "file", "file": {"filename": name, "file_data": _address(source, kind)}}


def _address(source: str | bytes, kind: str) -> str:
    return source if isinstance(source, str) else f"data:{kind};base64,{base64.b64encode(source).decode()}"
