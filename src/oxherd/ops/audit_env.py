"""`oxherd audit env`: each secret variable, where it is, how old, who shares it, and what it may do."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from oxherd.errors import OxherdError, RedisRefused
from oxherd.ops.audit_rules import Level, jwt_claims
from oxherd.ops.env import Fingerprints
from oxherd.ops.rotate_known import how_to_replace
from oxherd.settings import TABLE, RedisTarget, Secret, Settings, load

OLD_DAYS = 180  # after which a secret should have been replaced
HERE = "this environment"
_DAY_MS = 86_400_000
_OPERATORS = (  # what an operator needs, to replace other secrets
    "RAILWAY_API_TOKEN", "SUPABASE_ACCESS_TOKEN", "UPSTASH_API_KEY", "OPENROUTER_MANAGEMENT_KEY", "DATABASE_ADMIN_URL",
    "REDIS_ADMIN_URL",
)  # fmt: skip
_SECRET_NAME = re.compile(r"(?i)(?:key|token|secret|password|passwd|pass|dsn|credentials?|webhook_url)$")
_LOGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s:@/]*:[^\s@/]+@")
RIGHTS = "+@all -@dangerous +info +client +acl|whoami +acl|dryrun"  # of a worker in Redis
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
class Environment:
    """The variables of one place.

    Attributes:
        values: by name.
        sealed: the names of those whose values are never told.
        written: when each was last written, wall ms, where that is known.
        deployed_at: when what runs there was deployed, wall ms; None where nothing runs, or nobody knows.
    """

    values: Mapping[str, Secret]
    sealed: frozenset[str] = frozenset()
    written: Mapping[str, int] = field(default_factory=dict)
    deployed_at: int | None = None

    def has(self, name: str) -> bool:
        """Whether the variable is there and not empty."""
        return name in self.sealed or bool(self.values.get(name, Secret("")).reveal().strip())


@dataclass(frozen=True, slots=True)
class Row:
    """A secret variable without its value.

    Attributes:
        variable: its name.
        about: what it is for.
        needed_by: who can't do without it.
        where: the places that have it.
        rotated_days: days since `oxherd rotate` replaced it; None where that is not known.
        written_days: days since it was last written, by the places that tell.
        shared: places that have the same value.
    """

    variable: str
    about: str
    needed_by: str
    where: tuple[str, ...]
    rotated_days: int | None
    written_days: Mapping[str, int]
    shared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the audit of the variables found.

    Attributes:
        rows: the secret variables, in the order of the table; then those that are not Oxherd's.
        faults: the worst first.
        asked: what was asked besides the variables: `postgres`, `redis`, `operations`.
        places: how many places have a secret to compare.
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
    places: Mapping[str, Environment],
    settings: Settings,
    *,
    rotations: Iterable[Mapping[str, Any]] | None,
    now_ms: int,
    asked: Mapping[str, Sequence[Fault]],
) -> Inventory:
    """Put together what is known.

    Parameters:
        places: the variables of each place by its name; `HERE` among them unless it is one of the others.
        settings: those of this environment, parsed.
        rotations: operations of the kind `rotation`, the newest first; None where they can't be had.
        now_ms: wall ms.
        asked: what `ask_postgres` and `ask_redis` found, by service.
    """
    ages = _ages(rotations or (), now_ms)
    rows = tuple(
        Row(
            name, about, needed_by, tuple(place for place, there in places.items() if there.has(name)), ages.get(name),
            {place: int((now_ms - there.written[name]) // _DAY_MS)
             for place, there in places.items() if there.has(name) and name in there.written},
            _shared(name, places),
        )
        for name, about, needed_by in _secrets_of(places)
    )  # fmt: skip
    faults = [
        *(_static(settings) if HERE in places else []), *_of_rows([row for row in rows if row.where]),
        *_of_places(places), *(fault for found in asked.values() for fault in found),
    ]  # fmt: skip
    faults.sort(key=lambda each: (-each.level, each.control, each.variable))
    extra = ("operations",) if rotations is not None else ()
    compared = {place for row in rows for place in row.where}
    return Inventory(rows, tuple(faults), (*asked, *extra), len(compared))


def _secrets_of(places: Mapping[str, Environment]) -> Iterator[tuple[str, str, str]]:
    """Each secret's name, what it is for and who needs it: the table's, then what an app has beside them."""
    known = {each.name for each in TABLE}
    yield from ((each.name, each.about, each.needed_by) for each in TABLE if each.secret)
    names = {name for there in places.values() for name in (*there.values, *there.sealed)} - known
    for name in sorted(names):
        values = [there.values.get(name, Secret("")).reveal() for there in places.values()]
        if _SECRET_NAME.search(name) or any(map(_LOGIN.match, values)):
            yield name, "not one of Oxherd's", "the app"


def _ages(rotations: Iterable[Mapping[str, Any]], now_ms: int) -> dict[str, int]:
    ages: dict[str, int] = {}
    for each in rotations:
        if each["outcome"] == "ok":
            ages.setdefault(str(each["target"]), int((now_ms - int(each["at"])) // _DAY_MS))
    return ages


def _shared(name: str, places: Mapping[str, Environment]) -> tuple[str, ...]:
    prints = Fingerprints(None)
    owners: dict[str, list[str]] = {}
    for place, there in places.items():
        if there.has(name) and name not in there.sealed:
            owners.setdefault(prints.of(Secret(there.values[name].reveal().strip())), []).append(place)
    most = max(owners.values(), key=len, default=[])
    return tuple(most) if len(most) > 1 else ()


def _of_places(places: Mapping[str, Environment]) -> Iterator[Fault]:
    """What the places that a worker runs in, and not this one, have that they should not."""
    for place, there in places.items():
        if place == HERE:
            continue
        for name in sorted(there.sealed):
            yield Fault(
                "sharing", name, Level.NOTE, f"is sealed in {place}: nobody can compare it", "nothing: it is safe"
            )
        for name, written in there.written.items():
            if there.deployed_at is not None and written > there.deployed_at:
                yield Fault("age", name, Level.WARNING, f"was written in {place} after what runs there was deployed",
                            "`oxherd deploy redeploy`: until then the old value is in use")  # fmt: skip
        for name in _OPERATORS:
            if there.written and there.has(name):
                yield Fault("privilege", name, Level.WARNING, f"is set in {place}, and no worker needs it",
                            "keep it where `oxherd rotate` is run: it hands out or changes other secrets")  # fmt: skip
        yield from _static_of(place, there)


def _static_of(place: str, there: Environment) -> Iterator[Fault]:
    try:
        settings = load({name: value.reveal() for name, value in there.values.items()}, needs=())
    except OxherdError:
        for control, words in (
            ("privilege", "was not looked at closely: some are malformed or sealed"),
            ("tls", "may go without TLS: its addresses could not be looked at"),
        ):
            yield Fault(control, "", Level.NOTE, f"{place} {words}", "`oxherd env check` says which are malformed")
        return
    for fault in _static(settings):
        if fault.level > Level.NOTE:
            yield replace(fault, message=f"{fault.message} ({place})")


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
        faults += [
            Fault("age", row.variable, Level.WARNING, f"was last written {days} days ago in {place}",
                  how_to_replace(row.variable))
            for place, days in row.written_days.items() if row.rotated_days is None and days > OLD_DAYS
        ]  # fmt: skip
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
    "select distinct n.nspname || '.' || c.relname as name from pg_class c "
    "join pg_namespace n on n.oid = c.relnamespace cross join aclexplode(c.relacl) a "
    "left join pg_roles r on r.oid = a.grantee "
    "where n.nspname = 'oxherd' and (a.grantee = 0 or r.rolname = 'anon') order by 1"  # 0 is everybody
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
                  f"let it ask (`{RIGHTS}`), or look at its users in the service's console")
        ]  # fmt: skip
    finally:
        await link.stop()


async def _rights(link: Any) -> list[Fault]:
    user = await link.call(b"ACL", b"WHOAMI")
    allowed = []
    for command in _DANGEROUS:
        words = [word.encode() for word in command.split()]
        answer = await link.call(b"ACL", b"DRYRUN", user, *words)
        if bytes(answer).upper() == b"OK":
            allowed.append(command.split()[0])
    if not allowed:
        return []
    return [
        Fault("privilege", "REDIS_URL", Level.WARNING,
              f"its user {user.decode(errors='replace')} may {', '.join(allowed)}",
              f"give Oxherd an ACL user, `{RIGHTS}`, for the queue's keys; docs/audit.md has it")
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


def where_of(row: Row) -> str:
    """The places of a variable in words, with how long ago it was written where that is told."""
    ages = {place: f" (written {days} d ago)" for place, days in row.written_days.items()}
    return ", ".join(f"{place}{ages.get(place, '')}" for place in row.where)


def secrets_page(found: Inventory) -> str:
    """`SECRETS.md`: every secret, what it is for, who needs it and where it is. No values."""
    lines = [
        "# Secrets", "", "Made by `oxherd audit env --inventory`. There are no values in it.", "",
        "| secret | what it is for | needed by | where it is | replaced | how to replace it |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found.rows:
        where = where_of(row) or "nowhere"
        age = "not known" if row.rotated_days is None else f"{row.rotated_days} days ago"
        lines.append(
            f"| `{row.variable}` | {row.about} | {row.needed_by} | {where} | {age if row.where else '-'} "
            f"| {how_to_replace(row.variable)} |"
        )
    return "\n".join(lines) + "\n"
