"""Two clocks that are never mixed up: wall time is stored, monotonic time is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

# `oxherd.testing.Clock` puts its own in their place.
wall_ns: Callable[[], int] = time.time_ns
seconds: Callable[[], float] = time.monotonic


def wall_ms() -> int:
    """Milliseconds since the Unix epoch. For what is stored or sent; it may jump."""
    return wall_ns() // 1_000_000


def mono() -> float:
    """Seconds on a clock that never jumps. For measuring; meaningless outside this process."""
    return seconds()
