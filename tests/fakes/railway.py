"""A Railway made from its published schema: what the schema refuses, it refuses.

One project, `herd`, with the environments `production` and `staging` and the service `worker`. `production` can be
changed, the others are only read. Deployments play on a clock that only `sleep` moves; give that to the client, and
minutes pass at once. Where it is told how to `start` something, that runs as the deployment, with the service's
variables.
"""

# ruff: noqa: A002, N802, N803  methods and their parameters have the names of the schema's fields and arguments

from __future__ import annotations

import asyncio
import inspect
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

import graphql
from aiohttp import WSMsgType, web
from graphql import GraphQLError

CONTRACT = Path(__file__).resolve().parents[3] / "shared" / "contracts" / "railway.schema.graphql"
ABSENT = f"{CONTRACT.name} is not here to check what is sent"
DAY = 86400.0
OVER = {"FAILED", "CRASHED", "REMOVED", "SKIPPED"}
COMMIT = "a" * 40


@cache
def published() -> graphql.GraphQLSchema:
    return graphql.build_schema(CONTRACT.read_text(), assume_valid=True)


@cache
def judged(query: str) -> tuple[graphql.DocumentNode | None, tuple[GraphQLError, ...]]:
    """A document and what the schema has against it; the same few are sent again and again."""
    try:
        document = graphql.parse(query)
    except GraphQLError as error:
        return None, (error,)
    return document, tuple(graphql.validate(published(), document))


@dataclass
class Beat:
    """What happens to a deployment so many seconds after it was made; all but `after` may be left out."""

    after: float
    status: str = ""
    build: str = ""
    log: str = ""
    severity: str = "info"
    attributes: Mapping[str, str] = field(default_factory=dict)
    step: str = ""
    error: str = ""
    stopped: bool | None = None
    instances: tuple[str, ...] | None = None


BUILD = (
    Beat(0, "INITIALIZING"),
    Beat(1, "BUILDING", build="using build driver dockerfile", step="BUILD_IMAGE"),
    Beat(20, build="=== Successfully Built! ==="),
    Beat(21, "DEPLOYING", log="Starting Container", step="CREATE_CONTAINER", instances=("INITIALIZING",)),
)
UP = (Beat(30, "SUCCESS", instances=("RUNNING",)),)
SUCCESS = (*BUILD, *UP)
SKIPPED = (Beat(0, "INITIALIZING"), Beat(2, "SKIPPED"))
NEEDS_APPROVAL = (Beat(0, "NEEDS_APPROVAL"),)


def crashed(*lines: str, after: float = 25.0) -> tuple[Beat, ...]:
    """It never gets up: the process ends before there was a SUCCESS."""
    said = [Beat(after, log=line, severity="error") for line in lines]
    return (*BUILD, *said, Beat(after + 1, "CRASHED", stopped=True, instances=("CRASHED",)))


def crashed_later(*lines: str, after: float = 50.0) -> tuple[Beat, ...]:
    """A SUCCESS that becomes CRASHED."""
    said = [Beat(after, log=line, severity="error") for line in lines]
    return (*SUCCESS, *said, Beat(after + 1, "CRASHED", stopped=True, instances=("CRASHED",)))


def failed_build(*lines: str) -> tuple[Beat, ...]:
    said = [Beat(3, build=line) for line in lines]
    return (*BUILD[:2], *said, Beat(4, "FAILED", step="BUILD_IMAGE", error="the build failed"))


def never_healthy(*lines: str, window: float = 300.0) -> tuple[Beat, ...]:
    """A healthcheck that never passes."""
    tries = [Beat(22 + n, build=line) for n, line in enumerate(healthchecklines(window))]
    return (
        *BUILD,
        *(Beat(23, log=line) for line in lines),
        *tries,
        Beat(22 + window, "FAILED", build="1/1 replicas never became healthy!", step="HEALTHCHECK",
             error="Healthcheck failure", stopped=True),
    )  # fmt: skip


def healthchecklines(window: float) -> list[str]:
    return [
        "====================\nStarting Healthcheck\n====================",
        "Path: /health",
        f"Retry window: {int(window) // 60}m{int(window) % 60}s",
        f"Attempt #1 failed with service unavailable. Continuing to retry for {int(window) - 1}s",
    ]


class Running(Protocol):
    """A process that runs as a deployment. `exit_code` is None while it lives."""

    exit_code: int | None
    url: str

    async def settled(self) -> int | None:
        """Wait until it has started or ended; what its healthcheck answers on the port it was given, or None."""

    async def stop(self) -> None: ...


Start = Callable[[Mapping[str, str], Callable[[str], None]], Awaitable[Running]]


@dataclass
class Played:
    id: str
    created: float
    commit: str
    variables: dict[str, str]
    beats: list[Beat]
    process: Running | None = None
    restarts: int = 0

    def happened(self, now: float) -> list[Beat]:
        return [beat for beat in self.beats if self.created + beat.after <= now]

    def status(self, now: float) -> str:
        return [beat.status for beat in self.happened(now) if beat.status][-1]


@dataclass
class Elsewhere:
    """An environment that is only looked at: whether accounts may see it, and whether `worker` is there."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    written: dict[str, float] = field(default_factory=dict)
    deployed: list[Played] = field(default_factory=list)
    is_open: bool = True
    has_service: bool = True
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class FakeRailway:
    """The service on its clock.

    Attributes:
        token, api_token, workspace_token: a project token of the environment, tokens of an account and a workspace.
        now: its clock, in wall seconds.
        tick: how far every request moves the clock; for clients in other processes.
        variables: the service's, by name; `sealed` are the names of those that are never returned.
        others: the environments beside `production`.
        plays: what the next deployments do; a success when there are no more.
        start: runs something as the deployment instead of a play.
        healthcheck: whether the service has one; without, it is believed to be up as soon as it has been started.
        requests: names and variables of the operations that came.
        next_answers: HTTP answers (status, text, headers) for the next requests instead of what they ask for.
        limit: how many requests an hour has; None counts none.
        drops: how many subscriptions are cut after their first lines.
    """

    def __init__(self, *, start: Start | None = None, **variables: str) -> None:
        self.token, self.api_token, self.workspace_token = (str(uuid.uuid4()) for _ in range(3))
        self.now = time.time()
        self.tick = 0.0
        self.project_id, self.environment_id, self.service_id = (str(uuid.uuid4()) for _ in range(3))
        self.others = [Elsewhere("staging")]
        self.services = {self.service_id: "worker"}
        self.variables = dict(variables)
        self.sealed: set[str] = set()
        self.written = dict.fromkeys(variables, self.now - 30 * DAY)
        self.commits = [COMMIT]
        self.deployed: list[Played] = []
        self.plays: list[tuple[Beat, ...]] = []
        self.start = start
        self.healthcheck = True
        self.healthcheck_timeout, self.restart_retries, self.image_kept = 300, 2, 5 * DAY
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.next_answers: list[tuple[int, str, dict[str, str]]] = []
        self.limit: int | None = None
        self.used = 0
        self.drops = 0
        self.url = ""
        self.moved = asyncio.Condition()
        app = web.Application()
        app.router.add_post("/graphql/v2", self._post)
        app.router.add_get("/graphql/v2", self._socket)
        app.router.add_route("*", "/{path:.*}", self._nothing)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/graphql/v2"
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self.deployed:
            if each.process is not None and each.process.exit_code is None:
                await each.process.stop()
        await self._runner.cleanup()

    @property
    def environ(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {"RAILWAY_TOKEN": self.token, "RAILWAY_API_URL": self.url}

    @property
    def writes(self) -> list[str]:
        """Names of the mutations that came."""
        reads = ("Variables", "VariableNames", "Deploy", "Build", "Project", "Topology", "ServiceInstance", "Follow")
        return [name for name, _ in self.requests if not name.startswith(reads) or name == "DeployCommit"]

    def deploy(self, *, commit: str = "", variables: Mapping[str, str] | None = None, play: Any = None) -> Played:
        """Begin a deployment, as a push does."""
        values = dict(self.variables if variables is None else variables)
        if self.start is not None and play is None:
            beats = [Beat(0, "INITIALIZING"), Beat(1, "BUILDING", step="BUILD_IMAGE")]
        else:
            beats = list(play or (self.plays.pop(0) if self.plays else SUCCESS))
        latest = self.deployed[-1].commit if self.deployed else COMMIT
        made = Played(str(uuid.uuid4()), self.now, commit or latest, values, beats)
        self.deployed.append(made)
        return made

    def write(self, **values: str) -> None:
        """Change variables as a person does in the dashboard."""
        self.variables |= values
        self.written |= dict.fromkeys(values, self.now)

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        await self._play()
        async with self.moved:
            self.moved.notify_all()
        await asyncio.sleep(0)

    async def _play(self) -> None:
        for each in list(self.deployed):
            if self.start is not None and (each.process is not None or each.status(self.now) == "BUILDING"):
                await self._look_after(each)
        up = [each for each in self.deployed if each.status(self.now) == "SUCCESS"]
        for old in up[:-1]:  # a new one is up: the old one goes
            if old.process is not None:
                await old.process.stop()
            self.add(old, status="REMOVED", stopped=True, instances=("REMOVED",))

    def add(self, deployment: Played, **what: Any) -> None:
        deployment.beats.append(Beat(self.now - deployment.created, **what))

    async def _look_after(self, each: Played) -> None:
        """What Railway does with a real process."""
        status = each.status(self.now)
        if status in OVER:
            return
        if each.process is None:
            self.add(each, status="DEPLOYING", step="CREATE_CONTAINER")
            await self._start(each)
            if not self.healthcheck:
                self.add(each, status="SUCCESS", instances=("RUNNING",))
        assert each.process is not None
        health = await each.process.settled()
        if each.process.exit_code is not None:
            each.restarts += 1
            if each.restarts > self.restart_retries or each.process.exit_code == 0:
                ended = "SUCCESS" if each.process.exit_code == 0 else "CRASHED"
                self.add(each, status=ended, stopped=True, instances=("EXITED",))
            else:
                await self._start(each)
        elif status == "SUCCESS":
            return
        elif health == 200 or not self.healthcheck:
            self.add(each, status="SUCCESS", step="HEALTHCHECK", instances=("RUNNING",))
        elif self.now > each.created + 1 + self.healthcheck_timeout:
            for line in [*healthchecklines(self.healthcheck_timeout), "1/1 replicas never became healthy!"]:
                self.add(each, build=line)
            await each.process.stop()
            self.add(each, status="FAILED", step="HEALTHCHECK", error="Healthcheck failure", stopped=True)

    async def _start(self, each: Played) -> None:
        own = {
            **self.own_variables, "RAILWAY_DEPLOYMENT_ID": each.id, "RAILWAY_GIT_COMMIT_SHA": each.commit,
            "RAILWAY_ENVIRONMENT_NAME": "production",
        }  # fmt: skip
        assert self.start is not None
        self.add(each, log="Starting Container")
        each.process = await self.start(each.variables | own, lambda line: self._say(each, line))

    def _say(self, each: Played, line: str) -> None:
        """A line of a process, as Railway reads it."""
        try:
            parsed = json.loads(line)
            assert isinstance(parsed, dict)
        except (ValueError, AssertionError):
            self.add(each, log=line, severity="error")
            return
        rest = {key: json.dumps(value) for key, value in parsed.items() if key not in {"message", "level"}}
        text, level = str(parsed.get("message", line)), str(parsed.get("level", "info"))
        self.add(each, log=text, severity=level, attributes=rest)

    @property
    def own_variables(self) -> dict[str, str]:
        return {
            "RAILWAY_PROJECT_ID": self.project_id, "RAILWAY_ENVIRONMENT_ID": self.environment_id,
            "RAILWAY_SERVICE_ID": self.service_id,
        }  # fmt: skip

    # HTTP

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.json_response({"message": "Not Found", "requestId": str(uuid.uuid4())}, status=404)

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append((body.get("operationName", ""), body.get("variables", {})))
        self.used += 1
        if self.tick:
            await self.sleep(self.tick)
        if self.next_answers:
            status, text, headers = self.next_answers.pop(0)
            return web.Response(status=status, text=text, headers=headers)
        headers = {}
        if self.limit is not None:
            left = max(self.limit - self.used, 0)
            headers = {
                "X-RateLimit-Limit": str(self.limit), "X-RateLimit-Remaining": str(left),
                "X-RateLimit-Reset": str(int(self.now + 3600)),
            }  # fmt: skip
            if self.used > self.limit:
                return web.Response(status=429, text="Too Many Requests", headers=headers | {"Retry-After": "1800"})
        if (said := self._unfit(request, body)) is not None:
            return web.json_response(said[1], status=said[0], headers=headers)
        document, _ = judged(body["query"])
        done = graphql.execute(
            published(),
            document,
            Answers(self, self._scope(request)),
            None,
            body["variables"],
            body["operationName"],
        )
        if inspect.isawaitable(done):
            done = await done
        return web.json_response(done.formatted, headers=headers)

    def _unfit(self, request: web.Request, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """An answer to a request that is not even looked at, or None."""
        if not self._scope(request):
            words = "Project Token not found" if "Project-Access-Token" in request.headers else "Not Authorized"
            error = GraphQLError(words, path=["x"], extensions={"code": "INTERNAL_SERVER_ERROR"}).formatted
            return 200, {"errors": [error | {"traceId": "123456789012345678"}], "data": None}
        faults = list(judged(body["query"])[1])
        if not body.get("operationName"):
            faults.append(GraphQLError("operationName is missing"))
        if faults:
            code = {"extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}}
            return 400, {"errors": [fault.formatted | code for fault in faults]}
        return None

    def _scope(self, request: web.Request) -> str:
        """What a request's token is good for: project, workspace, account or nothing. Both headers are refused."""
        bearer, project = request.headers.get("Authorization"), request.headers.get("Project-Access-Token")
        if project is not None and bearer is not None:
            return ""
        if project == self.token:
            return "project"
        kinds = {f"Bearer {self.api_token}": "account", f"Bearer {self.workspace_token}": "workspace"}
        return kinds.get(bearer or "", "")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("graphql-transport-ws",))
        await socket.prepare(request)
        assert socket.ws_protocol == "graphql-transport-ws"
        is_open, followed = False, None
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            said = message.json()
            match said["type"]:
                case "connection_init":
                    if not self._scope(request):
                        await socket.close(code=4403, message=b"Forbidden")
                        break
                    is_open = True
                    await socket.send_json({"type": "connection_ack"})
                    await socket.send_json({"type": "ping"})
                case "subscribe" if is_open:
                    self.requests.append((said["payload"]["operationName"], said["payload"]["variables"]))
                    followed = asyncio.create_task(self._follow(request, socket, said["id"], said["payload"]))
                case "pong":
                    pass
                case _:
                    await socket.close(code=4400, message=b"Invalid message")
        if followed is not None:
            followed.cancel()
            with suppress(asyncio.CancelledError):
                await followed
        return socket

    async def _follow(
        self, request: web.Request, socket: web.WebSocketResponse, id: str, payload: Mapping[str, Any]
    ) -> None:
        if (said := self._unfit(request, payload)) is not None:
            await socket.send_json({"id": id, "type": "error", "payload": said[1]["errors"]})
            return
        stream = graphql.subscribe(
            published(), graphql.parse(payload["query"]), Streams(self), None, payload["variables"],
            payload["operationName"],
        )  # fmt: skip
        if isinstance(stream, graphql.ExecutionResult):
            await socket.send_json({"id": id, "type": "error", "payload": stream.formatted["errors"]})
            return
        async for each in stream:
            await socket.send_json({"id": id, "type": "next", "payload": each.formatted})
            if self.drops:
                self.drops -= 1
                await socket.close(code=1011)
                return
        await socket.send_json({"id": id, "type": "complete"})

    # What the schema's fields are

    def find(self, id: str) -> Played:
        for each in self.deployed:
            if each.id == id:
                return each
        raise _refusal("Problem processing request")

    def events(self, each: Played) -> list[dict[str, Any]]:
        return [
            {
                "step": beat.step,
                "createdAt": _at(each.created + beat.after),
                "completedAt": _at(each.created + beat.after),
                "payload": {"error": beat.error or None, "reason": None, "attempt": None, "maxAttempts": None},
            }
            for beat in each.happened(self.now)
            if beat.step
        ]

    def lines(self, each: Played, kind: str) -> list[dict[str, Any]]:
        found = []
        for number, beat in enumerate(each.happened(self.now)):
            if text := getattr(beat, kind):
                at = datetime.fromtimestamp(each.created + beat.after, UTC)
                found.append({
                    "timestamp": f"{at:%Y-%m-%dT%H:%M:%S.%f}{number:03}Z", "message": text, "severity": beat.severity,
                    "attributes": [{"key": key, "value": value} for key, value in beat.attributes.items()],
                    "tags": {"deploymentInstanceId": each.id[:8]} if kind == "log" else None,
                })  # fmt: skip
        return found

    def shown(self, each: Played) -> dict[str, Any]:
        beats = each.happened(self.now)
        ever_up = any(beat.status == "SUCCESS" for beat in beats)
        instances = [beat.instances for beat in beats if beat.instances is not None]
        return {
            "id": each.id, "status": each.status(self.now), "createdAt": _at(each.created),
            "statusUpdatedAt": _at(each.created + [beat.after for beat in beats if beat.status][-1]),
            "deploymentStopped": next((beat.stopped for beat in reversed(beats) if beat.stopped is not None), False),
            "canRedeploy": True, "canRollback": ever_up and self.now - each.created < self.image_kept,
            "url": None, "staticUrl": each.process.url if each.process else "worker.up.railway.app",
            "meta": {"commitHash": each.commit, "commitMessage": f"Commit {each.commit[:7]}\n\nMore", "branch": "main"},
            "instances": [{"id": str(n), "status": word} for n, word in enumerate(instances[-1] if instances else ())],
        }  # fmt: skip


class Answers:
    """What the fields of the schema's Query and Mutation are, for one request."""

    def __init__(self, fake: FakeRailway, scope: str) -> None:
        self.fake = fake
        self.scope = scope
        self.by_project = scope == "project"

    def _only_here(self, environment_id: str) -> None:
        if environment_id != self.fake.environment_id:
            raise _refusal("Not Authorized" if self.by_project else "Problem processing request")

    def _read(self, environment_id: str) -> FakeRailway | Elsewhere:
        """The environment that is asked about, if the token may see it."""
        if environment_id == self.fake.environment_id:
            return self.fake
        found = next(
            (each for each in self.fake.others if each.id == environment_id and each.is_open and each.has_service), None
        )
        if found is None or self.by_project:
            raise _refusal("Not Authorized" if self.by_project else "Problem processing request")
        return found

    def projectToken(self, _: Any) -> dict[str, Any]:
        if not self.by_project:
            raise _refusal("Project Token not found")
        return {
            "projectId": self.fake.project_id, "environmentId": self.fake.environment_id,
            "project": {"name": "herd"}, "environment": {"name": "production"},
        }  # fmt: skip

    def me(self, _: Any) -> dict[str, Any]:
        if self.scope != "account":
            raise _refusal("Not Authorized")
        return {"id": str(uuid.uuid4())}

    def apiToken(self, _: Any) -> dict[str, Any]:
        if self.by_project:
            raise _refusal("Not Authorized")
        return {"workspaces": [{"name": "acme"}]}

    def projects(self, _: Any, **__: Any) -> dict[str, Any]:
        if self.by_project:
            raise _refusal("Not Authorized")
        gone = {"id": str(uuid.uuid4()), "name": "old", "deletedAt": _at(0)}
        return _connection([gone, {"id": self.fake.project_id, "name": "herd", "deletedAt": None}])

    def project(self, _: Any, id: str) -> dict[str, Any]:
        if id != self.fake.project_id:
            raise _refusal("Not Authorized" if self.by_project else "Problem processing request")
        environments = [
            {"id": self.fake.environment_id, "name": "production", "isEphemeral": False, "deletedAt": None,
             "canAccess": True},
            *({"id": each.id, "name": each.name, "isEphemeral": False, "deletedAt": None,
               "canAccess": each.is_open and not self.by_project} for each in self.fake.others),
            {"id": str(uuid.uuid4()), "name": "gone", "isEphemeral": True, "deletedAt": _at(0), "canAccess": True},
        ]  # fmt: skip
        services = [{"id": key, "name": name, "deletedAt": None} for key, name in self.fake.services.items()]
        return {
            "id": id, "name": "herd", "environments": _connection(environments), "services": _connection(services),
        }  # fmt: skip

    def environment(self, _: Any, id: str, projectId: str | None = None) -> dict[str, Any]:
        there = self._read(id)
        rows = [
            {
                "name": name, "serviceId": self.fake.service_id, "isSealed": name in there.sealed,
                "updatedAt": _at(there.written.get(name, 0)),
            }
            for name in there.variables
        ]  # fmt: skip
        return {"variables": lambda _, **page: _page(rows, page)}

    def serviceInstance(self, _: Any, environmentId: str, serviceId: str) -> dict[str, Any]:
        there = self._read(environmentId)
        live = [each for each in there.deployed if each.status(self.fake.now) == "SUCCESS"]
        return {
            "startCommand": None, "preDeployCommand": None,
            "healthcheckPath": "/health" if self.fake.healthcheck else None,
            "healthcheckTimeout": self.fake.healthcheck_timeout, "drainingSeconds": 60, "overlapSeconds": 0,
            "restartPolicyType": "ON_FAILURE", "restartPolicyMaxRetries": self.fake.restart_retries, "numReplicas": 1,
            "cronSchedule": None, "sleepApplication": False, "ipv6EgressEnabled": None,
            "latestDeployment": self.fake.shown(there.deployed[-1]) if there.deployed else None,
            "activeDeployments": [self.fake.shown(each) for each in live],
        }  # fmt: skip

    def variables(
        self, _: Any, projectId: str, environmentId: str, serviceId: str | None = None, unrendered: bool = False
    ) -> dict[str, str]:
        there = self._read(environmentId)
        open_ones = {name: value for name, value in there.variables.items() if name not in there.sealed}
        return open_ones | self.fake.own_variables | {"RAILWAY_ENVIRONMENT_ID": environmentId}

    def variableCollectionUpsert(self, _: Any, input: Mapping[str, Any]) -> bool:
        self._only_here(input["environmentId"])
        assert not input["replace"], "replace drops sealed variables"
        self.fake.write(**input["variables"])
        if not input["skipDeploys"]:
            self.fake.deploy()
        return True

    def variableDelete(self, _: Any, input: Mapping[str, Any]) -> bool:
        self._only_here(input["environmentId"])
        self.fake.variables.pop(input["name"], None)
        self.fake.deploy()
        return True

    def serviceInstanceRedeploy(self, _: Any, environmentId: str, serviceId: str) -> bool:
        self._only_here(environmentId)
        self.fake.deploy()
        return True

    def serviceInstanceDeployV2(self, _: Any, environmentId: str, serviceId: str, commitSha: str | None = None) -> str:
        self._only_here(environmentId)
        if commitSha not in self.fake.commits:
            raise _refusal("Commit not found")
        return self.fake.deploy(commit=commitSha).id

    def deploymentRollback(self, _: Any, id: str) -> bool:
        old = self.fake.find(id)
        if not self.fake.shown(old)["canRollback"]:
            raise _refusal("Problem processing request")
        self.fake.variables = dict(old.variables)
        self.fake.deploy(commit=old.commit)
        return True

    def deploymentRestart(self, _: Any, id: str) -> bool:
        each = self.fake.find(id)
        if each.status(self.fake.now) in OVER:
            raise _refusal("Problem processing request")
        self.fake.add(each, log="Starting Container")
        return True

    def deployments(self, _: Any, input: Mapping[str, Any], first: int = 20) -> dict[str, Any]:
        self._only_here(input["environmentId"])
        if input["serviceId"] not in self.fake.services:
            raise _refusal("Problem processing request")
        return _connection([self.fake.shown(each) for each in reversed(self.fake.deployed)][:first])

    def deployment(self, _: Any, id: str) -> dict[str, Any]:
        return self.fake.shown(self.fake.find(id))

    def deploymentEvents(self, _: Any, id: str, first: int = 20) -> dict[str, Any]:
        return _connection(self.fake.events(self.fake.find(id)))

    def buildLogs(self, _: Any, deploymentId: str, limit: int = 100) -> list[dict[str, Any]]:
        return self.fake.lines(self.fake.find(deploymentId), "build")[-limit:]

    def deploymentLogs(self, _: Any, deploymentId: str, limit: int = 100, filter: str = "") -> list[dict[str, Any]]:
        assert not filter, "no filter is played here"
        return self.fake.lines(self.fake.find(deploymentId), "log")[-limit:]


class Streams:
    """What the fields of the schema's Subscription are."""

    def __init__(self, fake: FakeRailway) -> None:
        self.fake = fake

    def buildLogs(self, _: Any, deploymentId: str, limit: int = 100, filter: str = "") -> AsyncIterator[Any]:
        return self._lines("buildLogs", "build", deploymentId, limit)

    def deploymentLogs(self, _: Any, deploymentId: str, limit: int = 100, filter: str = "") -> AsyncIterator[Any]:
        return self._lines("deploymentLogs", "log", deploymentId, limit)

    async def _lines(self, name: str, kind: str, deployment_id: str, limit: int) -> AsyncIterator[dict[str, Any]]:
        """The last lines, then each as it comes, as long as there may be more."""
        each, told = self.fake.find(deployment_id), None
        while True:
            found = self.fake.lines(each, kind)
            new = found[-limit:] if told is None else found[told:]
            if new:
                yield {name: new}
            told = len(found)
            if each.status(self.fake.now) in OVER:
                return
            async with self.fake.moved:
                await self.fake.moved.wait()


def _refusal(words: str) -> GraphQLError:
    return GraphQLError(words, extensions={"code": "INTERNAL_SERVER_ERROR", "traceId": "123456789012345678"})


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _connection(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    edges = [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)]
    return {"edges": edges, "pageInfo": {"hasNextPage": False, "endCursor": None}}


def _page(nodes: list[dict[str, Any]], page: Mapping[str, Any]) -> dict[str, Any]:
    """In pages of two, however many were asked for."""
    start = int(page.get("after") or 0)
    found = _connection(nodes[start : start + 2])
    found["pageInfo"] = {"hasNextPage": start + 2 < len(nodes), "endCursor": str(start + 2)}
    return found
