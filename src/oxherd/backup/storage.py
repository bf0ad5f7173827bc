"""Where backups are kept: S3 and what speaks like it, Google's and Azure's storage, or a folder, by one URL."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from oxherd.errors import ServiceRefused, ServiceUnreachable, UsageError
from oxherd.settings import Secret, Settings

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PATIENCE = 900.0  # seconds for which a part is tried again before the whole upload is given up
PAUSES = (1.0, 30.0)  # seconds between two tries
REQUEST = "120s"  # for one request; a part is 8 MiB
LEFT = 86_400.0  # seconds after which a half-written file has nobody who writes it
_HALF = re.compile(r"\.(age|json)#\d+$")  # how obstore names what it writes before it is whole
INSTALL = "pip install 'oxherd[backup]'"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as a listing has it: its name, bytes, and when it was written (wall seconds)."""

    name: str
    size: int
    at: float


class Storage:
    """One folder or bucket, or a part of it. All methods block: call them from a thread.

    Parameters:
        store: an obstore store, already at the prefix.
        shown: the address without credentials.
        folder: the same, where it is a local folder.
        patience: seconds for which a write is tried again.
        on_wait: told why, before each pause.
    """

    def __init__(
        self,
        store: ObjectStore,
        shown: str,
        *,
        folder: Path | None = None,
        patience: float = PATIENCE,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self.shown = shown
        self._folder = folder
        self._patience = patience
        self.on_wait = on_wait
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Try nothing again from now on: who wants this written is being stopped."""
        self._given_up.set()

    def put(self, name: str, data: bytes | bytearray) -> None:
        """Write an object, through outages of a quarter of an hour. Raises ServiceUnreachable, ServiceRefused."""
        import obstore
        from obstore import exceptions

        deadline, pause = time.monotonic() + self._patience, PAUSES[0]
        while True:
            try:
                obstore.put(self._store, name, data, use_multipart=False)
                return
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
                raise self._refused(name, error) from None
            except (exceptions.BaseError, OSError) as error:
                if self._given_up.is_set() or time.monotonic() + pause > deadline:
                    raise self._away(name, error) from None
                self.on_wait(f"{self.shown}: {_brief(error)}; trying again")
            self._given_up.wait(pause)
            pause = min(pause * 2, PAUSES[1])

    def create(self, name: str, data: bytes) -> None:
        """Write an object that is not there yet.

        Raises:
            ServiceRefused: there is one, or it may not be written.
            ServiceUnreachable: it did not answer.
        """
        import obstore
        from obstore import exceptions

        try:
            if self._there(name):  # some servers ignore the condition below
                raise exceptions.AlreadyExistsError(name)
            obstore.put(self._store, name, data, mode="create", use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise ServiceRefused(f"{self.shown}: {name} is there already, and is not written over") from None
        except exceptions.BaseError as error:
            raise self._fault(name, error) from None

    def get(self, name: str) -> bytes:
        """A whole object. Raises FileNotFoundError, ServiceRefused, ServiceUnreachable."""
        import obstore
        from obstore import exceptions

        try:
            return bytes(obstore.get(self._store, name).bytes())
        except exceptions.BaseError as error:
            raise self._fault(name, error) from None

    def objects(self, prefix: str = "") -> Iterator[Stored]:
        """All objects below a prefix, which is a whole name or ends with a slash. Raises as `get`."""
        import obstore
        from obstore import exceptions

        try:
            for page in obstore.list(self._store, prefix or None, chunk_size=1_000):
                for each in page:
                    yield Stored(each["path"], each["size"], each["last_modified"].timestamp())
        except FileNotFoundError:
            return
        except exceptions.BaseError as error:
            raise self._fault(prefix, error) from None

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone is fine. Raises ServiceRefused (a lock), ServiceUnreachable."""
        import obstore
        from obstore import exceptions

        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except exceptions.BaseError as error:
            raise self._fault(name, error) from None

    def sweep(self) -> list[str]:
        """Remove what a process that was killed left half written in a local folder; their names."""
        if self._folder is None:
            return []
        old = time.time() - LEFT
        found = [path for path in self._folder.rglob("*#*") if _HALF.search(path.name) and path.is_file()]
        left = [path for path in found if path.stat().st_mtime < old]
        for path in left:
            path.unlink(missing_ok=True)
        return [str(path.relative_to(self._folder)) for path in left]

    def _there(self, name: str) -> bool:
        import obstore

        try:
            obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def _fault(self, name: str, error: Exception) -> Exception:
        from obstore import exceptions

        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(name)
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or "403" in str(error):
            return self._refused(name, error)
        return self._away(name, error)

    def _refused(self, name: str, error: Exception) -> ServiceRefused:
        return ServiceRefused(
            f"{self.shown} refused {name or 'the request'}: {_brief(error)}",
            hint="check the key's rights on the bucket; an object lock refuses deletes until it ends",
        )

    def _away(self, name: str, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"{self.shown} did not take or give {name or 'a list'}: {_brief(error)}",
            hint="check BACKUP_URL, the endpoint and the network",
        )


def open_storage(settings: Settings, url: str | None = None, *, patience: float = PATIENCE) -> Storage:
    """The storage of BACKUP_URL, or of another URL with the same credentials.

    Raises:
        UsageError: it is missing or makes no sense, or the extra is not installed.
    """
    text = url or settings.backup_url
    if not text:
        raise UsageError(
            "BACKUP_URL is missing: where are backups kept?",
            hint="BACKUP_URL=s3://bucket/oxherd (or gs://, az://, a folder); docs/backups.md has examples",
        )
    try:
        import obstore  # noqa: F401
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url
    except ImportError:
        raise UsageError("backups need the extra `backup`, which is not installed", hint=INSTALL) from None
    folder = _folder(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return Storage(LocalStore(folder), str(folder), folder=folder, patience=patience)
    try:
        options = {name: value for name, value in config_of(text, settings).items() if value}
        store = from_url(
            text, config=options, client_options={"timeout": REQUEST, "allow_http": True},  # type: ignore[call-overload]
            retry_config={"max_retries": 3},
        )  # fmt: skip
    except (BaseError, ValueError) as error:
        raise UsageError(f"BACKUP_URL can't be used: {_brief(error)}", hint="docs/backups.md has examples") from None
    return Storage(store, text.partition("?")[0], patience=patience)


def _folder(text: str) -> Path | None:
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return Path(text).absolute() if "://" not in text else None


def config_of(text: str, settings: Settings) -> dict[str, Any]:
    """The options of obstore for a URL; those that are empty count as not given."""

    def open_(secret: Secret | None) -> str | None:
        return secret.reveal() if secret else None

    match urlsplit(text).scheme:
        case "s3" | "s3a":
            host = urlsplit(settings.aws_endpoint_url or "https://s3.amazonaws.com").hostname or ""
            return {
                "access_key_id": open_(settings.aws_access_key_id),
                "secret_access_key": open_(settings.aws_secret_access_key),
                "session_token": open_(settings.aws_session_token), "region": settings.aws_region,
                "endpoint": settings.aws_endpoint_url,
                # Amazon takes nothing without one into a bucket with an object lock; Backblaze refuses the header.
                "checksum_algorithm": "SHA256" if host.endswith(".amazonaws.com") else None,
            }  # fmt: skip
        case "gs":
            return {"service_account_key": open_(settings.google_service_account_key)}
        case _:
            return {
                "account_name": settings.azure_storage_account_name,
                "account_key": open_(settings.azure_storage_account_key),
            }


def _brief(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line[:300] or type(error).__name__
