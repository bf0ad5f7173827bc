"""Pytest fixtures, for `pytest_plugins = ["oxherd.testing.fixtures"]` in the topmost conftest.py.

An engine is started by the first test that asks for it, and serves all that follow. Where its wheel is missing the test
is skipped; override `oxherd_without_engine` to have it fail, in CI for example.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

from oxherd.errors import EmbeddedUnavailable

if TYPE_CHECKING:
    from oxherd.embedded.engine import Engine
    from oxherd.embedded.model import Model
    from oxherd.embedded.postgres import Postgres
    from oxherd.embedded.valkey import Valkey
    from oxherd.testing.clock import Clock
    from oxherd.testing.events import Events
    from oxherd.testing.model import ScriptedModel

E = TypeVar("E", bound="Engine")
Without = Callable[[EmbeddedUnavailable], NoReturn]


@pytest.fixture(scope="session")
def oxherd_without_engine() -> Without:
    """What becomes of a test whose engine can't be started: it is skipped, with the reason and what to install."""

    def skip(error: EmbeddedUnavailable) -> NoReturn:
        pytest.skip(f"{error} ({error.hint})")

    return skip


def _started(engine: E, without: Without) -> E:
    try:
        return engine.start()
    except EmbeddedUnavailable as error:
        without(error)


@pytest.fixture(scope="session")
def oxherd_valkey(oxherd_without_engine: Without) -> Iterator[Valkey]:
    """A real Valkey, for the whole run."""
    from oxherd.embedded.valkey import Valkey

    with _started(Valkey(tcp=True), oxherd_without_engine) as engine:
        yield engine


@pytest.fixture
def oxherd_redis_url(oxherd_valkey: Valkey) -> str:
    """The url of a Redis that is empty at the test's beginning."""
    oxherd_valkey.clear()
    return oxherd_valkey.url


@pytest.fixture(scope="session")
def oxherd_postgres(oxherd_without_engine: Without) -> Iterator[Postgres]:
    """A real Postgres, for the whole run."""
    from oxherd.embedded.postgres import Postgres

    with _started(Postgres(config={"fsync": "off"}), oxherd_without_engine) as engine:
        yield engine


@pytest.fixture(scope="session")
def oxherd_schema(oxherd_postgres: Postgres) -> str:
    """The name of a database with Oxherd's tables, to copy."""
    from oxherd.store.migrate import migrate

    name = f"oxherd_{uuid.uuid4().hex[:8]}"
    asyncio.run(migrate(oxherd_postgres.create_database(name)))
    return name


@pytest.fixture
def oxherd_database_url(oxherd_postgres: Postgres, oxherd_schema: str) -> Iterator[str]:
    """The url of a database with Oxherd's tables, for this test alone."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield oxherd_postgres.create_database(name, template=oxherd_schema)
    oxherd_postgres.drop_database(name)


@pytest.fixture
def oxherd_model() -> Iterator[ScriptedModel]:
    """A model that answers by the script which the test gives it."""
    from oxherd.testing.model import ScriptedModel

    with ScriptedModel() as model:
        yield model


@pytest.fixture(scope="session")
def oxherd_tiny_model(oxherd_without_engine: Without) -> Iterator[Model]:
    """A real, tiny language model, for the whole run; `base_url` is its address."""
    from oxherd.embedded.model import Model

    with _started(Model(), oxherd_without_engine) as engine:
        yield engine


@pytest.fixture
def oxherd_events() -> Iterator[Events]:
    """All events that Oxherd emits during the test."""
    from oxherd.testing.events import captured_events

    with captured_events() as events:
        yield events


@pytest.fixture
def oxherd_clock() -> Iterator[Clock]:
    """Oxherd's clocks, in the test's hands."""
    from oxherd.testing.clock import Clock

    with Clock() as clock:
        yield clock
