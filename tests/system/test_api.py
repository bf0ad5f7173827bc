"""The HTTP API of a real worker, on a real queue and a real database; every answer fits the published document."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from api_client import Api, events_of
from process import WorkerProcess
from redis import Redis
from stage import eventually

from oxherd import settings
from oxherd.agents import tool
from oxherd.app import Service, WebService, build_store, build_vault
from oxherd.errors import Fatal
from oxherd.herd import Herd
from oxherd.settings import Secret
from oxherd.store import SpendRow
from oxherd.telemetry.alerts import Alert, Looked
from oxherd.telemetry.events import ApiActed, AuditLost, attach
from oxherd.web.api import ENDPOINTS
from oxherd.web.auth import Scope


@dataclass
class Place:
    """A worker with its API, and what its handlers wait for."""

    service: Service
    api: Api
    token: str
    read_token: str
    may_end: asyncio.Event

    async def until(self, job_id: str, state: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            job = await self.api("GET", f"/jobs/{job_id}")
            return job if job["state"] == state else None

        return await eventually(look)

    async def add(self, name: str, data: Any = None, **options: Any) -> str:
        body = {"name": name, "data": data or {}, "options": options}
        return (await self.api("POST", "/jobs", body, expect=201))["id"]


def a_herd(may_end: asyncio.Event) -> Herd:
    herd = Herd()

    @tool
    async def find_order(email: str) -> str:
        """Find an order."""
        return email

    herd.agent("support", model="m/one", instructions="Be kind.", tools=[find_order])

    @herd.job("report")
    async def report(ctx, payload):
        if payload.get("broken"):
            raise Fatal(f"no paper in tray {payload['broken']}")
        return await ctx.step("load", lambda: {"pages": 3})

    @herd.job("talk")
    async def talk(ctx, _payload):
        while not may_end.is_set():  # whoever comes late hears what is said from then on
            await ctx.progress(1)
            await asyncio.sleep(0.05)
        await ctx.log("done")

    @herd.job("asks")
    async def asks(ctx, _payload):
        return (await ctx.wait_for("refund", about={"refund": 12})).value

    @herd.job("long")
    async def long(_ctx, _payload):
        await may_end.wait()

    return herd


@pytest.fixture
async def place(redis_url: str, queue_name: str, runs_url: str) -> AsyncIterator[Place]:
    token, read_token, may_end = secrets.token_hex(16), secrets.token_hex(16), asyncio.Event()
    known = settings.load(
        {
            "REDIS_URL": redis_url,
            "DATABASE_URL": runs_url,
            "JOB_QUEUE_NAME": queue_name,
            "HOST": "127.0.0.1",
            "PORT": "0",
            "API_TOKEN": token,
            "API_READ_TOKEN": read_token,
            "OPENROUTER_BASE_URL": "http://127.0.0.1:9",
            "ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        }
    )
    service = Service(known, a_herd(may_end), store=build_store(known))
    await service.start()
    try:
        async with Api(service.port, token) as api:
            yield Place(service, api, token, read_token, may_end)
    finally:
        may_end.set()
        await service.close()


# -- jobs


async def test_a_job_is_added_run_and_shown(place: Place):
    job_id = await place.add(
        "report", {"tenant": "acme"}, priority=3, attempts=2, backoff={"type": "fixed", "delay": 10}
    )
    job = await place.until(job_id, "completed")
    assert (job["name"], job["tenant"], job["returnvalue"]) == ("report", "acme", {"pages": 3})
    assert (job["attempts"], job["opts"]["priority"]) == (2, 3)


async def test_many_jobs_are_added_in_one_go(place: Place):
    await place.api("POST", f"/queues/{place.service.desk.queue}/pause", {"reason": "a test"})
    jobs = [{"name": "report", "data": {"n": n}} for n in range(25)]
    ids = (await place.api("POST", "/job-batches", {"jobs": jobs}, expect=201))["ids"]
    found, cursor = [], ""
    while cursor is not None:
        page = await place.api("GET", f"/jobs?state=wait&limit=10{cursor and '&cursor=' + cursor}")
        found += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
    assert found == ids


async def test_a_repeated_request_with_the_same_key_counts_once(place: Place):
    key, body = {"Idempotency-Key": secrets.token_hex(8)}, {"name": "report"}
    first = await place.api("POST", "/jobs", body, expect=201, headers=key)
    again = await place.api.raw("POST", "/api/v1/jobs", body, headers=key)
    assert (again.status, again.json, again.headers["idempotency-replayed"]) == (201, first, "true")
    refused = await place.api("POST", "/jobs", {"name": "other"}, expect=422, headers=key)
    assert "another request" in refused["detail"]
    many = {"jobs": [body, body]}
    twice = {"Idempotency-Key": secrets.token_hex(8)}
    ids = [(await place.api("POST", "/job-batches", many, expect=201, headers=twice))["ids"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2


async def test_jobs_are_listed_by_state_name_tenant_and_time(place: Place):
    ended = [await place.add("report", {"tenant": tenant}) for tenant in ("acme", "zeta")]
    for job_id in ended:
        await place.until(job_id, "completed")
    running = await place.add("long", {"tenant": "acme"})
    await place.until(running, "active")

    async def listed(query: str) -> set[str]:
        return {job["id"] for job in (await place.api("GET", f"/jobs{query}"))["jobs"]}

    assert await listed("") == {*ended, running}
    assert await listed("?state=active") == {running}
    assert await listed("?name=report&tenant=zeta") == {ended[1]}
    assert await listed("?tenant=acme") == {ended[0], running}
    at = (await place.api("GET", f"/jobs/{ended[1]}"))["finished_on"]
    assert ended[1] in await listed(f"?state=completed&since={at}&until={at + 1}")
    assert await listed(f"?state=completed&since={at + 1}") == set()
    refused = await place.api("GET", f"/jobs?since={at}", expect=422)
    assert "state" in refused["detail"]


async def test_a_running_job_is_cancelled_and_run_again(place: Place):
    job_id = await place.add("long")
    await place.until(job_id, "active")
    assert (await place.api("POST", f"/jobs/{job_id}/cancel"))["done"] == "stopping"
    assert "cancelled" in (await place.until(job_id, "failed"))["failed_reason"]
    place.may_end.set()
    assert (await place.api("POST", f"/jobs/{job_id}/retry"))["done"] == "waiting"
    await place.until(job_id, "completed")
    assert "completed" in (await place.api("POST", f"/jobs/{job_id}/cancel", expect=409))["detail"]


async def test_a_delayed_job_is_promoted_and_a_waiting_one_removed(place: Place):
    job_id = await place.add("report", delay=600_000)
    assert (await place.api("POST", f"/jobs/{job_id}/promote"))["done"] == "promoted"
    await place.until(job_id, "completed")
    assert (await place.api("DELETE", f"/jobs/{job_id}"))["done"] == "removed"
    await place.api("GET", f"/jobs/{job_id}", expect=404)
    running = await place.add("long")
    await place.until(running, "active")
    await place.api("DELETE", f"/jobs/{running}", expect=409)
    for method, path in (("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("POST", "/promote")):
        await place.api(method, f"/jobs/nope{path}", expect=404)


async def test_an_id_may_hold_what_a_path_can_not(place: Place):
    await place.api("POST", f"/queues/{place.service.desk.queue}/pause", {"reason": "a test"})
    for job_id in ("a/b", "50%", "ü?#", "..."):
        await place.add("report", job_id=job_id)
        escaped = "".join(f"%{byte:02X}" for byte in job_id.encode())
        assert (await place.api("GET", f"/jobs/{escaped}"))["id"] == job_id


# -- dead letters


async def test_dead_letters_are_grouped_replayed_and_removed(place: Place):
    ids = [await place.add("report", {"broken": number}) for number in (1, 2, 3)]
    for job_id in ids:
        await place.until(job_id, "failed")
    (group,) = (await place.api("GET", "/dead-letters"))["groups"]
    assert (group["count"], set(group["ids"])) == (3, set(ids))
    choice = {"fingerprint": group["fingerprint"], "limit": 2}
    first = await place.api("POST", "/dead-letters/replay", choice)
    second = await place.api("POST", "/dead-letters/replay", {**choice, "cursor": first["next"]})
    assert (len(first["ids"]), len(second["ids"]), second["next"]) == (2, 1, None)
    for job_id in ids:
        await place.until(job_id, "failed")
    done = await place.api("POST", "/dead-letters/remove", {"ids": [ids[0], "nope"]})
    assert (done["ids"], done["gone"]) == ([ids[0]], ["nope"])
    done = await place.api("POST", "/dead-letters/remove", {"all": True})
    assert set(done["ids"]) == set(ids[1:])
    refused = await place.api("POST", "/dead-letters/replay", {"all": True, "name": "report"}, expect=422)
    assert "exactly one" in refused["detail"]


# -- runs


async def test_a_run_is_listed_shown_and_replayed(place: Place):
    job_id = await place.add("report", {"tenant": "acme"})
    await place.until(job_id, "completed")
    (listed,) = (await place.api("GET", "/runs?name=report&tenant=acme&status=completed"))["runs"]
    run = await place.api("GET", f"/runs/{job_id}?outputs=true")
    assert (run["id"], run["output"], run["steps"][0]["output"]) == (listed["id"], {"pages": 3}, {"pages": 3})
    escaped = run["id"].replace("/", "%2F").replace("@", "%40")
    assert (await place.api("GET", f"/runs/{escaped}"))["steps"][0].get("output") is None
    assert (await place.api("GET", f"/runs/{run['id'].partition('/')[2]}"))["id"] == run["id"]
    replayed = await place.api("POST", f"/runs/{job_id}/replay", {"fork_from": "load"})
    assert replayed == {"run_id": run["id"], "job_id": job_id, "kept": 0, "dropped": ["load"]}
    await place.until(job_id, "completed")
    assert (await place.api("POST", f"/runs/{job_id}/replay"))["kept"] == 1
    await place.until(job_id, "completed")
    assert "no step" in (await place.api("POST", f"/runs/{job_id}/replay", {"fork_from": "x"}, expect=422))["detail"]
    await place.api("GET", "/runs/nope", expect=404)


async def test_runs_come_in_pages(place: Place):
    for _ in range(3):
        await place.until(await place.add("report"), "completed")
    first = await place.api("GET", "/runs?limit=2")
    rest = await place.api("GET", f"/runs?limit=2&cursor={first['next']}")
    assert (len(first["runs"]), len(rest["runs"]), rest["next"]) == (2, 1, None)


async def test_a_run_is_followed_and_a_reader_goes_on_where_it_was(place: Place):
    job_id = await place.add("talk")
    async with place.api.stream(f"/runs/{job_id}/events") as response:
        heard = await until_type(events_of(response), "progress")
    position, _, _ = heard[-1]
    place.may_end.set()
    async with place.api.stream(f"/runs/{job_id}/events", **{"Last-Event-ID": position}) as response:
        rest = await until_type(events_of(response), "end")
    assert position not in {each[0] for each in rest}
    assert "log" in {each[1] for each in rest}
    assert json.loads(rest[-1][2])["outcome"] == "completed"
    run = (await place.api("GET", f"/runs/{job_id}"))["id"].replace("/", "%2F")
    async with place.api.stream(f"/runs/{run}/events") as response:
        assert [each[1] for each in await until_type(events_of(response), "end")].count("end") == 1
    await place.api("GET", "/runs/nope/events", expect=404)


async def until_type(feed, wanted: str) -> list[tuple[str, str, str]]:
    heard = []
    async with asyncio.timeout(10):
        async for each in feed:
            heard.append(each)
            if each[1] == wanted:
                return heard
    raise AssertionError(f"the stream ended: {heard}")


async def test_only_so_many_follow_at_a_time(place: Place, monkeypatch):
    monkeypatch.setattr("oxherd.web.following.MOST_READERS", 1)
    job_id = await place.add("long")
    async with place.api.stream(f"/runs/{job_id}/events") as response:
        await anext(response.content.iter_any())
        await place.api("GET", f"/runs/{job_id}/events", expect=503)


# -- approvals


async def test_a_question_is_listed_and_answered(place: Place):
    job_id = await place.add("asks", {"tenant": "acme"})

    async def asked() -> list[dict[str, Any]]:
        return (await place.api("GET", "/approvals"))["approvals"]

    (question,) = await eventually(asked)
    assert (question["job_id"], question["about"], question["state"]) == (job_id, {"refund": 12}, "open")
    assert "nonce" not in question
    answer = {"approved": True, "message": "fine", "value": {"most": 10}}
    done = await place.api("POST", f"/approvals/{question['id']}/answer", answer)
    assert (done["state"], done["approved"], done["by"]) == ("answered", True, "api (token)")
    assert (await place.until(job_id, "completed"))["returnvalue"] == {"most": 10}
    await place.api("POST", f"/approvals/{question['id']}/answer", answer, expect=409)
    shown = await place.api("GET", f"/approvals/{question['id']}")
    assert {**shown, "left_ms": 0} == {**done, "left_ms": 0}
    await place.api("GET", "/approvals/nope", expect=404)


# -- queue, workers


async def test_the_queue_is_paused_resumed_and_drained(place: Place):
    queue = place.service.desk.queue
    paused = await place.api("POST", f"/queues/{queue}/pause", {"reason": "restoring"})
    assert (paused["paused"], paused["reason"]) == (True, "restoring")
    assert place.service.worker.gate == "restoring" or await eventually(gate_of(place, "restoring"))
    for _ in range(3):
        await place.add("report")
    later = await place.add("report", delay=600_000)
    assert "queue's name" in (await place.api("POST", f"/queues/{queue}/drain", {"confirm": "x"}, expect=422))["detail"]
    assert await place.api("POST", f"/queues/{queue}/drain", {"confirm": queue}) == {"removed": 3, "left": 0}
    assert (await place.api("GET", f"/jobs/{later}"))["state"] == "delayed"
    assert (await place.api("POST", f"/queues/{queue}/drain", {"confirm": queue, "delayed": True}))["removed"] == 1
    assert (await place.api("POST", f"/queues/{queue}/resume"))["paused"] is False
    (listed,) = (await place.api("GET", "/queues"))["queues"]
    assert listed == await place.api("GET", f"/queues/{queue}")
    await place.api("GET", "/queues/other", expect=404)


def gate_of(place: Place, reason: str):
    async def look() -> bool:
        return place.service.worker.gate == reason

    return look


async def test_the_worker_is_among_the_workers(place: Place):
    async def look() -> list[dict[str, Any]]:
        return (await place.api("GET", "/workers"))["workers"]

    (found,) = await eventually(look)
    assert (found["id"], found["alive"], found["concurrency"]) == (place.service.worker.id, True, 5)
    assert found["version"]


# -- agents, spend, credentials


async def test_agents_of_the_program_and_of_the_table_are_listed(place: Place, runs_url: str):
    import asyncpg

    connection = await asyncpg.connect(runs_url)
    try:
        for name in ("writer", "zoe"):
            await connection.execute(
                'insert into oxherd.agents (name, definition) values ($1, \'{"model": "m"}\')', name
            )
    finally:
        await connection.close()
    page = await place.api("GET", "/agents?limit=1")
    code, kept = page["agents"]
    assert (code["name"], code["source"], code["definition"]["tools"]) == ("support", "code", ["find_order"])
    assert (kept["name"], kept["source"], kept["version"]) == ("writer", "table", 1)
    (rest,) = (await place.api("GET", f"/agents?limit=1&cursor={page['next']}"))["agents"]
    assert rest["name"] == "zoe"


async def test_what_was_spent_is_summed(place: Place):
    from decimal import Decimal

    from oxherd.clock import wall_ms

    row = SpendRow("1", "r", "s", 1, "acme", "support", "m", "settled", wall_ms(), cost_usd=Decimal("0.000000000001"))
    assert place.service.desk.store is not None
    await place.service.desk.store.write_spend([row])
    (line,) = (await place.api("GET", "/spend?by=tenant&days=2"))["lines"]
    assert (line["key"], line["calls"], line["cost_usd"]) == ("acme", 1, "0.000000000001")


async def test_credentials_are_listed_without_their_values(place: Place):
    vault = build_vault(place.service._settings, place.service.desk.store)
    value = secrets.token_hex(16)
    for name in ("mail", "stripe"):
        await vault.put("acme", name, Secret(value))
    await vault.put(None, "own", Secret(value))
    first = await place.api("GET", "/credentials?limit=2")
    rest = await place.api("GET", f"/credentials?limit=2&cursor={first['next']}")
    assert [(each["tenant"], each["name"]) for each in first["credentials"] + rest["credentials"]] == [
        (None, "own"), ("acme", "mail"), ("acme", "stripe"),
    ]  # fmt: skip
    answer = await place.api.raw("GET", "/api/v1/credentials?tenant=acme")
    assert len(answer.json["credentials"]) == 2
    assert value not in answer.text
    assert "oxherd1." not in answer.text


# -- service levels and alerts


async def test_promises_and_charts_tell_what_jobs_did(place: Place):
    job_id = await place.add("report")
    await place.until(job_id, "completed")
    await place.service.counting.stop()  # writes at once what it would write within 15 s
    slo = await place.api("GET", "/slo")
    assert {each["name"]: each["reached"] for each in slo["objectives"]} == {
        "availability": None, "success": 1.0, "wait": 1.0,
    }  # fmt: skip
    assert slo["counted_since"]
    points = (await place.api("GET", "/slo/series?span=1h&job=report"))["points"]
    assert sum(each["completed"] for each in points) == 1
    assert points[-1]["run_ms"]["p99"] or points[-2]["run_ms"]["p99"]
    assert (await place.api("GET", "/slo/series?span=7d&job=other"))["points"][-1]["attempts"] == 0
    await place.api("GET", "/slo/series?span=1y", expect=422)


async def test_an_alert_is_listed_silenced_told_again_and_remembered(place: Place):
    book, now = place.service.watchdogs.book, time.time()
    alert = Alert("queue-age", "", "3 jobs wait", "ticket", now - 60, now, told=now)
    fresh = Alert("gate-closed", "", "a backup", "ticket", now, now)
    ended = Alert("slo-burn-fast", "wait", "99 % of jobs start", "page", now - 900, now - 600, told=now)
    await book.keep(Looked(keep=[alert, fresh], over=[ended]))

    async def listed(query: str = "") -> list[tuple[str, str]]:
        return [(each["key"], each["state"]) for each in (await place.api("GET", f"/alerts{query}"))["alerts"]]

    assert await listed() == [("queue-age", "firing"), ("gate-closed", "pending")]
    assert await listed("?state=past") == [("slo-burn-fast/wait", "past")]
    (shown,) = (await place.api("GET", "/alerts?state=firing"))["alerts"]
    assert shown["runbook"].endswith("/queue-age.md")
    body = {"pattern": "queue-*", "seconds": 600, "reason": "moving"}
    made = await place.api("POST", "/alerts/silences", body, expect=201)
    assert (made["by"], made["until"] > now * 1000) == ("api (token)", True)
    assert await listed("?state=silenced") == [("queue-age", "silenced")]
    assert (await place.api("GET", "/alerts/silences"))["silences"] == [made]
    await place.api("DELETE", "/alerts/silences/queue-*")
    assert await listed("?state=firing") == [("queue-age", "firing")]
    await place.api("DELETE", "/alerts/silences/queue-*", expect=404)
    lines = (await place.api("GET", "/audit"))["lines"]
    assert [(line["action"], line["target"], line["outcome"]) for line in lines] == [
        ("endSilence", "queue-*", 404), ("endSilence", "queue-*", 200), ("silenceAlerts", "queue-*", 201),
    ]  # fmt: skip
    assert lines[-1]["detail"] == body


async def test_a_silence_that_would_silence_nothing_is_refused(place: Place):
    refused = await place.api("POST", "/alerts/silences", {"pattern": "queue-agee", "seconds": 600}, expect=422)
    assert refused["errors"][0]["field"] == "body.pattern"


async def test_however_many_watch_the_queue_is_looked_at_once_in_a_moment(place: Place, witness: Redis):
    witness.config_resetstat()
    overviews = await asyncio.gather(*(place.service.desk.levels.overview() for _ in range(50)))
    assert {each.counts["wait"] for each in overviews} == {0}
    assert [each["alive"] for each in overviews[0].workers] == [True]
    assert overviews[0].spent_today == 0
    assert [each.objective.name for each in overviews[0].standings] == ["availability", "success", "wait"]
    assert witness.info("commandstats")["cmdstat_zrevrange"]["calls"] == 1


# -- schedules


async def test_a_schedule_is_made_paused_resumed_run_and_removed(place: Place):
    body = {"pattern": "0 3 * * *", "tz": "Europe/Berlin", "job": {"name": "report", "options": {"attempts": 2}}}
    made = await place.api("PUT", "/schedules/nightly", body)
    assert (made["pattern"], made["paused"], made["opts"]) == ("0 3 * * *", False, {"attempts": 2})
    assert await place.api("GET", "/schedules") == {"schedules": [made]}
    assert (await place.api("POST", "/schedules/nightly/pause"))["next"] is None
    await place.api("POST", "/schedules/nightly/pause", expect=409)
    assert await place.api("POST", "/schedules/nightly/resume") == made
    job_id = (await place.api("POST", "/schedules/nightly/run", expect=201))["id"]
    assert (await place.until(job_id, "completed"))["attempts"] == 2
    assert (await place.api("DELETE", "/schedules/nightly"))["done"] == "removed"
    await place.api("GET", "/schedules/nightly", expect=404)
    refused = await place.api("PUT", "/schedules/odd", {**body, "pattern": "every day"}, expect=422)
    assert "every day" in refused["detail"]
    refused = await place.api("PUT", "/schedules/odd", {"job": {"name": "report"}}, expect=422)
    assert "exactly one" in refused["detail"]


# -- who may


async def test_who_may_do_what(place: Place):
    """Every endpoint with no login, a wrong one, the one for reading, the full one."""
    wrong = 0
    for endpoint in ENDPOINTS:
        if endpoint.name in {"watch", "followRun"}:
            continue
        path = endpoint.path.replace("{id}", "nope").replace("{queue}", "nope")
        statuses = {}
        for who, token in (("nobody", None), ("wrong", "x" * 16), ("reader", place.read_token), ("full", place.token)):
            if who == "wrong" and (wrong := wrong + 1) > 9:
                continue  # more would have us wait
            headers = {"Authorization": f"Bearer {token}"} if token else {"Authorization": ""}
            body = {} if endpoint.body else None
            statuses[who] = (
                await place.api.raw(endpoint.method, f"/api/v1{endpoint.path and path}", body, headers=headers)
            ).status
        if endpoint.scope is None:
            assert set(statuses.values()) <= {200, 422}, endpoint.name
            continue
        assert statuses["nobody"] == 401, endpoint.name
        assert statuses.get("wrong", 401) == 401, endpoint.name
        assert (statuses["reader"] == 403) is (endpoint.scope is Scope.ACT), endpoint.name
        assert statuses["full"] not in {401, 403, 500}, endpoint.name


async def test_a_session_reads_and_acts_with_its_csrf_token_only(place: Place):
    async with Api(place.service.port) as browser:
        await browser("GET", "/session", expect=401)
        logged_in = await browser.raw("POST", "/api/v1/session", {"token": place.token})
        cookie = logged_in.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert "Secure" not in cookie
        assert place.token not in cookie
        session = await browser("GET", "/session")
        assert (session["actor"], session["scope"]) == ("session", "act")
        csrf = {"x-csrf-token": session["csrf"]}
        body = {"name": "report"}
        assert "x-csrf-token" in (await browser("POST", "/jobs", body, expect=403))["detail"]
        await browser("POST", "/jobs", body, expect=403, headers={"x-csrf-token": "0" * 64})
        await browser("POST", "/jobs", body, expect=201, headers=csrf)
        for foreign in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            await browser("POST", "/jobs", body, expect=403, headers={**csrf, **foreign})
        ours = {"Origin": f"http://127.0.0.1:{place.service.port}", "Sec-Fetch-Site": "same-origin"}
        await browser("POST", "/jobs", body, expect=201, headers={**csrf, **ours})
        await browser("DELETE", "/session")
        await browser("GET", "/session", expect=401)
        await browser("DELETE", "/session")
    lines = (await place.api("GET", "/audit"))["lines"]
    kept = [(line["action"], line["actor"], line["target"]) for line in lines if line["action"].startswith("log")]
    assert kept == [("logOut", "session", "act"), ("logIn", "session", "act")], "who has no session ends none"


async def test_a_session_of_the_read_token_can_not_act(place: Place):
    async with Api(place.service.port) as browser:
        await browser("POST", "/session", {"token": place.read_token})
        session = await browser("GET", "/session")
        assert session["scope"] == "read"
        await browser("POST", "/jobs", {"name": "report"}, expect=403, headers={"x-csrf-token": session["csrf"]})


async def test_a_cookie_that_was_changed_or_has_expired_lets_nobody_in(place: Place, monkeypatch):
    keeper = place.service.desk.gatekeeper
    _, good = keeper.open_session(Scope.READ)
    _, other = keeper.open_session(Scope.ACT)
    monkeypatch.setattr("oxherd.web.auth.SESSION_SECONDS", -1)
    _, old = keeper.open_session(Scope.ACT)
    forged = good.replace(".read.", ".act.")
    async with Api(place.service.port) as browser:

        async def with_cookie(cookie: str) -> int:
            headers = {"Cookie": f"oxherd_session={cookie}"}
            return (await browser.raw("GET", "/api/v1/session", headers=headers)).status

        assert [await with_cookie(each) for each in (good, other)] == [200, 200]
        assert [await with_cookie(each) for each in (forged, old, good[:-1], good + "0", "v1", "")] == [401] * 6


async def test_behind_tls_the_cookie_is_for_tls_only(place: Place):
    async with Api(place.service.port) as browser:
        answer = await browser.raw(
            "POST", "/api/v1/session", {"token": place.token}, headers={"X-Forwarded-Proto": "https"}
        )
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]


async def test_too_many_wrong_tokens_have_to_wait_and_others_have_not(place: Place):
    wrong = {"Authorization": "Bearer " + "x" * 20, "X-Forwarded-For": "203.0.113.7"}
    statuses = [(await place.api.raw("GET", "/api/v1/session", headers=wrong)).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    refused = await place.api.raw("GET", "/api/v1/session", headers=wrong)
    assert 0 < int(refused.headers["retry-after"]) <= 300
    right = {"X-Forwarded-For": "203.0.113.7"}  # not told which one is right, either
    assert (await place.api.raw("GET", "/api/v1/session", headers=right)).status == 429
    await place.api("GET", "/session")
    elsewhere = {**wrong, "X-Forwarded-For": "203.0.113.8"}
    assert (await place.api.raw("GET", "/api/v1/session", headers=elsewhere)).status == 401


# -- what every answer has


async def test_every_answer_has_the_headers_that_keep_browsers_safe(place: Place):
    for path in ("/api/v1/jobs", "/api/v1/nope", "/api/openapi.json", "/api/docs", "/health", "/nowhere"):
        headers = (await place.api.raw("GET", path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


async def test_errors_are_problem_details_that_name_the_field(place: Place):
    problem = await place.api("POST", "/jobs", {"name": "", "data": [], "prio": 1}, expect=422)
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Unprocessable Entity", 422)
    assert {each["field"] for each in problem["errors"]} == {"body.name", "body.data", "body.prio"}
    for path, field in (("/jobs?limit=0", "query.limit"), ("/jobs?x=1", "query.x"), ("/queues?x=1", "query.x"),
                        ("/jobs?cursor=bm9wZQ", "query.cursor"), ("/runs?cursor=WzFd", "query.cursor")):  # fmt: skip
        assert (await place.api("GET", path, expect=422))["errors"][0]["field"] == field
    problem = await place.api("POST", "/jobs", {"name": "a", "options": {"job_id": "7"}}, expect=422)
    assert problem["errors"][0]["field"] == "body.options.job_id"


@pytest.mark.parametrize(
    ("method", "path", "data", "headers", "status"),
    [
        ("POST", "/api/v1/jobs", b"{", {}, 400),
        ("POST", "/api/v1/jobs", b'{"name": NaN}', {}, 400),
        ("POST", "/api/v1/jobs", b'{"name": "a"}', {"Content-Type": "text/plain"}, 415),
        ("POST", "/api/v1/jobs", b"[" * 100_000, {}, 400),
        ("GET", "/api/v1/nope", None, {}, 404),
        ("GET", "/api/v2/jobs", None, {}, 404),
        ("PATCH", "/api/v1/jobs", None, {}, 405),
        ("GET", "/api/v1/jobs/a/cancel", None, {}, 405),
    ],
)
async def test_what_is_malformed_is_refused(place: Place, method, path, data, headers, status):
    sent = {"Content-Type": "application/json", **headers}
    answer = await place.api.raw(method, path, data=data, headers=sent)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["status"] == status
    if status == 405:
        assert "POST" in answer.headers["allow"]


async def test_a_body_that_is_too_large_is_refused_told_its_length_or_not(place: Place, monkeypatch):
    monkeypatch.setattr("oxherd.web.endpoint.LARGEST_BODY", 10_000)

    async def chunks():
        for _ in range(20):
            yield b" " * 1_000

    headers = {"Content-Type": "application/json"}
    for data in (b" " * 20_000, chunks()):
        assert (await place.api.raw("POST", "/api/v1/jobs", data=data, headers=headers)).status == 413


async def test_what_was_done_is_logged_and_kept_without_payloads(place: Place):
    told: list[ApiActed] = []
    detach = attach(told.append, ApiActed)
    word = secrets.token_hex(8)
    job_id = await place.add("report", {"password": word})
    await place.api("POST", "/jobs/nope/cancel", expect=404)
    await place.api("POST", "/session", {"token": place.token})
    await place.api("GET", f"/jobs/{job_id}")
    detach()
    lines = (await place.api("GET", "/audit"))["lines"]
    assert [(line["action"], line["target"], line["outcome"]) for line in lines] == [
        ("logIn", "act", 200), ("cancelJob", "nope", 404), ("addJob", "report", 201),
    ]  # fmt: skip
    assert [(line.action, line.outcome) for line in told] == [(line["action"], line["outcome"]) for line in lines[::-1]]
    assert {line["actor"] for line in lines} == {"token", "session"}
    assert {line["source"] for line in lines} == {"127.0.0.1"}
    assert word not in str(lines)
    assert place.token not in str(lines)


async def test_an_action_that_can_not_be_recorded_is_done_and_told(place: Place, monkeypatch):
    from oxherd.errors import StoreUnreachable

    async def away(_line) -> None:
        raise StoreUnreachable("the database is away")

    lost: list[AuditLost] = []
    detach = attach(lost.append, AuditLost)
    monkeypatch.setattr(place.service.desk.store, "write_audit", away)
    await place.add("report")
    detach()
    assert [line.action for line in lost] == ["addJob report"]


async def test_a_fault_of_ours_is_said_to_be_one(place: Place, monkeypatch):
    async def broken() -> dict[str, int]:
        raise RuntimeError("secret words")

    monkeypatch.setattr(place.service.desk.admin, "counts", broken)
    assert "secret" not in str(await place.api("GET", "/queues", expect=500))


# -- the feed


async def test_the_feed_tells_what_happens_and_goes_on_where_it_was_left(place: Place):
    async with place.api.stream("/feed") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        feed = events_of(response)
        _, event, first = await anext(feed)
        assert (event, json.loads(first)["events"]) == ("queue", [])
        job_id = await place.add("report")
        position, heard = await heard_until(feed, job_id, "completed")
        assert heard["counts"]["completed"] == 1
    missed = await place.add("report")
    await place.until(missed, "completed")
    async with place.api.stream("/feed", **{"Last-Event-ID": position}) as response:
        _, heard = await heard_until(events_of(response), missed, "completed")
        assert {each.get("jobId") for each in heard["events"]} - {None} == {missed}


async def heard_until(feed, job_id: str, event: str) -> tuple[str, dict[str, Any]]:
    async with asyncio.timeout(10):
        async for position, _, data in feed:
            heard = json.loads(data)
            if any((each["event"], each.get("jobId")) == (event, job_id) for each in heard["events"]):
                return position, heard
    raise AssertionError("the feed ended")


async def test_nobody_asks_redis_while_nobody_watches(place: Place, witness: Redis):
    async with place.api.stream("/feed") as response:
        await anext(events_of(response))

    def asked() -> int:
        return witness.info("commandstats").get("cmdstat_xrevrange", {"calls": 0})["calls"]

    await asyncio.sleep(1.2)  # the watcher that left is noticed at its next turn
    before = asked()
    await asyncio.sleep(1.5)
    assert asked() == before


async def test_a_feed_does_not_hold_up_the_end(place: Place):
    async with place.api.stream("/feed") as response:
        await anext(events_of(response))
        async with asyncio.timeout(5):
            await place.service.close()


# -- without a worker, without a store, without a token


@pytest.fixture
async def alone(redis_url: str, queue_name: str) -> AsyncIterator[WebService]:
    """The API alone, without a store and without a token."""
    known = settings.load({"REDIS_URL": redis_url, "JOB_QUEUE_NAME": queue_name, "HOST": "127.0.0.1", "PORT": "0"})
    service = WebService(known, Herd(), store=None)
    await service.start()
    yield service
    await service.close()


async def test_without_a_store_runs_are_said_not_to_be_kept(alone: WebService):
    async with Api(alone.port) as api:
        assert "DATABASE_URL" in (await api("GET", "/runs", expect=501))["hint"]
        assert (await api("GET", "/queues"))["queues"][0]["name"] == alone.desk.queue
        assert (await api("GET", "/agents"))["agents"] == []
        assert (await api.raw("GET", "/health")).json["status"] == "ok"
        assert "oxherd_queue_jobs" in (await api.raw("GET", "/metrics")).text


async def test_without_a_token_only_this_machine_is_let_in(alone: WebService):
    async with Api(alone.port) as api:
        assert (await api("GET", "/session"))["actor"] == "loopback"
        await api("POST", "/jobs", {"name": "report"}, expect=201)
        for headers in ({"X-Forwarded-For": "203.0.113.7"}, {"Forwarded": "for=x"}, {"Host": "rebound.example:80"}):
            refused = await api.raw("GET", "/api/v1/session", headers=headers)
            assert refused.status == 403
            assert "API_TOKEN is not set" in refused.json["detail"]
        foreign = {"Origin": "http://evil.example"}
        assert (await api.raw("POST", "/api/v1/jobs", {"name": "report"}, headers=foreign)).status == 403
        await api("POST", "/session", {"token": "x" * 16}, expect=409)


async def test_a_redis_that_is_away_is_said_to_be_away(own_valkey, queue_name: str, monkeypatch):
    monkeypatch.setattr("oxherd.web.endpoint.PATIENCE", 0.5)
    known = settings.load({"REDIS_URL": own_valkey.url, "JOB_QUEUE_NAME": queue_name, "HOST": "127.0.0.1", "PORT": "0"})
    service = WebService(known, Herd(), store=None)
    await service.start()
    try:
        async with Api(service.port) as api:
            own_valkey.kill()
            problem = await api("GET", "/queues", expect=503)
            assert "Redis" in problem["detail"]
    finally:
        await service.close()


async def test_the_document_and_its_page_need_no_login_and_name_every_endpoint(place: Place):
    async with Api(place.service.port) as anybody:
        document = (await anybody.raw("GET", "/api/openapi.json")).json
        page = await anybody.raw("GET", "/api/docs")
        style = await anybody.raw("GET", "/api/docs.css")
    operations = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert operations == {endpoint.name for endpoint in ENDPOINTS}
    assert all(f'id="{name}"' in page.text for name in operations)
    assert "<script" not in page.text
    assert "style=" not in page.text
    assert "http" not in page.text.replace("</", "")
    assert style.headers["content-type"].startswith("text/css")


async def test_the_api_alone_serves_until_it_is_told_to_stop(redis_url: str, queue_name: str):
    token = secrets.token_hex(16)
    web = WorkerProcess(redis_url, queue_name, witness_url=redis_url, command="web", HOST="0.0.0.0", API_TOKEN=token)
    try:
        await web.launch()
        assert (await web.said("web.started"))["queue"] == queue_name
        async with Api(web.port, token) as api:
            assert (await api("GET", "/session"))["actor"] == "token"
        web.terminate()
        assert await web.exited() == 0
        assert token not in "".join(map(str, web.lines))
    finally:
        await web.close()
