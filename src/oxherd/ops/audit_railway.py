"""The environments of a service on Railway, as places for `oxherd audit env`."""

from __future__ import annotations

from oxherd.cloud.railway import Place, Railway
from oxherd.errors import ServiceRefused, ServiceUnreachable
from oxherd.ops.audit_env import Environment
from oxherd.settings import TABLE, Settings


async def environments(settings: Settings) -> tuple[dict[str, Environment], list[str]]:
    """Each environment that the token may see, by its name, and what could not be asked and why.

    A token of an account or a workspace goes before a project token here, as that one sees a single environment.

    Parameters:
        settings: loaded with `needs=("RAILWAY",)`. Its RAILWAY_ENVIRONMENT_ID is not looked at.

    Raises:
        NotFound, UsageError: which project or service is meant can't be told.
        ServiceRefused, ServiceUnreachable: Railway does not show the project.
    """
    wide = settings.railway_api_token
    found: dict[str, Environment] = {}
    away: list[str] = []
    async with Railway(
        settings.railway_api_url, project_token=None if wide else settings.railway_token, api_token=wide
    ) as api:
        for place in await api.places(project=settings.railway_project_id, service=settings.railway_service_id):
            name = f"Railway {place.environment}"
            try:
                found[name] = await _environment(api, place)
            except (ServiceRefused, ServiceUnreachable) as error:
                away.append(f"{name} could not be asked: {error.message}")
    return found, away


async def _environment(api: Railway, place: Place) -> Environment:
    known = {each.name for each in TABLE}
    values = await api.variables(place)
    names = await api.variable_names(place)
    running = [each.created_at for each in (await api.service_instance(place)).active if each.is_serving]
    return Environment(
        {name: value for name, value in values.items() if name in known or not name.startswith("RAILWAY_")},
        frozenset(each.name for each in names if each.is_sealed), {each.name: each.updated_at for each in names},
        max(running, default=None),
    )  # fmt: skip
