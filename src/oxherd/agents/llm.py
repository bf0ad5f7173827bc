"""The client of a model service: OpenRouter, or anything that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from oxherd.agents.chat import Malformed, Reply, Request, first_choice, read_reply, read_usage
from oxherd.agents.faults import LATER, Fault, Verdict, fault_of, later
from oxherd.agents.records import Embeddings, Generation, Model, read_embeddings, read_generation, read_models
from oxherd.agents.stream import Assembly, EventParser
from oxherd.codec import decode, encode
from oxherd.context import CallDelta, Delta, Usage
from oxherd.errors import ContextTooLong, ModelRefused, OutOfCredit, RetryLater
from oxherd.settings import Secret
from oxherd.telemetry.events import ModelFaulted, emit

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

TRIES = 4  # of one call, the first included
FIRST_PAUSE = 0.5  # seconds; doubles with each try
PATIENCE = 20.0  # seconds a call may spend on pauses: longer ones give the slot back
PARKED = 900.0  # seconds until the job is run again when somebody has to pay first
LEAST_OUTPUT = 16  # tokens; some providers refuse a lower limit
GATHER = 0.03  # seconds between reads of a stream: whoever follows it sees no difference, and chunks share a read
LINGER = 0.25  # seconds for the end of a complete stream, after which its connection can be used again
LOOKUP_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds; a generation's record appears some seconds after the call
LOOKUP_TIMEOUT = 60.0  # seconds for what is no chat
DOUBTFUL = frozenset({408, 504, 524})  # timeouts: the model may have answered all the same

T = TypeVar("T")
OnDelta = Callable[[Delta], None]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Of one try, in seconds.

    Attributes:
        connect: until there is a connection.
        first_token: from sending the request to the first part of the answer. Signs of life do not count: a service
            can send them for ever.
        between: of silence after that; here signs of life count.
        total: for all of it. Without streaming, the only one besides `connect`.
    """

    connect: float = 10.0
    first_token: float = 300.0  # reasoning models think for minutes, local ones read the prompt for minutes
    between: float = 120.0
    total: float = 600.0


@dataclass(slots=True)
class Try:
    """One request that was sent: it may be billed whether or not its reply arrived.

    Attributes:
        model: what was asked for.
        id: the generation's; None until the service told it. `LLM.generation` finds the bill by it.
        usage: None until the service told it, and for good where the reply broke before that.
        free: whether it was certainly not billed: no connection, or refused.
        status, headers: of the answer; 0 and empty until there is one.
        first_token_s: seconds from sending it to the first piece of its answer; None until then, or without streaming.
    """

    model: str
    id: str | None = None
    usage: Usage | None = None
    free: bool = False
    status: int = field(default=0, compare=False)
    headers: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    first_token_s: float | None = field(default=None, compare=False)


OnGeneration = Callable[[Try], Awaitable[None]]
Around = Callable[[Try], AbstractAsyncContextManager[None]]


class LLM:
    """Calls models over one pooled HTTP session, which is opened by the first call.

    Parameters:
        base_url: such as `https://openrouter.ai/api/v1`.
        api_key: sent as a bearer token; local servers need none.
        openrouter: whether the service knows OpenRouter's own fields; by the address when left out.
        stream: False for services that can't stream; only `Timeouts.connect` and `total` apply then.
        timeouts: of one try.
        sleep: waits between tries.
    """

    def __init__(
        self,
        base_url: str,
        api_key: Secret | None,
        *,
        openrouter: bool | None = None,
        stream: bool = True,
        timeouts: Timeouts | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        host = urlsplit(base_url).hostname or ""
        self.base_url = base_url.rstrip("/")
        self.timeouts = timeouts or Timeouts()
        self.streams = stream
        self._needs_key = host == "openrouter.ai" or host.endswith(".openrouter.ai")
        self.openrouter = self._needs_key if openrouter is None else openrouter
        self._api_key = api_key
        self._sleep = sleep
        self._session: ClientSession | None = None

    async def close(self) -> None:
        """Close the session. Twice, or before any call, is fine."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def chat(
        self,
        request: Request,
        on_delta: OnDelta | None = None,
        *,
        tries: list[Try] | None = None,
        on_generation: OnGeneration | None = None,
        around: Around = lambda _: nullcontext(),
    ) -> Reply:
        """Call a model; passing faults are tried again here, with pauses, up to a bound.

        The reply is streamed, so that a silent service is noticed soon and a cancelled call ends at once.

        Parameters:
            request: what is asked.
            on_delta: told what comes, piece by piece. It must be quick, and not raise.
            tries: each try is appended before it is sent, and filled in as it goes on: what a ledger has to settle,
                also when this raises or is cancelled.
            on_generation: awaited as soon as a generation's id is known, before its reply is read.
            around: entered before each try is sent, which may wait or raise what ends the call, and left when the try
                has ended.

        Raises:
            ModelRefused: the same call would fail again: the key, the model's name, the content, its length.
            RetryLater: the service is busy or away; no attempt of the job is spent.
            OutOfCredit: somebody has to pay first.
        """
        if self._needs_key and self._api_key is None:
            raise ModelRefused(
                "OPENROUTER_API_KEY is not set, so no model can be called",
                hint="set it, or point OPENROUTER_BASE_URL at another OpenAI-compatible service",
            )
        call = _Call(self, request, on_delta, [] if tries is None else tries, on_generation, around)
        return await self._insist(request.model, call.once, call.lower)

    async def embed(
        self, model: str, texts: Sequence[str], *, dimensions: int | None = None, purpose: str | None = None
    ) -> Embeddings:
        """Turn texts into vectors.

        Parameters:
            model: the embedding model's id.
            texts: at least one.
            dimensions: of each vector; None for the model's own.
            purpose: such as `search_query` or `search_document`, for models that tell them apart. OpenRouter only.

        Raises:
            ModelRefused, RetryLater, OutOfCredit: as `chat`.
        """
        asked = {"model": model, "input": list(texts), "dimensions": dimensions}
        asked["input_type"] = purpose if self.openrouter else None
        payload = encode({key: value for key, value in asked.items() if value is not None})

        async def once() -> Embeddings:
            return read_embeddings(await self._answer("POST", "/embeddings", payload), len(texts))

        return await self._insist(model, once)

    async def models(self) -> dict[str, Model]:
        """The models on offer with their prices, by id. Services other than OpenRouter tell no prices.

        Raises:
            ModelRefused, RetryLater: as `chat`.
        """

        async def once() -> dict[str, Model]:
            return read_models(await self._answer("GET", "/models"))

        return await self._insist("the list of models", once)

    async def generation(self, id: str) -> Generation | None:  # noqa: A002  the service's word
        """The service's own record of a call, which tells its bill. Waits some seconds for it to appear.

        Parameters:
            id: as `Try.id` or `Reply.id`.

        Returns:
            None where there is no record: not yet, or because the service keeps none.

        Raises:
            ModelRefused, RetryLater: as `chat`.
        """

        async def once() -> Generation | None:
            try:
                return read_generation(await self._answer("GET", f"/generation?id={quote(id, safe='')}"))
            except Fault as fault:
                if fault.status == 404:
                    return None
                raise

        for pause in (*LOOKUP_PAUSES, None):
            found = await self._insist(f"generation {id}", once)
            if found is not None or pause is None:
                return found
            await self._sleep(pause)
        raise AssertionError  # the last round returned

    async def _insist(
        self, name: str, once: Callable[[], Awaitable[T]], lower: Callable[[Fault], bool] = lambda _: False
    ) -> T:
        """Call `once` until it does not raise a passing fault, up to the bound.

        Parameters:
            name: what is asked for, for errors.
            once: one try.
            lower: asks for less output, if the credit covers some, and says whether it did.
        """
        spent, tried = 0.0, 1
        while True:
            try:
                return await once()
            except Malformed as error:
                fault = Fault(Verdict.RETRY, f"the model service: {error}")
            except Fault as error:
                fault = error
            if fault.verdict is Verdict.AFFORD and lower(fault):
                continue
            pause = _pause_after(fault, name, tried, PATIENCE - spent)
            await self._sleep(pause)
            spent, tried = spent + pause, tried + 1

    async def _answer(self, method: str, path: str, payload: bytes | None = None) -> Any:
        """One request whose answer is read whole. Raises Fault."""
        session = await self.session()
        import aiohttp

        try:
            async with (
                asyncio.timeout(LOOKUP_TIMEOUT),
                session.request(method, self.base_url + path, data=payload, headers=self.headers()) as response,
            ):
                return await _whole(response)
        except TimeoutError:
            raise Fault(Verdict.RETRY, "the model service did not answer in time", retry_after=LATER) from None
        except aiohttp.ClientError as error:
            raise Fault(Verdict.RETRY, f"the model service could not be reached: {error}") from None

    def headers(self) -> dict[str, str]:
        """What every request carries. Not kept: it holds the key."""
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.reveal()}"
        return headers

    async def session(self) -> ClientSession:
        """The session, opened by the first who asks."""
        if self._session is None:
            # In a thread, and only now: the import takes a while, and workers without agents never need it.
            aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0),  # the worker's concurrency is the limit
                    timeout=aiohttp.ClientTimeout(total=None, connect=self.timeouts.connect),
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
        return self._session


class _Call:
    """One call of a model, over all its tries."""

    def __init__(
        self,
        llm: LLM,
        request: Request,
        on_delta: OnDelta | None,
        tries: list[Try],
        on_generation: OnGeneration | None,
        around: Around,
    ) -> None:
        self._llm = llm
        self._request = request
        self._on_delta = on_delta
        self._tries = tries
        self._on_generation = on_generation
        self._around = around
        self._count = 0
        self._lowered = False

    def lower(self, fault: Fault) -> bool:
        """Ask for no more output than the credit covers, once."""
        if self._lowered or not LEAST_OUTPUT <= fault.affordable < self._request.max_tokens:
            return False
        self._lowered = True
        self._request = replace(self._request, max_tokens=fault.affordable)
        return True

    async def once(self) -> Reply:
        """One try. Raises Fault or Malformed."""
        session = await self._llm.session()
        self._count += 1
        record = Try(self._request.model)
        async with self._around(record):
            self._tries.append(record)
            try:
                return await self._send(session, record)
            except Malformed as error:
                emit(ModelFaulted(record.model, record.status, Verdict.RETRY.value, str(error)))
                raise
            except Fault as error:
                emit(ModelFaulted(record.model, error.status or record.status, error.verdict.value, error.message))
                raise

    async def _send(self, session: ClientSession, record: Try) -> Reply:
        import aiohttp

        llm = self._llm
        payload = encode(self._request.body(openrouter=llm.openrouter, stream=llm.streams))
        url, headers = llm.base_url + "/chat/completions", llm.headers()
        if llm.streams:
            headers["Accept-Encoding"] = "identity"  # a packed stream is held back until a block of it is full
        watch = _Watch(llm.timeouts, streams=llm.streams)
        try:
            async with watch:
                response = await session.post(url, data=payload, headers=headers, allow_redirects=False)
                try:
                    return await self._read(response, watch, record)
                finally:
                    response.close()  # unless it was read to its end, which has given its connection back
        except aiohttp.ConnectionTimeoutError:
            record.free = True
            raise Fault(Verdict.RETRY, f"no connection to the model service in {llm.timeouts.connect:g} s") from None
        except TimeoutError:
            raise watch.fault() from None
        except aiohttp.ClientConnectorError as error:
            record.free = True
            raise Fault(Verdict.RETRY, f"the model service could not be reached: {error}") from None
        except aiohttp.ClientError as error:
            raise Fault(Verdict.RETRY, f"the connection to the model service broke: {error}") from None

    async def _read(self, response: ClientResponse, watch: _Watch, record: Try) -> Reply:
        record.status, record.headers = response.status, response.headers
        record.id = response.headers.get("X-Generation-Id")
        if record.id is not None and self._on_generation is not None:
            await self._on_generation(record)
        if response.status != 200:
            record.free = response.status not in DOUBTFUL
        elif self._llm.streams and response.content_type != "application/json":
            return _complete(await self._listen(response, watch, record))
        body = await _whole(response)
        record.usage = _told_usage(body)
        reply = _complete(_reply(body, response))
        if self._on_delta is not None:
            calls = tuple(CallDelta(at, call.id, call.name, call.arguments) for at, call in enumerate(reply.tool_calls))
            self._on_delta(Delta(reply.text, "", self._count, calls))
        return reply

    async def _listen(self, response: ClientResponse, watch: _Watch, record: Try) -> Reply:
        parser, assembly = EventParser(), Assembly(response.headers)
        read, heard = response.content.readany, watch.heard
        try:
            while not assembly.done:
                if assembly.began:
                    await _gather(response)
                piece = await read()
                for event in parser.feed(piece) if piece else parser.finish():
                    assembly.add(event)
                heard(assembly.began)
                if self._on_delta is not None and (delta := assembly.news(self._count)):
                    self._on_delta(delta)
                if not piece and not assembly.done:
                    raise Fault(Verdict.RETRY, "the reply's stream ended before it was complete")
            reply = assembly.reply()
        finally:
            record.id = record.id or assembly.id
            record.first_token_s = watch.first_token_s
            if assembly.usage is not None:
                record.usage = read_usage(assembly.usage)
        await _linger(response)
        return reply


class _Watch:
    """Ends a try that takes too long.

    It has one timer, which looks when the next limit could have passed: one for each chunk would cost more than the
    chunk itself.
    """

    def __init__(self, timeouts: Timeouts, *, streams: bool) -> None:
        self._timeouts = timeouts
        self._streams = streams
        self._began = False
        self.first_token_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._start = self._heard_at = self._time()
        self._limit = asyncio.timeout(None)
        self._passed = "total"
        self._timer = self._loop.call_at(self._start, self._look)

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def heard(self, began: bool) -> None:  # noqa: FBT001  called for every chunk
        """Something came; `began`: the answer has begun."""
        self._heard_at = self._time()
        if began and not self._began:
            self._began = True
            self.first_token_s = self._heard_at - self._start
            self._timer.cancel()
            self._look()

    def fault(self) -> Fault:
        """What to make of the limit that passed."""
        seconds = f"{getattr(self._timeouts, self._passed):g} s"
        match self._passed:
            case "first_token":
                said = f"the model service did not begin to answer in {seconds}"
            case "between":
                return Fault(Verdict.RETRY, f"the model service fell silent for {seconds}")
            case _:
                said = f"the model service did not answer in time ({seconds})"
        return Fault(Verdict.RETRY, said, retry_after=LATER)

    def _due(self) -> float:
        total = self._start + self._timeouts.total
        if not self._streams:
            return total
        first, between = self._start + self._timeouts.first_token, self._heard_at + self._timeouts.between
        self._passed = "between" if self._began else "first_token"
        due = between if self._began else first
        if total <= due:
            self._passed = "total"
        return min(due, total)

    def _look(self) -> None:
        due = self._due()
        if due <= self._time():
            self._limit.reschedule(self._time())
        else:
            self._timer = self._loop.call_at(due, self._look)


def _pause_after(fault: Fault, name: str, tried: int, patience: float) -> float:
    """Seconds to wait before the next try, or the error that ends the call."""
    match fault.verdict:
        case Verdict.REFUSE:
            refusal = ContextTooLong if fault.too_long else ModelRefused
            raise refusal(f"{name}: {fault.message}", hint=fault.hint) from fault
        case Verdict.PARK | Verdict.AFFORD:
            raise OutOfCredit(PARKED, f"{fault.message} ({fault.hint})") from fault
    pause = fault.retry_after
    if pause is None:
        pause = FIRST_PAUSE * 2 ** (tried - 1) * random.uniform(0.5, 1.5)
    if tried >= TRIES or pause > patience:
        raise RetryLater(later(fault.retry_after), fault.message) from fault
    return pause


async def _gather(response: ClientResponse) -> None:
    """Leave a stream to the kernel for a moment: being woken for a chunk costs more than all that is done with it."""
    transport = response.connection.transport if response.connection is not None else None
    if transport is None or transport.is_closing():
        return  # all of it is here
    transport.pause_reading()
    await asyncio.sleep(GATHER)
    if not transport.is_closing():
        transport.resume_reading()


async def _linger(response: ClientResponse) -> None:
    """Read what follows the last event, which is nothing, so that the connection can be used again."""
    if response.content.at_eof():
        return
    try:
        async with asyncio.timeout(LINGER):
            await response.content.readany()
    except Exception:  # noqa: BLE001, S110  the reply is complete; without its end the connection is closed
        pass


async def _whole(response: ClientResponse) -> Any:
    """The body of an answer, which is data. Raises Fault where it is an error."""
    raw = await response.read()
    try:
        body = decode(raw)
    except ValueError:
        body = None  # a proxy's HTML page
    error = body.get("error") if isinstance(body, dict) else None
    if response.status != 200 or error:
        raise fault_of(response.status, response.headers, body)
    if not isinstance(body, dict):
        raise Malformed("the answer is no JSON object")
    return body


def _told_usage(body: dict[str, Any]) -> Usage | None:
    return read_usage(body["usage"]) if isinstance(body.get("usage"), dict) else None


def _reply(body: dict[str, Any], response: ClientResponse) -> Reply:
    choice = first_choice(body)
    if choice.get("error"):
        raise fault_of(200, response.headers, choice)
    if choice.get("finish_reason") == "error":
        raise Fault(Verdict.RETRY, "the model's provider broke off")
    return read_reply(body, generation=response.headers.get("X-Generation-Id"))


def _complete(reply: Reply) -> Reply:
    """The reply, if it says anything."""
    if reply.text or reply.tool_calls:
        return reply
    if reply.message.get("refusal") or reply.finish_reason == "content_filter":
        said = reply.message.get("refusal") or "the provider's content filter withheld the answer"
        raise Fault(Verdict.REFUSE, f"the model refused: {said}")
    if reply.finish_reason == "length":
        raise Fault(
            Verdict.REFUSE, "the whole output limit went into reasoning", hint="raise the agent's max_output_tokens"
        )
    if not reply.finish_reason:
        raise Fault(Verdict.RETRY, "the model answered nothing")  # which OpenRouter does not charge
    return reply
