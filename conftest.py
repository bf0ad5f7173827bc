from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from oxherd.errors import EmbeddedUnavailable

pytest_plugins = ["oxherd.testing.fixtures", "pytester"]


@pytest.fixture(scope="session")
def oxherd_without_engine(
    oxherd_without_engine: Callable[[EmbeddedUnavailable], NoReturn],
) -> Callable[[EmbeddedUnavailable], NoReturn]:
    """A machine without an engine's wheel skips the test; CI fails it."""

    def fail(error: EmbeddedUnavailable) -> NoReturn:
        raise error

    return fail if os.environ.get("CI") == "true" else oxherd_without_engine
