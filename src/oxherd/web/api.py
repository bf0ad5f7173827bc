"""The HTTP API: every endpoint as one list, and what each does. Shared with the command line is all below `actions`."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response, StreamingResponse

from oxherd.actions import find_run, replay_run
from oxherd.clock import wall_ms
from oxherd.errors import NotFound
from oxherd.queue import producer
from oxherd.queue.dead import Bulk, Pick
from oxherd.queue.idempotency import once
from oxherd.queue.indicators import Point
from oxherd.queue.pages import ORDER
from oxherd.queue.schedule import Repeat
from oxherd.store import AuditLine, RunFilter, WaitRow
from oxherd.telemetry.alerts import KINDS, Silence, covers_any
from oxherd.web import cursors, models
from oxherd.web.answers import dump
from oxherd.web.auth import Identity, Scope, keep_session, source_of
from oxherd.web.desk import Desk
from oxherd.web.endpoint import Ask, Endpoint
from oxherd.web.levels import Told
from oxherd.web.problems import Problem

DRAINED_AT_ONCE = 1_000  # jobs
LONGEST_KEY = 200  # characters of an idempotency key

# -- jobs


async def add_job(ask: Ask[None, models.NewJob]) -> Response:
    """Add one job."""
    ids, earlier = await _add(ask, [ask.body])
    return _added({"id": ids[0]}, earlier=earlier)


async def add_jobs(ask: Ask[None, models.NewJobs]) -> Response:
    """Add many."""
    ids, earlier = await _add(ask, ask.body.jobs)
    return _added({"ids": ids}, earlier=earlier)


async def _add(ask: Ask[None, Any], jobs: Sequence[models.NewJob]) -> tuple[list[str], bool]:
    key = ask.request.headers.get("idempotency-key")
    if key is None:
        return await ask.desk.producer.add_bulk([_new(job) for job in jobs]), False
    if not re.fullmatch(rf"[!-~]{{1,{LONGEST_KEY}}}", key):
        what = f"must have 1 to {LONGEST_KEY} ASCII characters without spaces"
        raise Problem(422, f"header.Idempotency-Key: {what}", fields=[("header.Idempotency-Key", what)])

    async def add(prefix: str) -> list[str]:
        named = [_new(job, f"{prefix}-{place}") for place, job in enumerate(jobs)]
        return await ask.desk.producer.add_bulk(named)

    request = f"{ask.request.url.path}\n{ask.body.model_dump_json()}".encode()
    return await once(ask.desk.link, ask.desk.keys, key, request, add)


def _new(job: models.NewJob, job_id: str | None = None) -> producer.NewJob:
    options = job.options.for_bullmq()
    return producer.NewJob(job.name, job.data, {"jobId": job_id, **options} if job_id else options)


def _added(answer: Mapping[str, Any], *, earlier: bool) -> Response:
    headers = {"Idempotency-Replayed": "true"} if earlier else {}
    return Response(dump(answer), 201, headers, "application/json")


async def list_jobs(ask: Ask[models.JobQuery, None]) -> dict[str, Any]:
    """A page of jobs."""
    wanted = ask.params

    def keep(job: dict[str, Any]) -> bool:
        return wanted.name in {None, job["name"]} and wanted.tenant in {None, job["tenant"]}

    page = await ask.desk.admin.pages.page(
        [wanted.state] if wanted.state else ORDER,
        limit=wanted.limit,
        after=cursors.to_place(wanted.cursor),
        keep=keep if wanted.name is not None or wanted.tenant is not None else None,
        since=wanted.since,
        until=wanted.until,
    )
    return {"jobs": page.jobs, "next": cursors.of_place(page.next)}


async def get_job(ask: Ask[models.JobId, None]) -> dict[str, Any]:
    """All of one job."""
    return await ask.desk.admin.job(ask.params.id)


async def cancel_job(ask: Ask[models.JobId, None]) -> dict[str, Any]:
    """Cancel it wherever it is."""
    return {"id": ask.params.id, "done": await ask.desk.admin.cancel(ask.params.id)}


async def retry_job(ask: Ask[models.JobId, None]) -> dict[str, Any]:
    """Run it again."""
    await ask.desk.admin.retry(ask.params.id)
    return {"id": ask.params.id, "done": "waiting"}


async def promote_job(ask: Ask[models.JobId, None]) -> dict[str, Any]:
    """Run a delayed one now."""
    await ask.desk.admin.job(ask.params.id)
    await ask.desk.admin.promote(ask.params.id)
    return {"id": ask.params.id, "done": "promoted"}


async def remove_job(ask: Ask[models.JobId, None]) -> dict[str, Any]:
    """Remove one that does not run."""
    await ask.desk.admin.job(ask.params.id)
    if not await ask.desk.admin.remove(ask.params.id):
        raise Problem(409, f"job {ask.params.id} runs right now", hint="cancel it")
    return {"id": ask.params.id, "done": "removed"}


# -- dead letters


async def list_dead(ask: Ask[models.DeadQuery, None]) -> dict[str, Any]:
    """Groups of dead letters."""
    return {"groups": await ask.desk.letters.groups(limit=ask.params.limit)}


async def replay_dead(ask: Ask[None, models.DeadChoice]) -> dict[str, Any]:
    """Put them back."""
    pick = _pick(ask.body)
    return _done(pick, await ask.desk.letters.replay(pick))


async def remove_dead(ask: Ask[None, models.DeadChoice]) -> dict[str, Any]:
    """Remove them."""
    pick = _pick(ask.body)
    return _done(pick, await ask.desk.letters.remove(pick))


def _pick(choice: models.DeadChoice) -> Pick:
    # The cursor also says when all of this began: what fails again meanwhile is left alone.
    parts = cursors.decode(choice.cursor, str, int)
    place, began = (None, wall_ms()) if parts is None else (cursors.to_place(parts[0]), parts[1])
    ids = None if choice.ids is None else list(dict.fromkeys(choice.ids))
    return Pick(ids, choice.name, choice.fingerprint, choice.limit, place, began)


def _done(pick: Pick, bulk: Bulk) -> dict[str, Any]:
    place = cursors.of_place(bulk.next)
    following = None if place is None else cursors.encode(place, pick.until)
    return {"ids": bulk.done, "gone": bulk.gone, "next": following}


# -- runs


async def list_runs(ask: Ask[models.RunQuery, None]) -> dict[str, Any]:
    """A page of runs."""
    wanted = ask.params
    after = cursors.decode(wanted.cursor, int, str)
    page = await ask.desk.stored.runs(
        queue=ask.desk.queue,
        limit=wanted.limit,
        wanted=RunFilter(**wanted.model_dump(exclude={"limit", "cursor"})),
        after=None if after is None else (after[0], after[1]),
    )
    return {"runs": page.runs, "next": None if page.next is None else cursors.encode(*page.next)}


async def get_run(ask: Ask[models.RunRead, None]) -> dict[str, Any]:
    """A run with its steps."""
    run = await find_run(ask.desk.stored, ask.desk.queue, ask.params.id)
    return {**run, "steps": await ask.desk.stored.steps(run["id"], outputs=ask.params.outputs == "true")}


async def replay(ask: Ask[models.RunId, models.Replay]) -> dict[str, Any]:
    """Run it again from the journal."""
    desk = ask.desk
    run = await find_run(desk.stored, desk.queue, ask.params.id)
    return await replay_run(desk.stored, desk.producer, desk.admin, run, queue=desk.queue, fork_from=ask.body.fork_from)


async def follow_run(ask: Ask[models.Following, None]) -> Response:
    """A run's stream."""
    job_id = ask.params.id
    if "@" in job_id:
        job_id = (await find_run(ask.desk.stored, ask.desk.queue, job_id))["job_id"]
    return sse(await ask.desk.following.open(job_id, ask.request.headers.get("last-event-id")))


# -- approvals


async def list_approvals(ask: Ask[models.ApprovalQuery, None]) -> dict[str, Any]:
    """Questions in one state."""
    rows = await ask.desk.asked.list(state=ask.params.state, limit=ask.params.limit)
    return {"approvals": [_question(row) for row in rows]}


async def get_approval(ask: Ask[models.ApprovalId, None]) -> dict[str, Any]:
    """One question."""
    return _question(await ask.desk.asked.show(ask.params.id))


async def answer_approval(ask: Ask[models.ApprovalId, models.ApprovalAnswer]) -> dict[str, Any]:
    """Answer it."""
    answer = ask.body
    row = await ask.desk.asked.answer(
        ask.params.id,
        approved=answer.approved,
        by=answer.by or f"api ({ask.identity.actor})",
        value=answer.value,
        message=answer.message,
    )
    return _question(row)


def _question(row: WaitRow) -> dict[str, Any]:
    # By name: a nonce is half of a link, which lets whoever has it answer.
    return {name: getattr(row, name) for name in models.Approval.model_fields}


# -- queues and workers


async def list_queues(ask: Ask[None, None]) -> dict[str, Any]:
    """The one that this server is for."""
    return {"queues": [await _queue(ask.desk)]}


async def get_queue(ask: Ask[models.QueueName, None]) -> dict[str, Any]:
    """One queue."""
    _must_be_ours(ask)
    return await _queue(ask.desk)


async def pause_queue(ask: Ask[models.QueueName, models.Pause]) -> dict[str, Any]:
    """Close the workers' intake gate."""
    _must_be_ours(ask)
    await ask.desk.admin.close_gate(ask.body.reason)
    return await _queue(ask.desk)


async def resume_queue(ask: Ask[models.QueueName, None]) -> dict[str, Any]:
    """Open it."""
    _must_be_ours(ask)
    await ask.desk.admin.open_gate()
    return await _queue(ask.desk)


async def drain_queue(ask: Ask[models.QueueName, models.Drain]) -> dict[str, Any]:
    """Remove what waits."""
    _must_be_ours(ask)
    if ask.body.confirm != ask.desk.queue:
        what = f"must be the queue's name, {ask.desk.queue}: its waiting jobs will be gone for good"
        raise Problem(422, f"body.confirm: {what}", fields=[("body.confirm", what)])
    removed, left = await ask.desk.admin.drain(limit=DRAINED_AT_ONCE, delayed=ask.body.delayed)
    return {"removed": removed, "left": left}


async def _queue(desk: Desk) -> dict[str, Any]:
    counts, gate = await asyncio.gather(desk.admin.counts(), desk.admin.gate())
    return {"name": desk.queue, "counts": counts, "paused": gate is not None, "reason": gate}


def _must_be_ours(ask: Ask[models.QueueName, Any]) -> None:
    if ask.params.queue != ask.desk.queue:
        raise NotFound(f"this server is for queue {ask.desk.queue}")


async def list_workers(ask: Ask[None, None]) -> dict[str, Any]:
    """Who works."""
    return {"workers": await ask.desk.registry.workers()}


# -- agents, spend, credentials


async def list_agents(ask: Ask[models.PageQuery, None]) -> dict[str, Any]:
    """A page of agents."""
    after = cursors.decode(ask.params.cursor, str)
    of_code = sorted(ask.desk.agents(), key=lambda agent: agent["name"]) if after is None else []
    agents = [{"source": "code", "version": None, "updated_at": None, **agent} for agent in of_code]
    kept = [] if ask.desk.store is None else await _kept_agents(ask.desk, ask.params.limit, after[0] if after else "")
    full = len(kept) == ask.params.limit
    return {"agents": agents + kept, "next": cursors.encode(kept[-1]["name"]) if full else None}


async def _kept_agents(desk: Desk, limit: int, after: str) -> list[dict[str, Any]]:
    return [{"source": "table", **agent} for agent in await desk.stored.agents(limit=limit, after=after)]


async def get_spend(ask: Ask[models.SpendQuery, None]) -> dict[str, Any]:
    """What model calls cost."""
    lines = await ask.desk.levels.spend(ask.desk.stored, by=ask.params.by, days=ask.params.days)
    return {"lines": [dataclasses.asdict(line) for line in lines]}


async def list_credentials(ask: Ask[models.CredentialQuery, None]) -> dict[str, Any]:
    """A page of names."""
    wanted, after = ask.params, cursors.decode(ask.params.cursor, str, str)
    rows = await ask.desk.stored.list_credentials(
        limit=wanted.limit, tenant=wanted.tenant, after=None if after is None else (after[0], after[1])
    )
    shown = [
        {
            "tenant": row.tenant or None,
            "name": row.name,
            "key": row.key_id,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
        }
        for row in rows
    ]
    full = len(rows) == wanted.limit
    return {"credentials": shown, "next": cursors.encode(rows[-1].tenant, rows[-1].name) if full else None}


# -- schedules


async def list_schedules(ask: Ask[None, None]) -> dict[str, Any]:
    """All of them."""
    return {"schedules": await ask.desk.timetable.all()}


async def get_schedule(ask: Ask[models.ScheduleId, None]) -> dict[str, Any]:
    """One."""
    return await ask.desk.timetable.one(ask.params.id)


async def put_schedule(ask: Ask[models.ScheduleId, models.NewSchedule]) -> dict[str, Any]:
    """Make or change one."""
    asked = ask.body
    repeat = Repeat(asked.every, asked.pattern, asked.tz, asked.limit, asked.start, asked.end)
    await ask.desk.timetable.put(ask.params.id, repeat, _new(asked.job))
    return await ask.desk.timetable.one(ask.params.id)


async def remove_schedule(ask: Ask[models.ScheduleId, None]) -> dict[str, Any]:
    """Remove one."""
    await ask.desk.timetable.remove(ask.params.id)
    return {"id": ask.params.id, "done": "removed"}


async def pause_schedule(ask: Ask[models.ScheduleId, None]) -> dict[str, Any]:
    """Stop one from firing."""
    return await ask.desk.timetable.pause(ask.params.id)


async def resume_schedule(ask: Ask[models.ScheduleId, None]) -> dict[str, Any]:
    """Let it fire again."""
    return await ask.desk.timetable.resume(ask.params.id)


async def run_schedule(ask: Ask[models.ScheduleId, None]) -> dict[str, Any]:
    """Add a job of it now."""
    return {"id": await ask.desk.timetable.run_now(ask.params.id)}


# -- service levels and alerts


async def get_slo(ask: Ask[None, None]) -> dict[str, Any]:
    """How the promises stand."""
    since = await ask.desk.levels.counted_since()
    return {
        "objectives": [each.dump() for each in await ask.desk.levels.standings()],
        "counted_since": None if since is None else since * 1000,
    }


async def get_series(ask: Ask[models.SeriesQuery, None]) -> dict[str, Any]:
    """A chart."""
    return {"points": [_point(each) for each in await ask.desk.levels.series(ask.params.span, ask.params.job)]}


def _point(point: Point) -> dict[str, Any]:
    return {
        "at": point.at * 1000, "ms": int(point.seconds * 1000), "attempts": point.attempts, "errors": point.errors,
        "completed": point.completed, "failed": point.failed, "wait_ms": _quantiles(point.wait),
        "run_ms": _quantiles(point.run),
    }  # fmt: skip


def _quantiles(found: Sequence[float | None]) -> dict[str, float | None]:
    return {
        name: None if each is None else round(each, 1)
        for name, each in zip(("p50", "p95", "p99"), found, strict=True)
    }  # fmt: skip


async def list_alerts(ask: Ask[models.AlertQuery, None]) -> dict[str, Any]:
    """What is wrong, or was."""
    wanted = ask.params.state
    alerts = await ask.desk.levels.alerts(past=wanted == "past")
    return {"alerts": [_alert(each) for each in alerts if wanted in {None, each.state}]}


def _alert(told: Told) -> dict[str, Any]:
    alert = told.alert
    return {
        "key": alert.key, "kind": alert.kind, "subject": alert.subject, "severity": alert.severity,
        "state": told.state, "summary": alert.summary, "about": told.about, "runbook": told.runbook,
        "since": int(alert.since * 1000), "seen": int(alert.seen * 1000),
    }  # fmt: skip


async def list_silences(ask: Ask[None, None]) -> dict[str, Any]:
    """Those that have not ended."""
    return {"silences": [_silence(each) for each in await ask.desk.levels.silences()]}


async def silence_alerts(ask: Ask[None, models.NewSilence]) -> dict[str, Any]:
    """Leave people in peace."""
    asked = ask.body
    if not covers_any(asked.pattern):
        what = f"fits no alert; there are {', '.join(KINDS)}"
        raise Problem(422, f"body.pattern: {what}", fields=[("body.pattern", what)])
    by = asked.by or f"api ({ask.identity.actor})"
    made = Silence(asked.pattern, wall_ms() / 1000 + asked.seconds, by, asked.reason)
    await ask.desk.levels.silence(made)
    return _silence(made)


async def end_silence(ask: Ask[models.SilencePattern, None]) -> dict[str, Any]:
    """Tell people again."""
    if not await ask.desk.levels.unsilence(ask.params.pattern):
        raise NotFound(f"there is no silence of {ask.params.pattern!r}")
    return {"id": ask.params.pattern, "done": "removed"}


def _silence(silence: Silence) -> dict[str, Any]:
    return {
        "pattern": silence.pattern, "until": int(silence.until * 1000), "by": silence.by, "reason": silence.reason,
    }  # fmt: skip


# -- the audit log, logins, the feed


async def list_audit(ask: Ask[models.PageQuery, None]) -> dict[str, Any]:
    """A page of who did what."""
    before = cursors.decode(ask.params.cursor, int)
    lines = await ask.desk.stored.audit(limit=ask.params.limit, before=before[0] if before else None)
    full = len(lines) == ask.params.limit
    return {"lines": lines, "next": cursors.encode(lines[-1]["id"]) if full else None}


async def log_in(ask: Ask[None, models.Login]) -> Response:
    """Open a session."""
    keeper = ask.desk.gatekeeper
    if keeper.open_to_this_machine_only:
        raise Problem(409, "API_TOKEN is not set: there is nothing to log in with, or to")
    identity, cookie = keeper.open_session(keeper.check_token(ask.request, ask.body.token))
    response = Response(dump(_session(identity)), media_type="application/json")
    keep_session(response, ask.request, cookie)
    await ask.desk.record(_session_line(ask, "logIn", identity))
    return response


async def log_out(ask: Ask[None, None]) -> Response:
    """Forget the session."""
    response = Response(b"{}", media_type="application/json")
    keep_session(response, ask.request, "")
    if identity := ask.desk.gatekeeper.session(ask.request):  # anybody may ask: without a session there is no line
        await ask.desk.record(_session_line(ask, "logOut", identity))
    return response


async def get_session(ask: Ask[None, None]) -> dict[str, Any]:
    """Who asks."""
    return _session(ask.identity)


def _session_line(ask: Ask[None, Any], action: str, identity: Identity) -> AuditLine:
    return AuditLine(identity.actor, source_of(ask.request), action, identity.scope.value, {}, 200)


def _session(identity: Identity) -> dict[str, Any]:
    return dataclasses.asdict(identity)


async def watch(ask: Ask[None, None]) -> Response:
    """The feed."""
    return sse(ask.desk.feed.watch(ask.request.headers.get("last-event-id")))


def sse(stream: Any) -> Response:
    """Server-sent events as they come."""
    headers = {"X-Accel-Buffering": "no"}  # else nginx keeps them until it has enough
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


ACT, READ = Scope.ACT, Scope.READ
_M = models

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("addJob", "POST", "/jobs", "Put a job on the queue.", "jobs", add_job, _M.Added, body=_M.NewJob,
             scope=ACT, status=201, errors=(409,), idempotent=True),
    Endpoint("addJobs", "POST", "/job-batches", "Put many jobs on the queue, in one go.", "jobs", add_jobs,
             _M.AddedMany, body=_M.NewJobs, scope=ACT, status=201, errors=(409,), idempotent=True),
    Endpoint("listJobs", "GET", "/jobs", "List jobs. What runs comes first, then what is next, then what ended last.",
             "jobs", list_jobs, _M.JobPage, params=_M.JobQuery),
    Endpoint("getJob", "GET", "/jobs/{id}", "Show all the queue knows of a job.", "jobs", get_job, _M.Job,
             params=_M.JobId, errors=(404,)),
    Endpoint("cancelJob", "POST", "/jobs/{id}/cancel", "Cancel a job. One that runs is stopped within a second and "
             "fails, one that waits is removed.", "jobs", cancel_job, _M.Done, params=_M.JobId, scope=ACT,
             errors=(404, 409)),
    Endpoint("retryJob", "POST", "/jobs/{id}/retry", "Run a failed or completed job again. A failed one gets all its "
             "attempts anew; steps that had finished are not paid for again.", "jobs", retry_job, _M.Done,
             params=_M.JobId, scope=ACT, errors=(404, 409)),
    Endpoint("promoteJob", "POST", "/jobs/{id}/promote", "Run a delayed job now.", "jobs", promote_job, _M.Done,
             params=_M.JobId, scope=ACT, errors=(404, 409)),
    Endpoint("removeJob", "DELETE", "/jobs/{id}", "Remove a job that does not run, with all the queue knows of it.",
             "jobs", remove_job, _M.Done, params=_M.JobId, scope=ACT, errors=(404, 409)),

    Endpoint("listDeadLetters", "GET", "/dead-letters", "Group the dead letters: jobs that failed for good. Those with "
             "the same name and the same reason, numbers in it aside, share a fingerprint.", "dead letters", list_dead,
             _M.DeadGroups, params=_M.DeadQuery),
    Endpoint("replayDeadLetters", "POST", "/dead-letters/replay", "Put dead letters back on the queue, the oldest "
             "first. Each gets all its attempts anew; steps that had finished are not paid for again.", "dead letters",
             replay_dead, _M.DeadDone, body=_M.DeadChoice, scope=ACT),
    Endpoint("removeDeadLetters", "POST", "/dead-letters/remove", "Remove dead letters for good.", "dead letters",
             remove_dead, _M.DeadDone, body=_M.DeadChoice, scope=ACT),

    Endpoint("listRuns", "GET", "/runs", "List runs, the newest first.", "runs", list_runs, _M.RunPage,
             params=_M.RunQuery, errors=(501,)),
    Endpoint("getRun", "GET", "/runs/{id}", "Show a run and its finished steps.", "runs", get_run, _M.Run,
             params=_M.RunRead, errors=(404, 501)),
    Endpoint("replayRun", "POST", "/runs/{id}/replay", "Run a completed or failed run's job again, with its finished "
             "steps from the journal. What was paid for is not paid again, except from `fork_from` on.", "runs", replay,
             _M.Replayed, params=_M.RunId, body=_M.Replay, optional_body=True, scope=ACT, errors=(404, 409, 501)),

    Endpoint("followRun", "GET", "/runs/{id}/events", "Follow a run: its tokens, steps and calls as server-sent "
             "events, named by their type, until its `end`. With the header `Last-Event-ID` from there on; else from "
             "its beginning. Close the connection at `end`, or the browser opens it again.", "runs", follow_run,
             _M.Nothing, params=_M.Following, errors=(404, 501), media_type="text/event-stream"),

    Endpoint("listApprovals", "GET", "/approvals", "List the questions that jobs ask people.", "approvals",
             list_approvals, _M.Approvals, params=_M.ApprovalQuery, errors=(501,)),
    Endpoint("getApproval", "GET", "/approvals/{id}", "Show a question.", "approvals", get_approval, _M.Approval,
             params=_M.ApprovalId, errors=(404, 501)),
    Endpoint("answerApproval", "POST", "/approvals/{id}/answer", "Answer a question; its job goes on at once. The "
             "first answer counts.", "approvals", answer_approval, _M.Approval, params=_M.ApprovalId,
             body=_M.ApprovalAnswer, scope=ACT, errors=(404, 409, 501)),

    Endpoint("listQueues", "GET", "/queues", "List the queues of this server, with counts.", "queues", list_queues,
             _M.Queues),
    Endpoint("getQueue", "GET", "/queues/{queue}", "Show a queue.", "queues", get_queue, _M.Queue,
             params=_M.QueueName, errors=(404,)),
    Endpoint("pauseQueue", "POST", "/queues/{queue}/pause", "Stop all Oxherd workers from taking jobs of this queue. "
             "What runs, runs on; producers may go on adding.", "queues", pause_queue, _M.Queue, params=_M.QueueName,
             body=_M.Pause, scope=ACT, errors=(404,)),
    Endpoint("resumeQueue", "POST", "/queues/{queue}/resume", "Let them take jobs again.", "queues", resume_queue,
             _M.Queue, params=_M.QueueName, scope=ACT, errors=(404,)),
    Endpoint("drainQueue", "POST", "/queues/{queue}/drain", "Remove jobs that wait, for good, 1,000 at a time. "
             "Next runs of schedules stay.", "queues", drain_queue, _M.Drained, params=_M.QueueName, body=_M.Drain,
             scope=ACT, errors=(404,)),
    Endpoint("listWorkers", "GET", "/workers", "List the workers of the queue by their last sign of life.", "workers",
             list_workers, _M.Workers),

    Endpoint("listAgents", "GET", "/agents", "List agents: those of the program first, then those of the table.",
             "agents", list_agents, _M.AgentPage, params=_M.PageQuery),
    Endpoint("getSpend", "GET", "/spend", "Sum up what model calls cost, up to a few seconds ago.", "spend", get_spend,
             _M.Spend, params=_M.SpendQuery, errors=(501,)),
    Endpoint("listCredentials", "GET", "/credentials", "List credentials by name; no answer has a value.",
             "credentials", list_credentials, _M.CredentialPage, params=_M.CredentialQuery, errors=(501,)),

    Endpoint("listSchedules", "GET", "/schedules", "List the job schedulers.", "schedules", list_schedules,
             _M.Schedules),
    Endpoint("getSchedule", "GET", "/schedules/{id}", "Show one.", "schedules", get_schedule, _M.Schedule,
             params=_M.ScheduleId, errors=(404,)),
    Endpoint("putSchedule", "PUT", "/schedules/{id}", "Make or change one. A paused one fires again.", "schedules",
             put_schedule, _M.Schedule, params=_M.ScheduleId, body=_M.NewSchedule, scope=ACT, errors=(409,)),
    Endpoint("removeSchedule", "DELETE", "/schedules/{id}", "Remove one, with its next job.", "schedules",
             remove_schedule, _M.Done, params=_M.ScheduleId, scope=ACT, errors=(404,)),
    Endpoint("pauseSchedule", "POST", "/schedules/{id}/pause", "Stop one from firing; its next job is removed.",
             "schedules", pause_schedule, _M.Schedule, params=_M.ScheduleId, scope=ACT, errors=(404, 409)),
    Endpoint("resumeSchedule", "POST", "/schedules/{id}/resume", "Let a paused one fire again; its runs are counted "
             "anew.", "schedules", resume_schedule, _M.Schedule, params=_M.ScheduleId, scope=ACT, errors=(404, 409)),
    Endpoint("runSchedule", "POST", "/schedules/{id}/run", "Add one job as the schedule would, now.", "schedules",
             run_schedule, _M.Added, params=_M.ScheduleId, scope=ACT, status=201, errors=(404,)),

    Endpoint("getSlo", "GET", "/slo", "Say how the promises stand: reached, error budget left, burn rates.",
             "service levels", get_slo, _M.Objectives),
    Endpoint("getSeries", "GET", "/slo/series", "Give a chart's points: throughput, errors, and percentiles of waits "
             "and runs. A point is a minute up to an hour back, then five minutes, an hour, and six hours for a month.",
             "service levels", get_series, _M.Series, params=_M.SeriesQuery),
    Endpoint("listAlerts", "GET", "/alerts", "List what is wrong.", "alerts", list_alerts, _M.Alerts,
             params=_M.AlertQuery),
    Endpoint("listSilences", "GET", "/alerts/silences", "List the silences that have not ended.", "alerts",
             list_silences, _M.Silences),
    Endpoint("silenceAlerts", "POST", "/alerts/silences", "Tell nobody of some alerts for a while. What still goes on "
             "then is told then. An earlier silence of the same pattern is replaced.", "alerts", silence_alerts,
             _M.Silence, body=_M.NewSilence, scope=ACT, status=201),
    Endpoint("endSilence", "DELETE", "/alerts/silences/{pattern}", "End a silence.", "alerts", end_silence, _M.Done,
             params=_M.SilencePattern, scope=ACT, errors=(404,)),

    Endpoint("listAudit", "GET", "/audit", "List who did what through this API, the newest first.", "audit",
             list_audit, _M.AuditPage, params=_M.PageQuery, errors=(501,)),
    Endpoint("getSession", "GET", "/session", "Say who asks.", "session", get_session, _M.Session),
    Endpoint("logIn", "POST", "/session", "Open a session for a browser, kept in a cookie.", "session", log_in,
             _M.Session, body=_M.Login, scope=None, errors=(401, 409)),
    Endpoint("logOut", "DELETE", "/session", "Forget the session.", "session", log_out, _M.Nothing, scope=None),
    Endpoint("watch", "GET", "/feed", "Follow the queue: server-sent events named `queue` with its counts and what "
             "happened, whenever something did. With the header `Last-Event-ID` what happened since then comes first.",
             "feed", watch, _M.Nothing, media_type="text/event-stream"),
)  # fmt: skip

_BY_BEGINNING: dict[str, list[Endpoint]] = {}
for _endpoint in ENDPOINTS:
    _BY_BEGINNING.setdefault(_endpoint.segments[0], []).append(_endpoint)


def endpoints_at(segments: tuple[str, ...]) -> list[tuple[Endpoint, dict[str, str]]]:
    """Those whose path this is, below `/api/v1`, each with the values of its braces."""
    near = _BY_BEGINNING.get(segments[0] if segments else "", ())
    return [(each, values) for each in near if (values := each.values(segments)) is not None]
