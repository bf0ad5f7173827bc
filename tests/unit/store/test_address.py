from __future__ import annotations

import asyncpg
import pytest

from oxherd.errors import StoreRefused, StoreUnreachable, UsageError
from oxherd.settings import Secret
from oxherd.store.address import parse


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://me:word@host:5432/app", "postgresql://me:word@host:5432/app"),
        ("postgres://me@host/app", "postgresql://me@host/app"),
        ("postgresql://me:p@ss/w?rd#1@host/app", "postgresql://me:p%40ss%2Fw%3Frd%231@host/app"),
        ("postgresql://me:p%40ss%2Fw@host/app", "postgresql://me:p%40ss%2Fw@host/app"),
        ("postgresql://me:50%@host/app", "postgresql://me:50%25@host/app"),
        ("postgresql://postgres.ref:w@host/postgres", "postgresql://postgres.ref:w@host/postgres"),
        ("postgresql://h1:5432,h2:5433/app", "postgresql://h1:5432,h2:5433/app"),
        ("postgresql:///app?host=/run/postgresql", "postgresql:///app?host=%2Frun%2Fpostgresql"),
        ("postgresql://me@host?sslmode=require", "postgresql://me@host/?sslmode=require"),
    ],
)
def test_urls_become_what_asyncpg_reads(url: str, dsn: str):
    assert parse(url).dsn.reveal() == dsn


def test_tls_settings_are_kept_and_parameters_of_other_clients_dropped():
    url = "postgresql://me@host/app?sslmode=verify-full&sslrootcert=/ca.crt&pgbouncer=true&channel_binding=prefer"
    assert parse(url).dsn.reveal() == "postgresql://me@host/app?sslmode=verify-full&sslrootcert=%2Fca.crt"


@pytest.mark.parametrize(
    ("url", "pooled"),
    [
        ("postgresql://me@aws-1-eu-west-1.pooler.supabase.com:6543/postgres", True),
        ("postgresql://me@host:5432/app?pgbouncer=true", True),
        ("postgresql://me@aws-1-eu-west-1.pooler.supabase.com:5432/postgres", False),
        ("postgresql://me@host/app", False),
    ],
)
def test_a_transaction_pooler_gets_no_prepared_statements(url: str, pooled: bool):
    address = parse(url)
    assert address.pooled is pooled
    assert (address.statement_cache_size == 0) is pooled


def test_a_secret_url_is_read_and_never_shown():
    address = parse(Secret("postgresql://me:hunter2@db.example.com:5432/app?sslmode=require"))
    assert address.shown == "db.example.com:5432/app"
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize("url", ["", "hunter2", "mysql://me:hunter2@host/app", "postgresql:me:hunter2@host"])
def test_another_scheme_is_refused_without_quoting_it(url: str):
    with pytest.raises(UsageError, match="must begin with postgresql://") as caught:
        parse(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("query", ["sslmode=certainly", "ssl_min_protocol_version=TLSv9"])
async def test_a_url_that_makes_no_sense_is_wrong_use(query: str):
    with pytest.raises(UsageError, match="DATABASE_URL can't be used") as caught:
        await parse(f"postgresql://me:hunter2@127.0.0.1:1/app?{query}").connect()
    assert "hunter2" not in str(caught.value)


async def test_a_port_that_is_no_number_is_wrong_use():
    with pytest.raises(UsageError):
        await parse("postgresql://me:hunter2@127.0.0.1:abc/app").connect()


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (asyncpg.InvalidPasswordError("no"), "user and password"),
        (asyncpg.InvalidCatalogNameError("no"), "database's name"),
        (asyncpg.TooManyConnectionsError("no"), "pooler"),
        (asyncpg.InsufficientPrivilegeError("no"), "grant"),
        (asyncpg.DiskFullError("no"), "log"),
        (ConnectionRefusedError(), "is running"),
    ],
)
def test_each_failure_says_what_to_check(error: Exception, hint: str):
    assert hint in parse("postgresql://me@host/app").unreachable(error).hint


def test_supabases_direct_address_comes_with_a_word_on_ipv6():
    address = parse("postgresql://postgres@db.abcdefghijklmnopqrst.supabase.co:5432/postgres")
    assert "IPv6" in address.unreachable(OSError("Network is unreachable")).hint


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (asyncpg.InvalidTextRepresentationError("x"), StoreRefused),
        (asyncpg.CharacterNotInRepertoireError("x"), StoreRefused),
        (asyncpg.NotNullViolationError("x"), StoreRefused),
        (asyncpg.ProgramLimitExceededError("x"), StoreRefused),
        (asyncpg.AdminShutdownError("x"), StoreUnreachable),
        (asyncpg.CannotConnectNowError("x"), StoreUnreachable),
        (asyncpg.DiskFullError("x"), StoreUnreachable),
        (asyncpg.DeadlockDetectedError("x"), StoreUnreachable),
        (asyncpg.SerializationError("x"), StoreUnreachable),
        (asyncpg.ReadOnlySQLTransactionError("x"), StoreUnreachable),
        (asyncpg.InvalidPasswordError("x"), StoreUnreachable),
        (asyncpg.UndefinedTableError("x"), StoreUnreachable),
        (asyncpg.QueryCanceledError("x"), StoreUnreachable),
        (asyncpg.InterfaceError("connection is closed"), StoreUnreachable),
        (asyncpg.InternalClientError("cannot switch to state 11"), StoreUnreachable),
        (TimeoutError(), StoreUnreachable),
        (ConnectionResetError(), StoreUnreachable),
    ],
)
def test_only_a_rows_own_fault_refuses_it_and_all_else_is_waited_out(error: Exception, meaning: type):
    assert type(parse("postgresql://me@host/app").fault(error)) is meaning
