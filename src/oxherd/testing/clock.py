"""The clock that Oxherd reads, in a test's hands."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from oxherd import clock

_NS = 1_000_000_000


class Clock:
    """Takes the place of both of Oxherd's clocks in this process, as a context manager.

    It runs like the real one until it is told otherwise. It reaches what Oxherd stores (a job's `timestamp`, a step's
    start, the day that money counts for) and measures (a job's time limits). It does not reach timers that are running,
    such as `asyncio.sleep`, the clocks of Redis, Postgres and other processes, nor `time` and `datetime` in other code
    than Oxherd's; a worker that waits for a delayed job is not woken.
    """

    def __init__(self) -> None:
        self._frozen_ns: int | None = None
        self._wall_ns = 0  # how far the wall clock is ahead of the real one
        self._mono = 0.0

    def __enter__(self) -> Self:
        self._real = clock.wall_ns, clock.seconds
        clock.wall_ns, clock.seconds = self._time_ns, self._monotonic
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clock.wall_ns, clock.seconds = self._real

    @property
    def wall_ms(self) -> int:
        """What the wall clock shows, in ms since the Unix epoch."""
        return self._time_ns() // 1_000_000

    def freeze(self, at: float | None = None) -> None:
        """Let the wall clock stand still. Measured time runs on: loops that wait for it to pass would never end.

        Parameters:
            at: what it shows, in seconds since the Unix epoch; the present when left out.
        """
        self._frozen_ns = self._time_ns() if at is None else int(at * _NS)

    def advance(self, seconds: float) -> None:
        """Move both clocks on, as if that time had passed."""
        self._mono += seconds
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as virtual machines' clocks do; back where `seconds` is negative."""
        if self._frozen_ns is not None:
            self._frozen_ns += int(seconds * _NS)
        else:
            self._wall_ns += int(seconds * _NS)

    def _time_ns(self) -> int:
        return time.time_ns() + self._wall_ns if self._frozen_ns is None else self._frozen_ns

    def _monotonic(self) -> float:
        return time.monotonic() + self._mono
