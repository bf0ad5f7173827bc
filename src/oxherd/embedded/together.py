"""The embedded engines for `demo` and `dev`: started at the same time, stopped whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager

from oxherd.embedded.engine import Engine


@contextmanager
def started(engines: Sequence[Engine], tell: Callable[[Engine, float], None]) -> Iterator[None]:
    """Start them, and stop them at the end in reverse.

    Parameters:
        engines: which; a later one must not need an earlier one to start.
        tell: called with each and its seconds when it answers.

    Raises:
        EmbeddedUnavailable: one of them has no wheel here or did not come up; the others are stopped.
    """
    with ExitStack() as stack:
        for engine in engines:
            stack.callback(engine.stop)
        with ThreadPoolExecutor(len(engines)) as pool:
            starts = {pool.submit(_seconds_to_start, engine): engine for engine in engines}
            for start in as_completed(starts):
                tell(starts[start], start.result())
        yield


def _seconds_to_start(engine: Engine) -> float:
    begun = time.monotonic()
    engine.start()
    return time.monotonic() - begun
