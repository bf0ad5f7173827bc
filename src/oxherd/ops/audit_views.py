"""Readings of a mangled document: secrets survive a word processor, a mail program and three layers of base64."""

from __future__ import annotations

import base64
import binascii
import gzip
import html
import quopri
import re
import unicodedata
import zlib
from collections.abc import Iterator
from urllib.parse import unquote

DEPTH = 3  # layers of encodings within one another
MOST = 8 << 20  # bytes that one layer may unfold to

_MOJIBAKE = re.compile(
    "[ÂÃâ][\u0080-\u00bf\u20ac\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u0152-\u0178\u0192]"
)
_ESCAPES = re.compile(r"\\(?:u|U0000)([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_BLOCK = re.compile(rb"[A-Za-z0-9+/_-]{24,}(?:\r?\n[ \t]*[A-Za-z0-9+/_-]{2,})*={0,2}")
_INVISIBLE = dict.fromkeys([0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x180E])
_DASHES = dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2015, 0x2212, 0xFE63, 0xFF0D], "-")
_QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x00A0: " ", 0x202F: " "}
_PRINTED = frozenset(range(32, 127)) | {9, 10, 13}


def views(data: bytes) -> Iterator[tuple[str, bytes, int | None]]:
    """Other readings of a text, with how each was got, and the line it stands on where the lines are not the same.

    A plain ASCII text without escapes and blocks of base64 has none, and costs a few searches.
    """
    yield from _unfolded(data, "", None, DEPTH)


def _unfolded(data: bytes, how: str, line: int | None, depth: int) -> Iterator[tuple[str, bytes, int | None]]:
    if not depth:
        return
    for name, view in _mended(data):
        yield _joined(how, name), view, line
        yield from _in_base64(view, _joined(how, name), line, depth)
    yield from _in_base64(data, how, line, depth)


def _in_base64(data: bytes, how: str, line: int | None, depth: int) -> Iterator[tuple[str, bytes, int | None]]:
    for match in _BLOCK.finditer(data):
        opened = _opened(match[0])
        if opened is not None:
            place = line or data.count(b"\n", 0, match.start()) + 1
            name = _joined(how, "base64")
            yield name, opened, place
            yield from _unfolded(opened, name, place, depth - 1)


def _joined(how: str, name: str) -> str:
    return f"{how}, {name}" if how else name


def _opened(block: bytes) -> bytes | None:
    """What a block of base64 holds, where that is text, or text that was compressed."""
    packed = b"".join(block.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        raw = base64.b64decode(packed + b"=" * (-len(packed) % 4))
    except binascii.Error:
        return None
    if raw[:2] == b"\x1f\x8b":
        try:
            return gzip.decompress(raw)[:MOST]
        except (OSError, EOFError, zlib.error):
            return None
    sample = raw[:512]
    return raw if sum(byte in _PRINTED for byte in sample) >= 0.95 * len(sample) else None


def _mended(data: bytes) -> Iterator[tuple[str, bytes]]:
    text = _text(data)
    if text is None:
        return
    plain = _without_typography(_without_mojibake(text)) if not text.isascii() else text
    if plain != text:
        yield "mended characters", plain.encode()
    if "=3D" in plain or "quoted-printable" in plain.lower():
        yield "quoted-printable", quopri.decodestring(plain.encode())
    decoded = plain
    if "&" in decoded:
        decoded = html.unescape(decoded)
    if "%" in decoded:
        decoded = unquote(decoded, errors="replace")
    if "\\" in decoded:
        decoded = _ESCAPES.sub(lambda match: chr(int(match[1] or match[2], 16)), decoded)
    if decoded != plain:
        yield "escapes", _without_typography(decoded).encode(errors="replace")


def _text(data: bytes) -> str | None:
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return data.decode("utf-16", errors="replace")
    head = data[:4096]
    zeros = head.count(0)
    if zeros:
        even = head[::2].count(0)
        if zeros < 0.3 * len(head) or min(even, zeros - even) > 0.1 * zeros:
            return None  # a binary; the scanner reads it as it is
        return data.decode("utf-16-be" if even > zeros - even else "utf-16-le", errors="replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _without_mojibake(text: str) -> str:
    """UTF-8 that somebody took for a Western code page, once or several times over, as it was."""
    for _ in range(DEPTH):
        if not _MOJIBAKE.search(text):
            return text
        mended = _MOJIBAKE_RUN.sub(_as_utf8, text)
        if mended == text:
            return text
        text = mended
    return text


_MOJIBAKE_RUN = re.compile(
    "[\u0080-\u00ff\u20ac\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u0152-\u0178\u0192\u02c6\u02dc\u2013\u2014\u2122]+"
)


def _as_utf8(match: re.Match[str]) -> str:
    raw = bytearray()
    for char in match[0]:
        try:
            raw += char.encode("cp1252")
        except UnicodeEncodeError:
            if ord(char) > 255:
                return match[0]
            raw.append(ord(char))  # cp1252 leaves five bytes without a meaning; readers keep them as they are
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return match[0]


def _without_typography(text: str) -> str:
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", text.translate({**_INVISIBLE, **_DASHES, **_QUOTES}))
