"""For tests of what is built on Oxherd: a model that answers by a script, runs of single jobs, whole workers.

`oxherd.testing.fixtures` has pytest fixtures; nothing else here needs pytest. See docs/testing.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oxherd.testing.clock import Clock
    from oxherd.testing.events import Events, captured_events
    from oxherd.testing.jobs import JobRun, run_job
    from oxherd.testing.model import Asked, ScriptedModel, breaks, calls, fails, hangs, says
    from oxherd.testing.replay import replay_every_step
    from oxherd.testing.worker import Serving, serving

_HOMES = {
    "Asked": "model",
    "Clock": "clock",
    "Events": "events",
    "JobRun": "jobs",
    "ScriptedModel": "model",
    "Serving": "worker",
    "breaks": "model",
    "calls": "model",
    "captured_events": "events",
    "fails": "model",
    "hangs": "model",
    "replay_every_step": "replay",
    "run_job": "jobs",
    "says": "model",
    "serving": "worker",
}
__all__ = [
    "Asked",
    "Clock",
    "Events",
    "JobRun",
    "ScriptedModel",
    "Serving",
    "breaks",
    "calls",
    "captured_events",
    "fails",
    "hangs",
    "replay_every_step",
    "run_job",
    "says",
    "serving",
]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: a suite that only wants the fixtures must not wait for the rest.
    if name in _HOMES:
        return getattr(importlib.import_module(f"oxherd.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'oxherd.testing' has no attribute {name!r}")
