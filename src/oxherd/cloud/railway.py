"""Railway's API: one service in one environment of one project. Its operations are in `railway.graphql`.

Source: Railway's published schema, https://docs.railway.com/integrations/api. Only documented behaviour is relied on,
except where a comment says so.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from oxherd.cloud.railway_wire import LONGEST_WAIT, TRIES, Wire
from oxherd.errors import NotFound, ServiceRefused, ServiceUnreachable, UsageError
from oxherd.settings import Secret, Settings

MOST_LINES = 500  # of a log, in one answer; what is sent again when a followed log is picked up

PENDING = frozenset({"QUEUED", "WAITING", "INITIALIZING", "BUILDING", "DEPLOYING"})
BEFORE_START = PENDING - {"DEPLOYING"} | {"NEEDS_APPROVAL"}  # the build's log is still growing, or has not begun
OVER = frozenset({"FAILED", "CRASHED", "REMOVED", "SKIPPED"})  # nothing runs, and nothing will


@dataclass(frozen=True, slots=True)
class Place:
    """Which service is meant. Names are for people; ids are what is sent."""

    project_id: str
    environment_id: str
    service_id: str
    project: str
    environment: str
    service: str

    def __str__(self) -> str:
        return f"{self.project}/{self.environment}/{self.service}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment.

    Attributes:
        id: Railway's id.
        status: one of Railway's `DeploymentStatus`; see `PENDING`, `OVER`. SUCCESS may become CRASHED later.
        created_at: wall ms.
        stopped: whether all of its instances have ended; with SUCCESS, its process ended by itself.
        can_redeploy, can_rollback: what Railway would do now; an image is kept for some days only.
        commit: of the source, all digits; empty where it did not come from a repository.
        message: the commit's first line.
        branch: of the source.
        url: its public address with https://, or empty.
        instances: their statuses.
    """

    id: str
    status: str
    created_at: int
    stopped: bool
    can_redeploy: bool
    can_rollback: bool
    commit: str
    message: str
    branch: str
    url: str
    instances: tuple[str, ...]

    @property
    def is_serving(self) -> bool:
        """Whether it is up as far as Railway knows."""
        return self.status == "SUCCESS" and not self.stopped


@dataclass(frozen=True, slots=True)
class Event:
    """A stage of a deployment.

    Attributes:
        step: such as BUILD_IMAGE, PRE_DEPLOY_COMMAND or HEALTHCHECK.
        is_done: whether it has ended.
        error: what went wrong, in Railway's words, or empty.
    """

    step: str
    is_done: bool
    error: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line.

    Attributes:
        timestamp: RFC 3339 with nanoseconds, as Railway wrote it.
        message: the text; of a JSON line, its `message`.
        severity: such as info or error; what a process writes to stderr is error unless it is JSON.
        attributes: the other fields of a JSON line.
        instance: the id of the replica it came from, or empty.
    """

    timestamp: str
    message: str
    severity: str
    attributes: Mapping[str, str]
    instance: str


@dataclass(frozen=True, slots=True)
class VariableName:
    """A variable without its value: sealed ones have none to show.

    Attributes:
        name: the variable.
        is_shared: whether it belongs to the environment, not to the service.
        is_sealed: whether its value is never returned.
        updated_at: when it was last written, in wall ms.
    """

    name: str
    is_shared: bool
    is_sealed: bool
    updated_at: int


@dataclass(frozen=True, slots=True)
class ServiceInstance:
    """How a service is set up in an environment; None is Railway's default. Times are in seconds."""

    start_command: str | None
    pre_deploy_command: Any
    healthcheck_path: str | None
    healthcheck_timeout: int | None
    draining: int | None
    overlap: int | None
    restart_policy: str
    restart_retries: int
    replicas: int | None
    cron: str | None
    sleeps: bool
    ipv6_egress: bool
    latest: Deployment | None
    active: tuple[Deployment, ...]


@dataclass(frozen=True, slots=True)
class _Topology:
    """A project: what there is, by id. `own` is the environment of a project token."""

    project_id: str
    project: str
    environments: Mapping[str, str]
    services: Mapping[str, str]
    own: str | None

    def place(self, environment_id: str, service: str) -> Place:
        service_id = _pick("service", service, self.services)
        return Place(
            self.project_id, environment_id, service_id, self.project, self.environments[environment_id],
            self.services[service_id],
        )  # fmt: skip


class Railway:
    """The API, as an async context manager.

    Parameters:
        url: where it is.
        project_token: good for one environment of one project. Where it is given, the other is not used.
        api_token: of an account or a workspace.
        sleep: waits for so many seconds, between tries and polls.
    """

    def __init__(
        self,
        url: str,
        *,
        project_token: Secret | None = None,
        api_token: Secret | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._url = url
        self._by_project = project_token is not None
        self.sleep = sleep
        # Never both: what Railway makes of that is not defined.
        headers = (
            {"project-access-token": project_token}
            if project_token is not None
            else {"authorization": Secret(f"Bearer {api_token.reveal()}")}
            if api_token is not None
            else {}
        )
        self._wire = Wire(url, headers, sleep)
        self.pace = self._wire.pace

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The API with the configured tokens; load the settings with `needs=("RAILWAY",)`."""
        return cls(settings.railway_api_url, project_token=settings.railway_token, api_token=settings.railway_api_token)

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    async def place(self, *, project: str = "", environment: str = "", service: str = "") -> Place:
        """Find a service, each part by its id or name; a part that is the only one may be left out.

        Raises:
            NotFound: nothing is called that, or several could be meant; the message lists them.
            UsageError: the project token belongs elsewhere, or no project was named.
        """
        found = await self._topology(project)
        if found.own is not None:
            _same("environment", environment, (found.own, found.environments.get(found.own, found.own)))
            environment = found.own
        return found.place(_pick("environment", environment, found.environments), service)

    async def places(self, *, project: str = "", service: str = "") -> list[Place]:
        """A service in each environment that the token may see: of a project token, only in its own.

        Raises:
            NotFound, UsageError: see `place`.
        """
        found = await self._topology(project)
        seen = found.environments if found.own is None else [found.own]
        return [found.place(each, service) for each in seen]

    async def _topology(self, project: str) -> _Topology:
        own = None
        if self._by_project:
            scope = (await self._wire.ask("ProjectToken"))["projectToken"]
            project_id, own = scope["projectId"], scope["environmentId"]
        else:
            project_id = await self._project_id(project)
        found = (await self._wire.ask("Topology", id=project_id))["project"]
        environments = [each for each in _nodes(found["environments"]) if not each["deletedAt"] and each["canAccess"]]
        services = [each for each in _nodes(found["services"]) if not each["deletedAt"]]
        if own is not None:
            _same("project", project, (project_id, found["name"]))
        return _Topology(project_id, found["name"], _named(environments), _named(services), own)

    async def good_for(self) -> str | None:
        """What the token may do, in words; None where Railway does not know it."""
        if self._by_project:
            if (found := await self._unless_unknown("ProjectToken")) is None:
                return None
            scope = found["projectToken"]
            return f"the environment {scope['environment']['name']} of the project {scope['project']['name']}"
        if await self._unless_unknown("Me") is not None:
            return "all that its owner may do"
        if (found := await self._unless_unknown("ApiToken")) is None:
            return None
        names = ", ".join(each["name"] for each in found["apiToken"]["workspaces"])
        return f"all of the workspace {names}"

    async def _unless_unknown(self, operation: str) -> dict[str, Any] | None:
        try:
            return await self._wire.ask(operation)
        except ServiceRefused as error:
            if any(words in error.message.lower() for words in ("not authorized", "project token not found")):
                return None
            raise

    async def service_instance(self, place: Place) -> ServiceInstance:
        """How the service is set up, and what runs."""
        found = (
            await self._wire.ask("ServiceInstance", environmentId=place.environment_id, serviceId=place.service_id)
        )["serviceInstance"]  # fmt: skip
        latest = found["latestDeployment"]
        return ServiceInstance(
            found["startCommand"], found["preDeployCommand"], found["healthcheckPath"], found["healthcheckTimeout"],
            found["drainingSeconds"], found["overlapSeconds"], found["restartPolicyType"],
            found["restartPolicyMaxRetries"], found["numReplicas"], found["cronSchedule"],
            bool(found["sleepApplication"]), bool(found["ipv6EgressEnabled"]),
            _deployment(latest) if latest else None, tuple(map(_deployment, found["activeDeployments"])),
        )  # fmt: skip

    async def deployments(self, place: Place, *, limit: int = 20) -> list[Deployment]:
        """The service's deployments, newest first."""
        wanted = {
            "projectId": place.project_id, "environmentId": place.environment_id, "serviceId": place.service_id,
        }  # fmt: skip
        found = await self._wire.ask("Deployments", input=wanted, first=limit)
        return [_deployment(each) for each in _nodes(found["deployments"])]

    async def deployment(self, id: str) -> Deployment:  # noqa: A002  the API's word
        """One deployment as it is now."""
        return _deployment((await self._wire.ask("Deployment", id=id))["deployment"])

    async def events(self, id: str) -> list[Event]:  # noqa: A002
        """The stages that a deployment went through, in their order."""
        found = await self._wire.ask("DeploymentEvents", id=id)
        nodes = sorted(_nodes(found["deploymentEvents"]), key=lambda each: str(each["createdAt"]))
        return [
            Event(each["step"], each["completedAt"] is not None, (each["payload"] or {}).get("error") or "")
            for each in nodes
        ]

    async def build_logs(self, id: str, *, limit: int = MOST_LINES) -> list[LogLine]:  # noqa: A002
        """The last lines of a build, oldest first. At most 5000."""
        return [_line(each) for each in (await self._wire.ask("BuildLogs", id=id, limit=limit))["buildLogs"]]

    async def deploy_logs(
        self, id: str, *, limit: int = MOST_LINES, only: str = ""  # noqa: A002
    ) -> list[LogLine]:  # fmt: skip
        """The last lines of what runs, oldest first. At most 5000.

        Parameters:
            id: of the deployment.
            limit: how many lines.
            only: a filter in Railway's language, such as `@level:error` or `"two words"`.
        """
        found = await self._wire.ask("DeployLogs", id=id, limit=limit, filter=only)
        return [_line(each) for each in found["deploymentLogs"]]

    async def follow_logs(self, id: str, *, build: bool = False) -> AsyncIterator[LogLine]:  # noqa: A002
        """Lines as they come, beginning with the last ones there are; ends when the deployment writes no more.

        A lost connection is made anew; what Railway then sends again is not told again.

        Raises:
            ServiceUnreachable: the connection can't be made, time after time.
            ServiceRefused: Railway won't show this log.
        """
        operation, field = ("FollowBuildLogs", "buildLogs") if build else ("FollowDeployLogs", "deploymentLogs")
        told: set[tuple[str, str, str]] = set()
        failures = 0
        while True:
            before, new = frozenset(told), 0
            why = ""
            try:
                async for found in self._wire.subscribe(operation, id=id, limit=MOST_LINES, filter=""):
                    for line in map(_line, found[field]):
                        key = (line.timestamp, line.instance, line.message)
                        if key in before:
                            continue
                        told.add(key)
                        new += 1
                        yield line
            except ServiceUnreachable as error:
                why = error.message
            except ServiceRefused:
                if not told:
                    raise
            now = await self.deployment(id)
            if (build and now.status not in BEFORE_START) or now.status in OVER or now.stopped:
                return
            failures = 0 if new else failures + 1
            if why and failures == TRIES:
                raise ServiceUnreachable(why)
            await self.sleep(self._wire.pace(min(2.0**failures, LONGEST_WAIT)))

    async def variables(self, place: Place, *, unrendered: bool = False) -> dict[str, Secret]:
        """The service's variables, shared ones and Railway's own included, sealed ones not.

        Parameters:
            place: whose.
            unrendered: keep references such as `${{Redis.REDIS_URL}}` as they are written.
        """
        found = await self._wire.ask(
            "Variables", projectId=place.project_id, environmentId=place.environment_id,
            serviceId=place.service_id, unrendered=unrendered,
        )  # fmt: skip
        return {name: Secret(str(value)) for name, value in found["variables"].items()}

    async def variable_names(self, place: Place) -> list[VariableName]:
        """The service's and the environment's variables, sealed ones too, and when each was written; no values."""
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            answer = await self._wire.ask("VariableNames", environmentId=place.environment_id, after=after)
            page = answer["environment"]["variables"]
            found += _nodes(page)
            if not page["pageInfo"]["hasNextPage"]:
                break
            after = page["pageInfo"]["endCursor"]
        return [
            VariableName(each["name"], each["serviceId"] is None, each["isSealed"], _wall_ms(each["updatedAt"]))
            for each in found
            if each["serviceId"] in {None, place.service_id}
        ]

    async def write_variables(self, place: Place, values: Mapping[str, Secret], *, skip_deploys: bool) -> None:
        """Add or change variables of the service in one call; others are left alone.

        Parameters:
            place: whose.
            values: names and values.
            skip_deploys: otherwise Railway redeploys at once. The running process keeps its old values either way.
        """
        plain = {name: value.reveal() for name, value in values.items()}
        await self._wire.ask("WriteVariables", input={**_scope(place), "variables": plain, "skipDeploys": skip_deploys})

    async def delete_variable(self, place: Place, name: str) -> None:
        """Remove one variable of the service; Railway redeploys."""
        await self._wire.ask("DeleteVariable", input={**_scope(place), "name": name})

    async def redeploy(self, place: Place) -> None:
        """Deploy the same commit again with the variables of now. It becomes a new deployment; Railway names no id."""
        await self._wire.ask("Redeploy", environmentId=place.environment_id, serviceId=place.service_id)

    async def deploy_commit(self, place: Place, commit: str) -> str:
        """Deploy a commit with the variables of now.

        Parameters:
            place: where.
            commit: all 40 digits.

        Returns:
            The new deployment's id.
        """
        found = await self._wire.ask(
            "DeployCommit", environmentId=place.environment_id, serviceId=place.service_id, commitSha=commit
        )
        return str(found["serviceInstanceDeployV2"])

    async def restart(self, id: str) -> None:  # noqa: A002
        """Start the containers of a deployment again; image, variables and id stay."""
        await self._wire.ask("Restart", id=id)

    async def rollback(self, id: str) -> None:  # noqa: A002
        """Bring back an old deployment's image **and its variables**. It becomes a new deployment; no id is given."""
        await self._wire.ask("Rollback", id=id)

    async def _project_id(self, project: str) -> str:
        if not project:
            raise UsageError(
                "which project? A token of an account or a workspace sees them all",
                hint="set RAILWAY_PROJECT_ID to its id or name",
            )
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", project):
            return project
        found: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = (await self._wire.ask("Projects", after=after))["projects"]
            found += [each for each in _nodes(page) if not each["deletedAt"]]
            if not page["pageInfo"]["hasNextPage"]:
                return _pick("project", project, _named(found))
            after = page["pageInfo"]["endCursor"]


def _wall_ms(text: str | None) -> int:
    """Of RFC 3339, also with nanoseconds; 0 where there is none."""
    if not text:
        return 0
    return int(datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp() * 1000)


def _nodes(connection: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [edge["node"] for edge in connection["edges"]]


def _named(nodes: list[dict[str, Any]]) -> dict[str, str]:
    return {each["id"]: each["name"] for each in nodes}


def _pick(kind: str, asked: str, known: Mapping[str, str]) -> str:
    """The id of what is meant by an id or a name, or of the only one."""
    exact = [each for each, name in known.items() if asked in {each, name}]
    found = exact or [each for each, name in known.items() if asked.casefold() in {name.casefold(), ""}]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(known.values())) or "none"
    variable = f"RAILWAY_{kind.upper()}_ID"
    if not asked:
        raise NotFound(f"which {kind}? There are: {names}", hint=f"set {variable} to its id or name")
    raise NotFound(f"{'several are' if found else f'no {kind} is'} called {asked!r}; there are: {names}",
                   hint=f"{variable} takes an id or a name")  # fmt: skip


def _same(kind: str, asked: str, own: tuple[str, str]) -> None:
    if asked and asked.casefold() not in {each.casefold() for each in own}:
        raise UsageError(
            f"RAILWAY_TOKEN is for the {kind} {own[1]!r}, and {asked!r} was asked for",
            hint=f"make a token there, or unset RAILWAY_{kind.upper()}_ID",
        )


def _scope(place: Place) -> dict[str, str]:
    """Which variables: always with the environment. Where it is left out, Railway means every one of them."""
    return {"projectId": place.project_id, "environmentId": place.environment_id, "serviceId": place.service_id}


def _deployment(each: Mapping[str, Any]) -> Deployment:
    meta = each["meta"] if isinstance(each["meta"], dict) else {}  # its fields are not documented
    url = each["staticUrl"] or each["url"] or ""
    return Deployment(
        each["id"], each["status"], _wall_ms(each["createdAt"]), each["deploymentStopped"], each["canRedeploy"],
        each["canRollback"], str(meta.get("commitHash") or ""), str(meta.get("commitMessage") or "").partition("\n")[0],
        str(meta.get("branch") or ""), f"https://{url}" if url and "://" not in url else url,
        tuple(instance["status"] for instance in each["instances"]),
    )  # fmt: skip


def _line(each: Mapping[str, Any]) -> LogLine:
    return LogLine(
        each["timestamp"], each["message"], each["severity"] or "",
        {pair["key"]: pair["value"] for pair in each["attributes"]},
        (each["tags"] or {}).get("deploymentInstanceId") or "",
    )  # fmt: skip
