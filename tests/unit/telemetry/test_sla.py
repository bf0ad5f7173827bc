from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser

import pytest

from oxherd.telemetry import sla
from oxherd.telemetry.alerts import Alert
from oxherd.telemetry.slo import Count, Objective, Sli

WAIT = Objective("wait", Sli.WAIT, 0.99, threshold=60.0)
DONE = Objective("success", Sli.SUCCESS, 0.999)
FIRST = date(2026, 10, 1)


@pytest.fixture
def month() -> sla.Month:
    days = {FIRST + timedelta(days=each): {WAIT: Count(99, 100), DONE: Count()} for each in range(2)}
    days[FIRST][DONE] = Count(9_999.6, 10_000)
    alert = Alert("queue-age", "", "<b>waited</b>", "ticket", since=1_790_900_000, seen=1_790_903_600, told=1.0)
    return sla.Month(
        "agent-jobs", FIRST, FIRST + timedelta(days=1), datetime(2026, 11, 1, tzinfo=UTC), FIRST + timedelta(days=1),
        {WAIT: Count(197, 200), DONE: Count(9_999.6, 10_000)}, days, [alert],
    )  # fmt: skip


def test_each_promise_is_kept_or_not_and_never_rounded_up(month):
    text = sla.markdown(month)
    assert "| 99 % of jobs start within 60 s, over 30 d | NO | 98.50 % | 200 | 3 | -50% |" in text.replace(
        "1 min", "60 s"
    )
    assert "| 99.9 % of jobs complete, over 30 d | yes | 99.99 % | 10,000 | 0 | 96% |" in text
    assert "| 2026-10-02 | 99.00 % | - |" in text
    assert "Counting began on 2026-10-02." in text
    assert "60 min: queue-age (ticket)." in text


def test_the_page_needs_nothing_else_and_escapes_what_others_wrote(month):
    text = sla.page(month)
    assert "<b>waited" not in text
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(tag)
            assert not {"src", "href", "onclick"} & {name for name, _ in attrs}

    Reader().feed(text)
    assert "script" not in found
    assert found.count("tr") == 6


def test_programs_get_the_same(month):
    told = sla.data(month)
    assert [(each["name"], each["kept"]) for each in told["objectives"]] == [("wait", False), ("success", True)]
    assert told["objectives"][1]["days"] == {"2026-10-01": pytest.approx(0.99996), "2026-10-02": None}
    assert told["incidents"][0]["kind"] == "queue-age"
