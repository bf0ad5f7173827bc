"""One attempt of a job as it is told to those who follow it.

Deltas are gathered into few writes, the job's secrets are taken out, also where a secret is split over deltas, and what
waits for Redis is bounded: nothing here waits, raises, or grows. It exists only while somebody follows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from oxherd.codec import decode, encode
from oxherd.context import Delta, Step, Usage
from oxherd.errors import RedisRefused, RedisUnreachable, ResultInvalid
from oxherd.job import Delay, Done, Drop, Fail, Job, Outcome, Retry
from oxherd.queue.connection import Link
from oxherd.queue.feed import publish
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.telemetry.events import StreamEnded, emit
from oxherd.telemetry.logs import Redactor

EVERY = 0.05  # seconds between two writes of a job
BATCH = 128 * 1024  # characters in one write, about
WAITING = 1024 * 1024  # characters that wait for Redis at most; then they are dropped
PIECE = 4_000  # characters of text in one entry
LARGEST = 64 * 1024  # bytes of an entry of any other type
ENTRIES = 5_000  # that a stream keeps, about: four minutes of nothing but text
KEPT = 4 * 1024 * 1024  # bytes of a stream, about: fewer entries are kept where they are large
AGAIN = 0.5  # seconds after which what got no answer is sent again
REFUSED = 1.0  # seconds after a refusal without another write
PATIENCE = 30.0  # seconds for which the end is sent again

Told = Callable[[str, Any], Mapping[str, Any] | None]


@dataclass(slots=True)
class _Voice:
    """A text that grows: of a reply, its reasoning, or the arguments of one of its tool calls.

    Attributes:
        about: what its entries have in common.
        n: the number of its next piece.
        rest: what was sent to nobody yet.
        closed: nothing will follow.
        queued: whether it is among what waits.
    """

    about: dict[str, Any]
    n: int = 0
    rest: list[str] = field(default_factory=list)
    closed: bool = False
    queued: bool = False


@dataclass(slots=True)
class _Open:
    """A step that runs.

    Attributes:
        kind: model, tool or another.
        whole: whether followers were told all of its text so far.
        tried: which try of its reply they were told; 0 for none.
        first: how many entries there were before its first.
        voices: its texts.
    """

    kind: str
    whole: bool
    first: int
    tried: int = 0
    voices: dict[tuple[str, int], _Voice] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Batch:
    """Entries that were sent; `failed`: their answer was lost."""

    entries: list[bytes]
    failed: bool = False


class Broadcast:
    """Tells one attempt of a job, as `context.Feed` wants it.

    Parameters:
        link: the worker's own connection.
        keys, job: whose stream.
        told: what to tell of a finished step of a kind with an output; see `agents.loop.told_of`.
        secrets: what the job knows by now, or None.
        late: the attempt has begun before anybody asked.
    """

    def __init__(
        self,
        link: Link,
        keys: Keys,
        job: Job,
        *,
        told: Told,
        secrets: Callable[[], Redactor | None],
        late: bool,
    ) -> None:
        self._link = link
        self._keys = keys
        self._job = job
        self._told = told
        self._secrets = secrets
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, _Open] = {}
        self._finished: set[str] = set()
        self._pending: deque[bytes | _Voice] = deque()
        self._waiting = 0  # characters in it
        self._sent: list[_Batch] = []  # and not answered
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self._resend: asyncio.TimerHandle | None = None
        self._over = False  # nothing is told any more
        self._left = self._ended = False
        self._give_up_at = float("inf")
        self._missing = 0  # entries that were dropped and are to be told of
        self._entries = self._bytes = self._writes = self._dropped = 0
        self.tell("attempt", state="started", attempt=job.attempt, fence=job.fence, name=job.name, late=late)

    # -- what is told

    def step_began(self, key: str, kind: str, *, late: bool = False) -> None:
        """A step begins to run; `late`: it has before anybody asked."""
        if not self._over:
            self._open[key] = _Open(kind, whole=not late, first=self._entries)
            self.tell("step", state="started", step=key, kind=kind)

    def step_ended(self, step: Step, *, replayed: bool = False) -> None:
        """A step is finished and kept; `replayed`: by an earlier attempt."""
        if not self._over:
            self._conclude(step.key, step.kind, lambda: decode(step.output), step.ms, step.usage, replayed=replayed)

    def step_failed(self, key: str, *, waits: bool = False) -> None:
        """A step raised, or was cancelled; `waits`: because it waits for an answer."""
        if not self._over and (state := self._open.pop(key, None)) is not None:
            self._close(state)
            self.tell("step", state="waiting" if waits else "failed", step=key, kind=state.kind)

    def earlier(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Steps that were finished before anybody asked, as `Store.steps` returns them."""
        for row in rows:
            key = row["key"]
            if self._over or key in self._finished or key in self._open:
                continue
            calls, cost = row["model_calls"], row["cost_usd"]
            usage = None if calls is None else Usage(calls, row["input_tokens"], row["output_tokens"], cost)
            self._conclude(key, row["kind"], partial(row.get, "output"), row["ms"], usage, replayed=True)

    def delta(self, key: str, delta: Delta) -> None:
        """More of the reply that the running step `key` waits for."""
        if self._over:
            return
        state = self._open.get(key)
        if state is None:
            state = self._open[key] = _Open("model", whole=True, first=self._entries)
        if delta.tried != state.tried:
            if state.tried:
                self._begin_anew(key, state, delta.tried)
            state.tried = delta.tried
        if not state.whole and not state.voices and delta.so_far is not None:
            delta, state.whole = delta.so_far(), True
        if delta.text:
            self._say(state, key, "text", delta.text)
        if delta.reasoning:
            self._say(state, key, "reasoning", delta.reasoning)
        for call in delta.calls:
            self._say(state, key, "call", call.text, call.index, call=call.index, call_id=call.id, name=call.name)

    def tell(self, type: str, **fields: Any) -> None:  # noqa: A002  the wire's word
        """Anything else, such as progress."""
        if self._over:
            return
        try:
            entry = self._cleaned(encode({"type": type, **fields}, what=f"an entry of type {type}"))
        except ResultInvalid as error:
            entry = encode({"type": "gap", "dropped": 1, "reason": error.message})
        if len(entry) > LARGEST:
            about = f"an entry of type {type} has {len(entry):,} bytes; at most {LARGEST:,} are published"
            entry = encode({"type": "gap", "dropped": 1, "reason": about})
        self._queue(entry, len(entry))

    def missed(self, reason: str) -> None:
        """What happened before can't be told."""
        self.tell("gap", dropped=0, reason=reason)

    def leave(self, outcome: Outcome, word: str) -> None:
        """The queue is about to be told how the attempt ended: what waits, and how unless that is final, leaves now.

        From then on another attempt may have the job, and this one can't say anything.

        Parameters:
            outcome: how.
            word: for it.
        """
        for state in self._open.values():
            self._close(state)
        if not isinstance(outcome, Done | Fail | Drop):
            self._left = True
            why: dict[str, Any] = {}
            if isinstance(outcome, Retry | Delay):
                why = {"reason": outcome.reason, "delay_ms": outcome.delay_ms}
            self.tell("attempt", state="ended", outcome=word, **why)
        self.hurry()

    def hurry(self) -> None:
        """Send all that waits at once."""
        self._send_failed_again()
        while self._pending or self._missing:
            self._flush()

    def end(self, outcome: Outcome, word: str) -> None:
        """The queue was told how the attempt ended; twice is fine.

        Parameters:
            outcome: how, which may be another one than `leave` was told.
            word: for it.
        """
        if self._ended:
            return
        self._ended = True
        match outcome:
            case Drop():
                self._forget()
            case Done():
                self.tell("end", outcome=word)
            case Fail(reason=reason, kind=kind):
                self.tell("end", outcome=word, kind=kind, reason=reason)
            case _ if not self._left:
                self.leave(outcome, word)
        self._give_up_at = self._loop.time() + PATIENCE
        self.hurry()
        self._over = True
        emit(
            StreamEnded(
                id=self._job.id, entries=self._entries, bytes=self._bytes, writes=self._writes, dropped=self._dropped
            )
        )

    # -- steps and their texts

    def _conclude(
        self, key: str, kind: str, output: Callable[[], Any], ms: float, usage: Usage | None, *, replayed: bool
    ) -> None:
        state = self._open.pop(key, None)
        if state is not None:
            self._close(state)
        self._finished.add(key)
        if kind == "tool" or (kind == "model" and not self._was_told(state)):
            self._tell_result(key, self._told(kind, output()))
        word = "replayed" if replayed else "finished"
        used = {} if usage is None else {"usage": usage}
        self.tell("step", state=word, step=key, kind=kind, ms=round(ms, 1), **used)

    def _was_told(self, state: _Open | None) -> bool:
        """Whether the stream holds all of a step's text."""
        return state is not None and state.whole and bool(state.voices) and self._entries - state.first < self._keep()

    def _tell_result(self, key: str, result: Mapping[str, Any] | None) -> None:
        if result is None:
            return
        if "text" not in result:
            content = self._hidden(result["content"])  # before it is cut: half a secret would not be found
            cut = {"size": len(content)} if len(content) > PIECE else {}
            self.tell("result", step=key, ok=result["ok"], content=content[:PIECE], **cut)
            return
        for n, piece in enumerate(_pieces(self._hidden(result["text"]))):
            self.tell("whole", step=key, n=n, text=piece)

    def _say(self, state: _Open, key: str, type: str, text: str, number: int = 0, **about: Any) -> None:  # noqa: A002
        voice = state.voices.get((type, number))
        begins = voice is None
        if voice is None:
            voice = state.voices[type, number] = _Voice({"type": type, "step": key, **about})
        voice.rest.append(text)
        self._queue(voice, len(text), at_once=begins)

    def _close(self, state: _Open) -> None:
        for voice in state.voices.values():
            voice.closed = True
            if voice.rest:
                self._queue(voice, 0)

    def _begin_anew(self, key: str, state: _Open, tried: int) -> None:
        for voice in state.voices.values():
            voice.rest.clear()  # nobody needs it any more
        state.voices.clear()
        state.whole, state.first = True, self._entries
        self.tell("reset", step=key, tried=tried)

    # -- secrets

    def _hidden(self, text: str) -> str:
        secrets = self._secrets()
        return text if secrets is None else secrets.text(text)

    def _cleaned(self, entry: bytes) -> bytes:
        secrets = self._secrets()
        return entry if secrets is None else encode(_without(secrets.text, decode(entry)))

    def _piece(self, voice: _Voice) -> str:
        """What of a voice can be sent: without what may be the beginning of a secret, unless nothing follows."""
        text = "".join(voice.rest)
        voice.rest.clear()
        secrets = self._secrets()
        if secrets is None:
            return text
        clean, rest = secrets.split(text)
        if voice.closed:
            return clean + secrets.text(rest)
        if rest:
            voice.rest.append(rest)
        return clean

    # -- what waits

    def _queue(self, item: bytes | _Voice, size: int, *, at_once: bool = False) -> None:
        if self._waiting + size > WAITING and self._pending:
            self._drop()
        self._waiting += size
        if isinstance(item, bytes):
            self._pending.append(item)
        elif not item.queued:
            item.queued = True
            self._pending.append(item)
        self._plan(at_once=at_once)

    def _plan(self, *, at_once: bool = False) -> None:
        if self._sent or not (self._pending or self._missing):
            return  # the answer plans the next write
        now = self._loop.time()
        if at_once or self._next_at <= now:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._next_at, self._flush)

    def _drop(self) -> None:
        count = len(self._pending)
        for item in self._pending:
            if isinstance(item, _Voice):
                item.rest.clear()
                item.queued = False
                item.n += 1  # a number is missing
        self._pending.clear()
        self._waiting = 0
        self._lost(count)

    def _lost(self, count: int) -> None:
        self._dropped += count
        self._missing += count
        for state in self._open.values():
            state.whole = False  # it is told as a whole when it is finished

    # -- writing

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if entries := self._gathered():
            self._send(_Batch(entries))

    def _gathered(self) -> list[bytes]:
        entries: list[bytes] = []
        size = 0
        if self._missing:
            why = "Redis did not take them in time"
            entries.append(encode({"type": "gap", "dropped": self._missing, "reason": why}))
            self._missing = 0
        while self._pending and size < BATCH:
            item = self._pending.popleft()
            if isinstance(item, bytes):
                entries.append(item)
                size += len(item)
                continue
            item.queued = False
            silent_call = item.about["type"] == "call" and item.n == 0  # its name is worth telling
            for text in _pieces(self._piece(item)) or [""] * silent_call:
                entries.append(encode({**item.about, "n": item.n, "text": text}))
                item.n += 1
                size += len(text)
        self._waiting = max(self._waiting - size, 0) if self._pending else 0
        self._entries += len(entries)
        self._bytes += sum(map(len, entries))
        return entries

    def _send(self, batch: _Batch) -> None:
        self._sent.append(batch)
        batch.failed = False
        # At the same moments for all jobs, so that their writes share a wake-up, a packet and its answer.
        # A timer may be a little early, hence the quarter.
        self._next_at = (self._loop.time() / EVERY + 0.25) // 1 * EVERY + EVERY
        self._writes += 1
        sending = publish(self._link, self._keys, self._job, batch.entries, keep=self._keep())
        sending.add_done_callback(partial(self._answered, batch))

    def _keep(self) -> int:
        if self._bytes <= KEPT:
            return ENTRIES
        return min(ENTRIES, KEPT * self._entries // self._bytes)

    def _answered(self, batch: _Batch, sending: asyncio.Future[Any]) -> None:
        if batch not in self._sent:
            return  # forgotten meanwhile
        error = None if sending.cancelled() else sending.exception()
        if isinstance(error, RedisUnreachable) or (isinstance(error, RedisRefused) and error.code == "NOSCRIPT"):
            if not isinstance(error, RedisUnreachable):
                self._link.post(b"SCRIPT", b"LOAD", script("publish").body)
            batch.failed = True
            self._plan_resend()
            return
        self._sent.remove(batch)
        if error is not None:
            self._next_at = self._loop.time() + REFUSED
            self._lost(len(batch.entries))
        elif not sending.cancelled() and sending.result() == 0:
            self._forget()  # another attempt has the job: it is told now
        self._plan()

    def _plan_resend(self) -> None:
        if self._resend is None:
            self._resend = self._loop.call_later(AGAIN, self._send_failed_again)

    def _send_failed_again(self) -> None:
        if self._resend is not None:
            self._resend.cancel()
            self._resend = None
        failed = [batch for batch in self._sent if batch.failed]
        if failed and self._loop.time() > self._give_up_at:
            self._forget()
        elif failed and not self._link.is_up:
            self._plan_resend()
        else:
            self._sent = [batch for batch in self._sent if not batch.failed]
            for batch in failed:
                self._send(batch)

    def _forget(self) -> None:
        """Say nothing any more."""
        self._over = True
        for timer in (self._timer, self._resend):
            if timer is not None:
                timer.cancel()
        self._timer = self._resend = None
        self._missing = 0
        self._pending.clear()
        self._sent.clear()


def _pieces(text: str) -> list[str]:
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]


def _without(hide: Callable[[str], str], value: Any) -> Any:
    """JSON data without secrets: in texts, in names, and in numbers that are one."""
    match value:
        case dict():
            return {hide(key): _without(hide, inner) for key, inner in value.items()}
        case list():
            return [_without(hide, inner) for inner in value]
        case str():
            return hide(value)
        case int() | float() if not isinstance(value, bool):
            return value if (text := repr(value)) == hide(text) else "***"
        case _:
            return value
