"""Oxherd: the worker for AI-agent jobs on a BullMQ queue."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oxherd.agents import MCP, Agent, Budget, tool
    from oxherd.context import Context
    from oxherd.errors import Fatal, JobCancelled, RetryLater, WaitForChildren
    from oxherd.herd import Herd

__version__ = version("oxherd")
_HOMES = {
    "MCP": "oxherd.agents",
    "Agent": "oxherd.agents",
    "Budget": "oxherd.agents",
    "Context": "oxherd.context",
    "Fatal": "oxherd.errors",
    "Herd": "oxherd.herd",
    "JobCancelled": "oxherd.errors",
    "RetryLater": "oxherd.errors",
    "WaitForChildren": "oxherd.errors",
    "tool": "oxherd.agents",
}
__all__ = [
    "MCP",
    "Agent",
    "Budget",
    "Context",
    "Fatal",
    "Herd",
    "JobCancelled",
    "RetryLater",
    "WaitForChildren",
    "__version__",
    "tool",
]


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: importing one part must not cost the time of all of them.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'oxherd' has no attribute {name!r}")
