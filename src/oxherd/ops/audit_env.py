"""`oxherd audit env`: each secret variable, where it is, how old, who shares it, and what it may do."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from oxherd.errors import OxherdError, RedisRefused
from oxherd.ops.audit_rules import Level, jwt_claims
from oxherd.ops.env import Fingerprints
from oxherd.ops.rotate_known import how_to_replace
from oxherd.settings import TABLE, RedisTarget, Secret, Settings

OLD_DAYS = 180  # after which a secret should have been replaced
HERE = "this environment"
_DAY_MS = 86_400_000
_DANGEROUS = ("FLUSHALL", "CONFIG GET *", "DEBUG SLEEP 0", "SHUTDOWN", "KEYS *")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a variable allows and should not.

    Attributes:
        control: what it is about: tls, privilege, rls, sharing, age, token or encryption.
        variable: its name.
        level: how bad it is.
        message: what is so.
        fix: what to do about it.
    """

    control: str
    variable: str
    level: Level
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class Row:
    """A secret variable without its value.

    Attributes:
        variable: its name.
        about: what it is for.
        needed_by: who can't do without it.
        where: the places that have it.
        rotated_days: days since `oxherd rotate` replaced it; None where that is not known.
        shared: places that have the same value.
    """

    variable: str
    about: str
    needed_by: str
    where: tuple[str, ...]
    rotated_days: int | None
    shared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the audit of the variables found.

    Attributes:
        rows: the secret variables, in the order of the table.
        faults: the worst first.
        asked: what was asked besides the variables: `postgres`, `redis`, `operations`.
        places: how many places were compared.
    """

    rows: tuple[Row, ...]
    faults: tuple[Fault, ...]
    asked: tuple[str, ...]
    places: int = 1

    @property
    def failing(self) -> tuple[Fault, ...]:
        """Those that are more than notes."""
        return tuple(each for each in self.faults if each.level > Level.NOTE)


def inventory(
    places: Mapping[str, Mapping[str, Secret]],
    settings: Settings,
    *,
    rotations: Iterable[Mapping[str, Any]] | None,
    now_ms: int,
    asked: Mapping[str, Sequence[Fault]],
) -> Inventory:
    """Put together what is known.

    Parameters:
        places: the variables of each place by its name; `HERE` among them.
        settings: those of this environment, parsed.
        rotations: operations of the kind `rotation`, the newest first; None where they can't be had.
        now_ms: wall ms.
        asked: what `ask_postgres` and `ask_redis` found, by service.
    """
    ages = _ages(rotations or (), now_ms)
    shared = _shared(places)
    rows = tuple(
        Row(
            each.name, each.about, each.needed_by,
            tuple(name for name, values in places.items() if _is_set(values.get(each.name))),
            ages.get(each.name), shared.get(each.name, ()),
        )
        for each in TABLE if each.secret
    )  # fmt: skip
    present = tuple(row for row in rows if row.where)
    faults = [*_static(settings), *_of_rows(present), *(fault for found in asked.values() for fault in found)]
    faults.sort(key=lambda each: (-each.level, each.control, each.variable))
    extra = ("operations",) if rotations is not None else ()
    return Inventory(rows, tuple(faults), (*asked, *extra), len(places))


def _ages(rotations: Iterable[Mapping[str, Any]], now_ms: int) -> dict[str, int]:
    ages: dict[str, int] = {}
    for each in rotations:
        if each["outcome"] == "ok":
            ages.setdefault(str(each["target"]), int((now_ms - int(each["at"])) // _DAY_MS))
    return ages


def _shared(places: Mapping[str, Mapping[str, Secret]]) -> dict[str, tuple[str, ...]]:
    prints, found = Fingerprints(None), {}
    for variable in TABLE:
        owners: dict[str, list[str]] = {}
        for name, values in places.items():
            value = values.get(variable.name)
            if variable.secret and value is not None and _is_set(value):
                owners.setdefault(prints.of(Secret(value.reveal().strip())), []).append(name)
        most = max(owners.values(), key=len, default=[])
        if len(most) > 1:
            found[variable.name] = tuple(most)
    return found


def _is_set(value: Secret | None) -> bool:
    return value is not None and bool(value.reveal().strip())


def _of_rows(rows: Iterable[Row]) -> list[Fault]:
    faults = []
    for row in rows:
        if row.shared:
            faults.append(
                Fault("sharing", row.variable, Level.WARNING, f"the same in {' and '.join(row.shared)}",
                      "give each environment a secret of its own: a leak in one is then no leak of the other")
            )  # fmt: skip
        if row.rotated_days is not None and row.rotated_days > OLD_DAYS:
            faults.append(
                Fault("age", row.variable, Level.WARNING, f"was replaced {row.rotated_days} days ago",
                      how_to_replace(row.variable))
            )  # fmt: skip
    return faults


def _static(settings: Settings) -> list[Fault]:
    """What the variables alone tell."""
    faults = [
        *_of_redis_url(settings.redis_url), *_of_database_url(settings.database_url), *_of_supabase(settings),
    ]  # fmt: skip
    if settings.api_token is None and settings.host not in {"127.0.0.1", "::1", "localhost"}:
        faults.append(
            Fault("token", "API_TOKEN", Level.NOTE, "is not set: the HTTP API answers its own machine only",
                  "set it where people or programs should reach the API: openssl rand -hex 24")
        )  # fmt: skip
    if settings.encryption_key is None:
        faults.append(
            Fault("encryption", "ENCRYPTION_KEY", Level.NOTE, "is not set: no credential can be stored",
                  "`openssl rand -base64 32` makes one")
        )  # fmt: skip
    if settings.encryption_keys_previous:
        faults.append(
            Fault("encryption", "ENCRYPTION_KEYS_PREVIOUS", Level.NOTE, "still opens what older keys sealed",
                  "`oxherd credentials rewrap`, then remove it")
        )  # fmt: skip
    return faults


def _of_redis_url(target: RedisTarget | None) -> list[Fault]:
    if target is None or target.path:
        return []
    faults = []
    if not target.tls and not is_private(target.host):
        faults.append(
            Fault("tls", "REDIS_URL", Level.ERROR, "goes over a public network without TLS, password and all",
                  "use rediss://, or the platform's private address")
        )  # fmt: skip
    if target.password is None and not _is_this_machine(target.host):
        faults.append(
            Fault("privilege", "REDIS_URL", Level.ERROR, "has no password", "let Redis ask for one (requirepass, ACL)")
        )
    return faults


def _of_database_url(url: Secret | None) -> list[Fault]:
    if url is None:
        return []
    parts = urlsplit(url.reveal())
    mode = parse_qs(parts.query).get("sslmode", ["prefer"])[0]
    host, faults = parts.hostname or "", []
    if host and not is_private(host) and mode in {"disable", "allow", "prefer"}:
        faults.append(
            Fault("tls", "DATABASE_URL", Level.ERROR if mode == "disable" else Level.WARNING,
                  f"sslmode is {mode}: it may go over a public network without TLS",
                  "add sslmode=verify-full (with sslrootcert), or at least sslmode=require")
        )  # fmt: skip
    return faults


def _of_supabase(settings: Settings) -> list[Fault]:
    key = settings.supabase_service_role_key
    if key is None:
        return []
    faults = []
    if settings.database_url is not None:
        faults.append(
            Fault("privilege", "SUPABASE_SERVICE_ROLE_KEY", Level.WARNING,
                  "is set beside DATABASE_URL, which is used instead; it reads and writes all tables past their RLS",
                  "remove it here")
        )  # fmt: skip
    role = jwt_claims(key.reveal()).get("role")
    if role == "anon":
        faults.append(
            Fault("privilege", "SUPABASE_SERVICE_ROLE_KEY", Level.ERROR, "is the anon key, which everybody has",
                  "set the project's secret key (sb_secret_…)")
        )  # fmt: skip
    elif role is not None:
        faults.append(
            Fault("age", "SUPABASE_SERVICE_ROLE_KEY", Level.NOTE, "is a legacy JWT, which can't be revoked alone",
                  "`oxherd rotate SUPABASE_SERVICE_ROLE_KEY` replaces it by a secret key")
        )  # fmt: skip
    return faults


def is_private(host: str) -> bool:
    """Whether a host is this machine, of a private network, or of a platform's private names."""
    if _is_this_machine(host) or host.endswith((".internal", ".local", ".svc", ".cluster.local")) or "." not in host:
        return ":" not in host or ipaddress.ip_address(host).is_private
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _is_this_machine(host: str) -> bool:
    return host in {"", "localhost", "127.0.0.1", "::1"}


_RIGHTS = "select current_user as me, rolsuper, rolbypassrls from pg_roles where rolname = current_user"
_ENCRYPTED = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
_OPEN_TABLES = (
    "select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace "
    "where c.relkind in ('r', 'p') and not c.relrowsecurity and n.nspname in ('oxherd', 'public') order by 1"
)
_EXPOSED = (
    "select distinct table_schema || '.' || table_name as name from information_schema.role_table_grants "
    "where grantee in ('anon', 'PUBLIC') and table_schema = 'oxherd' order by 1"
)


async def ask_postgres(url: Secret) -> list[Fault]:
    """What the database user may do, and which tables have no row-level security.

    Raises:
        StoreUnreachable, UsageError: see store.address.
    """
    from oxherd.store.address import parse

    connection = await parse(url.reveal()).connect()
    try:
        me = await connection.fetchrow(_RIGHTS)
        encrypted = await connection.fetchval(_ENCRYPTED)
        bare = [each["name"] for each in await connection.fetch(_OPEN_TABLES)]
        exposed = [each["name"] for each in await connection.fetch(_EXPOSED)]
    finally:
        await connection.close()
    faults = []
    if me is not None and me["rolsuper"]:
        faults.append(
            Fault("privilege", "DATABASE_URL", Level.WARNING, f"its user {me['me']} is a superuser of the database",
                  "give Oxherd a user of its own that owns the schema oxherd and no more")
        )  # fmt: skip
    if encrypted is False and not is_private(urlsplit(url.reveal()).hostname or ""):
        faults.append(
            Fault("tls", "DATABASE_URL", Level.ERROR, "this connection is not encrypted", "add sslmode=require")
        )
    faults += [
        Fault("rls", "DATABASE_URL", Level.ERROR if name.startswith("oxherd.") else Level.WARNING,
              f"table {name} has no row-level security", f"alter table {name} enable row level security;")
        for name in bare
    ]  # fmt: skip
    faults += [
        Fault("rls", "DATABASE_URL", Level.ERROR, f"table {name} is granted to anon or everybody",
              f"revoke all on {name} from anon, public;")
        for name in exposed
    ]  # fmt: skip
    return faults


async def ask_redis(target: RedisTarget) -> list[Fault]:
    """What the Redis user may do.

    Raises:
        RedisUnreachable, RedisRefused: Redis is not there or does not let us in.
    """
    from oxherd.queue.connection import Link

    link = Link(target, "audit")
    await link.start()
    try:
        return await _rights(link)
    except RedisRefused:  # hosted services keep their ACL commands to themselves
        return [
            Fault("privilege", "REDIS_URL", Level.NOTE, "Redis does not tell what this user may do",
                  "look at its users in the service's console")
        ]  # fmt: skip
    finally:
        await link.stop()


async def _rights(link: Any) -> list[Fault]:
    user = await link.call(b"ACL", b"WHOAMI")
    allowed = []
    for command in _DANGEROUS:
        words = [word.encode() for word in command.split()]
        try:
            answer = await link.call(b"ACL", b"DRYRUN", user, *words)
        except RedisRefused as error:
            if "no permissions" in str(error).lower():
                continue
            raise
        if bytes(answer).upper() == b"OK":
            allowed.append(command.split()[0])
    if not allowed:
        return []
    return [
        Fault("privilege", "REDIS_URL", Level.WARNING,
              f"its user {user.decode(errors='replace')} may {', '.join(allowed)}",
              "give Oxherd an ACL user: +@all -@dangerous +info +client, and the queue's keys; docs/audit.md has it")
    ]  # fmt: skip


async def ask(settings: Settings) -> tuple[dict[str, list[Fault]], list[str]]:
    """Ask Postgres and Redis; what they said, and which could not be asked and why."""
    found: dict[str, list[Fault]] = {}
    away, target = [], _redis(settings)
    for name, question in (
        ("postgres", ask_postgres(settings.database_url) if settings.database_url else None),
        ("redis", ask_redis(target) if target is not None else None),
    ):
        if question is None:
            continue
        try:
            found[name] = await question
        except OxherdError as error:
            away.append(f"{name} could not be asked: {error.message}")
    return found, away


def _redis(settings: Settings) -> RedisTarget | None:
    return settings.redis_url  # None where nobody needed it when the settings were read


def secrets_page(found: Inventory) -> str:
    """`SECRETS.md`: every secret, what it is for, who needs it and where it is. No values."""
    lines = [
        "# Secrets", "", "Made by `oxherd audit env --inventory`. There are no values in it.", "",
        "| secret | what it is for | needed by | where it is | replaced | how to replace it |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found.rows:
        where = ", ".join(row.where) or "nowhere"
        age = "not known" if row.rotated_days is None else f"{row.rotated_days} days ago"
        lines.append(
            f"| `{row.variable}` | {row.about} | {row.needed_by} | {where} | {age if row.where else '-'} "
            f"| {how_to_replace(row.variable)} |"
        )
    return "\n".join(lines) + "\n"
