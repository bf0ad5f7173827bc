"""What a model is sent of a conversation that nears its context window. Pure; the loop decides when, and keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oxherd.agents.chat import Message, words_of
from oxherd.agents.prices import TEXTS
from oxherd.codec import encode
from oxherd.context import Usage

MODES = ("trim", "summarise", None)
SMALL = 8000  # tokens that every model takes: below that, nobody is asked how much it takes
FULL = 0.9  # of the room there is, above which the conversation is shortened: sizes are estimates
BYTES_PER_TOKEN = 4
PART_BYTES = 6000  # what a part counts that is no text, such as an image
LEFT_OUT = "[Earlier messages of this conversation were left out here.]"
IN_SHORT = "[What they said, in short: {}]"
TO_SUM_UP = (
    "Below is the beginning of a conversation between a user and an assistant that works with tools. The assistant "
    "will go on with your summary in its place. Keep what it needs: what is wanted, facts, names, numbers and "
    "identifiers word for word, what was done and how it ended, decisions with their reasons, what is still to do. "
    "Leave out the rest. Write the summary only, as short as that allows."
)


def room(window: int, max_output_tokens: int) -> int:
    """How many tokens a conversation may have before it is shortened.

    Parameters:
        window: tokens that question and answer may have together.
        max_output_tokens: of the answer; at most half of the window is set aside for it.
    """
    return int((window - min(max_output_tokens, window // 2)) * FULL)


class History:
    """What of a run's messages is sent: instructions, first question and last one always, of the rest the end.

    Parameters:
        messages: the run's, which grow; those that are there now are its input.
    """

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self._pinned = _pinned(messages)
        self._cut = 0  # messages before it are left out, unless they are pinned
        self._summary = ""
        self._known = 0  # tokens of what was sent, by the provider's own count; 0 where it did not say
        self._counted = 0  # messages that are in it

    def count(self, usage: Usage) -> None:
        """Take over what the last call counted; its reply is the last of the messages."""
        self._known = usage.input_tokens + usage.output_tokens if usage.input_tokens else 0
        self._counted = len(self._messages)

    def tokens(self) -> int:
        """About how many tokens the next call has: as counted before, and an estimate of what is new."""
        if self._known:
            return self._known + _weight(self._messages[self._counted :]) // BYTES_PER_TOKEN
        return _weight(self.view()) // BYTES_PER_TOKEN

    def view(self) -> list[Message]:
        """What is sent."""
        if not self._cut:
            return self._messages
        sent = [message for _, message in self._sent()]
        first = next((at for at, each in enumerate(sent) if each["role"] == "user"), None)
        if first is not None:
            sent[first] = _noted(sent[first], self._note())
        return sent

    def shorter(self, tokens: int) -> int | None:
        """Where to cut so that about so many tokens are left, or as few as can be; None where nothing can go.

        Never between a call of a tool and its result, and never into the last turn.
        """
        weight = _weight(self.view())
        goal = weight * tokens / max(self.tokens(), 1)
        best = None
        for cut, left in self._cuts(weight):
            best = cut
            if left <= goal:
                break
        return best

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Cut as an earlier call did, from what `kept` said."""
        self._cut, self._summary, self._known = kept["cut"], kept["summary"], 0

    def kept(self, cut: int, summary: str | None = None) -> dict[str, Any]:
        """A cut as JSON-able data, for the journal.

        Parameters:
            cut: from `shorter`.
            summary: of all that is before it; the former one if left out.
        """
        return {"cut": cut, "summary": self._summary if summary is None else summary}

    def to_sum_up(self, cut: int) -> list[Message]:
        """What a model is asked to make a summary of what a cut leaves out, and of the former summary."""
        gone = [message for at, message in self._sent() if at < cut and at not in self._pinned]
        questions = [self._messages[at] for at in self._pinned if self._messages[at]["role"] == "user"]
        former = [f"summary of what came before:\n{self._summary}"] if self._summary else []
        text = "\n\n".join([*map(_told, questions), *former, *map(_told, gone)])
        return [{"role": "system", "content": TO_SUM_UP}, {"role": "user", "content": text}]

    def _sent(self) -> Iterator[tuple[int, Message]]:
        return ((at, each) for at, each in enumerate(self._messages) if at >= self._cut or at in self._pinned)

    def _note(self) -> str:
        return f"{LEFT_OUT}\n{IN_SHORT.format(self._summary)}" if self._summary else LEFT_OUT

    def _cuts(self, weight: int) -> Iterator[tuple[int, int]]:
        """Each later cut there can be, and the weight of what it would leave. An assistant's message begins a turn."""
        gone = 0
        for at, message in self._sent():
            if at in self._pinned:
                continue
            if gone and message["role"] == "assistant":
                yield at, weight - gone
            gone += _weight([message])


def _pinned(messages: list[Message]) -> list[int]:
    """The messages that are always sent: instructions at the beginning, the first question and the last."""
    start = next((at for at, each in enumerate(messages) if each["role"] not in {"system", "developer"}), 0)
    users = [at for at, each in enumerate(messages) if each["role"] == "user"]
    return sorted({*range(start), *users[:1], *users[-1:]})


def _noted(message: Message, note: str) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": note}]}
    return {**message, "content": f"{content or ''}\n\n{note}"}


def _weight(messages: list[Message]) -> int:
    """The size of messages in bytes, where a part that is no text counts the same whatever its size."""
    return sum(map(_size, messages))


def _size(message: Message) -> int:
    content = message.get("content")
    if not isinstance(content, list):
        return len(encode(message))
    texts = [part for part in content if isinstance(part, dict) and part.get("type") in TEXTS]
    return len(encode({**message, "content": texts})) + PART_BYTES * (len(content) - len(texts))


def _told(message: Message) -> str:
    """A message as text for a summary."""
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or ()]
    called = f" [calls {'; '.join(calls)}]" if calls else ""
    return f"{message['role']}:{called} {words_of(message.get('content'))}"
