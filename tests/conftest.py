from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from oxherd.embedded.model import Model
from oxherd.embedded.postgres import Postgres
from oxherd.embedded.valkey import Valkey


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: as the last one it would keep one process busy while the others have nothing left."""
    items.sort(key=lambda item: item.path.name != "test_drills.py")


@pytest.fixture(scope="session")
def valkey(oxherd_valkey: Valkey) -> Valkey:
    """One Valkey for the whole run, on TCP. A test that kills its Valkey starts one of its own."""
    return oxherd_valkey


@pytest.fixture(scope="session")
def postgres(oxherd_postgres: Postgres) -> Postgres:
    """One Postgres for the whole run. A test that kills its Postgres starts one of its own."""
    return oxherd_postgres


@pytest.fixture
def redis_url(oxherd_redis_url: str) -> str:
    """An emptied Redis for this test alone."""
    return oxherd_redis_url


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
def model(oxherd_tiny_model: Model) -> Model:
    """One tiny language model for the whole run."""
    return oxherd_tiny_model
