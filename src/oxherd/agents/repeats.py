"""Loop detection: the same calls with the same arguments, and nothing new in between. Pure, so that replays agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from oxherd.agents.chat import ToolCall
from oxherd.codec import decode, encode
from oxherd.errors import LoopDetected


class Repeats:
    """How often each call was made since the last one that was new.

    Parameters:
        limit: how often is too often; None for never.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._made: set[tuple[str, bytes]] = set()
        self._counts: Counter[tuple[str, bytes]] = Counter()
        self._told = False

    def refusals(self, agent: str, calls: Sequence[ToolCall]) -> list[str]:
        """What the model is told instead of a result, for each of the calls it makes at once; empty for most.

        Raises:
            LoopDetected: it was told before.
        """
        told = self._told
        made = [(call.name, _canonical(call.arguments)) for call in calls]
        if not self._made.issuperset(made):
            self._made.update(made)
            self._counts.clear()
        return [self._refusal(agent, call, each, told=told) for call, each in zip(calls, made, strict=True)]

    def _refusal(self, agent: str, call: ToolCall, made: tuple[str, bytes], *, told: bool) -> str:
        self._counts[made] += 1
        count = self._counts[made]
        if self._limit is None or count < self._limit:
            return ""
        if told:
            raise LoopDetected(
                f"agent {agent!r} called {call.name!r} {count} times with the same arguments and nothing new in "
                f"between, also after it was told: {call.arguments[:200]}",
                hint="say in its instructions when to stop, or raise loop_limit",
            )
        self._told = True
        return (
            f"this call was not made: it is number {count} with the same arguments, and nothing new came in between. "
            "Use what you know, do something else, or answer; the next repetition ends the run"
        )


def _canonical(arguments: str) -> bytes:
    """The same bytes for the same arguments, however they are spaced and ordered."""
    try:
        return encode(decode(arguments or "{}"), ordered=True)
    except ValueError:
        return arguments.encode("utf-8", "surrogatepass")
