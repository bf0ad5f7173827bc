from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxherd.agents.loop import told_of
from oxherd.codec import decode, encode
from oxherd.context import CallDelta, Delta, Step
from oxherd.errors import RedisRefused, RedisUnreachable
from oxherd.job import Delay, Done, Drop, Fail, HandBack, Job, Retry
from oxherd.queue.feed import Entry, Transcript
from oxherd.queue.keys import Keys
from oxherd.queue.scripts import script
from oxherd.settings import Secret
from oxherd.telemetry.events import StreamEnded, attach
from oxherd.telemetry.logs import Redactor
from oxherd.worker import broadcast
from oxherd.worker.broadcast import Broadcast

KEY = "support/model-1"


class Redis:
    """A link whose other end keeps one stream, answers when the test says so, and can be away."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.writes: list[int] = []
        self.keeps: list[int] = []
        self.posted: list[tuple[Any, ...]] = []
        self.is_up = True
        self.slow = False
        self.refuses: list[RedisRefused] = []
        self.taken_over = False
        self.loses_answers = False
        self.open: list[tuple[asyncio.Future[Any], Any]] = []

    def send(self, *args: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert args[:2] == (b"EVALSHA", script("publish").sha)
        keep, _, *entries = args[6:]
        if not self.is_up:
            future.set_exception(RedisUnreachable("away"))
            return future
        if self.refuses:
            future.set_exception(self.refuses.pop(0))
            return future
        answer = 0 if self.taken_over else len(entries)
        if not self.taken_over:
            self.writes.append(len(entries))
            self.keeps.append(keep)
            for entry in entries:
                self.add(entry)
        if self.loses_answers:
            future.set_exception(RedisUnreachable("the answer was lost"))
        elif self.slow:
            self.open.append((future, answer))
        else:
            future.set_result(answer)
        return future

    def add(self, entry: bytes) -> None:
        data = decode(entry)
        self.entries.append(Entry(f"{len(self.entries) + 1}-0", data["type"], data))

    def post(self, *args: Any) -> None:
        self.posted.append(args)

    def answer(self) -> None:
        waiting, self.open = self.open, []
        for future, result in waiting:
            future.set_result(result)

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [entry.data for entry in self.entries if entry.type in types]

    @property
    def words(self) -> list[str]:
        """What is in the stream, one word an entry."""
        return [" ".join(filter(None, (entry.type, entry.data.get("state")))) for entry in self.entries]

    @property
    def text(self) -> str:
        return "".join(entry["text"] for entry in self.of("text"))


@pytest.fixture
def redis() -> Redis:
    return Redis()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "EVERY", 0.005)
    monkeypatch.setattr(broadcast, "AGAIN", 0.005)
    monkeypatch.setattr(broadcast, "REFUSED", 0.005)


@pytest.fixture
def begun(redis: Redis) -> Callable[..., Broadcast]:
    def begin(known: Redactor | None = None, **more: Any) -> Broadcast:
        return begin_on(redis, known, **more)

    return begin


def begin_on(redis: Redis, known: Redactor | None = None, *, late: bool = False) -> Broadcast:
    job = Job(id="1", name="support.reply", raw=b"{}", opts={}, token="t", attempts_started=2)
    return Broadcast(redis, Keys("q"), job, told=told_of, secrets=lambda: known, late=late)


def model_step(text: str, key: str = KEY) -> Step:
    output = encode({"message": {"role": "assistant", "content": text}})
    return Step(key=key, inputs="", output=output, kind="model", usage=None, attempt=2, started_at=0, ms=1.0)


def say(feed: Broadcast, *texts: str, tried: int = 1, key: str = KEY) -> None:
    for text in texts:
        feed.delta(key, Delta(text, "", tried))


def end(feed: Broadcast) -> None:
    feed.leave(Done(b"1"), "completed")
    feed.end(Done(b"1"), "completed")


async def settled(redis: Redis, *, until: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not until():  # noqa: ASYNC110  what is waited for are timers
            await asyncio.sleep(0.002)


async def test_an_attempt_is_told_from_its_start_to_its_end(redis, begun):
    feed = begun()
    feed.step_began(KEY, "model")
    say(feed, "Hello", " world")
    feed.step_ended(model_step("Hello world"))
    end(feed)
    assert redis.words == ["attempt started", "step started", "text", "step finished", "end"]
    assert redis.entries[0].data == {
        "type": "attempt", "state": "started", "attempt": 1, "fence": 2, "name": "support.reply", "late": False,
    }  # fmt: skip
    assert redis.text == "Hello world"
    assert redis.entries[-1].data == {"type": "end", "outcome": "completed"}


async def test_the_first_token_leaves_at_once_and_what_follows_is_gathered(redis, begun, monkeypatch):
    monkeypatch.setattr(broadcast, "EVERY", 60.0)
    feed = begun()
    await asyncio.sleep(0)
    feed.step_began(KEY, "model")
    assert redis.words == ["attempt started"]  # within the interval: it can wait
    say(feed, "a")
    assert redis.text == "a"
    await asyncio.sleep(0)
    say(feed, *"bcdef")
    await asyncio.sleep(0)
    assert redis.text == "a"
    assert len(redis.writes) == 2
    end(feed)
    assert [entry["text"] for entry in redis.of("text")] == ["a", "bcdef"]
    assert [entry["n"] for entry in redis.of("text")] == [0, 1]


async def test_fifty_chunks_a_second_are_at_most_twenty_writes(redis, begun, monkeypatch):
    monkeypatch.setattr(broadcast, "EVERY", 0.05)
    feed = begun()
    loop = asyncio.get_running_loop()
    began = loop.time()
    feed.step_began(KEY, "model")
    for _ in range(30):
        say(feed, "word ")
        await asyncio.sleep(0.01)
    took = loop.time() - began
    assert len(redis.writes) <= took / 0.05 + 3  # the attempt's start and the first token come at once
    end(feed)
    assert redis.text == "word " * 30


async def test_one_write_is_under_way_at_a_time_and_a_slow_redis_gets_fewer_larger_ones(redis, begun):
    redis.slow = True
    feed = begun()
    feed.step_began(KEY, "model")
    for _ in range(20):
        say(feed, "x")
        await asyncio.sleep(0.002)
    assert len(redis.writes) == 1
    redis.slow = False
    redis.answer()
    await settled(redis, until=lambda: redis.text == "x" * 20)
    assert len(redis.writes) == 2


async def test_what_redis_does_not_take_in_time_is_dropped_and_the_step_is_told_as_a_whole(redis, begun, monkeypatch):
    monkeypatch.setattr(broadcast, "WAITING", 10_000)
    told: list[StreamEnded] = []
    detach = attach(told.append, StreamEnded)
    redis.slow = True
    feed = begun()
    feed.step_began(KEY, "model")
    text = "".join(f"{number} " for number in range(1_900))
    for at in range(0, len(text), 10):
        say(feed, text[at : at + 10])
        feed.delta(KEY, Delta("", "what a long thought", 1))
        assert feed._waiting <= 10_000
    redis.slow = False
    redis.answer()
    await settled(redis, until=lambda: not feed._pending)
    feed.step_ended(model_step(text))
    end(feed)
    detach()
    assert redis.of("gap")
    assert sum(entry["dropped"] for entry in redis.of("gap")) == told[0].dropped > 0
    assert transcript(redis.entries).text == text


async def test_while_redis_is_away_nothing_is_raised_and_afterwards_it_is_all_there(redis, begun):
    feed = begun()
    redis.is_up = False
    feed.step_began(KEY, "model")
    say(feed, "one ", "two ")
    await asyncio.sleep(0.02)
    say(feed, "three")
    feed.step_ended(model_step("one two three"))
    redis.is_up = True
    end(feed)
    await settled(redis, until=lambda: "end" in redis.words)
    assert redis.words[-1] == "end"
    assert transcript(redis.entries).text == "one two three"


async def test_an_end_that_redis_can_not_take_is_given_up_after_a_while(redis, begun, monkeypatch):
    monkeypatch.setattr(broadcast, "PATIENCE", 0.01)
    feed = begun()
    redis.is_up = False
    end(feed)
    assert feed._sent
    await settled(redis, until=lambda: redis.is_up or not _is_tried(feed))
    redis.is_up = True
    await settled(redis, until=lambda: not feed._sent)
    assert "end" not in redis.words


def _is_tried(feed: Broadcast) -> bool:
    return asyncio.get_running_loop().time() <= feed._give_up_at


async def test_an_answer_that_was_lost_makes_entries_come_again_and_the_text_stays_right(redis, begun):
    feed = begun()
    feed.step_began(KEY, "model")
    say(feed, "Hel")
    await asyncio.sleep(0.01)
    redis.loses_answers = True
    say(feed, "lo ")
    await asyncio.sleep(0.01)
    redis.loses_answers = False
    say(feed, "you")
    feed.step_ended(model_step("Hello you"))
    end(feed)
    await settled(redis, until=lambda: not feed._sent)
    assert redis.text != "Hello you"
    assert transcript(redis.entries).text == "Hello you"


async def test_a_script_that_redis_forgot_is_loaded_again(redis, begun):
    redis.refuses = [RedisRefused("forgot", code="NOSCRIPT")]
    feed = begun()
    await settled(redis, until=lambda: redis.words == ["attempt started"])
    assert redis.posted[0][:2] == (b"SCRIPT", b"LOAD")
    end(feed)


async def test_what_redis_refuses_is_a_gap_and_the_run_goes_on(redis, begun):
    feed = begun()
    await asyncio.sleep(0)
    redis.refuses = [RedisRefused("full", code="OOM")]
    feed.step_began(KEY, "model")
    say(feed, "Hello")
    await settled(redis, until=lambda: bool(redis.of("gap")))
    feed.step_ended(model_step("Hello"))
    end(feed)
    assert transcript(redis.entries).text == "Hello"


async def test_a_worker_whose_job_another_has_says_nothing_more(redis, begun):
    feed = begun()
    await asyncio.sleep(0)
    redis.taken_over = True
    feed.step_began(KEY, "model")
    say(feed, "I am late")
    await asyncio.sleep(0.01)
    redis.taken_over = False
    say(feed, "very late")
    end(feed)
    assert redis.words == ["attempt started"]


async def test_a_lost_lease_ends_what_is_told_without_a_word(redis, begun):
    feed = begun()
    feed.step_began(KEY, "model")
    feed.end(Drop(), "lease_lost")
    await asyncio.sleep(0.01)
    assert redis.words == ["attempt started"]


@pytest.mark.parametrize(
    ("outcome", "word", "told"),
    [
        (Done(b"1"), "completed", {"type": "end", "outcome": "completed"}),
        (
            Fail("no", "", "timeout"),
            "failed",
            {"type": "end", "outcome": "failed", "kind": "timeout", "reason": "no"},
        ),
        (
            Retry(50, "no", ""),
            "retried",
            {"type": "attempt", "state": "ended", "outcome": "retried", "reason": "no", "delay_ms": 50},
        ),
        (
            Delay(9, "busy"),
            "delayed",
            {"type": "attempt", "state": "ended", "outcome": "delayed", "reason": "busy", "delay_ms": 9},
        ),
        (HandBack(), "handed_back", {"type": "attempt", "state": "ended", "outcome": "handed_back"}),
    ],
)
async def test_only_an_outcome_that_is_final_ends_the_stream(redis, begun, outcome, word, told):
    feed = begun()
    feed.leave(outcome, word)
    feed.end(outcome, word)
    feed.end(outcome, word)
    assert redis.entries[-1].data == told
    assert len(redis.entries) == 2


async def test_a_reply_that_breaks_off_and_begins_anew_is_reset(redis, begun):
    feed = begun()
    feed.step_began(KEY, "model")
    say(feed, "Wrong answ")
    say(feed, "Right", tried=2)
    end(feed)
    assert redis.of("reset") == [{"type": "reset", "step": KEY, "tried": 2}]
    assert transcript(redis.entries).text == "Right"


async def test_a_replayed_step_is_told_as_a_whole_and_not_as_new_text(redis, begun):
    feed = begun()
    feed.step_ended(model_step("A long reply. " * 1_000), replayed=True)
    end(feed)
    assert redis.words[-2:] == ["step replayed", "end"]
    assert redis.text == ""
    assert transcript(redis.entries).text == "A long reply. " * 1_000
    assert max(len(entry["text"]) for entry in redis.of("whole")) <= broadcast.PIECE


async def test_who_comes_in_the_middle_is_told_what_was_before(redis, begun):
    feed = begun(late=True)
    feed.step_began("support/model-2", "model", late=True)
    row = {"kind": "model", "ms": 3.0, "model_calls": 1, "input_tokens": 1, "output_tokens": 2, "cost_usd": None}
    feed.earlier([{**row, "key": KEY, "output": {"message": {"content": "First."}}}])
    feed.delta("support/model-2", Delta("lo", "", 1, so_far=lambda: Delta("Hello", "hm", 1)))
    say(feed, " you", key="support/model-2")
    feed.step_ended(model_step("Hello you", "support/model-2"))
    end(feed)
    seen = transcript(redis.entries)
    assert (seen.of(KEY), seen.text) == ("First.", "Hello you")
    assert redis.of("reasoning")[0]["text"] == "hm"
    assert redis.of("attempt")[0]["late"]
    assert not redis.of("whole")[1:]  # the reply that goes on was told as it came


async def test_earlier_steps_that_are_told_after_what_goes_on_are_not_taken_for_the_reply(redis, begun):
    feed = begun(late=True)
    feed.step_began("support/model-2", "model", late=True)
    say(feed, "The reply", key="support/model-2")
    feed.step_ended(model_step("The reply", "support/model-2"))
    row = {"kind": "model", "ms": 3.0, "model_calls": None, "cost_usd": None}
    feed.earlier([{**row, "key": KEY, "output": {"message": {"content": "First."}}}])
    end(feed)
    seen = transcript(redis.entries)
    assert (seen.of(KEY), seen.text) == ("First.", "The reply")


async def test_an_answer_that_comes_after_the_lease_is_lost_changes_nothing(redis, begun):
    redis.slow = True
    feed = begun()
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    feed.end(Drop(), "lease_lost")
    redis.answer()
    await asyncio.sleep(0)
    assert faults == []


async def test_a_step_that_ends_while_earlier_ones_are_looked_up_is_told_once(redis, begun):
    feed = begun(late=True)
    feed.step_began(KEY, "model", late=True)
    feed.step_ended(model_step("Now"))
    row = {"kind": "model", "ms": 3.0, "model_calls": None, "cost_usd": None}
    feed.earlier([{**row, "key": KEY, "output": {"message": {"content": "Now"}}}])
    end(feed)
    assert [entry["state"] for entry in redis.of("step")] == ["started", "finished"]
    assert transcript(redis.entries).text == "Now"


async def test_a_step_whose_beginning_the_stream_has_dropped_is_told_as_a_whole(redis, begun, monkeypatch):
    monkeypatch.setattr(broadcast, "ENTRIES", 10)
    feed = begun()
    feed.step_began(KEY, "model")
    for _ in range(20):
        say(feed, "x")
        feed.hurry()
    feed.step_ended(model_step("x" * 20))
    end(feed)
    assert transcript(redis.entries[-5:]).text == "x" * 20


async def test_a_stream_of_large_entries_keeps_fewer_of_them(redis, begun, monkeypatch):
    monkeypatch.setattr(broadcast, "KEPT", 100_000)
    feed = begun()
    for number in range(100):
        await feed_data(feed, number)
    end(feed)
    assert redis.keeps[0] == broadcast.ENTRIES
    assert redis.keeps[-1] * 4_000 <= 110_000


async def feed_data(feed: Broadcast, number: int) -> None:
    feed.tell("data", data={"number": number, "blob": "y" * 4_000})
    feed.hurry()


async def test_a_step_that_did_not_finish_says_whether_it_failed_or_waits_for_an_answer(redis, begun):
    feed = begun()
    for key, waits in (("charge", False), ("approve", True)):
        feed.step_began(key, "tool")
        feed.step_failed(key, waits=waits)
        feed.step_failed(key, waits=waits)
    end(feed)
    assert [entry["state"] for entry in redis.of("step")] == ["started", "failed", "started", "waiting"]


async def test_tool_calls_and_their_results_are_told(redis, begun):
    feed = begun()
    feed.step_began(KEY, "model")
    feed.delta(KEY, Delta("", "", 1, (CallDelta(0, "c1", "find", ""), CallDelta(1, "c2", "now", ""))))
    feed.delta(KEY, Delta("", "", 1, (CallDelta(0, "c1", "find", '{"a"'),)))
    feed.delta(KEY, Delta("", "", 1, (CallDelta(0, "c1", "find", ": 1}"),)))
    feed.step_ended(model_step(""))
    for ok, content in ((True, "A-17"), (False, "z" * 10_000)):
        output = encode({"ok": ok, "content": content})
        feed.step_ended(Step("t", "", output, "tool", None, 2, 0, 1.0))
    end(feed)
    calls = redis.of("call")
    assert {(call["call"], call["call_id"], call["name"]) for call in calls} == {(0, "c1", "find"), (1, "c2", "now")}
    assert "".join(call["text"] for call in calls) == '{"a": 1}'
    short, long = redis.of("result")
    assert (short["ok"], short["content"]) == (True, "A-17")
    assert (long["ok"], long["content"], long["size"]) == (False, "z" * broadcast.PIECE, 10_000)


async def test_what_has_no_json_form_or_is_too_large_is_a_gap_with_its_reason(redis, begun):
    feed = begun()
    feed.tell("data", data=object())
    feed.tell("data", data="x" * 100_000)
    end(feed)
    first, second = redis.of("gap")
    assert "can't be written as JSON" in first["reason"]
    assert "100,0" in second["reason"]


# -- secrets


async def test_a_secret_is_hidden_wherever_it_is_told(redis, begun):
    value = secrets.token_hex(12)
    feed = begun(Redactor([Secret(value), Secret("41111111")]))
    feed.tell("log", text=f"using {value}")
    feed.tell("data", data={value: [value, 41111111, 4.5, True, None]})
    feed.step_ended(model_step(f"it is {value}"), replayed=True)
    feed.step_ended(Step("t", "", encode({"ok": True, "content": value}), "tool", None, 2, 0, 1.0))
    feed.end(Fail(f"bad {value}", "", "failed"), "failed")
    everything = encode([entry.data for entry in redis.entries]).decode()
    assert value not in everything
    assert "41111111" not in everything
    assert redis.of("data")[0]["data"] == {"***": ["***", "***", 4.5, True, None]}


async def test_a_result_is_cleared_of_secrets_before_it_is_cut(redis, begun):
    value = secrets.token_hex(12)
    feed = begun(Redactor([Secret(value)]))
    content = "x" * (broadcast.PIECE - 12) + value
    feed.step_ended(Step("t", "", encode({"ok": True, "content": content}), "tool", None, 2, 0, 1.0))
    end(feed)
    assert redis.of("result")[0]["content"] == "x" * (broadcast.PIECE - 12) + "***"


async def test_the_end_of_a_text_that_may_begin_a_secret_is_held_back_until_it_is_clear(redis, begun):
    feed = begun(Redactor([Secret("tiger-99")]))
    feed.step_began(KEY, "model")
    say(feed, "A tig")
    feed.hurry()
    assert redis.text == "A "
    say(feed, "ht fit")
    feed.hurry()
    assert redis.text == "A tight fi"  # the last letter may begin one
    feed.step_ended(model_step("A tight fit"))
    end(feed)
    assert redis.text == "A tight fit"


LETTERS = st.text("ab-", min_size=4, max_size=9)


@st.composite
def split_texts(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Secrets, and a text that holds some of them, cut anywhere."""
    hidden = draw(st.lists(LETTERS, min_size=1, max_size=3))
    parts = draw(st.lists(st.one_of(st.sampled_from(hidden), st.text("ab-x", max_size=6)), max_size=8))
    text = "".join(parts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return hidden, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(split_texts(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_split_of_a_text_leaves_no_secret_in_the_stream_and_all_the_rest(given_text, data):
    hidden, pieces = given_text
    shown = asyncio.run(_shown(Redactor(map(Secret, hidden)), pieces, data.draw(st.sets(st.integers(0, 10)))))
    assert not any(secret in shown for secret in hidden)
    assert shown == _expected("".join(pieces), hidden)


async def _shown(known: Redactor, pieces: list[str], hurry_after: set[int]) -> str:
    redis = Redis()
    feed = begin_on(redis, known)
    feed.step_began(KEY, "model")
    for number, piece in enumerate(pieces):
        say(feed, piece)
        if number in hurry_after:
            feed.hurry()
    feed.step_ended(model_step("".join(pieces)))
    end(feed)
    return redis.text


def _expected(text: str, hidden: list[str]) -> str:
    """The first secret in a text is hidden, and of those that begin there the longest; then what follows."""
    shown, at = [], 0
    while at < len(text):
        found = max((len(secret) for secret in hidden if text.startswith(secret, at)), default=0)
        shown.append("***" if found else text[at])
        at += found or 1
    return "".join(shown)


# -- readers


REPLIES = st.lists(st.text("abc ", min_size=1, max_size=5), min_size=1, max_size=6)


@given(st.lists(REPLIES, min_size=1, max_size=3), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_reader_that_is_cut_off_anywhere_ends_with_the_reply(attempts, known_before, data):
    """All attempts but the last die in the middle; `known_before`: a first step was finished in the first of them."""
    entries = asyncio.run(_told_by(attempts, known_before=known_before))
    seen, at = Transcript(), 0
    for cut in sorted(data.draw(st.lists(st.integers(0, len(entries)), max_size=4))):
        seen = transcript(entries[at:cut], seen)
        at = max(cut - data.draw(st.integers(0, 2)), 0)  # some may come again
        if data.draw(st.booleans()):
            seen, at = Transcript(), 0  # another reader, from the beginning
    seen = transcript(entries[at:], seen)
    assert seen.text == "".join(attempts[-1])
    assert seen.of("support/model-0") == ("Before." if known_before else "")


async def _told_by(attempts: list[list[str]], *, known_before: bool) -> list[Entry]:
    redis = Redis()
    for number, pieces in enumerate(attempts):
        feed = begin_on(redis)
        if known_before:
            _tell_first_step(feed, replayed=number > 0)
        feed.step_began(KEY, "model")
        for piece in pieces:
            say(feed, piece)
            feed.hurry()
        if number < len(attempts) - 1:
            feed._forget()  # its worker is killed
    feed.step_ended(model_step("".join(attempts[-1])))
    end(feed)
    return redis.entries


def _tell_first_step(feed: Broadcast, *, replayed: bool) -> None:
    key = "support/model-0"
    if not replayed:
        feed.step_began(key, "model")
        say(feed, "Before.", key=key)
    feed.step_ended(model_step("Before.", key), replayed=replayed)


def transcript(entries: list[Entry], seen: Transcript | None = None) -> Transcript:
    seen = seen or Transcript()
    for entry in entries:
        seen.add(entry)
    return seen
