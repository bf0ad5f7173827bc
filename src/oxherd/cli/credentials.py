from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from oxherd.cli.printing import Json, age, note, print_json, print_table
from oxherd.errors import UsageError

if TYPE_CHECKING:
    from oxherd.settings import Secret
    from oxherd.vault.vault import Rewrapped, Row, Vault

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    help="Customers' secrets, such as API keys: kept sealed with ENCRYPTION_KEY, read by handlers.\n\n"
    'In a handler: `(await ctx.credential("stripe")).reveal()`. Each tenant has its own; a job\'s tenant is its '
    "payload's `tenant`. No command shows a value.",
)

Name = Annotated[str, typer.Argument(help="What handlers call it, such as `stripe`.", show_default=False)]
Tenant = Annotated[
    str, typer.Option("--tenant", metavar="TENANT", help="Whose it is; without it, that of jobs without a tenant.")
]


@app.command(
    context_settings={"allow_extra_args": True},  # to refuse them without printing them
    epilog="\b\nExamples:\n  oxherd credentials put stripe --tenant acme              asks for the value\n"
    "  pass show acme/stripe | oxherd credentials put stripe --tenant acme\n"
    "  oxherd credentials put tls-key --tenant acme --from-file key.pem",
)
def put(
    ctx: typer.Context,
    name: Name,
    tenant: Tenant = "",
    from_file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Read the value from this file instead of stdin.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Keep a secret, in place of any of that name.

    The value is read from stdin or a file, never from the command line, which others on the machine can see and the
    shell keeps. One line break at its end is no part of it.
    """
    if ctx.args:
        raise UsageError(
            "the value does not belong on the command line, where others and the shell's history have it now",
            hint=f"replace it where it was made, then pipe the new one into: oxherd credentials put {name}",
        )
    value = _value(from_file)
    created = _ask(lambda vault: vault.put(tenant, name, value))
    if as_json:
        print_json({"name": name, "tenant": tenant or None, "created": created})
    else:
        print(f"{'kept' if created else 'replaced'} {name}{_of(tenant)}")


@app.command("list")
def list_(
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help='Only this tenant\'s; "" for those without one.')
    ] = None,
    as_json: Json = False,
) -> None:
    """List names, tenants, keys and ages, never values.

    KEY is the id of the encryption key that seals it, AGE the time since its value was last put.
    """
    rows = _ask(lambda vault: _listed(vault, tenant))
    if as_json:
        print_json([_shown(row) for row in rows])
    else:
        table = [(row.tenant or None, row.name, row.key_id, age(row.updated_at)) for row in rows]
        print_table(("tenant", "name", "key", "age"), table)


@app.command()
def remove(name: Name, tenant: Tenant = "", as_json: Json = False) -> None:
    """Forget a secret; exit code 1 where there is none of that name."""
    removed = _ask(lambda vault: vault.remove(tenant, name))
    if as_json:
        print_json({"name": name, "tenant": tenant or None, "removed": removed})
    elif removed:
        print(f"removed {name}{_of(tenant)}")
    else:
        note(f"there is no {name}{_of(tenant)}")
    if not removed:
        raise typer.Exit(1)


@app.command(
    epilog="\b\nTo replace the key:\n"
    "  1. ENCRYPTION_KEY=<new> and ENCRYPTION_KEYS_PREVIOUS=<old> for all workers and producers\n"
    "  2. oxherd credentials rewrap\n"
    "  3. once no job in the queue has a field that the old key sealed: remove it from ENCRYPTION_KEYS_PREVIOUS"
)
def rewrap(as_json: Json = False) -> None:
    """Seal with ENCRYPTION_KEY what another key seals; exit code 1 where something is left.

    Workers may go on reading and others putting meanwhile. It may be interrupted, and goes on where it was.
    """
    result = _ask(lambda vault: vault.rewrap(_tell))
    for tenant, name, why in result.faults:
        note(f"{name}{_of(tenant)}: {why}")
    if as_json:
        faults = [{"tenant": tenant or None, "name": name, "why": why} for tenant, name, why in result.faults]
        print_json({"done": result.done, "left": result.left, "faults": faults})
    else:
        print(_summary(result))
    if result.left:
        raise typer.Exit(1)


def _tell(done: int, total: int) -> None:
    note(f"{done} of {total}")


def _summary(result: Rewrapped) -> str:
    if not result.done and not result.left:
        return "nothing to do: ENCRYPTION_KEY seals everything"
    left = f"; {result.left} left that another key seals" if result.left else ""
    return f"{result.done} rewrapped{left}"


def _value(from_file: Path | None) -> Secret:
    from oxherd.settings import Secret

    if from_file is None and sys.stdin.isatty():
        return Secret(typer.prompt("Value", hide_input=True, err=True))
    try:
        raw = sys.stdin.buffer.read() if from_file is None else from_file.read_bytes()
        text = raw.decode()
    except OSError as error:
        raise UsageError(f"{from_file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError("the value is no UTF-8 text", hint="base64 it, and decode it in the handler") from None
    return Secret(text.removesuffix("\n").removesuffix("\r"))


async def _listed(vault: Vault, tenant: str | None) -> list[Row]:
    return [row async for row in vault.list(tenant)]


def _shown(row: Row) -> dict[str, Any]:
    return {
        "tenant": row.tenant or None,
        "name": row.name,
        "key": row.key_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _of(tenant: str) -> str:
    return f" of {tenant}" if tenant else ""


def _ask(question: Callable[[Vault], Awaitable[T]]) -> T:
    """Open the configured vault, ask, close it."""
    from oxherd import settings as variables
    from oxherd.app import build_store, build_vault, run_loop

    settings = variables.load(needs=("ENCRYPTION_KEY",))
    store = build_store(settings)
    if store is None:
        raise UsageError(
            "credentials are kept in the store, and none is configured",
            hint="set DATABASE_URL, or SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY",
        )

    async def ask() -> T:
        await store.start()
        try:
            return await question(build_vault(settings, store))
        finally:
            await store.stop()

    return cast(T, run_loop(ask()))
