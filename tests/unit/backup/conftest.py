from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from backup_helpers import FILL, execute, run

from oxherd import settings as variables
from oxherd.backup.sealing import new_identity
from oxherd.embedded.postgres import Postgres
from oxherd.settings import Secret


@pytest.fixture(scope="session")
def keys() -> tuple[str, Secret]:
    """A recipient and its identity."""
    return new_identity()


@pytest.fixture(scope="session")
def shop(postgres: Postgres) -> Iterator[str]:
    """A database with a bit of everything; only read."""
    url = postgres.create_database("shop")
    run(execute(url, FILL))
    yield url
    postgres.drop_database("shop")


@pytest.fixture
def configured(keys: tuple[str, Secret], tmp_path: Any) -> Callable[..., variables.Settings]:
    """Settings for backups into a folder, and what else is given."""
    base = {
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "BACKUP_URL": str(tmp_path / "backups"),
        "BACKUP_RECIPIENTS": keys[0],
        "BACKUP_IDENTITY": keys[1].reveal(),
        "ENCRYPTION_KEY": base64.b64encode(bytes(range(32))).decode(),
    }
    return lambda **more: variables.load({**base, **more})
