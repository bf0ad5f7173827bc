from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from redis import Redis

from oxherd.embedded.engine import Engine
from oxherd.embedded.model import Model
from oxherd.embedded.postgres import Postgres
from oxherd.embedded.valkey import Valkey
from oxherd.errors import EmbeddedUnavailable

E = TypeVar("E", bound=Engine)


def started(make: Callable[[], E]) -> E:
    """The engine, running. A machine without its wheel skips the test; CI fails it."""
    try:
        return make().start()
    except EmbeddedUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{error} ({error.hint})")


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One Valkey for the whole run, on TCP. A test that kills its Valkey starts one of its own."""
    with started(lambda: Valkey(tcp=True)) as engine:
        yield engine


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One Postgres for the whole run. A test that kills its Postgres starts one of its own."""
    with started(lambda: Postgres(config={"fsync": "off"})) as engine:
        yield engine


@pytest.fixture
def redis_url(valkey: Valkey) -> str:
    """An emptied Redis for this test alone."""
    with Redis.from_url(valkey.url) as client:
        client.flushall()
        client.script_flush()
    return valkey.url


@pytest.fixture
def queue_name() -> str:
    """A queue no other test uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """A new, empty database for this test alone."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    """One tiny language model for the whole run."""
    with started(Model) as engine:
        yield engine
