"""A bad network: a TCP relay to Redis that cuts connections, freezes them, and loses single replies."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import hiredis

_NOTHING = object()


@dataclass(eq=False)
class Loss:
    """A reply to lose, and so many after it. `done` is set once Redis has run the commands and the replies are gone."""

    needle: bytes
    more: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Relays one loopback port to Redis, in a thread of its own so that a blocked test still has a network.

    Parameters:
        port: where Redis listens on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._redis_port = port
        self._pairs: set[_Pair] = set()
        self._losses: list[Loss] = []
        self._freezing: list[bytes] = []
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """What clients are given as REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Listen on a free port."""
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stop(self) -> None:
        """Close everything."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def cut(self) -> int:
        """Reset all connections; returns how many there were. New ones work."""
        return int(self._do(self._each(_Pair.cut)))

    def freeze(self) -> int:
        """Let all connections hang without a word, as when a NAT forgets them; returns how many. New ones work."""
        return int(self._do(self._each(_Pair.freeze)))

    def refuse(self) -> None:
        """Cut all connections and take no new ones until `allow`."""
        self._refusing = True
        self.cut()

    def allow(self) -> None:
        """Take connections again."""
        self._refusing = False

    def lose_reply(self, needle: bytes, *, more: int = 0) -> Loss:
        """Lose the reply to the next command that holds `needle` in one of its arguments, and cut that connection.

        `more`: lose the replies to so many commands after it, too, before the cut.
        """
        loss = Loss(needle, more)
        self._losses.append(loss)
        return loss

    def freeze_at(self, needle: bytes) -> None:
        """Let the next connection hang that sends a command which holds `needle` in one of its arguments."""
        self._freezing.append(needle)

    def freezes(self, command: Any) -> bool:
        """Whether this command is where its connection begins to hang."""
        for needle in self._freezing:
            if _holds(command, needle):
                self._freezing.remove(needle)
                return True
        return False

    def loss_for(self, command: Any) -> Loss | None:
        """The loss that this command is the victim of, if it is one."""
        for loss in self._losses:
            if _holds(command, loss.needle):
                self._losses.remove(loss)
                return loss
        return None

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _close(self) -> None:
        self._refusing = True
        self._server.close()
        await self._each(_Pair.cut)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=5) if others else None

    async def _each(self, action: Callable[[_Pair], None]) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            action(pair)
        return len(pairs)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(self, reader, writer)
        if self._refusing:
            pair.cut()
            return
        self._pairs.add(pair)
        try:
            await pair.run(self._redis_port)
        finally:
            self._pairs.discard(pair)

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


def _holds(command: Any, needle: bytes) -> bool:
    return isinstance(command, list) and any(isinstance(part, bytes) and needle in part for part in command)


class _Pair:
    """One client's connection and the one behind it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._behind: asyncio.StreamWriter | None = None
        self._frozen = False
        self._awaited: deque[Loss | None] = deque()

    async def run(self, port: int) -> None:
        with contextlib.suppress(OSError, hiredis.ProtocolError):
            reader, self._behind = await asyncio.open_connection("127.0.0.1", port)
            tasks = {asyncio.ensure_future(self._up(self._behind)), asyncio.ensure_future(self._down(reader))}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.cut()

    def cut(self) -> None:
        for writer in (self._writer, self._behind):
            if writer is not None:
                writer.transport.abort()

    def freeze(self) -> None:
        self._frozen = True

    async def _up(self, behind: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader(notEnoughData=_NOTHING)
        while data := await self._reader.read(1 << 16):
            if self._frozen:
                continue
            commands.feed(data)
            while (command := commands.gets()) is not _NOTHING:
                self._awaited.append(self._proxy.loss_for(command))
                self._frozen = self._frozen or self._proxy.freezes(command)
            if self._frozen:
                continue
            behind.write(data)
            await behind.drain()

    async def _down(self, reader: asyncio.StreamReader) -> None:
        replies = hiredis.Reader(notEnoughData=_NOTHING)
        losing: Loss | None = None
        left = 0
        while data := await reader.read(1 << 16):
            if self._frozen:
                continue
            replies.feed(data)
            while replies.gets() is not _NOTHING:
                loss = self._awaited.popleft() if self._awaited else None  # a pub/sub message answers nothing
                if losing is None and loss is not None:
                    losing, left = loss, loss.more + 1
                left -= losing is not None
                if losing is not None and left == 0:
                    losing.done.set()
                    return
            if losing is None:
                self._writer.write(data)
                await self._writer.drain()
