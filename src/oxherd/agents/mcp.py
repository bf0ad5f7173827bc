"""Tools from servers of the Model Context Protocol, through the official `mcp` package, imported where it is used.

Source: https://modelcontextprotocol.io/specification, revisions 2025-11-25 and 2026-07-28.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO
from urllib.parse import urlsplit

from oxherd.agents.faults import LATER
from oxherd.agents.tools import ArgumentsInvalid, Tool, ToolFailed, seconds
from oxherd.clock import mono
from oxherd.codec import decode, encode
from oxherd.errors import AgentError, RetryLater, UsageError
from oxherd.settings import Secret
from oxherd.telemetry import logs
from oxherd.telemetry.events import McpConnected, McpLost, WorkerWarned, emit

if TYPE_CHECKING:
    from httpx2 import Response
    from mcp import Client
    from mcp.client.session import IncomingMessage

CONNECT = 30.0  # seconds until a server has begun to answer; a first `npx` downloads its package
FRESH = 300.0  # seconds for which a list of tools is not asked for again, unless the server says that it changed
AWAY = 30.0  # seconds until a server that did not list its tools is asked again, where they are known from before
PAGES = 50  # of one list
RESULT_CHARS = 40_000  # of one result, which the model is sent again with each later call
ERROR_BYTES = 1000  # of what a server last wrote to its stderr
LONGEST_PREFIX = 30
FAREWELL = 5.0  # seconds that servers have to end
RELISTEN = 5.0  # seconds until a broken subscription to changes is made again
CLOSED = "Connection closed"  # the SDK's words: its code for it has other meanings, too
_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")

_name = attrgetter("name")

Text = str | Secret


@dataclass(frozen=True, slots=True, eq=False)
class MCP:
    """A server of the Model Context Protocol as a source of tools, for `Agent(tools=[…])`. Made by `stdio` or `http`.

    It is connected to by the first run that needs it and shared by all runs of the process, and connected to again
    after it has died.

    Attributes:
        name: what events, errors and definitions call it.
        prefix: what its tools' names begin with, and a `_`; empty for none.
        only: which of its tools are offered, by the server's names; None for all.
        timeout: seconds that a call may take.
        approve: whether each call waits for a person to approve it.
    """

    name: str
    prefix: str
    only: frozenset[str] | None
    timeout: float
    approve: bool
    _command: tuple[str, ...] = field(default=(), repr=False)
    _cwd: str | None = field(default=None, repr=False)
    _url: str = field(default="", repr=False)
    _given: Mapping[str, Text] = field(default_factory=dict, repr=False)  # variables, or headers

    @classmethod
    def stdio(
        cls,
        command: str,
        *args: str,
        env: Mapping[str, Text] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        name: str | None = None,
        prefix: str = "",
        tools: Collection[str] | None = None,
        timeout: str | float = 60.0,
        approve: bool = False,
    ) -> MCP:
        """A server that is started as a process and spoken to over its stdin and stdout.

        Parameters:
            command, args: the program, such as `"npx", "-y", "@acme/mcp"`; no shell is involved.
            env: variables for it. Of the worker's own it gets HOME, PATH, SHELL, TERM, USER and LOGNAME alone. A
                `Secret` is hidden from logs and results.
            cwd: the folder it runs in.
            name: what events, errors and definitions call it; the command's, if left out.
            prefix: what its tools' names begin with, and a `_`.
            tools: which of its tools are offered, by the server's names; None for all.
            timeout: how long a call may take, such as "2m" or seconds.
            approve: whether each call waits for a person to approve it.

        Raises:
            UsageError: naming what makes no sense.
        """
        return cls(
            **_checked(name or Path(command).name, prefix, tools, timeout), approve=approve,
            _command=(command, *args), _cwd=None if cwd is None else os.fspath(cwd), _given=dict(env or {}),
        )  # fmt: skip

    @classmethod
    def http(
        cls,
        url: str,
        *,
        headers: Mapping[str, Text] | None = None,
        name: str | None = None,
        prefix: str = "",
        tools: Collection[str] | None = None,
        timeout: str | float = 60.0,
        approve: bool = False,
    ) -> MCP:
        """A server that is spoken to over streamable HTTP.

        Parameters:
            url: of its endpoint, such as `https://mcp.example.com/mcp`.
            headers: sent with each request. A `Secret` is hidden from logs and results.
            name: what events, errors and definitions call it; the host, if left out.
            prefix, tools, timeout, approve: as in `stdio`.

        Raises:
            UsageError: naming what makes no sense.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError("mcp: the url must begin with https:// or http://")
        return cls(
            **_checked(name or parts.hostname, prefix, tools, timeout), approve=approve, _url=url,
            _given=dict(headers or {}),
        )  # fmt: skip

    @property
    def secrets(self) -> list[Secret]:
        """What must not be seen."""
        return [value for value in self._given.values() if isinstance(value, Secret)]

    def offered(self, name: str) -> str:
        """What the model calls the server's tool of that name."""
        return _NO_NAME.sub("_", f"{self.prefix}_{name}" if self.prefix else name)[:64]

    def may_offer(self, name: str) -> bool:
        """Whether a tool that the model calls so may be the server's, as far as can be told without asking it."""
        if self.only is not None:
            return name in map(self.offered, self.only)
        return name.startswith(f"{self.prefix}_") if self.prefix else True

    @asynccontextmanager
    async def connect(self, wire: Wire) -> AsyncIterator[Client]:
        """A connection, until the context is left."""
        from mcp import Client

        transport = self._http(wire) if self._url else self._stdio(wire)
        async with Client(transport, message_handler=wire.heard, cache=None) as client:
            yield client

    @asynccontextmanager
    async def _http(self, wire: Wire) -> AsyncIterator[Any]:
        from httpx2 import AsyncClient, Timeout
        from mcp.client.streamable_http import streamable_http_client

        async def note(response: Response) -> None:
            if response.request.method == "POST":  # a server need not answer the GET for notifications
                wire.status = response.status_code

        limits = Timeout(CONNECT, read=None)  # calls have limits of their own, and a subscription is silent for long
        async with (
            AsyncClient(headers=_revealed(self._given), timeout=limits, event_hooks={"response": [note]}) as session,
            streamable_http_client(self._url, http_client=session) as streams,
        ):
            yield streams

    @asynccontextmanager
    async def _stdio(self, wire: Wire) -> AsyncIterator[Any]:
        from mcp import StdioServerParameters, stdio_client

        command, *args = self._command
        parameters = StdioServerParameters(command=command, args=args, env=_revealed(self._given), cwd=self._cwd)
        async with _tail(wire.said) as stderr, stdio_client(parameters, stderr) as (read, write):
            yield _Watched(read, wire.over), write


class Servers:
    """The connections of one process to servers of tools; shared by all its runs."""

    def __init__(self) -> None:
        self._servers: dict[MCP, _Server] = {}

    async def tools(self, sources: Iterable[MCP], taken: Mapping[str, Tool]) -> dict[str, Tool]:
        """The tools that servers offer, by name, sorted, so that the model is told of them in the same order.

        Parameters:
            sources: the servers.
            taken: tools that the agent has besides.

        Returns:
            Both.

        Raises:
            AgentError: two tools share a name, or a server can't be had for a reason that will not pass.
            RetryLater: a server can't be reached, and its tools are not known from before.
        """
        box = dict(taken)
        for source in sources:
            for name, tool in (await self._of(source).tools()).items():
                if name in box:
                    raise AgentError(
                        f"two tools are called {name!r}, one of them from MCP server {source.name!r}",
                        hint="give the server a prefix",
                    )
                box[name] = tool
        return box

    async def close(self) -> None:
        """End all connections, and the servers that were started. Twice is fine."""
        servers, self._servers = self._servers, {}
        await asyncio.gather(*(server.close() for server in servers.values()))

    def _of(self, source: MCP) -> _Server:
        if source not in self._servers:
            self._servers[source] = _Server(source)
        return self._servers[source]


class Unavailable(Exception):
    """A server can't be reached. `passing` is False where it would be the same next time."""

    def __init__(self, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


class Wire:
    """What a connection hears besides answers.

    Parameters:
        changed: called when the server says that its tools changed.

    Attributes:
        over: set when the connection is to end, or has ended.
        status: of the last HTTP answer; 0 for none.
        said: the end of what the server wrote to its stderr.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.over = asyncio.Event()
        self.status = 0
        self.said = bytearray()
        self.changed = changed

    async def heard(self, message: IncomingMessage) -> None:
        """Take a notification."""
        if getattr(message, "method", "") == "notifications/tools/list_changed":
            self.changed()


class _Server:
    """One server: its connection, which comes and goes, and its tools."""

    def __init__(self, source: MCP) -> None:
        self._source = source
        self._connection: _Connection | None = None
        self._redactor = logs.Redactor(source.secrets)
        self._tools: dict[str, Tool] = {}
        self._listed_at = float("-inf")
        self._listing = asyncio.Lock()
        for secret in source.secrets:
            logs.hide(secret)

    async def tools(self) -> Mapping[str, Tool]:
        """Its tools by the names that models know; as they were, while the server is away."""
        async with self._listing:
            if mono() - self._listed_at > FRESH:
                try:
                    self._tools = await self._list()
                except Unavailable as error:
                    if not self._tools:
                        raise self._refusal(error) from error
                    self._listed_at = mono() - FRESH + AWAY  # runs need not wait for it before each call of a model
        return self._tools

    async def call(self, name: str, /, **values: Any) -> str:
        """Call one of its tools. Raises ToolFailed."""
        try:
            return await self._call(name, values)
        except ToolFailed:
            raise
        except Unavailable as error:
            raise ToolFailed(f"the server of this tool, {self._source.name!r}, can't be had: {error}") from error
        except Exception as error:  # whatever the SDK makes of an answer
            raise ToolFailed(self._redactor.text(f"the server's answer: {error}")) from error

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _list(self) -> dict[str, Tool]:
        connection = await self._connected()
        self._listed_at = mono()  # before it is read: it may change meanwhile
        try:
            async with asyncio.timeout(CONNECT):
                found = [tool async for tool in _pages(connection.client)]
        except Exception as error:  # whatever the SDK makes of an answer
            self._changed()
            raise Unavailable(self._redactor.text(f"it does not list its tools: {error!r}")) from error
        only = self._source.only
        if only is not None and (missing := only - {tool.name for tool in found}):
            emit(WorkerWarned(message=f"MCP server {self._source.name!r} has no tool {min(missing)!r}"))
        made = sorted((self._tool(tool) for tool in found if only is None or tool.name in only), key=_name)
        if twice := {one.name for one, other in pairwise(made) if one.name == other.name}:
            raise Unavailable(f"two of its tools would be called {min(twice)!r}", passing=False)
        return {tool.name: tool for tool in made}

    def _tool(self, told: Any) -> Tool:
        source, call = self._source, partial(self.call, told.name)
        return Tool(
            source.offered(told.name), told.description or "", told.input_schema, call, read_object, False,
            timeout=source.timeout, approve=source.approve,
        )  # fmt: skip

    async def _call(self, name: str, values: dict[str, Any]) -> str:
        connection = await self._connected()
        from mcp import MCPError

        try:
            result = await connection.client.call_tool(name, values)
        except MCPError as error:
            if connection.wire.status == 404:  # it was restarted and knows no session, so it has done nothing
                await connection.close()
                result = await (await self._connected()).client.call_tool(name, values)
            elif error.message == CLOSED:
                connection.wire.over.set()
                raise Unavailable("its connection ended during the call, which may have had an effect") from error
            else:
                raise
        text = bounded(text_of(result))
        if result.is_error:
            raise ToolFailed(self._redactor.text(text))
        return self._redactor.text(text)

    async def _connected(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.wire.over.is_set():
            connection = self._connection = _Connection(self._source, self._changed, self._redactor)
        await connection.opened()
        return connection

    def _changed(self) -> None:
        self._listed_at = float("-inf")

    def _refusal(self, error: Unavailable) -> AgentError | RetryLater:
        what = f"MCP server {self._source.name!r} can't be had: {error}"
        return RetryLater(LATER, what) if error.passing else AgentError(what)


class _Connection:
    """One connection, in a task of its own: its cancel scopes must not reach into jobs."""

    def __init__(self, source: MCP, changed: Callable[[], None], redactor: logs.Redactor) -> None:
        self.wire = Wire(changed)
        self.client: Client
        self._source = source
        self._redactor = redactor
        self._closing = False
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # perhaps nobody waits
        # In a context of its own, too: the step that happens to need it first is not what it belongs to.
        self._task = asyncio.create_task(self._live(), name=f"mcp-{source.name}", context=contextvars.Context())

    async def opened(self) -> None:
        """Wait until it is open. Who waits may be cancelled; it goes on opening. Raises Unavailable."""
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        """End it. Twice is fine."""
        self._closing = True
        self.wire.over.set()
        _, late = await asyncio.wait([self._task], timeout=FAREWELL)
        for task in late:
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        began = mono()
        fault: BaseException | None = None
        try:
            await asyncio.to_thread(importlib.import_module, "mcp")  # it takes a second, in which others go on
            async with asyncio.timeout(CONNECT) as limit, self._source.connect(self.wire) as self.client:
                limit.reschedule(None)
                self._ready.set_result(None)
                emit(McpConnected(server=self._source.name, seconds=round(mono() - began, 3)))
                await self._until_over()
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  it is told to those who need the server
            fault = error
        finally:
            self.wire.over.set()
            why = self._why(fault)
            if not self._ready.done():
                self._ready.set_exception(why)
            if not self._closing:
                said = self.wire.said.decode("utf-8", "replace").strip()
                emit(McpLost(server=self._source.name, error=self._redactor.text(f"{why}\n{said}".strip())))

    async def _until_over(self) -> None:
        from mcp_types.version import MODERN_PROTOCOL_VERSIONS

        tools = self.client.server_capabilities.tools
        # Older servers say by themselves that their tools changed, see Wire.heard; later ones have to be asked to.
        asks = tools is not None and tools.list_changed and self.client.protocol_version in MODERN_PROTOCOL_VERSIONS
        listener = asyncio.create_task(self._listen()) if asks else None
        try:
            await self.wire.over.wait()
        finally:
            if listener is not None:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    async def _listen(self) -> None:
        while True:
            with suppress(Exception):  # it is asked again, and the list read again
                async with self.client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self.wire.changed()
            await asyncio.sleep(RELISTEN)
            self.wire.changed()

    def _why(self, fault: BaseException | None) -> Unavailable:
        leaf = next(_leaves(fault), None) if fault is not None else None
        match leaf:
            case _ if self.wire.status in {401, 403}:
                return Unavailable(f"it answered {self.wire.status}; check its headers", passing=False)
            case None:
                return Unavailable("its connection ended")
            case ModuleNotFoundError():
                return Unavailable(f"{leaf}; install it with: pip install 'oxherd[mcp]'", passing=False)
            case FileNotFoundError() | PermissionError():
                return Unavailable(f"it can't be started: {leaf}", passing=False)
            case TimeoutError():
                return Unavailable(f"it did not answer within {CONNECT:g} s")
            case _:
                return Unavailable(self._redactor.text(f"{type(leaf).__name__}: {leaf}"[:500]))


class _Watched:
    """A stream of messages whose end is noted: a process that ended is noticed before it is called."""

    def __init__(self, stream: Any, over: asyncio.Event) -> None:
        self._stream = stream
        self._over = over

    async def receive(self) -> Any:
        return await self._stream.receive()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._over.set()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stream.__aexit__(*error)


class _Tail(asyncio.Protocol):
    """Keeps the end of what is read from a pipe."""

    def __init__(self, said: bytearray) -> None:
        self._said = said

    def data_received(self, data: bytes) -> None:
        self._said += data
        del self._said[:-ERROR_BYTES]


@asynccontextmanager
async def _tail(said: bytearray) -> AsyncIterator[TextIO]:
    """A file for a process to write to, of which the end is kept."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        pipe = os.fdopen(read, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: _Tail(said), pipe)
        try:
            yield file
        finally:
            transport.close()


async def _pages(client: Client) -> AsyncIterator[Any]:
    cursor = None
    for _ in range(PAGES):
        page = await client.list_tools(cursor=cursor)
        for each in page.tools:
            yield each
        cursor = page.next_cursor
        if cursor is None:
            return


def text_of(result: Any) -> str:
    """A tool's result as the text that a model reads; what is no text is named.

    Parameters:
        result: an `mcp.types.CallToolResult`.
    """
    texts = [block.text for block in result.content if block.type == "text"]
    words = [_words(block) for block in result.content]
    if result.structured_content is not None and not _tells(texts, result.structured_content):
        words.append(encode(result.structured_content).decode())
    return "\n".join(words)


def bounded(text: str) -> str:
    """The text, or as much of its beginning as a model shall read, and how much is missing."""
    if len(text) <= RESULT_CHARS:
        return text
    return f"{text[:RESULT_CHARS]}\n[{len(text) - RESULT_CHARS} more characters were cut off]"


def _words(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return f"[{block.type}: {block.mime_type}, {len(block.data) * 3 // 4} bytes]"
        case "resource_link":
            return f"[resource: {block.name}, {block.uri}]"
    inner = block.resource
    if hasattr(inner, "text"):
        return str(inner.text)
    return f"[resource: {inner.uri}, {inner.mime_type or 'unknown type'}, {len(inner.blob) * 3 // 4} bytes]"


def _tells(texts: Sequence[str], structured: Any) -> bool:
    """Whether the texts say the same as the structured result, alone or item by item, as servers do for old clients."""
    told = [_read(text) for text in texts]
    inner = structured["result"] if isinstance(structured, dict) and set(structured) == {"result"} else structured
    return any(each in (structured, inner) for each in (*told, *texts, told, list(texts)))


def _read(text: str) -> Any:
    try:
        return decode(text)
    except ValueError:
        return text


def read_object(arguments: str) -> dict[str, Any]:
    """A model's arguments for a server's tool, blank for none; the server validates them by its schema.

    Raises:
        ArgumentsInvalid: they are no JSON object.
    """
    try:
        read = decode(arguments.strip() or "{}")
    except ValueError as error:
        raise ArgumentsInvalid(f"Invalid JSON: {error}") from None
    if not isinstance(read, dict):
        raise ArgumentsInvalid("must be a JSON object")
    return read


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _revealed(given: Mapping[str, Text]) -> dict[str, str]:
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in given.items()}


def _checked(name: str, prefix: str, tools: Collection[str] | None, timeout: str | float) -> dict[str, Any]:
    if isinstance(tools, str):
        raise UsageError("mcp.tools: must be a list of names")
    if _NO_NAME.search(prefix) or len(prefix) > LONGEST_PREFIX:
        raise UsageError(f"mcp.prefix: must be at most {LONGEST_PREFIX} letters, digits, _ or -")
    limit = seconds(timeout, "mcp.timeout")
    return {"name": name, "prefix": prefix, "only": None if tools is None else frozenset(tools), "timeout": limit}
