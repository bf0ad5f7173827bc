"""A run as its page shows it: its steps on a time line, its attempts side by side, and its conversation. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

TOOL = re.compile(r"^(?P<scope>.*)/tool-(?P<number>\d+)-(?P<name>.*)$", re.DOTALL)
LEAST = 0.4  # percent: how wide a bar is at least


@dataclass(frozen=True, slots=True)
class Bar:
    """A step on the time line: where its bar begins and how wide it is, in percent, and how deep it is nested."""

    step: Mapping[str, Any]
    left: float
    width: float
    depth: int
    name: str


@dataclass(slots=True)
class Attempt:
    """What one attempt did.

    Attributes:
        number: its fencing number, from 1.
        how: how it ended.
        error: why, where that is known.
        steps: how many it finished; those of earlier attempts came from the journal.
        kept: how many those were.
    """

    number: int
    how: str
    error: str = ""
    steps: int = 0
    kept: int = 0
    calls: int = 0
    tokens: int = 0
    cost: Decimal = field(default_factory=Decimal)
    ms: float = 0.0
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Said:
    """A part of the conversation.

    Attributes:
        who: input, model, tool, step, person or output.
        step: which step it is from; None for the input.
        title: of the part: a tool's name, a model's.
        text: the words.
        calls: of tools, name and arguments each.
        ok: False where a tool failed.
        given: a tool's input.
    """

    who: str
    title: str
    text: Any
    step: Mapping[str, Any] | None = None
    calls: Sequence[tuple[str, Any]] = ()
    ok: bool = True
    given: Any = None


def time_line(steps: Sequence[Mapping[str, Any]]) -> tuple[list[Bar], float]:
    """A bar for each step in the order in which they began, and how long the line is, in ms."""
    if not steps:
        return [], 0.0
    first = min(step["started_at"] for step in steps)
    total = max(step["started_at"] + step["ms"] for step in steps) - first or 1.0
    keys = {step["key"] for step in steps}
    ordered = sorted(steps, key=lambda step: (step["started_at"], -step["ms"]))
    return [_bar(step, first, total, keys) for step in ordered], total


def _bar(step: Mapping[str, Any], first: float, total: float, keys: set[str]) -> Bar:
    width = min(max(100 * step["ms"] / total, LEAST), 100.0)
    left = min(100 * (step["started_at"] - first) / total, 100.0 - width)
    parts = step["key"].split("/")
    inside = [at for at in range(1, len(parts)) if "/".join(parts[:at]) in keys]
    name = "/".join(parts[inside[-1] :]) if inside else step["key"]
    return Bar(step, round(left, 3), round(width, 3), len(inside), name)


def attempts(run: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], stacks: Sequence[str]) -> list[Attempt]:
    """What each attempt did, the first one first.

    Parameters:
        run: as the store has it.
        steps: all of it.
        stacks: of the attempts that failed, as the queue keeps them.
    """
    ended = run["fence"] - (0 if run["status"] == "failed" else 1)
    errors = [_last_line(each) for each in stacks] if len(stacks) == ended else []
    found = []
    for number in range(1, run["fence"] + 1):
        newest = number == run["fence"]
        one = Attempt(number, run["status"] if newest else "ended")
        one.error = (run["error"] or "") if newest else errors[number - 1] if errors else ""
        if one.error and not newest:
            one.how = "failed"
        _count(one, [step for step in steps if step["attempt"] == number])
        one.kept = sum(step["attempt"] < number for step in steps)
        found.append(one)
    return found


def _count(one: Attempt, steps: Sequence[Mapping[str, Any]]) -> None:
    one.steps = len(steps)
    one.calls = sum(step["model_calls"] or 0 for step in steps)
    one.tokens = sum((step["input_tokens"] or 0) + (step["output_tokens"] or 0) for step in steps)
    one.cost = sum((step["cost_usd"] or Decimal(0) for step in steps), Decimal(0))
    if steps:
        one.started_at = min(step["started_at"] for step in steps)
        one.ms = max(step["started_at"] + step["ms"] for step in steps) - one.started_at


def _last_line(stack: str) -> str:
    lines = [line for line in stack.strip().splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].startswith("Traceback") else lines[0] if lines else "")[:300]


def conversation(steps: Sequence[Mapping[str, Any]], told: Callable[[Any], Any]) -> list[Said]:
    """What was said, in the order in which it was finished.

    Parameters:
        steps: with their outputs, as far as they have one.
        told: takes secrets out of data.
    """
    called: dict[str, list[tuple[str, Any]]] = {}
    found = []
    for step in steps:
        output = told(step.get("output"))
        match step["kind"], output:
            case "model", {"message": dict(message)}:
                calls = [_call(each) for each in message.get("tool_calls") or ()]
                called.setdefault(step["key"].rpartition("/")[0], []).extend(calls)
                name = str(output.get("model") or "model")
                found.append(Said("model", name, _words(message.get("content")), step, calls))
            case "tool", {"content": content}:
                name, given = _tool(step["key"], called)
                found.append(Said("tool", name, content, step, ok=output.get("ok") is not False, given=given))
            case "wait", _:
                found.append(Said("person", "answer", output, step))
            case "agent", _:
                continue
            case _:
                found.append(Said("step", step["key"], output, step))
    return found


def _call(call: Mapping[str, Any]) -> tuple[str, Any]:
    function = call.get("function") or {}
    return str(function.get("name", "?")), function.get("arguments", "")


def _tool(key: str, called: Mapping[str, Sequence[tuple[str, Any]]]) -> tuple[str, Any]:
    """A tool's name and what it was given: the step's number counts the calls of its agent."""
    found = TOOL.match(key)
    if found is None:
        return key, None
    calls, place = called.get(found["scope"], ()), int(found["number"]) - 1
    return found["name"], calls[place][1] if place < len(calls) else None


def _words(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
