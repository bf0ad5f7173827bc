"""Who asks, and what they may do: bearer tokens, sessions of browsers, and the machine itself where no token is set."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from oxherd.clock import mono, wall_ms
from oxherd.settings import Secret
from oxherd.telemetry.events import ApiLoginFailed, emit
from oxherd.web.problems import Problem

COOKIE = "oxherd_session"
CSRF_HEADER = "x-csrf-token"
SESSION_SECONDS = 12 * 3600
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
TRIES = 10  # wrong tokens from one place within WINDOW, after which it has to wait
TRIES_OF_A_PROXY = 100  # of all places behind one
WINDOW = 300.0  # seconds
MOST_PLACES = 10_000  # that are remembered


class Scope(StrEnum):
    """What somebody may do."""

    READ = "read"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who may ask.

    Attributes:
        actor: how they are known: token, read_token, session or loopback.
        scope: what they may do.
        csrf: what their actions must carry; None where no browser sends the login by itself.
        expires: when the session ends, wall ms; None where there is none.
    """

    actor: str
    scope: Scope
    csrf: str | None = None
    expires: int | None = None


class Gatekeeper:
    """Lets requests in or refuses them.

    Parameters:
        token: lets in to see and act; without one only this machine is let in.
        read_token: lets in to see.
    """

    def __init__(self, token: Secret | None, read_token: Secret | None) -> None:
        self._tokens = {Scope.ACT: token, Scope.READ: read_token}
        self._attempts = Attempts()

    @property
    def open_to_this_machine_only(self) -> bool:
        """Whether no token is set."""
        return self._tokens[Scope.ACT] is None

    def admit(self, request: Request, needed: Scope, *, csrf: str | None = None) -> Identity:
        """Who asks.

        Parameters:
            request: what they ask.
            needed: what one must be allowed.
            csrf: what a form carries in place of the header; None where the header counts.

        Raises:
            Problem: 401 for nobody, 403 for somebody who may not, 429 after too many wrong tokens.
        """
        identity = self.identify(request)
        if needed is Scope.ACT and identity.scope is not Scope.ACT:
            raise Problem(403, "this login may read, not act", hint="use API_TOKEN instead of API_READ_TOKEN")
        if request.method not in SAFE:
            self._check_origin(request, identity, csrf)
        return identity

    def identify(self, request: Request) -> Identity:
        """Who asks, whatever it is they want. Raises as `admit`."""
        if self.open_to_this_machine_only:
            return _of_this_machine(request)
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            scope = self.check_token(request, credentials.strip())
            return Identity("token" if scope is Scope.ACT else "read_token", scope)
        if identity := self.session(request):
            return identity
        raise Problem(401, "no login", hint="send the header Authorization: Bearer <API_TOKEN>", headers=CHALLENGE)

    def check_token(self, request: Request, given: str) -> Scope:
        """What a token lets its owner do. Raises Problem: 401 where it is wrong, 429 after too many wrong ones."""
        self._attempts.check(request)
        # Both are compared, in constant time: how long it takes tells nothing.
        known = [scope for scope, token in self._tokens.items() if token is not None and token == Secret(given)]
        if not known:
            self._attempts.failed(request)
            emit(ApiLoginFailed(source=source_of(request)))
            raise Problem(401, "the token is wrong", headers=CHALLENGE)
        return known[0]

    # -- sessions: signed by the token that opened them, so that a new token ends them all

    def open_session(self, scope: Scope) -> tuple[Identity, str]:
        """A new session: who its owner is, and the cookie's value."""
        expires = wall_ms() + SESSION_SECONDS * 1000
        claim = f"v1.{scope}.{expires}.{secrets.token_hex(16)}"
        return self._owner(claim), f"{claim}.{self._sign('session', scope, claim)}"

    def session(self, request: Request) -> Identity | None:
        """Who opened the session that a request comes from; None where there is none, or it has ended."""
        claim, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        match claim.split("."):
            case ["v1", "read" | "act" as scope, expires, _] if expires.isdecimal() and int(expires) > wall_ms():
                right = self._sign("session", Scope(scope), claim)
                return self._owner(claim) if hmac.compare_digest(right.encode(), signature.encode()) else None
            case _:
                return None

    def _owner(self, claim: str) -> Identity:
        _, scope, expires, _ = claim.split(".")
        return Identity("session", Scope(scope), self._sign("csrf", Scope(scope), claim), int(expires))

    def _sign(self, purpose: str, scope: Scope, text: str) -> str:
        token = self._tokens[scope]
        key = (
            secrets.token_bytes(32) if token is None else token.reveal().encode()
        )  # nobody holds a session of no token
        return hmac.new(key, f"oxherd {purpose}\n{text}".encode(), hashlib.sha256).hexdigest()

    def _check_origin(self, request: Request, identity: Identity, csrf: str | None) -> None:
        """Refuse what another site makes a browser send: with its cookie, or to this very machine."""
        if identity.actor not in {"session", "loopback"}:
            return
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        if foreign or request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise Problem(403, "the request comes from another site")
        if identity.csrf is not None:
            self.check_csrf(identity, request.headers.get(CSRF_HEADER, "") if csrf is None else csrf)

    @staticmethod
    def check_csrf(identity: Identity, given: str) -> None:
        """Refuse an action of a session without its own token. Raises Problem: 403."""
        if identity.csrf is None or not hmac.compare_digest(identity.csrf.encode(), given.encode(errors="replace")):
            raise Problem(403, f"the header {CSRF_HEADER} is missing or wrong", hint="GET /api/v1/session tells it")


CHALLENGE = {"WWW-Authenticate": 'Bearer realm="oxherd"'}


def keep_session(response: Response, request: Request, cookie: str) -> None:
    """Send the session's cookie with a response; an empty one forgets it."""
    response.set_cookie(
        COOKIE, cookie, max_age=SESSION_SECONDS if cookie else 0, path="/", httponly=True, samesite="lax",
        secure=is_https(request),
    )  # fmt: skip


def is_https(request: Request) -> bool:
    """Whether the browser speaks TLS, be it with a proxy in front of us."""
    return "https" in {request.scope["scheme"], request.headers.get("x-forwarded-proto", "").partition(",")[0].strip()}


def source_of(request: Request) -> str:
    """From where somebody asks, for people: the address that connected, and the one that a proxy tells."""
    peer, told = _peer(request), _told(request)
    return f"{told} via {peer}" if told else peer


def _peer(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _told(request: Request) -> str:
    # The last one is the one that the proxy next to us has added; those before may be anybody's invention.
    return request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()[:64]


def _of_this_machine(request: Request) -> Identity:
    local = _is_loopback(_peer(request)) and not {"forwarded", "x-forwarded-for"} & set(request.headers.keys())
    # A name that somebody pointed at 127.0.0.1 would let a web page in.
    if not local or not _is_loopback(_host(request)):
        raise Problem(
            403, "API_TOKEN is not set, so only this machine itself is let in, under the name localhost",
            hint="set API_TOKEN on the worker",
        )  # fmt: skip
    return Identity("loopback", Scope.ACT)


def _host(request: Request) -> str:
    return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Attempts:
    """Counts wrong tokens by where they come from."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, request: Request) -> None:
        """Refuse a place with too many failures, before its token is looked at. Raises Problem: 429."""
        for place, most in _places(request):
            recent = [at for at in self._failures.get(place, ()) if mono() - at < WINDOW]
            if len(recent) >= most:
                wait = str(int(WINDOW - (mono() - recent[0])) + 1)
                raise Problem(429, f"too many wrong tokens; wait {wait} s", headers={"Retry-After": wait})

    def failed(self, request: Request) -> None:
        """Count one."""
        for place, most in _places(request):
            recent = [at for at in self._failures.pop(place, ()) if mono() - at < WINDOW]
            self._failures[place] = [*recent, mono()][-most:]
        while len(self._failures) > MOST_PLACES:
            self._failures.popitem(last=False)


def _places(request: Request) -> list[tuple[str, int]]:
    peer, told = _peer(request), _told(request)
    return [(f"{told} via {peer}", TRIES), (f"via {peer}", TRIES_OF_A_PROXY)] if told else [(peer, TRIES)]
