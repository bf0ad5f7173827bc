"""Records as the JSON that the database's functions take, and rows as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import orjson

from oxherd.context import Step, Usage
from oxherd.errors import StoreRefused
from oxherd.store import AuditLine, Begun, Operation, RunRecord, SpendRow

Record = TypeVar("Record", AuditLine, Operation, RunRecord, SpendRow, Step)


def to_json(rows: RunRecord | Sequence[RunRecord | Mapping[str, Any]]) -> bytes:
    """Runs or steps as JSON.

    Raises:
        StoreRefused: a text in them is no valid Unicode (half a surrogate pair).
    """
    try:
        return orjson.dumps(rows, default=str)  # str: a Decimal keeps all its digits
    except TypeError as error:
        raise StoreRefused(f"a row can't be written as JSON: {error}") from None


def step_row(run_id: str, fence: int, attempt_started_at: int, step: Step) -> dict[str, Any]:
    """A step with the columns of `oxherd.steps`.

    Raises:
        StoreRefused: its output is no UTF-8.
    """
    usage = step.usage
    try:
        output = step.output.decode()
    except UnicodeDecodeError as error:
        raise StoreRefused(f"the output of step {step.key!r} is no UTF-8: {error.reason}") from None
    return {
        "run_id": run_id,
        "key": step.key,
        "kind": step.kind,
        "inputs": step.inputs,
        "output": output,
        "fence": fence,
        "attempt_started_at": attempt_started_at,
        "started_at": step.started_at,
        "ms": step.ms,
        "place": step.place or None,
        "model_calls": usage and usage.calls,
        "input_tokens": usage and usage.input_tokens,
        "output_tokens": usage and usage.output_tokens,
        "cost_usd": usage and usage.cost_usd,
    }


def begun(answer: bytes | str) -> Begun:
    """What `oxherd.begin_run` answered."""
    found = orjson.loads(answer)
    return Begun(found["allowed"], found["output"], [_step(row) for row in found["steps"]])


def _step(row: Mapping[str, Any]) -> Step:
    usage = None
    if row["model_calls"] is not None:
        cost = row["cost_usd"]
        usage = Usage(
            calls=row["model_calls"],
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cost_usd=None if cost is None else Decimal(cost),
        )
    return Step(
        key=row["key"],
        inputs=row["inputs"],
        output=row["output"].encode(),
        kind=row["kind"],
        usage=usage,
        attempt=row["fence"],
        started_at=row["started_at"],
        ms=row["ms"],
        place=row["place"] or "",
    )


def scrubbed(record: Record) -> Record:
    """The same record, each character that Postgres can't store (NUL, half a surrogate pair) as its escape."""
    texts = {field.name: getattr(record, field.name) for field in fields(record)}
    changed: dict[str, Any] = {
        name: clean for name, text in texts.items() if isinstance(text, str) and (clean := scrub(text)) != text
    }
    return replace(record, **changed) if changed else record


def scrub(text: str) -> str:
    """Text that Postgres can store."""
    return text.replace("\0", "\\u0000").encode(errors="backslashreplace").decode()


def shown(row: Mapping[str, Any]) -> dict[str, object]:
    """A stored run as people read it: times in wall ms, `output` decoded, `cost_usd` a Decimal."""
    run = dict(row)
    for name in ("enqueued_at", "started_at", "finished_at"):
        run[name] = _wall_ms(run[name])
    if run["cost_usd"] is not None:
        run["cost_usd"] = Decimal(run["cost_usd"])
    if run.get("output") is not None:
        run["output"] = orjson.loads(run["output"])
    return run


def _wall_ms(time: datetime | str | None) -> int:
    if time is None:
        return 0
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    return round(moment.timestamp() * 1000)
