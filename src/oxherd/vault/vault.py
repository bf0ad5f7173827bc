"""Credentials by tenant and name: sealed on the way into the store, opened on the way out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from oxherd.errors import NoCredential, UsageError, VaultError
from oxherd.settings import Secret
from oxherd.vault.crypto import binding
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import open_fields

LABEL = "oxherd/credential"
LARGEST = 65_536  # bytes of a value: keys, tokens and certificates, not files
LONGEST_NAME = 200
PAGE = 200


class Row(Protocol):
    """What the vault reads of a stored credential."""

    @property
    def tenant(self) -> str:
        """Whose it is; empty for nobody's in particular."""

    @property
    def name(self) -> str:
        """What handlers call it."""

    @property
    def envelope(self) -> str:
        """The sealed value."""

    @property
    def key_id(self) -> str:
        """Which key sealed it."""

    @property
    def created_at(self) -> int:
        """Wall ms."""

    @property
    def updated_at(self) -> int:
        """Wall ms of the last put."""


class Rows(Protocol):
    """What the vault needs of a store; `oxherd.store.Store` says what each method does."""

    async def put_credential(self, tenant: str, name: str, envelope: str) -> bool:
        """Store an envelope; whether there was none."""

    async def get_credential(self, tenant: str, name: str) -> str | None:
        """One envelope, or None."""

    async def remove_credential(self, tenant: str, name: str) -> bool:
        """Forget one; whether it was there."""

    async def list_credentials(
        self, *, limit: int, after: tuple[str, str] | None = None, tenant: str | None = None, but_key: str | None = None
    ) -> Sequence[Row]:
        """A page in the order of tenant and name."""

    async def count_credentials(self) -> dict[str, int]:
        """How many each key sealed."""

    async def swap_credentials(self, swaps: Sequence[tuple[str, str, str, str]]) -> int:
        """Replace envelopes that are still the ones that were read; how many."""


@dataclass(slots=True)
class Rewrapped:
    """How a rewrap went.

    Attributes:
        done: credentials that got another envelope.
        left: credentials that another key than the active one still seals.
        faults: tenant, name and why for those that could not be opened.
    """

    done: int = 0
    left: int = 0
    faults: list[tuple[str, str, str]] = field(default_factory=list)


class Vault:
    """Credentials and sealed fields.

    Parameters:
        ring: the keys.
        rows: where credentials are kept; None with --no-store.
    """

    def __init__(self, ring: KeyRing, rows: Rows | None) -> None:
        self._ring = ring
        self._stored = rows

    @property
    def active_key(self) -> str:
        """The id of the key that seals. Raises UnknownKey where none is configured."""
        return self._ring.active.id

    async def put(self, tenant: str | None, name: str, value: Secret) -> bool:
        """Keep a credential, in place of any of that name; whether there was none.

        Raises:
            UsageError: the name or the value can't be kept.
            UnknownKey: no key is configured.
        """
        _check(name, value)
        envelope = self._ring.seal(value.reveal(), _bound_to(tenant, name))
        return await self._rows.put_credential(tenant or "", name, envelope)

    async def get(self, tenant: str | None, name: str) -> Secret:
        """A credential's value as it is now.

        Raises:
            NoCredential: the tenant has none of that name.
            VaultError: its envelope can't be opened; each reason is a class of its own.
        """
        envelope = await self._rows.get_credential(tenant or "", name)
        if envelope is None:
            raise NoCredential(
                f"{_whose(tenant)} has no credential {name!r}", hint="oxherd credentials put; oxherd credentials list"
            )
        try:
            return Secret(self._ring.open(envelope, _bound_to(tenant, name)))
        except VaultError as error:
            raise type(error)(f"credential {name!r} of {_whose(tenant)}: {error.message}", hint=error.hint) from None

    async def remove(self, tenant: str | None, name: str) -> bool:
        """Forget a credential; whether it was there."""
        return await self._rows.remove_credential(tenant or "", name)

    async def list(self, tenant: str | None = None) -> AsyncIterator[Row]:
        """All credentials, or a tenant's, by tenant and name. No value is opened."""
        async for page in self._pages(PAGE, tenant=tenant):
            for row in page:
                yield row

    async def counts(self) -> dict[str, int]:
        """How many credentials each key seals, by the key's id."""
        return await self._rows.count_credentials()

    async def rewrap(self, tell: Callable[[int, int], None], *, page: int = PAGE) -> Rewrapped:
        """Seal with the active key whatever another one seals.

        It may run while credentials are read and put, be stopped at any time, and run twice at once: an envelope is
        replaced only if it is still the one that was read, and what is left is found by the key that seals it.

        Parameters:
            tell: called with how many are done and how many there are to do.
            page: how many are replaced at once.
        """
        result = Rewrapped(left=await self._left())
        total = result.left
        # Again, for what others put with an old key meanwhile; a pass that replaced nothing was the last.
        while result.left and (done := await self._pass(result, tell, total, page)):
            result.done += done
            result.left = await self._left()
        return result

    async def check(self, tell: Callable[[int], None], *, page: int = PAGE) -> Sequence[tuple[str, str, str]]:
        """Open every credential, and forget what was in it.

        Parameters:
            tell: called with how many were opened, after each page.
            page: how many are read at once.

        Returns:
            Tenant, name and why for those that can't be opened.
        """
        faults, seen = [], 0
        async for rows in self._pages(page):
            for row in rows:
                try:
                    self._ring.open(row.envelope, _bound_to(row.tenant, row.name))
                except VaultError as error:
                    faults.append((row.tenant, row.name, error.message))
            seen += len(rows)
            tell(seen)
        return faults

    async def _pass(self, result: Rewrapped, tell: Callable[[int, int], None], total: int, size: int) -> int:
        done, result.faults = 0, []
        async for page in self._pages(size, but_key=self.active_key):
            swaps = [swap for row in page if (swap := self._rewrapped(row, result)) is not None]
            done += await self._rows.swap_credentials(swaps) if swaps else 0
            tell(result.done + done, max(total, result.done + done))
        return done

    def _rewrapped(self, row: Row, result: Rewrapped) -> tuple[str, str, str, str] | None:
        bound_to = _bound_to(row.tenant, row.name)
        try:
            envelope = self._ring.seal(self._ring.open(row.envelope, bound_to), bound_to)
        except VaultError as error:
            result.faults.append((row.tenant, row.name, error.message))
            return None
        return row.tenant, row.name, row.envelope, envelope

    async def _left(self) -> int:
        return sum(count for key, count in (await self._rows.count_credentials()).items() if key != self.active_key)

    async def _pages(
        self, limit: int, *, tenant: str | None = None, but_key: str | None = None
    ) -> AsyncIterator[Sequence[Row]]:
        after: tuple[str, str] | None = None
        while page := await self._rows.list_credentials(limit=limit, after=after, tenant=tenant, but_key=but_key):
            yield page
            after = (page[-1].tenant, page[-1].name)

    def open_fields(self, data: dict[str, Any], *, job: str, tenant: str | None) -> Sequence[Secret]:
        """Open a payload's sealed fields in place, see `payload.open_fields`."""
        return open_fields(data, self._ring, job=job, tenant=tenant)

    @property
    def _rows(self) -> Rows:
        if self._stored is None:
            raise NoCredential("credentials are kept in the store, and there is none", hint="start without --no-store")
        return self._stored


NO_VAULT = Vault(KeyRing(None), None)  # without keys and a store: whoever asks for something is told so


def _check(name: str, value: Secret) -> None:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UsageError(f"a credential's name has 1 to {LONGEST_NAME} printable characters")
    size = len(value.reveal().encode())
    if not 0 < size <= LARGEST:
        raise UsageError(f"a credential's value has 1 to {LARGEST:,} bytes; this one has {size:,}")


def _bound_to(tenant: str | None, name: str) -> bytes:
    return binding(LABEL, tenant or "", name)


def _whose(tenant: str | None) -> str:
    return f"tenant {tenant!r}" if tenant else "a job without a tenant"
