from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from oxherd.errors import EmbeddedUnavailable

pytest_plugins = ["oxherd.testing.fixtures", "pytester"]
PROCESSES = 4  # at most: each has engines of its own


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the time a test waits for another process."""
    return min((os.cpu_count() or 1) + 1, PROCESSES)


@pytest.fixture(scope="session")
def oxherd_without_engine(
    oxherd_without_engine: Callable[[EmbeddedUnavailable], NoReturn],
) -> Callable[[EmbeddedUnavailable], NoReturn]:
    """A machine without an engine's wheel skips the test; CI fails it."""

    def fail(error: EmbeddedUnavailable) -> NoReturn:
        raise error

    return fail if os.environ.get("CI") == "true" else oxherd_without_engine
