import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from oxherd.telemetry.grafana import dashboard
from oxherd.telemetry.metrics import SERIES
from oxherd.telemetry.rules import ALERTS, groups, page, series
from oxherd.telemetry.slo import DEFAULTS, Objective, Sli

RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"
OBJECTIVES = (
    *DEFAULTS,
    Objective("attempts", Sli.ATTEMPTS, 0.9),
    Objective("replies", Sli.RUN, 0.95, threshold=45.0, job="support.reply"),
    Objective("first-token", Sli.FIRST_TOKEN, 0.99, threshold=2.5, window=86_400.0),
)


@pytest.fixture(scope="module")
def promtool():
    """Prometheus's own checker. A machine without it skips; CI installs it."""
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing: apt-get install -y prometheus")
        pytest.skip("no promtool here: apt-get install -y prometheus")

    def run(*arguments):
        return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60)

    return run


def expressions():
    """Every query of the dashboard, as a rule can hold it."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "5m").replace("$job", ".*")


def all_expressions():
    yield from expressions()
    yield from (rule["expr"] for group in groups(OBJECTIVES) for rule in group["rules"])


def test_prometheus_takes_the_rules_as_yaml_and_as_json(promtool, tmp_path):
    made = groups(OBJECTIVES)
    count = sum(len(group["rules"]) for group in made)
    for name, text in (("rules.yml", page(made)), ("rules.json", json.dumps({"groups": made}))):
        (tmp_path / name).write_text(text)
        checked = promtool("check", "rules", str(tmp_path / name))
        assert checked.returncode == 0, checked.stderr
        assert f"{count} rules found" in checked.stdout


def test_prometheus_can_parse_every_query_of_the_dashboard(promtool, tmp_path):
    listed = [{"record": f"panel:{place}", "expr": expr} for place, expr in enumerate(expressions())]
    (tmp_path / "panels.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": listed}]}))
    checked = promtool("check", "rules", str(tmp_path / "panels.json"))
    assert checked.returncode == 0, checked.stderr


def test_queries_name_only_series_that_exist():
    recorded = {rule["record"] for group in groups(OBJECTIVES) for rule in group["rules"] if "record" in rule}
    exposed = {row.full_name for row in SERIES if row.kind != "histogram"}
    exposed |= {f"{row.full_name}_{part}" for row in SERIES if row.kind == "histogram" for part in ("bucket", "count")}
    named = {name for expr in all_expressions() for name in re.findall(r"\boxherd[:_][a-z0-9_:]+", expr)}
    assert named <= exposed | recorded


def test_a_selector_of_what_is_not_declared_is_refused():
    assert series("jobs", outcome="completed|failed") == 'oxherd_jobs_total{outcome=~"completed|failed"}'
    with pytest.raises(KeyError):
        series("made_up")
    with pytest.raises(KeyError, match="colour"):
        series("jobs", colour="red")


def test_alerts_link_to_runbooks_that_exist():
    rules = [rule for group in groups(OBJECTIVES, runbooks="https://wiki/r") for rule in group["rules"]]
    links = {rule["annotations"]["runbook"] for rule in rules if "runbook" in rule.get("annotations", {})}
    assert len(links) > 5
    for link in links:
        assert (RUNBOOKS / link.removeprefix("https://wiki/r/")).exists()


def test_the_dashboard_has_a_panel_for_each_series_and_overlaps_nowhere():
    panels = dashboard()["panels"]
    titles = {panel["title"] for panel in panels}
    assert {row.full_name for row in SERIES if row.kind != "info"} <= titles
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize(("threshold", "bucket"), [(60.0, "60.0"), (45.0, "30.0"), (0.001, "0.005")])
def test_a_threshold_between_two_buckets_is_held_to_the_stricter_one(threshold, bucket):
    (group,) = groups([Objective("run", Sli.RUN, 0.99, threshold=threshold)])[2:]
    assert f'le="{bucket}"' in group["rules"][0]["expr"]


def test_windows_longer_than_an_objective_s_own_are_left_out():
    (group,) = groups([Objective("day", Sli.SUCCESS, 0.99, window=86_400.0)])[2:]
    recorded = [rule["record"] for rule in group["rules"] if "record" in rule]
    assert [name.rpartition("_")[2] for name in recorded] == ["5m", "30m", "1h", "6h"]
    assert [rule["alert"] for rule in group["rules"] if "alert" in rule] == ["OxherdBudgetBurnsFast"]


def up(*more):
    """A healthy, idle worker, and what is different."""
    usual = {
        "oxherd_build_info": "1x60",
        "oxherd_healthy": "1x60",
        "oxherd_draining": "0x60",
        "oxherd_concurrency": "5x60",
        "oxherd_jobs_in_flight": "0x60",
        "oxherd_gate_closed": "0x60",
        "oxherd_store_up": "1x60",
        "oxherd_lease_renewal_lag_seconds": "0x60",
        'oxherd_queue_jobs{state="wait"}': "0x60",
    }
    given = usual | dict(more)
    for selector, values in given.items():
        name, _, labels = selector.partition("{")
        labels = labels.rstrip("}")
        yield {"series": f'{name}{{job="worker"{"," + labels if labels else ""}}}', "values": values}


def jobs(outcome, kind=""):
    return f'oxherd_jobs_total{{name="a",outcome="{outcome}",kind="{kind}"}}'


def calls(outcome):
    return f'oxherd_model_calls_total{{agent="a",model="m",outcome="{outcome}"}}'


LATE = {f'oxherd_job_wait_seconds_bucket{{name="a",le="{bound}"}}': "0x60" for bound in ("300.0", "600.0")}
LATE |= {'oxherd_job_wait_seconds_bucket{name="a",le="900.0"}': "0+60x60"}
LATE |= {'oxherd_job_wait_seconds_bucket{name="a",le="+Inf"}': "0+60x60"}
TROUBLE = {
    "OxherdUnhealthy": {"oxherd_healthy": "0x60"},
    "OxherdNoProgress": {'oxherd_queue_jobs{state="wait"}': "5x60"},
    "OxherdFailures": {jobs("failed"): "0+10x60", jobs("completed"): "0+10x60"},
    "OxherdQuarantined": {jobs("failed", "quarantined"): "_x50 1x10"},
    "OxherdLongWaits": LATE,
    "OxherdStalledJobs": {"oxherd_jobs_stalled_total": "0+1x60"},
    "OxherdLeasesLost": {"oxherd_leases_lost_total": "0+1x60"},
    "OxherdLeasesOverdue": {"oxherd_lease_renewal_lag_seconds": "15x60"},
    "OxherdLoopBlocked": {"oxherd_loop_blocks_total": "0+1x60"},
    "OxherdStoreAway": {"oxherd_store_up": "0x60"},
    "OxherdRedisFull": {'oxherd_redis_refusals_total{code="OOM"}': "_x50 1x10"},
    "OxherdGateClosed": {"oxherd_gate_closed": "1x60"},
    "OxherdStuckDrain": {"oxherd_draining": "1x60"},
    "OxherdModelsFail": {calls("failed"): "0+2x60", calls("ok"): "0+1x60"},
    "OxherdCapReached": {'oxherd_budget_refusals_total{scope="global"}': "_x50 1x10"},
    "OxherdSpendUnknown": {'oxherd_spend_unknown_total{model="m"}': "_x50 1x10"},
    "OxherdSchedulesFail": {"oxherd_schedule_failures_total": "0x50 1x10"},
    "OxherdFaults": {"oxherd_faults_total": "0x50 1x10"},
}
BUSY = {'oxherd_queue_jobs{state="wait"}': "5x60", "oxherd_jobs_in_flight": "5x60"}
WORKING = {'oxherd_queue_jobs{state="wait"}': "5x60", jobs("completed"): "0+30x60", jobs("failed"): "0+0.1x60"}


def test_each_alert_fires_in_its_trouble_and_in_no_other(promtool, tmp_path):
    assert {alert.name for alert in ALERTS} - set(TROUBLE) == {"OxherdDown"}
    calm = [("idle", {}), ("busy", BUSY), ("working", WORKING)]
    tests = [
        {
            "name": title,
            "interval": "1m",
            "input_series": list(up(*given.items())),
            "promql_expr_test": [firing(title)],
        }
        for title, given in (*TROUBLE.items(), *calm)
    ]
    tests.append({"name": "down", "interval": "1m", "input_series": [], "promql_expr_test": [firing("OxherdDown")]})
    (tmp_path / "rules.yml").write_text(page(groups()))
    (tmp_path / "tests.json").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))
    checked = promtool("test", "rules", str(tmp_path / "tests.json"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def firing(title):
    """Which alerts fire after an hour: the one of that title, or none."""
    names = {alert.name for alert in ALERTS}
    samples = [{"labels": f'{{alertname="{title}"}}', "value": 1}] if title in names else []
    return {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "59m", "exp_samples": samples}


def test_a_budget_that_burns_fast_pages_and_one_that_is_kept_does_not(promtool, tmp_path):
    def burning(failed, alerts):
        given = {jobs("completed"): "0+100x90", jobs("failed"): f"0+{failed}x90", "oxherd_healthy": "1x90"}
        samples = [{"labels": f'{{alertname="{name}", slo="success"}}', "value": 1} for name in alerts]
        expr = 'count by (alertname, slo) (ALERTS{alertstate="firing", slo!=""})'
        wanted = [{"expr": expr, "eval_time": "80m", "exp_samples": samples}]
        return {"interval": "1m", "input_series": list(up(*given.items())), "promql_expr_test": wanted}

    (tmp_path / "rules.yml").write_text(page(groups([Objective("success", Sli.SUCCESS, 0.99)])[2:]))
    tests = [burning(0.5, []), burning(50, ["OxherdBudgetBurns", "OxherdBudgetBurnsFast"])]
    (tmp_path / "tests.json").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))
    checked = promtool("test", "rules", str(tmp_path / "tests.json"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_minutes_without_any_worker_count_and_those_before_the_first_do_not(promtool, tmp_path):
    def available(healthy, low, high):
        samples = [{"labels": '{job="worker", slo="up"}', "value": 1}]
        expr = f"(oxherd:slo_errors:ratio_1h >= bool {low}) * (oxherd:slo_errors:ratio_1h <= bool {high})"
        wanted = [{"expr": expr, "eval_time": "119m", "exp_samples": samples}]
        given = [{"series": 'oxherd_healthy{job="worker"}', "values": healthy}]
        return {"interval": "1m", "input_series": given, "promql_expr_test": wanted}

    (tmp_path / "rules.yml").write_text(page(groups([Objective("up", Sli.AVAILABILITY, 0.99)])[2:]))
    tests = [available("_x90 1x60", 0, 0), available("1x90 _x60", 0.35, 0.5), available("1x90 0x60", 0.45, 0.5)]
    (tmp_path / "tests.json").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))
    checked = promtool("test", "rules", str(tmp_path / "tests.json"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
