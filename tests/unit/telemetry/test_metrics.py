import timeit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from oxherd.telemetry import events
from oxherd.telemetry.events import emit
from oxherd.telemetry.metrics import MOST_NAMES, SERIES, Metrics


@pytest.fixture
def metrics():
    counted = Metrics(["support.reply", "agent.run"])
    stop = counted.attach()
    yield counted
    stop()


def read(metrics):
    """Every sample on the page: its name and labels, as Prometheus reads them."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def value(metrics, name, /, **labels):
    return read(metrics).get((f"oxherd_{name}", *sorted(labels.items())))


def test_attempts_are_counted_by_name_outcome_and_kind(metrics, job_ended):
    emit(job_ended())
    emit(job_ended())
    emit(job_ended(outcome="failed", kind="timeout"))
    assert value(metrics, "jobs_total", name="support.reply", outcome="completed", kind="") == 2
    assert value(metrics, "jobs_total", name="support.reply", outcome="failed", kind="timeout") == 1


def test_waits_runs_and_totals_are_timed_in_seconds(metrics, job_ended):
    emit(job_ended(wait_ms=12, run_ms=1234.5, total_ms=1250))
    assert value(metrics, "job_wait_seconds_sum", name="support.reply") == 0.012
    assert value(metrics, "job_run_seconds_sum", name="support.reply") == 1.2345
    assert value(metrics, "job_total_seconds_sum", name="support.reply") == 1.25
    assert value(metrics, "job_run_seconds_bucket", name="support.reply", le="1.0") == 0
    assert value(metrics, "job_run_seconds_bucket", name="support.reply", le="2.5") == 1


def test_the_buckets_reach_from_milliseconds_to_half_an_hour(metrics, job_ended):
    emit(job_ended(run_ms=1_799_000))
    assert value(metrics, "job_run_seconds_bucket", name="support.reply", le="0.005") == 0
    assert value(metrics, "job_run_seconds_bucket", name="support.reply", le="900.0") == 0
    assert value(metrics, "job_run_seconds_bucket", name="support.reply", le="1800.0") == 1


@pytest.mark.parametrize(
    ("outcome", "final"),
    [("completed", 1), ("failed", 1), ("retried", 0), ("delayed", 0), ("handed_back", 0), ("parked", 0)],
)
def test_the_total_is_timed_once_per_job_when_it_is_over(metrics, job_ended, outcome, final):
    emit(job_ended(outcome=outcome))
    assert value(metrics, "job_total_seconds_count", name="support.reply") == final
    assert value(metrics, "job_run_seconds_count", name="support.reply") == 1


def test_retries_have_a_counter_of_their_own(metrics, job_ended):
    emit(job_ended())
    emit(job_ended(outcome="retried"))
    assert value(metrics, "job_retries_total", name="support.reply") == 1


def test_names_that_no_handler_has_share_one_series(metrics, job_ended):
    for number in range(1000):
        emit(job_ended(job=f"made-up-{number}", outcome="failed", kind="unknown_job"))
    assert value(metrics, "jobs_total", name="_unknown", outcome="failed", kind="unknown_job") == 1000
    assert "made-up" not in metrics.render().decode()
    assert len(metrics._ended) == len(metrics._timed) == 1


def test_codes_that_are_not_redis_s_own_share_one_series(metrics, sample):
    for code in ("OOM", "OOM", "READONLY", "user_script:7:", "Missing", "ÄÖÜ", ""):
        emit(sample(events.RedisRefusedCommand, code=code))
    assert value(metrics, "redis_refusals_total", code="OOM") == 2
    assert value(metrics, "redis_refusals_total", code="READONLY") == 1
    assert value(metrics, "redis_refusals_total", code="other") == 4


@pytest.mark.parametrize(
    ("kind", "series", "labels", "counted"),
    [
        (events.WorkerWarned, "warnings_total", {}, 1),
        (events.WorkerDraining, "draining", {}, 1),
        (events.JobCancelRequested, "job_cancel_requests_total", {}, 1),
        (events.ApprovalRequested, "approvals_requested_total", {"name": "_unknown"}, 1),
        (events.ApprovalAnswered, "approvals_total", {"name": "_unknown", "outcome": "approved"}, 1),
        (events.ApprovalAnswered, "approval_wait_seconds_count", {"name": "_unknown"}, 1),
        (events.ApprovalExpired, "approvals_total", {"name": "_unknown", "outcome": "expired"}, 1),
        (events.JobStalled, "jobs_stalled_total", {}, 1),
        (events.JobsPutAside, "jobs_put_aside_total", {}, 3),
        (events.LeaseWasLost, "leases_lost_total", {}, 1),
        (events.LeasesLate, "leases_late_total", {}, 1),
        (events.RedisLost, "redis_lost_total", {"purpose": "text"}, 1),
        (events.RedisBack, "redis_reconnects_total", {"purpose": "text"}, 1),
        (events.StoreLost, "store_failures_total", {}, 1),
        (events.StoreFlushed, "store_rows_total", {}, 3),
        (events.StoreFlushed, "store_flush_seconds_count", {}, 1),
        (events.StoreFlushed, "store_batch_rows_count", {}, 1),
        (events.StepReplayed, "steps_replayed_total", {"kind": "text"}, 1),
        (events.AgentEnded, "agent_runs_total", {"agent": "text", "outcome": "text"}, 1),
        (events.AgentEnded, "agent_run_seconds_sum", {"agent": "text"}, 1.5),
        (events.ModelFaulted, "model_faults_total", {"model": "text", "status": "3"}, 1),
        (events.ToolCalled, "tool_calls_total", {"agent": "text", "tool": "text", "outcome": "text"}, 1),
        (events.ToolCalled, "tool_seconds_sum", {"tool": "text"}, 1.5),
        (events.JobsAdded, "jobs_added_total", {"outcome": "text"}, 3),
        (events.TaskEnded, "tasks_total", {"task": "text", "outcome": "text"}, 1),
        (events.LimiterWaited, "limiter_wait_seconds_sum", {"model": "text"}, 1.5),
        (events.BudgetReached, "budget_refusals_total", {"scope": "text"}, 1),
        (events.SpendUnknown, "spend_unknown_total", {"model": "text"}, 1),
        (events.LoopBlocked, "loop_blocks_total", {}, 1),
        (events.GateChanged, "gate_closed", {}, 1),
        (events.ScheduleFailed, "schedule_failures_total", {}, 1),
        (events.ApiActed, "api_actions_total", {"action": "text", "status": "3"}, 1),
        (events.ApiLoginFailed, "api_login_failures_total", {}, 1),
        (events.AuditLost, "audit_losses_total", {}, 1),
        (events.InternalFault, "faults_total", {}, 1),
    ],
    ids=lambda part: getattr(part, "name", None),
)
def test_an_event_moves_its_series(metrics, sample, kind, series, labels, counted):
    before = value(metrics, series, **labels) or 0
    emit(sample(kind))
    assert value(metrics, series, **labels) - before == counted


def test_a_model_call_is_counted_timed_and_paid_for(metrics, sample):
    labels = {"agent": "support", "model": "m"}
    emit(
        sample(
            events.ModelCalled, **labels, outcome="ok", input_tokens=100, cached_tokens=80, output_tokens=20,
            reasoning_tokens=0, cost_usd=0.25, seconds=2.0, first_token_s=0.5,
        )
    )  # fmt: skip
    assert value(metrics, "model_calls_total", **labels, outcome="ok") == 1
    assert value(metrics, "model_cost_usd_total", **labels) == 0.25
    assert value(metrics, "model_seconds_sum", model="m") == 2.0
    assert value(metrics, "model_first_token_seconds_sum", model="m") == 0.5
    tokens = {kind: value(metrics, "model_tokens_total", **labels, kind=kind) for kind in ("input", "cached", "output")}
    assert tokens == {"input": 100, "cached": 80, "output": 20}
    assert value(metrics, "model_tokens_total", **labels, kind="reasoning") is None


def test_what_nobody_knows_of_a_model_call_is_not_counted_as_zero(metrics, sample):
    emit(sample(events.ModelCalled, agent="a", model="m", cost_usd=None, first_token_s=None))
    assert value(metrics, "model_cost_usd_total", agent="a", model="m") is None
    assert value(metrics, "model_first_token_seconds_count", model="m") is None


def test_the_journal_is_timed_for_steps_that_are_in_it(metrics, sample):
    emit(sample(events.StepEnded, kind="tool", outcome="ok", journal_s=0.004))
    emit(sample(events.StepEnded, kind="tool", outcome="failed", journal_s=0.0))
    assert value(metrics, "steps_total", kind="tool", outcome="failed") == 1
    assert value(metrics, "journal_seconds_count", kind="tool") == 1
    assert value(metrics, "journal_seconds_sum", kind="tool") == 0.004


def test_models_that_jobs_make_up_share_one_series_past_a_bound(metrics, sample):
    for number in range(MOST_NAMES + 10):
        emit(sample(events.ModelFaulted, model=f"made-up-{number}", status=404))
    assert value(metrics, "model_faults_total", model="made-up-0", status="404") == 1
    assert value(metrics, "model_faults_total", model="_other", status="404") == 10


def test_every_event_moves_a_series_or_is_known_to_need_none(metrics):
    uncounted = {
        events.WorkerStopped,  # nobody scrapes it any more
        events.JobStarted,  # its end is counted, and jobs in flight are watched
        events.JobsAdding,
        events.TaskStarted,
        events.StepStarted,
        events.AgentStarted,
        events.ModelAsked,
        events.ToolAsked,
        events.WebStarted,
    }
    assert set(events.catalogue()) - set(metrics.subscriptions()) == uncounted


def test_every_series_of_the_table_is_on_the_page_and_no_other():
    declared = {family.name for family in Metrics().registry.collect() if family.name.startswith("oxherd_")}
    assert declared == {f"oxherd_{row.name}" for row in SERIES}
    assert len({row.name for row in SERIES}) == len(SERIES)


def test_the_store_is_up_until_it_is_lost_and_again_when_it_is_back(metrics, sample):
    seen = [value(metrics, "store_up")]
    for kind in (events.StoreLost, events.StoreBack):
        emit(sample(kind))
        seen.append(value(metrics, "store_up"))
    assert seen == [1, 0, 1]


def test_an_opened_gate_is_no_longer_closed(metrics, sample):
    emit(sample(events.GateChanged, closed=True))
    emit(sample(events.GateChanged, closed=False))
    assert value(metrics, "gate_closed") == 0


def test_the_worker_s_start_tells_what_runs_here(metrics, sample):
    emit(sample(events.WorkerStarted, version="0.1.0", commit="abc", redis_version="9.1", store="postgres", queue="q"))
    labels = {"version": "0.1.0", "commit": "abc", "redis_version": "9.1", "store": "postgres", "queue": "q"}
    assert value(metrics, "build_info", **labels) == 1
    assert value(metrics, "concurrency") == 3


def test_what_is_watched_is_read_at_each_scrape(metrics):
    now = {"in_flight": 3, "loop_lag": 0.002, "lease_lag": 1.5, "store_waiting": 7}
    metrics.watch(**{name: lambda name=name: now[name] for name in now})
    assert value(metrics, "jobs_in_flight") == 3
    now["in_flight"] = 4
    assert value(metrics, "jobs_in_flight") == 4
    assert value(metrics, "loop_lag_seconds") == 0.002
    assert value(metrics, "lease_renewal_lag_seconds") == 1.5
    assert value(metrics, "store_waiting") == 7


def test_what_nobody_watches_reads_zero(metrics):
    metrics.watch(in_flight=lambda: 1)
    assert value(metrics, "jobs_in_flight") == 1
    assert value(metrics, "loop_lag_seconds") == 0


def test_queue_depths_are_shown_as_they_were_set_last(metrics):
    metrics.set_depths({"wait": 5, "delayed": 1})
    metrics.set_depths({"wait": 0, "delayed": 2})
    assert value(metrics, "queue_jobs", state="wait") == 0
    assert value(metrics, "queue_jobs", state="delayed") == 2


def test_two_workers_in_one_process_count_apart_after_the_first_has_stopped(job_ended):
    first, second = Metrics(["support.reply"]), Metrics(["support.reply"])
    first.attach()()
    stop = second.attach()
    emit(job_ended())
    stop()
    labels = {"name": "support.reply", "outcome": "completed", "kind": ""}
    assert value(first, "jobs_total", **labels) is None
    assert value(second, "jobs_total", **labels) == 1


def test_the_process_s_own_memory_and_time_are_on_the_page(metrics):
    page = metrics.render().decode()
    assert "process_start_time_seconds" in page
    assert "_created" not in page


def test_every_series_is_named_with_our_prefix_and_described(metrics):
    for family in metrics.registry.collect():
        assert family.name.startswith(("oxherd_", "process_"))
        assert family.documentation.endswith(".")


def test_counting_a_job_is_cheap(metrics, job_ended):
    event = job_ended()
    seconds = min(timeit.repeat(lambda: emit(event), number=1000, repeat=10)) / 1000
    assert seconds < 25e-6  # about 3 µs on an idle machine; the margin is for a busy one
