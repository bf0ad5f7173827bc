"""Logging in where a text says that a password belongs: Postgres and Redis, by their addresses, and nothing but that.

Whoever writes a text chooses its addresses, and this machine may be where others can't get to. So an address of a text
is asked only where it is public; one that this installation's own variables name may be anywhere. What a name stands
for is looked up once, so that it can't be public when it is looked at and private when it is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from oxherd.settings import RedisTarget, Secret, Settings, parse_redis_url

SECONDS = 10  # for one login
MOST_PLACES = 20  # that the texts of one audit can have called
Answer = tuple[bool | None, str]  # whether it is taken, None where that is open; and why, in words without a secret


@dataclass(frozen=True, slots=True)
class Login:
    """An address with a password.

    Attributes:
        host, port: where.
        user, password: as who; None is the service's default user.
        database: of Postgres.
        mode: how far TLS is wanted, in the words of Postgres's `sslmode`; Redis has `disable` and `verify-full`.
    """

    host: str
    port: int
    user: str | None
    password: Secret
    database: str | None
    mode: str

    @property
    def place(self) -> tuple[str, int]:
        """Where it is, to be compared."""
        return (self.host.lower(), self.port)


def redis_logins(value: str, texts: Iterator[str], settings: Settings) -> list[Login]:
    """The Redis URLs with this password: of the variables, then of the texts."""
    own = [target for target in (settings.redis_url, settings.redis_admin_url) if target is not None]
    found = [_of_target(each) for each in own if each.password == Secret(unquote(value))]
    urls = re.compile(rf"(?i)rediss?://[^\s:@/\"'<>]{{0,64}}:{re.escape(value)}@[a-z0-9.\[\]:_-]*[a-z0-9\]](?:/\d+)?")
    for text in texts:
        for url in urls.findall(text):
            with contextlib.suppress(ValueError):
                found.append(_of_target(parse_redis_url(url)))
    return _each_place_once(found)


def _each_place_once(found: list[Login]) -> list[Login]:
    first: dict[tuple[str, int], Login] = {}
    for each in found:
        if each.host:
            first.setdefault(each.place, each)
    return list(first.values())


def _of_target(target: RedisTarget) -> Login:
    password = target.password or Secret("")
    mode = "verify-full" if target.tls else "disable"
    return Login("" if target.path else target.host, target.port, target.username, password, None, mode)


def postgres_logins(value: str, texts: Iterator[str], settings: Settings) -> list[Login]:
    """The Postgres URLs with this password: of the variables, then of the texts."""
    urls = re.compile(
        rf"(?i)postgres(?:ql)?(?:\+[a-z0-9]+)?://[^\s:@/\"'<>]{{1,64}}:{re.escape(value)}@[a-z0-9.\[\]:_-]*[a-z0-9\]]"
        r"(?:/[\w%.~-]*(?:\?[\w%.~=&/-]*)?)?"
    )
    own = [url.reveal() for url in (settings.database_url, settings.database_admin_url) if url is not None]
    found = [_of_url(each) for each in own if value == each or _of_url(each).password == Secret(unquote(value))]
    for text in texts:
        for url in urls.findall(text):
            with contextlib.suppress(ValueError):
                found.append(_of_url(url))
    return _each_place_once(found)


def _of_url(url: str) -> Login:
    parts = urlsplit(url)
    mode = parse_qs(parts.query).get("sslmode", ["prefer"])[-1]
    return Login(
        parts.hostname or "", parts.port or 5432, unquote(parts.username or ""), Secret(unquote(parts.password or "")),
        unquote(parts.path.removeprefix("/")) or None, mode,
    )  # fmt: skip


class Doors:
    """Which addresses are called at all. One for each audit: it counts the places that texts have called.

    Parameters:
        settings: the places of these variables may be private.
    """

    def __init__(self, settings: Settings) -> None:
        own = [_of_target(each) for each in (settings.redis_url, settings.redis_admin_url) if each is not None]
        own += [_of_url(each.reveal()) for each in (settings.database_url, settings.database_admin_url) if each]
        self._own = {each.place for each in own}
        self._called: set[tuple[str, int]] = set()

    async def open(self, login: Login) -> tuple[str, str]:
        """The IP address to call, or why it is not called."""
        shown = f"{login.host}:{login.port}"
        try:
            looked_up = await asyncio.get_running_loop().getaddrinfo(login.host, login.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return "", f"nobody knows where {login.host} is"
        addresses = [str(each[4][0]) for each in looked_up]
        if login.place in self._own:
            return addresses[0], ""
        if not all(map(_is_public, addresses)):
            return "", f"{shown} is private: set the variable to that address to have it asked"
        if login.place not in self._called and len(self._called) == MOST_PLACES:
            return "", f"{shown} was left out: texts can have {MOST_PLACES} places called"
        self._called.add(login.place)
        return addresses[0], ""


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.is_global and not ip.is_multicast


async def log_in(logins: list[Login], doors: Doors, ask: Any) -> Answer:
    """What all places together say: one that takes the password is enough; it is dead where every one refuses it.

    Parameters:
        logins: the places.
        doors: which of them may be called.
        ask: `ask_redis` or `ask_postgres`.
    """
    answers: list[Answer] = []
    for login in logins:
        address, closed = await doors.open(login)
        answers.append(await _in_time(ask, login, address) if address else (None, closed))
        if answers[-1][0]:
            return answers[-1]
    if not answers:
        return None, "no address stands beside it"
    live = False if all(each[0] is False for each in answers) else None
    return live, "; ".join(dict.fromkeys(words for state, words in answers if state is live))


async def _in_time(ask: Any, login: Login, address: str) -> Answer:
    try:
        async with asyncio.timeout(SECONDS):
            return await ask(login, address)  # type: ignore[no-any-return]
    except ssl.SSLCertVerificationError:
        return None, f"{login.host}:{login.port} shows a certificate that is not to be trusted"
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return None, f"{login.host}:{login.port} did not answer"


async def ask_redis(login: Login, address: str) -> Answer:
    """Log in to Redis at an IP address, send PING, hang up."""
    shown = f"Redis at {login.host}:{login.port}"
    secure = ssl.create_default_context() if login.mode != "disable" else None
    name = login.host if secure else None
    reader, writer = await asyncio.open_connection(address, login.port, ssl=secure, server_hostname=name)
    try:
        words = [each for each in ("AUTH", login.user, login.password.reveal()) if each]
        writer.write(_command(*words) + _command("PING"))
        said = (await reader.readline()).decode("utf-8", "replace")
        if said.startswith("+OK") and (await reader.readline()).startswith((b"+PONG", b"-NOPERM")):
            return True, f"{shown} lets it in"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if said.startswith(("-WRONGPASS", "-ERR invalid password")):
        return False, f"{shown} refuses it"
    if "without any password" in said or "no password is set" in said:
        return None, f"{shown} asks nobody for a password"
    return None, f"{shown} answers something else"


def _command(*words: str) -> bytes:
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in parts)


async def ask_postgres(login: Login, address: str) -> Answer:
    """Log in to Postgres at an IP address and hang up. No statement is sent."""
    import asyncpg

    shown = f"Postgres at {login.host}:{login.port}"
    for secure in _ways(login):
        try:
            connection = await asyncpg.connect(
                host=address, port=login.port, user=login.user, password=login.password.reveal(),
                database=login.database or login.user, ssl=secure, statement_cache_size=0,
            )  # fmt: skip
            connection.terminate()
        except asyncpg.InvalidPasswordError:
            return False, f"{shown} refuses it"
        except (asyncpg.InvalidCatalogNameError, asyncpg.InsufficientPrivilegeError):
            return True, f"{shown} takes it, though not for this database"
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            return None, f"{shown} answers {getattr(error, 'sqlstate', None) or type(error).__name__}"
        except ConnectionError:
            if secure is False or login.mode not in {"prefer", "allow"}:
                raise
        else:
            return True, f"{shown} lets it in"
    raise AssertionError("unreachable")


def _ways(login: Login) -> list[ssl.SSLContext | bool]:
    """With which TLS to try, as libpq does: https://www.postgresql.org/docs/18/libpq-ssl.html."""
    if login.mode == "disable":
        return [False]
    context = _Named(ssl.PROTOCOL_TLS_CLIENT)
    context.name = login.host
    if login.mode in {"verify-ca", "verify-full"}:
        context.load_default_certs()
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return [context, False] if login.mode in {"prefer", "allow"} else [context]


class _Named(ssl.SSLContext):
    """TLS with a host's name where the connection only knows its IP address."""

    name = ""

    def wrap_bio(self, *streams: Any, **options: Any) -> ssl.SSLObject:
        """Begin TLS."""
        return super().wrap_bio(*streams, **{**options, "server_hostname": self.name})
