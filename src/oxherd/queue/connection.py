"""One pipelined Redis connection, and the link that keeps it up.

Commands sent in one tick of the event loop share a few writes, the first of them at once where Redis has nothing to do;
replies are matched in order. A command whose reply was
lost is never repeated here: the caller finds out what happened (see `consumer`), since scripts are not idempotent.
Source: the RESP2 protocol, https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import hiredis

from oxherd.clock import mono
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.queue.cluster import nodes_of, owner_of
from oxherd.queue.scripts import Script, script
from oxherd.settings import RedisTarget
from oxherd.telemetry.events import InternalFault, RedisBack, RedisLost, RedisRefusedCommand, emit

T = TypeVar("T")

CHUNK = 32  # commands in one write at most
CONNECT_TIMEOUT = 5.0  # seconds
BACKOFF = (0.05, 5.0)  # seconds: first and longest pause between attempts to connect
UNACKNOWLEDGED_MS = 30_000  # what the peer's kernel may leave unacknowledged before ours gives the connection up
_NOTHING = object()
_INNER_CODE = re.compile(r": -([A-Z]+) ")  # Redis 6 wraps the code of an error inside a script

HINTS = {
    "NOAUTH": "REDIS_URL needs a password",
    "WRONGPASS": "the user or password in REDIS_URL is wrong",
    "NOPERM": "the Redis user lacks rights; BullMQ needs all commands on its keys",
    "READONLY": "this is a replica or a failed-over primary; reconnecting to the current primary",
    "OOM": "Redis is full: raise maxmemory or remove finished jobs; no job is lost, finishes wait",
    "LOADING": "Redis is loading its data; waiting",
    "BUSY": "a script holds Redis; waiting",
    "MISCONF": "Redis can't write to its disk and refuses writes; look at its log and disk space",
    "MASTERDOWN": "the replica lost its primary; waiting",
    "CLUSTERDOWN": "the cluster is down; waiting",
    "MOVED": "another node of the cluster has the queue now; reconnecting to that one",
    "ASK": "the queue is being moved to another node of the cluster; waiting",
    "TRYAGAIN": "the queue is being moved to another node of the cluster; waiting",
    "CROSSSLOT": "JOB_QUEUE_PREFIX, and the producers' prefix, need a hash tag on a cluster, such as {bull}",
    "NOREPLICAS": "Redis wants more replicas before it takes writes (min-replicas-to-write); waiting",
    "QUOTA": "the plan's number of requests is used up: raise it; finishes wait",
}
HOSTED = {"DB capacity quota exceeded": "OOM", "max requests limit": "QUOTA", "max daily request limit": "QUOTA"}
# Refused before anything was written, and likely to pass: worth another try.
PASSING = frozenset(HINTS) - {"NOPERM", "CROSSSLOT"}
MUST_RECONNECT = frozenset({"READONLY", "NOAUTH", "WRONGPASS", "MOVED"})


class Connection(asyncio.Protocol):
    """A socket to Redis. Made by `connect`, used through `send`."""

    def __init__(
        self, on_lost: Callable[[Exception | None], None], on_push: Callable[[list[Any]], None] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._on_lost = on_lost
        self._on_push = on_push
        self._heard_at = mono()

    def send(self, *args: bytes | str | float) -> asyncio.Future[Any]:
        """Queue a command; the future gets its reply, RedisRefused, or RedisUnreachable when the reply is lost."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(RedisUnreachable("the connection to Redis is closed"))
            return future
        packed = _pack(args)
        if not self._out:
            self._loop.call_soon(self._flush)
        if not self._waiting:
            self._heard_at = mono()
        self._out.append(packed)
        if not self._waiting or len(self._out) >= CHUNK:
            self._flush()  # Redis would sit idle while we make the rest of this tick's commands
        self._waiting.append(future)
        return future

    @property
    def silent_for(self) -> float:
        """Seconds for which replies have been awaited and none came; 0.0 while none is awaited."""
        return mono() - self._heard_at if self._waiting else 0.0

    @property
    def closed(self) -> bool:
        """Whether the socket is gone or going."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """Close at once; replies still awaited are lost."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: hand each complete reply to whoever waits for it."""
        self._heard_at = mono()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _NOTHING:
            if self._on_push is not None and not self._waiting:
                self._on_push(reply)
                continue
            future = self._waiting.popleft()
            if future.done():
                continue
            if isinstance(reply, hiredis.ReplyError):
                future.set_exception(refused(str(reply)))
            else:
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: every awaited reply is lost."""
        self._transport = None
        lost, self._waiting = self._waiting, deque()
        for future in lost:
            if not future.done():
                future.set_exception(
                    RedisUnreachable(f"Redis went away before it answered ({exc or 'connection closed'})")
                )
                future.exception()  # marked as seen: a caller that was cancelled will not collect it
        self._on_lost(exc)


def _pack(args: tuple[bytes | str | float, ...]) -> bytes:
    try:
        packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub forgets that tuples vary
    except UnicodeEncodeError:  # a job id that is no UTF-8, see `consumer.text_of`
        raw = [arg.encode("utf-8", "surrogateescape") if isinstance(arg, str) else arg for arg in args]
        packed = hiredis.pack_command(tuple(raw))  # type: ignore[arg-type]  # same
    return packed


def refused(text: str) -> RedisRefused:
    """Redis's error text as an exception, with a hint for the well-known codes."""
    code, _, words = text.partition(" ")
    if code == "ERR":
        inner = _INNER_CODE.search(words)
        code = inner[1] if inner else next((ours for start, ours in HOSTED.items() if words.startswith(start)), code)
    return RedisRefused(f"Redis refused: {text}", code=code, hint=HINTS.get(code, ""))


def _keep_alive(sock: socket.socket | None) -> None:
    # A blocking read may be silent for ten minutes: probes keep NAT entries alive and notice a dead peer.
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # probes are not sent while data waits to be acknowledged
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


async def connect(
    target: RedisTarget,
    name: str,
    on_lost: Callable[[Exception | None], None],
    on_push: Callable[[list[Any]], None] | None = None,
) -> Connection:
    """Connect, log in, choose the database and set the client's name.

    Raises:
        RedisUnreachable: nobody answers there.
        RedisRefused: wrong password, missing rights, or a server that is loading.
    """
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await _open(loop, target, lambda: Connection(on_lost, on_push))
            await _log_in(connection, target, name)
    except (OSError, TimeoutError) as error:
        if connection is not None:
            connection.close()
        why = "no answer within 5 s" if isinstance(error, TimeoutError) else str(error)
        raise RedisUnreachable(
            f"can't reach Redis at {target.shown}: {why}", hint="is REDIS_URL right, is Redis running?"
        ) from None
    return connection


async def _open(loop: asyncio.AbstractEventLoop, target: RedisTarget, factory: Callable[[], Connection]) -> Connection:
    if target.path:
        _, connection = await loop.create_unix_connection(factory, target.path)
    else:
        context = ssl.create_default_context() if target.tls else None
        _, connection = await loop.create_connection(factory, target.host, target.port, ssl=context)
    return connection


async def _log_in(connection: Connection, target: RedisTarget, name: str) -> None:
    replies: list[asyncio.Future[Any]] = []
    if target.password is not None:
        login = [target.username] if target.username else []
        replies.append(connection.send("AUTH", *login, target.password.reveal()))
    if target.db:
        replies.append(connection.send("SELECT", target.db))
    replies.append(connection.send("CLIENT", "SETNAME", name))
    results = await asyncio.gather(*replies, return_exceptions=True)
    for result in results[:-1]:
        if isinstance(result, BaseException):
            connection.close()
            raise result
    if isinstance(results[-1], RedisUnreachable) or getattr(results[-1], "code", "") in ("NOAUTH", "LOADING"):
        connection.close()
        raise results[-1]


async def insist_on(act: Callable[[], Awaitable[T]]) -> T:
    """Do something that may safely be done twice, until Redis takes it.

    Raises:
        RedisRefused: it refused for a reason that will not pass.
    """
    pause = BACKOFF[0]
    while True:
        try:
            return await act()
        except RedisUnreachable:
            pass
        except RedisRefused as error:
            if error.code not in PASSING:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 2, BACKOFF[1])


class Link:
    """A connection that comes back: reconnects with jittered backoff for as long as it is open.

    Parameters:
        target: where Redis is.
        purpose: what it is for, in events and in Redis's CLIENT LIST.
        client_name: another name for CLIENT LIST.
        on_up: awaited after every connection made, before anybody may use it; returns a number for the event.
        on_push: gets pub/sub messages.
        preload: scripts to load on every new connection.
        patience: seconds without any reply after which the connection counts as dead and is made again; None where
            replies may take for ever.
        longest_pause: seconds between attempts to connect, at most (half as much again by chance).
    """

    def __init__(
        self,
        target: RedisTarget,
        purpose: str,
        *,
        on_up: Callable[[Connection], Awaitable[int]] | None = None,
        on_push: Callable[[list[Any]], None] | None = None,
        preload: tuple[str, ...] = (),
        patience: float | None = None,
        longest_pause: float = BACKOFF[1],
        client_name: str | None = None,
    ) -> None:
        self._target = self._place = target
        self._nodes: list[RedisTarget] = []  # of the cluster; any of them can tell which one has the queue
        self.purpose = purpose
        self._client_name = client_name or f"oxherd:{purpose}"
        self._on_up = on_up
        self._on_push = on_push
        self._preload = preload
        self._patience = patience
        self._longest_pause = longest_pause
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._quiet = False
        self._why_lost = ""
        self.reconnects = 0
        self.down_since: float | None = None

    async def start(self) -> None:
        """Connect for the first time; a failure is raised, not retried, so that a wrong address is noticed."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep_up(), name=f"redis-{self.purpose}")

    async def stop(self) -> None:
        """Close for good. Twice, or before `start`, is fine."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._up.clear()

    @property
    def is_up(self) -> bool:
        """Whether commands can be sent right now."""
        return self._up.is_set()

    async def ready(self) -> None:
        """Wait until the connection is up."""
        await self._up.wait()

    def send(self, *args: bytes | str | float) -> asyncio.Future[Any]:
        """Send now, on the connection that is up; fails at once with RedisUnreachable when none is."""
        if self._connection is None or not self._up.is_set():
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(RedisUnreachable(f"Redis at {self._target.shown} is away"))
            return future
        return self._connection.send(*args)

    def post(self, *args: bytes | str | float) -> None:
        """Send now and don't wait: for what is only a courtesy and may be lost."""
        self.send(*args).add_done_callback(lambda done: done.cancelled() or done.exception())

    async def call(self, *args: bytes | str | float) -> Any:
        """Send when the connection is up and wait for the reply.

        Raises:
            RedisUnreachable: the reply was lost; the command may or may not have run.
            RedisRefused: it did not run.
        """
        while True:
            await self._up.wait()
            try:
                return await self.send(*args)
            except RedisRefused as error:
                self._note(error)
                if error.code != "MOVED":
                    raise
                self._up.clear()  # it ran nowhere: ask the node that has the queue now

    async def run(self, loaded: Script, *args: bytes | str | float) -> Any:
        """Run a script with its keys and arguments; as `call`, and loads it first where Redis forgot it."""
        try:
            return await self.call(b"EVALSHA", loaded.sha, loaded.numkeys, *args)
        except RedisRefused as error:
            if error.code != "NOSCRIPT":
                raise
        await self.call(b"SCRIPT", b"LOAD", loaded.body)
        return await self.call(b"EVALSHA", loaded.sha, loaded.numkeys, *args)

    async def insist(self, loaded: Script, *args: bytes | str | float) -> Any:
        """Run a script that may safely run twice, until Redis takes it."""
        return await insist_on(lambda: self.run(loaded, *args))

    def drop(self, *, quietly: bool = False) -> None:
        """Break the connection on purpose; it is made again. `quietly`: this is routine, tell nobody."""
        if self._connection is not None and not self._connection.closed:
            self._quiet = quietly
            self._connection.close()

    def _note(self, error: RedisRefused) -> None:
        if error.code == "NOSCRIPT":
            return
        emit(RedisRefusedCommand(code=error.code, message=error.message, hint=error.hint))
        if error.code in MUST_RECONNECT:
            self._why_lost = error.message
            self.drop()

    async def _connect(self) -> int:
        connection: Connection | None = None

        def on_lost(_exc: Exception | None) -> None:
            if connection is not None and self._connection is connection:  # an earlier one's farewell means nothing
                self._up.clear()
                self._lost.set()

        connection = await self._reach(on_lost)
        watch = asyncio.create_task(self._drop_when_silent(connection, self._patience or CONNECT_TIMEOUT))
        try:
            for name in self._preload:
                await connection.send(b"SCRIPT", b"LOAD", script(name).body)
            count = await self._on_up(connection) if self._on_up else 0
        except BaseException:
            connection.close()
            raise
        finally:
            watch.cancel()
        if connection.closed:
            raise RedisUnreachable("Redis closed the connection while it was being set up")
        self._connection = connection
        self._lost.clear()
        self._up.set()
        self.down_since = None
        return count

    async def _reach(self, on_lost: Callable[[Exception | None], None]) -> Connection:
        """Connect to the node that has the queue: where Redis is no cluster, to the only one."""
        places, seen = [self._place, self._target, *self._nodes], set()
        failure: RedisUnreachable | None = None
        while places:
            place = places.pop(0)
            if (address := (place.host, place.port)) in seen:
                continue
            seen.add(address)
            try:
                connection = await connect(place, self._client_name, on_lost, self._on_push)
                owner = await self._ask_for_owner(connection, place)
            except RedisUnreachable as error:
                failure = failure or error
                continue
            if owner is None:
                self._place = place
                return connection
            connection.close()
            places.insert(0, owner)
        raise failure or RedisUnreachable(f"the cluster of {self._target.shown} does not agree on who has the queue")

    async def _ask_for_owner(self, connection: Connection, place: RedisTarget) -> RedisTarget | None:
        if not place.prefix:
            return None
        asked = connection.send(b"EXISTS", place.prefix), connection.send(b"CLUSTER", b"SLOTS")
        probe: Any
        slots: Any
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                probe, slots = await asyncio.gather(*asked, return_exceptions=True)
            if isinstance(probe, RedisUnreachable):
                raise probe
            self._nodes = nodes_of(slots, place)
            return owner_of(probe, place)
        except TimeoutError:
            connection.close()
            raise RedisUnreachable(f"can't reach Redis at {place.shown}: no answer within 5 s") from None
        except BaseException:
            connection.close()
            raise

    async def _drop_when_silent(self, connection: Connection, patience: float) -> None:
        """Break the connection once it has been silent for too long: whoever waits for a reply is told so."""
        suspected = False
        while not connection.closed:
            await asyncio.sleep(patience / 2)
            silent_for = connection.silent_for
            # Twice in a row: just after the event loop stood still, replies lie unread in the socket.
            if suspected and silent_for > patience:
                self._why_lost = f"no answer for {silent_for:.1f} s"
                connection.close()
            suspected = silent_for > patience

    async def _until_lost(self) -> None:
        if self._patience is None or self._connection is None:
            await self._lost.wait()
            return
        watch = asyncio.create_task(self._drop_when_silent(self._connection, self._patience))
        try:
            await self._lost.wait()
        finally:
            watch.cancel()

    async def _keep_up(self) -> None:
        while True:
            await self._until_lost()
            begun = self.down_since = mono()
            quiet, self._quiet = self._quiet, False
            why, self._why_lost = self._why_lost, ""
            if not quiet:
                emit(RedisLost(purpose=self.purpose, error=why or "connection closed"))
            adopted = await self._insist_on_connecting()
            if quiet:
                continue
            self.reconnects += 1
            emit(RedisBack(purpose=self.purpose, seconds=round(mono() - begun, 3), adopted=adopted))

    async def _insist_on_connecting(self) -> int:
        pause, told = BACKOFF[0], ""
        while True:
            try:
                return await self._connect()
            except (RedisUnreachable, RedisRefused) as error:
                if error.message != told:
                    told = error.message
                    emit(RedisLost(purpose=self.purpose, error=error.message))
            except Exception:  # noqa: BLE001  our own fault in `on_up`: without a connection nothing works at all
                emit(InternalFault(where=f"redis-{self.purpose}", stack=traceback.format_exc()))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, self._longest_pause)
