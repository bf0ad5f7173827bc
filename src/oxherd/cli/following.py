"""A job's stream on the terminal: what the model says as it says it, and a line for all else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from oxherd.cli.printing import duration, note, shortened
from oxherd.errors import OxherdError
from oxherd.queue.feed import Transcript

if TYPE_CHECKING:
    from oxherd.queue.feed import Entry
    from oxherd.settings import Settings


async def follow_job(settings: Settings, job_id: str, show: Screen | None = None, *, since: str = "0") -> Entry:
    """Show a job's stream to its end, and return that.

    Parameters:
        settings: which queue.
        job_id: which job.
        show: where; each entry as a line of JSON on stdout when left out.
        since: the id of the last entry that was seen.
    """
    from oxherd.app import feed_client
    from oxherd.cli.printing import print_json

    async with feed_client(settings) as follow:
        async for entry in follow(job_id, since=since):
            if show is None:
                print_json({"id": entry.id, **entry.data}, on_one_line=True)
            else:
                show.add(entry)
    return entry


def fail_unless_completed(job_id: str, outcome: str, reason: str | None) -> None:
    """Raise OxherdError where a job that was followed did not complete."""
    if outcome == "failed":
        raise OxherdError(
            f"job {job_id} failed: {reason}", hint=f"oxherd jobs show {job_id}, then oxherd jobs retry {job_id}"
        )
    if outcome == "removed":
        raise OxherdError(f"job {job_id} was removed before it ended")


class Screen:
    """What was shown of a stream.

    Parameters:
        out: gets the text of the replies; all else goes to stderr.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._seen = Transcript()
        self._in_a_line = False

    def add(self, entry: Entry) -> None:
        """Show an entry."""
        text, anew = self._seen.add(entry)
        if anew:
            self._say("the reply begins anew")
        if text:
            self._out.write(text)
            self._out.flush()
            self._in_a_line = not text.endswith("\n")
        if words := describe(entry.data):
            self._say(words)

    def _say(self, words: str) -> None:
        if self._in_a_line:
            self._out.write("\n")
            self._out.flush()
            self._in_a_line = False
        note(words)


def describe(entry: dict[str, Any]) -> str:
    """An entry other than text in words, empty where it needs none."""
    words = ""
    match entry:
        case {"type": "attempt", "state": "started", "attempt": attempt, "late": late}:
            words = f"attempt {attempt}" + (", joined on the way" if late else "")
        case {"type": "attempt", "state": "ended", "outcome": outcome}:
            words = outcome.replace("_", " ") + (f": {entry['reason']}" if entry.get("reason") else "")
        case {"type": "step", "state": "finished", "step": step, "ms": ms}:
            words = f"{step}  {duration(ms / 1000)}{_used(entry.get('usage'))}"
        case {"type": "step", "state": "replayed" | "failed" | "waiting" as state, "step": step}:
            words = f"{step}  {state}"
        case {"type": "call", "n": 0, "name": str(name)}:
            words = f"calls {name}"
        case {"type": "result", "content": content}:
            words = f"→ {shortened(content)}"
        case {"type": "progress", "value": value} | {"type": "log", "text": value} | {"type": "data", "data": value}:
            words = f"{entry['type']}: {shortened(value if isinstance(value, str) else _json(value), 200)}"
        case {"type": "gap", "reason": reason}:
            words = f"something is missing: {reason}"
    return words


def _used(usage: dict[str, Any] | None) -> str:
    if usage is None:
        return ""
    cost = "" if usage["cost_usd"] is None else f", ${usage['cost_usd']}"
    return f", {usage['input_tokens']} tokens in, {usage['output_tokens']} out{cost}"


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value).decode()
