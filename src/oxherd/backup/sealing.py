"""The pipeline: a stream is compressed, encrypted and cut into parts, and back. Memory does not grow with it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Protocol

from oxherd.backup.manifest import Part, Piece
from oxherd.backup.storage import INSTALL, Storage
from oxherd.errors import BackupDamaged, UsageError
from oxherd.settings import Secret

PART = 8 << 20  # bytes of a part
CHUNK = 1 << 20  # bytes that are read at once
UNDER_WAY = 2  # parts that are uploaded or fetched at the same time
LEVEL = 1  # on dumps zstd's level 3 is slower and no smaller


class Readable(Protocol):
    """What has bytes to give."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        from backports import zstd
    return zstd


def _age() -> Any:
    try:
        import pyrage
    except ImportError:
        raise UsageError("backups need the extra `backup`, which is not installed", hint=INSTALL) from None
    return pyrage


def recipients_of(texts: Sequence[str]) -> list[Any]:
    """Recipients of age: `age1…`, or an SSH public key (ed25519, RSA).

    Raises:
        UsageError: there is none, or one is malformed.
    """
    age = _age()
    if not texts:
        raise UsageError(
            "BACKUP_RECIPIENTS is missing: backups are encrypted to public keys, so that workers can't read them",
            hint="oxherd backup keygen makes a pair; keep its secret half away from the worker",
        )
    found = []
    for place, text in enumerate(texts, 1):
        kinds = age.ssh if text.startswith("ssh-") else age.tagpq if text.startswith("age1tagpq") else age.x25519
        try:
            found.append(kinds.Recipient.from_str(text))
        except age.RecipientError:
            raise UsageError(
                f"BACKUP_RECIPIENTS: key {place} of {len(texts)} is no age recipient or SSH public key "
                f"(got {len(text)} characters)",
                hint="it is the half that begins with age1; oxherd backup keygen makes a pair",
            ) from None
    return found


def identities_of(secrets: Sequence[Secret]) -> list[Any]:
    """Identities of age: the secret halves.

    Raises:
        UsageError: there is none, or one is malformed.
    """
    age = _age()
    if not secrets:
        raise UsageError(
            "BACKUP_IDENTITY is missing: only the secret half of a recipient opens a backup",
            hint="set it for this command alone, or give --identity-file",
        )
    found = []
    for place, secret in enumerate(secrets, 1):
        text = secret.reveal()
        try:
            found.append(
                age.ssh.Identity.from_buffer(text.encode())
                if text.startswith("-----BEGIN")
                else age.x25519.Identity.from_str(text)
            )
        except (age.IdentityError, ValueError):
            raise UsageError(
                f"BACKUP_IDENTITY: key {place} of {len(secrets)} is no age identity (got {len(text)} characters)",
                hint="it begins with AGE-SECRET-KEY-1",
            ) from None
    return found


def lock(text: str, passphrase: Secret) -> bytes:
    """Encrypt a text to a passphrase, in age's own format, which its `age --decrypt` opens too. Takes a second."""
    return bytes(_age().passphrase.encrypt(text.encode(errors="surrogateescape"), passphrase.reveal(), armored=True))


def unlock(data: bytes, passphrase: Secret) -> str:
    """Open what `lock` made. Raises UsageError where the passphrase is another, or the data damaged."""
    age = _age()
    try:
        return bytes(age.passphrase.decrypt(data, passphrase.reveal())).decode(errors="surrogateescape")
    except (age.DecryptError, ValueError):
        raise UsageError("the file does not open: another passphrase, or it is damaged") from None


def new_identity() -> tuple[str, Secret]:
    """A new pair: the recipient, and the identity."""
    identity = _age().x25519.Identity.generate()
    return str(identity.to_public()), Secret(str(identity))


def seal_text(raw: bytes, recipients: Sequence[Any]) -> str:
    """Something small, compressed, encrypted, as base64."""
    return base64.b64encode(_age().encrypt(_zstd().compress(raw), recipients)).decode()


def zipped(raw: bytes) -> bytes:
    """Something small, compressed."""
    return bytes(_zstd().compress(raw))


def unzipped(data: bytes) -> bytes:
    """What `zipped` compressed."""
    return bytes(_zstd().decompress(data))


def open_text(text: str, identities: Sequence[Any]) -> bytes:
    """What `seal_text` sealed. Raises BackupDamaged, and UsageError where it is for other identities."""
    age = _age()
    try:
        return bytes(_zstd().decompress(age.decrypt(base64.b64decode(text, validate=True), identities)))
    except (age.DecryptError, binascii.Error, _zstd().ZstdError) as error:
        raise _damaged("the manifest's sealed part", error) from None


class Pace:
    """Counts what goes by, and slows it down where asked to.

    Parameters:
        limit: bytes a second; None for no limit.
        told: called with the bytes so far, several times a second at most.
    """

    def __init__(self, limit: float | None = None, told: Callable[[int], None] = lambda _: None) -> None:
        self._limit = limit
        self._told = told
        self._began = time.monotonic()
        self._last = 0.0
        self.bytes = 0

    def passed(self, size: int) -> None:
        """So many bytes more went by; waits where that was too fast."""
        self.bytes += size
        now = time.monotonic()
        if self._limit:
            ahead = self.bytes / self._limit - (now - self._began)
            if ahead > 0:
                time.sleep(ahead)
        if now - self._last > 0.2:
            self._last = now
            self._told(self.bytes)


class _Told:
    """Remembers what went wrong in a call from age, which turns it into an error of its own."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.failure = error
            raise


class _Compressed(_Told):
    """A stream, compressed while it is read, in the small pieces that age asks for."""

    def __init__(self, source: Readable, pace: Pace) -> None:
        super().__init__()
        zstd = _zstd()
        options = {
            zstd.CompressionParameter.compression_level: LEVEL,
            zstd.CompressionParameter.nb_workers: 1,  # compresses beside what encrypts
            zstd.CompressionParameter.checksum_flag: 1,
        }
        self._source = source
        self._pace = pace
        self._zip = zstd.ZstdCompressor(options=options)
        self._ready = memoryview(b"")
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        while not self._ready and not self._ended:
            with self.noting():
                chunk = self._source.read(CHUNK)
            self._pace.passed(len(chunk))
            self._ended = not chunk
            self._ready = memoryview(self._zip.compress(chunk) if chunk else self._zip.flush())
        given, self._ready = self._ready[:size], self._ready[size:]
        return bytes(given)


class _Cutter(_Told):
    """Takes ciphertext, cuts it into parts and uploads them; a slow upload slows down who writes."""

    def __init__(self, storage: Storage, stem: str) -> None:
        super().__init__()
        self._storage = storage
        self._stem = stem
        self._buffer = bytearray()
        self._pool = ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="oxherd-upload")
        self._room = threading.Semaphore(UNDER_WAY)
        self._uploads: list[Future[None]] = []
        self._parts: list[Part] = []

    def write(self, data: bytes) -> int:
        self._buffer += data
        if len(self._buffer) >= PART:
            with self.noting():
                self._cut()
        return len(data)

    def flush(self) -> None:
        """Asked for by age at the end."""

    def finish(self) -> tuple[Part, ...]:
        if self._buffer or not self._parts:
            self._cut()
        self._pool.shutdown()
        self._raise_failures()
        return tuple(self._parts)

    def abandon(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _cut(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        name = f"{self._stem}.{len(self._parts):05}.age"
        self._room.acquire()
        self._raise_failures()
        self._parts.append(Part(name.rpartition("/")[2], len(data), hashlib.sha256(data).hexdigest()))
        upload = self._pool.submit(self._storage.put, name, data)
        upload.add_done_callback(lambda _: self._room.release())
        self._uploads.append(upload)

    def _raise_failures(self) -> None:
        for upload in [each for each in self._uploads if each.done()]:
            self._uploads.remove(upload)
            upload.result()


def seal(source: Readable, storage: Storage, backup: str, kind: str, *, recipients: Sequence[Any], pace: Pace) -> Piece:
    """Store a stream; blocks until the last part is there.

    Parameters:
        source: what to store.
        storage: where to.
        backup: the backup's name.
        kind: the piece's.
        recipients: of `recipients_of`.
        pace: counts the bytes before compression.

    Raises:
        ServiceUnreachable, ServiceRefused: a part could not be written.
    """
    cutter, compressed = _Cutter(storage, f"{backup}/{kind}.zst"), _Compressed(source, pace)
    try:
        _age().encrypt_io(compressed, cutter, recipients)
        return Piece(kind, pace.bytes, cutter.finish())
    except BaseException:
        cutter.abandon()
        known = compressed.failure or cutter.failure
        if known is not None:
            raise known from None
        raise


class _Fetched(_Told):
    """The ciphertext of a piece, fetched ahead, each part compared with its hash before a byte of it is given out."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        super().__init__()
        self._parts = iter(parts)
        self._ready = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        while not self._ready:
            with self.noting():
                part = next(self._parts, None)
            if part is None:
                return b""
            self._ready = memoryview(part)
        end = size if size >= 0 else len(self._ready)
        given, self._ready = self._ready[:end], self._ready[end:]
        return bytes(given)


def fetch(storage: Storage, backup: str, piece: Piece) -> Generator[bytes, None, None]:
    """The parts of a piece in order, fetched ahead and compared with the manifest.

    Raises:
        BackupDamaged: a part is missing or was changed.
    """
    with ThreadPoolExecutor(UNDER_WAY, thread_name_prefix="oxherd-fetch") as pool:
        ahead: deque[Future[bytes]] = deque()
        parts = iter(piece.parts)
        try:
            while True:
                while len(ahead) < UNDER_WAY and (part := next(parts, None)) is not None:
                    ahead.append(pool.submit(checked_part, storage, backup, part))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for each in ahead:
                each.cancel()


def checked_part(storage: Storage, backup: str, part: Part) -> bytes:
    """A part's bytes. Raises BackupDamaged where they are not those that were stored."""
    try:
        data = storage.get(f"{backup}/{part.name}")
    except FileNotFoundError:
        raise BackupDamaged(f"{backup}/{part.name} is missing", hint=OTHER) from None
    return whole(data, backup, part)


def whole(data: bytes, backup: str, part: Part) -> bytes:
    """The same bytes. Raises BackupDamaged where they are not the part's."""
    if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
        raise BackupDamaged(f"{backup}/{part.name} is not what was stored: its bytes changed", hint=OTHER)
    return data


def unseal(parts: Iterable[bytes], sink: IO[bytes], *, identities: Sequence[Any], what: str, pace: Pace) -> None:
    """Decrypt, decompress and write a piece; blocks until all is written.

    What is written before an error came from parts whose hashes are right; all the same, write to what can be thrown
    away.

    Raises:
        BackupDamaged: it was changed.
        UsageError: it was encrypted to other identities' recipients.
        BrokenPipeError: the sink has seen enough.
    """
    age = _age()
    out = _Decompressed(sink, pace)
    source = _Fetched(parts)
    try:
        age.decrypt_io(source, out, identities)
    except (age.DecryptError, OSError) as error:
        raise out.failure or source.failure or _damaged(what, error) from None
    if not out.complete:
        raise BackupDamaged(f"{what} ends too early", hint=OTHER)


class _Decompressed(_Told):
    """Takes what age decrypted and writes it decompressed."""

    def __init__(self, sink: IO[bytes], pace: Pace) -> None:
        super().__init__()
        self._zstd = _zstd()
        self._unzip = self._zstd.ZstdDecompressor()
        self._sink = sink
        self._pace = pace

    @property
    def complete(self) -> bool:
        return bool(self._unzip.eof)

    def write(self, data: bytes) -> int:
        if self.failure is not None:  # age writes what was refused once more: to the stream that would be damage
            raise OSError
        try:
            raw = self._unzip.decompress(data)
            self._pace.passed(len(raw))
            self._sink.write(raw)
        except self._zstd.ZstdError as error:
            self.failure = _damaged("the compressed stream", error)
            raise OSError from None
        except OSError as error:
            self.failure = error
            raise
        return len(data)

    def flush(self) -> None:
        """Asked for by age at the end."""


OTHER = "take another backup: oxherd backup list"


def _damaged(what: str, error: Exception) -> BackupDamaged | UsageError:
    said = str(error).strip().partition("\n")[0].lower()
    if "no matching keys" in said or "identit" in said:  # no fault of the backup: it must not be reported as one
        return UsageError(
            f"{what} was encrypted to other keys than BACKUP_IDENTITY's", hint="the manifest names its recipients"
        )
    return BackupDamaged(f"{what} can't be opened: {said[:200] or type(error).__name__}", hint=OTHER)


def as_stream(raw: bytes) -> Readable:
    """Bytes to be sealed."""
    return io.BytesIO(raw)
