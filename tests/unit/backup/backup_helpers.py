from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

ROWS = 5_000
FILL = f"""
    create role reader nologin;
    create extension if not exists vector;
    create schema shop;
    create type shop.state as enum ('open', 'paid');
    create table shop.customers (id bigserial primary key, email text not null unique, "Since" timestamptz);
    create table shop.orders (
        id bigint generated always as identity primary key, customer bigint not null references shop.customers (id),
        state shop.state not null default 'open', cents int check (cents > 0), lines jsonb, photo bytea, vec vector(3)
    );
    create index orders_by_state on shop.orders (state) where state = 'open';
    insert into shop.customers (email) select 'c' || i || '@example.com' from generate_series(1, 100) i;
    insert into shop.orders (customer, cents, lines, photo, vec)
        select 1 + i % 100, 1 + i, jsonb_build_object('n', md5(i::text)), decode(md5(i::text), 'hex'), '[1,2,3]'
        from generate_series(1, {ROWS}) i;
    create view shop.open_orders as select * from shop.orders where state = 'open';
    create function shop.total() returns bigint language sql as 'select sum(cents) from shop.orders';
    alter table shop.customers enable row level security;
    create policy own on shop.customers for select to reader using (email like 'c1%');
    grant select on shop.customers to reader;
"""


async def execute(url: str, text: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(text)
    finally:
        await connection.close()


async def value(url: str, text: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(text)
    finally:
        await connection.close()


def run(work: Any) -> Any:
    return asyncio.run(work)


async def until(holds: Callable[[], Any]) -> None:
    """Look at what has no event to wait for."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  it happens in another process
            await asyncio.sleep(0.01)


def processes() -> str:
    """Every argument of every process of this machine, a line each."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


def reachable(folder):
    """Started by root, Postgres runs as nobody, who has to get to the folder."""
    ours = [each for each in folder.parents if each != Path(tempfile.gettempdir()) and each.owner() == folder.owner()]
    for each in (folder, *ours):
        if each.is_relative_to(tempfile.gettempdir()):
            each.chmod(0o755)
