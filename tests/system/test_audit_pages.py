"""The pages of `oxherd audit`, as a browser shows them: to everybody, in light and dark, on a phone."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from dashboard_place import axe, violations

from oxherd.ops import audit_formats, audit_report
from oxherd.ops.audit_env import Fault, Inventory, Row
from oxherd.ops.audit_known import Accepted
from oxherd.ops.audit_report import Evidence
from oxherd.ops.audit_rules import KINDS, Level
from oxherd.ops.audit_secrets import Finding, Report, Seen
from oxherd.ops.audit_sources import Place

DAY = 86_400_000
NOW = datetime(2026, 11, 28, 8, 30, tzinfo=UTC)
SHOTS = Path(__file__).parents[2] / "docs/img"
LONG = "services/" + "very-long-folder-name-without-an-end/" * 5 + "<b>settings</b>.py"


def seen(path, *, at=1_795_000_000, in_head=True):
    author = "Ada Lovelace of the Department of Rather Long Names <ada.lovelace@departments.example.com>"
    return Seen(path, 12, Place.HISTORY, "1f" * 20, author, at, in_head, "base64")


def secrets(today):
    def one(number, kind, level, live=None, answer="", accepted=None):
        places = tuple(seen(f"{number}-{each}-{LONG}", at=1_795_000_000 + each) for each in range(number + 1))
        return Finding(
            f"{number}" * 32,
            f"sk-or-v1-… ({60 + number} characters)",
            KINDS[kind],
            level,
            places,
            live,
            answer,
            accepted,
        )

    kept = Accepted("2" * 32, "the password of a test server that is gone", date(2027, 1, 31))
    return Report(
        "shop", (
            one(0, "oxherd.openrouter-key", Level.ERROR, True, "OpenRouter takes it, without a limit"),
            one(1, "oxherd.postgres-url", Level.ERROR, None, "db.shop.internal:5432 is private: set the variable"),
            one(2, "oxherd.redis-url", Level.ERROR, False, "Redis at eu1.upstash.io:6379 refuses it", kept),
            one(3, "oxherd.sentry-dsn", Level.WARNING), one(4, "oxherd.supabase-jwt-anon", Level.NOTE),
        ), (1234, 56_789_000), ("dump.bin is larger than 64 MB",), today,
    )  # fmt: skip


def evidence(report):
    def ago(days, target):
        return [{"outcome": "ok", "target": target, "at": NOW.timestamp() * 1000 - days * DAY}]

    rows = tuple(
        Row(name, "", "", ("Railway production", "Railway staging"), days, {}, ())
        for name, days in (("DATABASE_URL", 40), ("API_TOKEN", 200), ("OPENROUTER_API_KEY", 12), ("REDIS_URL", None))
    )
    faults = (
        Fault("privilege", "REDIS_URL", Level.WARNING, "its user default may FLUSHALL, CONFIG, DEBUG, SHUTDOWN, KEYS",
              "give Oxherd an ACL user, `+@all -@dangerous +info +client`, for the queue's keys"),
        Fault("sharing", "API_TOKEN", Level.WARNING, "the same in Railway production and Railway staging",
              "give each environment a secret of its own: a leak in one is then no leak of the other"),
    )  # fmt: skip
    done = {"backup": ago(0.2, "2026-11-28T0300-full"), "verify": ago(6, "2026-11-22T0300-full")}
    return Evidence(
        NOW, report, "", Inventory(rows, faults, ("postgres", "operations"), 2),
        {**done, "drill": ago(100, "redis-lost")}, {"at": NOW.timestamp() * 1000 - 60_000}, ("uv.lock",),
        (True, False), (True, False),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Both pages with something of everything, and both with nothing to complain about."""
    folder, today = tmp_path_factory.mktemp("pages"), NOW.date()
    clean = Report("shop", (), (1234, 56_789_000), (), today)
    made = {}
    for name, report in (("found", secrets(today)), ("clean", clean)):
        proof = evidence(report)
        made[f"secrets-{name}"] = audit_formats.page(report)
        made[f"report-{name}"] = audit_report.page(audit_report.controls(proof), proof)
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in made}


def test_each_page_passes_axe_in_light_and_dark_and_asks_for_nothing_else(browser, pages):
    axe()
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    complaints, asked = [], []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("request", lambda request: asked.append(request.url))
    for name, url in pages.items():
        page.goto(url)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == [], (name, scheme)
            if os.environ.get("OXHERD_SCREENSHOTS") == "true" and (name, scheme) == ("report-found", "light"):
                page.screenshot(path=SHOTS / "audit-report.png")
    assert (complaints, asked) == ([], list(pages.values()))
    page.close()


def test_each_page_fits_a_phone_of_360_pixels_and_a_sheet_of_paper(browser, pages):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    for name, url in pages.items():
        page.goto(url)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", name
        page.emulate_media(media="screen", color_scheme="light")
    page.close()


def test_a_page_says_first_what_has_to_be_done(browser, pages):
    page = browser.new_page()
    page.goto(pages["secrets-found"])
    assert page.locator("h1").inner_text() == "shop"
    assert page.locator("h2").all_inner_texts() == [
        "To deal with", "Accepted for a time", "Harmless where they are", "Not read"
    ]  # fmt: skip
    assert page.locator(".figures dd").all_inner_texts() == ["3", "1", "3", "1", "1"]
    assert "<b>settings</b>.py" in page.locator("main").inner_text()
    page.goto(pages["report-found"])
    assert page.get_by_role("img").get_attribute("aria-label") == "Score: 73 of 100"
    assert page.locator(".control").count() == 13
    page.goto(pages["secrets-clean"])
    assert "No secret has to be dealt with" in page.locator("header").inner_text()
    page.close()
