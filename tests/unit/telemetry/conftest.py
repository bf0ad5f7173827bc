from __future__ import annotations

import dataclasses

import pytest

from oxherd.telemetry.events import JobEnded

SAMPLES = {
    "str": "text",
    "int": 3,
    "float": 1.5,
    "bool": True,
    "tuple[str, ...]": ("agent.run", "oxherd.echo"),
    "float | None": 0.0012,
}


@pytest.fixture
def sample():
    """Make an event of any kind; fields that are not given get a value of their type."""

    def make(kind, /, **given):
        needed = (field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
        fields = {field.name: SAMPLES[field.type] for field in needed}
        return kind(**fields | given)

    return make


@pytest.fixture
def job_ended():
    """The end of an ordinary attempt."""

    def make(**given):
        usual = {
            "job": "support.reply",
            "id": "42",
            "attempt": 1,
            "attempts": 3,
            "outcome": "completed",
            "kind": "",
            "wait_ms": 12,
            "run_ms": 1234.5,
            "total_ms": 1250,
            "tokens": 812,
            "cost_usd": 0.0012,
            "reason": "",
        }
        return JobEnded(**usual | given)

    return make
