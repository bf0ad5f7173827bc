"""Which rotation a variable has, and a rotation ready to go: from the state of an earlier one, or from the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from oxherd.cloud.openrouter_admin import OpenRouterAdmin
from oxherd.cloud.railway import Railway
from oxherd.cloud.supabase_admin import SupabaseAdmin
from oxherd.cloud.upstash import Upstash
from oxherd.errors import RotationStopped, UsageError
from oxherd.ops.deploy import SETTLE
from oxherd.ops.lock import held
from oxherd.ops.rotate import PATIENCE, Consumers, Person, Rotation, Rotator, Scene
from oxherd.ops.rotate_by_hand import BY_HAND
from oxherd.ops.rotate_consumers import ByHand, OnRailway, Several
from oxherd.ops.rotate_encryption import EncryptionKey
from oxherd.ops.rotate_guided import GUIDES, Guided
from oxherd.ops.rotate_openrouter import OpenRouterKey
from oxherd.ops.rotate_postgres import PostgresRole, SupabasePassword
from oxherd.ops.rotate_redis import RedisUser, UpstashPassword
from oxherd.ops.rotate_state import Locks, Progress, StateFile
from oxherd.ops.rotate_supabase import SupabaseKey, ref_of
from oxherd.ops.rotate_token import ApiToken
from oxherd.settings import Secret, Settings

T = TypeVar("T")

NAMES = (
    "API_READ_TOKEN", "API_TOKEN", "DATABASE_URL", "ENCRYPTION_KEY", "OPENROUTER_API_KEY", "REDIS_URL",
    "SUPABASE_SERVICE_ROLE_KEY", *GUIDES,
)  # fmt: skip
SUPABASE = (".supabase.co", ".supabase.com")  # how hosts end: direct ones, and poolers
UPSTASH = ".upstash.io"  # how the host of each of its databases ends
ELSEWHERE = frozenset(GUIDES)  # not in workers: on machines of operators and in CI


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for.

    Attributes:
        name: the variable.
        folder: where states are kept.
        locks: what opens and closes them.
        consumers: `railway`, `manual` or both; empty for what fits.
        services: on Railway, by id or name; empty for the configured one.
        target: where values for people go; None for a file beside the state.
        url: where the HTTP server is.
        disable_legacy: both JWT keys of Supabase may be switched off.
        resume: go on with one that is under way.
        test_job: run a job on the queue after the switch.
        settle: seconds for which a deployment has to stay up before it is believed.
    """

    name: str
    folder: Path
    locks: Locks
    consumers: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    target: Path | None = None
    url: str | None = None
    disable_legacy: bool = False
    resume: bool = False
    test_job: bool = True
    settle: float = SETTLE


def how_to_replace(name: str) -> str:
    """What to do to replace a secret: the command, or the work by hand where there is none."""
    if name in NAMES:
        return f"`oxherd rotate {name}`"
    other = f"make a new {name} where it was made, `oxherd env push` it, then revoke the old one"
    return f"by hand: {BY_HAND.get(name, other)}"


def check_name(name: str) -> str:
    """Raises UsageError for what can't be rotated."""
    if name in BY_HAND:
        raise UsageError(f"no command replaces {name}", hint=how_to_replace(name))
    if name not in NAMES:
        raise UsageError(f"{name!r} is no secret that can be rotated; these are: {', '.join(sorted(NAMES))}",
                         hint="a secret's own name, as docs/settings.md has it")  # fmt: skip
    return name


@asynccontextmanager
async def prepared(
    wanted: Wanted,
    settings: Settings,
    person: Person,
    tell: Callable[[str], None],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    patience: float = PATIENCE,
) -> AsyncIterator[Rotator]:
    """A rotation, ready to be planned, run or rolled back.

    Raises:
        RotationStopped: one is under way and `resume` was not asked for, or the other way round.
        UsageError: something that it needs is not set.
    """
    file = StateFile(wanted.folder, check_name(wanted.name), wanted.locks)
    head = file.head()
    if head is not None and not wanted.resume:
        raise RotationStopped(
            f"a rotation of {wanted.name} is under way; next is: {head['stage']}",
            hint=f"oxherd rotate {wanted.name} --resume, or --rollback",
        )
    progress = file.load() if wanted.resume else Progress.begin(wanted.name)
    async with AsyncExitStack() as stack:
        consumers = await _consumers(wanted, settings, person, tell, sleep, stack)
        test_job = wanted.test_job and wanted.name not in ELSEWHERE
        scene = Scene(
            progress, lambda: file.save(progress), consumers, person, settings, tell, sleep, patience, test_job
        )
        yield Rotator(await _rotation(wanted, scene, stack), file)


async def _consumers(
    wanted: Wanted,
    settings: Settings,
    person: Person,
    tell: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]],
    stack: AsyncExitStack,
) -> Consumers:
    has_railway = settings.railway_token is not None or settings.railway_api_token is not None
    usual = ("railway",) if has_railway and wanted.name not in ELSEWHERE else ("manual",)
    parts: dict[str, Consumers] = {}
    for kind in wanted.consumers or usual:
        if kind == "railway":
            parts[kind] = await _on_railway(wanted, settings, tell, sleep, stack)
        elif kind == "manual":
            target = wanted.target or wanted.folder / f"{wanted.name}.env"
            parts[kind] = ByHand(target, person, tell)
        else:
            raise UsageError(f"--consumers {kind!r} is unknown; it takes railway and manual")
    return Several(parts)


async def _on_railway(
    wanted: Wanted,
    settings: Settings,
    tell: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]],
    stack: AsyncExitStack,
) -> OnRailway:
    if settings.railway_token is None and settings.railway_api_token is None:
        raise UsageError("RAILWAY_TOKEN is not set", hint="set it, or choose --consumers manual")
    api = await stack.enter_async_context(
        Railway(
            settings.railway_api_url, project_token=settings.railway_token, api_token=settings.railway_api_token,
            sleep=sleep,
        )
    )  # fmt: skip
    places = [
        await api.place(
            project=settings.railway_project_id, environment=settings.railway_environment_id, service=service
        )
        for service in wanted.services or (settings.railway_service_id,)
    ]
    command = f"rotate {wanted.name}"
    return OnRailway(
        api, places, tell, lambda place: held(settings, place, command, "switching to another value", tell),
        settle=wanted.settle,
    )  # fmt: skip


async def _rotation(wanted: Wanted, scene: Scene, stack: AsyncExitStack) -> Rotation:
    match wanted.name:
        case "OPENROUTER_API_KEY":
            key = _needed(scene.settings.openrouter_management_key, "OPENROUTER_MANAGEMENT_KEY")
            api = OpenRouterAdmin(scene.settings.openrouter_base_url, key)
            made: Rotation = OpenRouterKey(scene, await stack.enter_async_context(api))
        case "SUPABASE_SERVICE_ROLE_KEY":
            supabase = await _supabase(scene.settings, stack)
            made = SupabaseKey(scene, supabase, disable_legacy=wanted.disable_legacy)
        case "DATABASE_URL":
            made = await _database(scene, stack)
        case "REDIS_URL":
            made = await _redis(scene, stack)
        case "API_TOKEN" | "API_READ_TOKEN":
            made = ApiToken(wanted.name, scene, wanted.url or scene.settings.reached_at)
        case "ENCRYPTION_KEY":
            _needed(scene.settings.redis_url, "REDIS_URL")
            made = EncryptionKey(scene)
        case _:
            made = Guided(wanted.name, scene)
    return made


async def _database(scene: Scene, stack: AsyncExitStack) -> Rotation:
    if scene.settings.database_url is not None and _at_supabase(scene.settings.database_url):
        return SupabasePassword(scene, await _supabase(scene.settings, stack))
    return PostgresRole(scene)


async def _redis(scene: Scene, stack: AsyncExitStack) -> Rotation:
    settings = scene.settings
    _needed(settings.redis_url, "REDIS_URL")
    if not settings.redis_url.host.endswith(UPSTASH) or settings.redis_admin_url is not None:
        return RedisUser(scene)
    key = _needed(settings.upstash_api_key, "UPSTASH_API_KEY")
    api = Upstash(settings.upstash_api_url, settings.upstash_email, key)
    return UpstashPassword(scene, await stack.enter_async_context(api))


async def _supabase(settings: Settings, stack: AsyncExitStack) -> SupabaseAdmin:
    token = _needed(settings.supabase_access_token, "SUPABASE_ACCESS_TOKEN")
    return await stack.enter_async_context(SupabaseAdmin(settings.supabase_api_url, token, ref_of(settings)))


def _at_supabase(url: Secret) -> bool:
    host = url.reveal().rpartition("@")[2].partition("/")[0].partition(":")[0]
    return host.endswith(SUPABASE)


def _needed(value: T | None, name: str) -> T:
    if value is None:
        raise UsageError(f"{name} is not set", hint=f"docs/settings.md says what {name} is")
    return value
