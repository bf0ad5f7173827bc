"""The dashboard in a real browser, on a real worker, queue and database: every page, live, by mouse and by keyboard."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from dashboard_place import PASSWORD, Place, axe, chromium, violations
from playwright.sync_api import Browser, Page, expect

from oxherd.clock import wall_ms
from oxherd.embedded.valkey import Valkey
from oxherd.queue.alertbook import AlertBook
from oxherd.telemetry.alerts import Alert, Looked
from oxherd.web import dashboard_pages

PAGES = {
    "overview": "/", "jobs": "/jobs", "runs": "/runs", "dead": "/dead", "agents": "/agents", "spend": "/spend",
    "schedules": "/schedules", "approvals": "/approvals", "operations": "/operations", "settings": "/settings",
}  # fmt: skip
SHOTS = Path(__file__).parents[2] / "docs/img"
expect.set_options(timeout=10_000)
WANTED = os.environ.get("OXHERD_SCREENSHOTS") == "true"  # the pictures of docs/dashboard.md are made anew
SHOWN = {"overview-light", "overview-dark", "run-light", "dead-dark"}


@pytest.fixture(scope="module")
def place(oxherd_postgres, oxherd_schema) -> Iterator[Place]:
    chromium()
    database = f"dashboard_{os.getpid()}"
    runs_url = oxherd_postgres.create_database(database, template=oxherd_schema)
    with Valkey(tcp=True) as own, Place(own.url, runs_url) as one:  # the shared one is emptied by other tests
        yield one
    oxherd_postgres.drop_database(database)


class Visitor:
    """A browser window, and all that it complained about or asked of others."""

    def __init__(self, browser: Browser, place: Place, *, token: str | None = None, **looks: Any) -> None:
        self.place = place
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "bypass_csp": False, **looks})
        self.context.set_default_timeout(10_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in {"error", "warning"} else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: self._note(asked.url))
        if token is not None:
            answer = self.context.request.post(place.url("/login"), form={"token": token, "next": "/"}, max_redirects=0)
            assert answer.status == 303

    def _note(self, url: str) -> None:
        if not url.startswith((self.place.url(""), "data:")):
            self.elsewhere.append(url)

    def go(self, path: str, *, status: int = 200) -> Page:
        answer = self.page.goto(self.place.url(path))
        assert answer is not None
        assert answer.status == status, self.page.inner_text("main")
        return self.page

    def said(self, words: str | re.Pattern[str]) -> None:
        expect(self.page.locator(".said")).to_have_text(words)


@pytest.fixture
def visit(browser: Browser, place: Place) -> Iterator[Any]:
    visitors: list[Visitor] = []

    def visiting(**looks: Any) -> Visitor:
        visitors.append(Visitor(browser, place, **{"token": place.token, **looks}))
        return visitors[-1]

    yield visiting
    for each in visitors:
        each.context.close()
    faults, place.faults[:] = [*place.faults], []
    assert faults == []
    for each in visitors:
        assert each.complaints == []
        assert each.elsewhere == []


def paths(place: Place) -> dict[str, str]:
    return {**PAGES, "run": f"/jobs/{place.jobs['flaky']}"}


# -- looking


def test_every_page_opens_without_complaint_and_passes_axe_in_light_and_dark(visit, place: Place):
    axe()
    seen = visit()
    for name, path in paths(place).items():
        page = seen.go(path)
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator("#pulse")).to_have_attribute("data-state", "live")
        passes_axe(page, name)


def passes_axe(page: Page, name: str) -> None:
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        assert violations(page, **rules) == [], (name, scheme)
        if WANTED and f"{name}-{scheme}" in SHOWN:
            page.screenshot(path=SHOTS / f"dashboard-{name}-{scheme}.png")
    page.emulate_media(color_scheme="light")


def test_what_is_shown_instead_of_a_page_passes_axe_too(visit, place: Place):
    axe()
    seen = visit()
    passes_axe(seen.go("/jobs/no-such-job", status=404), "nothing there")
    passes_axe(seen.go("/jobs?state=nonsense", status=422), "a wrong filter")
    stranger = visit(token=None)
    passes_axe(stranger.go("/login"), "the login")
    stranger.page.get_by_label("Token").fill("a wrong one")
    stranger.page.keyboard.press("Enter")
    expect(stranger.page.get_by_role("alert")).to_be_visible()
    passes_axe(stranger.page, "a refused login")
    with place.alone(place.redis_url) as address:
        for path in ("/", "/spend", f"/jobs/{place.jobs['reply']}", "/login"):
            stranger.page.goto(address + path)
            passes_axe(stranger.page, f"{path} without a database and a token")
        stranger.context.set_extra_http_headers({"X-Forwarded-For": "192.0.2.1"})
        stranger.page.goto(address)
        expect(stranger.page.locator("main")).to_contain_text("API_TOKEN is not set")
        passes_axe(stranger.page, "one who is not let in")
        stranger.context.close()
    stranger.elsewhere = [each for each in stranger.elsewhere if not each.startswith(address)]
    for each in (seen, stranger):
        each.complaints = [said for said in each.complaints if "responded with a status of" not in said]


def test_every_page_fits_a_phone_of_360_pixels(visit, place: Place):
    seen = visit(viewport={"width": 360, "height": 740}, has_touch=True)
    for name, path in {**paths(place), "nothing": "/jobs/no-such-job"}.items():
        page = seen.page
        page.goto(place.url(path))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        if WANTED and name == "overview":
            page.screenshot(path=SHOTS / f"dashboard-{name}-phone.png")
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Dead letters").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Dead letters")
    seen.complaints = [each for each in seen.complaints if "404" not in each]


def test_the_overview_shows_how_the_queue_is_doing(visit, place: Place):
    page = visit().go("/")
    figures = page.locator(".figures").inner_text()
    assert re.search(r"Throughput\s+\d", figures)
    assert re.search(r"Error rate\s+[\d.]+ %", figures)
    assert re.search(r"In flight\s+1\s", figures)
    assert re.search(r"Spend today\s+\$\d", figures)
    assert re.search(r"p95 .+ · p99 ", figures)
    expect(page.locator("figure.chart")).to_have_count(4)
    expect(page.locator(".budgets li")).to_have_count(3)
    expect(page.locator(".workers li")).to_contain_text("of 8")
    drawing = page.get_by_role("img", name=re.compile("Throughput.*newest"))
    drawing.hover()
    expect(page.locator(".tip:visible")).to_contain_text("completed per minute")


def test_a_run_shows_its_steps_attempts_and_messages_without_secrets(visit, place: Place):
    page = visit().go(f"/jobs/{place.jobs['reply']}")
    text = page.locator("main").inner_text()
    for words in (
        "support/model-1",
        "support/tool-1-find_order",
        "Let me look that up.",
        "calls find_order",
        "$0.0031",
    ):
        assert words in text
    page.get_by_text("Input", exact=True).click()
    assert "ada@example.com" in page.locator(".talk .tool").inner_text()
    assert "•••" in text
    html = page.content()
    assert PASSWORD not in html
    assert "sk-live-0123456789" not in html
    page = visit().go(f"/jobs/{place.jobs['flaky']}")
    one, two = page.locator(".attempts article").all()
    expect(one).to_contain_text("the mail server closed the connection")
    expect(two).to_contain_text("From the journal")


def test_spend_is_summed_by_whom_one_asks_for_the_dearest_first(visit, monkeypatch):
    page = visit().go("/spend?days=30&by=tenant")
    expect(page.locator(".bars")).to_contain_text("globex")
    expect(page.locator(".figures")).to_contain_text("Tokens")
    names = page.locator(".bars .id").all_inner_texts()
    monkeypatch.setattr(dashboard_pages, "LIMIT", 2)
    page.reload()
    assert page.locator(".bars .id").all_inner_texts() == names[:2]
    expect(page.get_by_text("1 more cost less")).to_be_visible()


def test_settings_tell_names_and_never_values(visit, place: Place):
    page = visit().go("/settings")
    rows = page.locator("tbody tr")
    expect(rows.filter(has_text="DATABASE_URL").first.locator("td").first).to_have_text("set")
    expect(rows.filter(has_text="SENTRY_DSN").first.locator("td").first).to_have_text("not set")
    html = page.content()
    assert place.token not in html
    assert place.database_url not in html


def test_backups_and_drills_show_what_was_done_and_how_to_begin(visit):
    text = visit().go("/operations").locator("main").inner_text()
    assert "2026-11-28T0300-full" in text
    assert "bucket refused the upload" in text
    assert "oxherd rotate" in text


def test_what_a_job_says_is_text_and_no_markup(visit, place: Place):
    job_id = place.do(
        place.add("invoice.send", {"number": "<img src=x onerror=alert(1)>\u202egpj", "tenant": "<b>t</b>"})
    )
    place.do(place.until(job_id, "failed"))
    page = visit().go(f"/jobs/{job_id}")
    expect(page.locator("main")).to_contain_text("<img src=x onerror=alert(1)>\\u202egpj")
    place.do(place.service.desk.admin.remove(job_id))


# -- live


def test_pages_follow_the_queue_by_themselves(visit, place: Place):
    page = visit().go("/jobs?name=live.news")
    expect(page.get_by_text("No jobs here")).to_be_visible()
    job_id = place.do(place.add("live.news", {}, delay=3_600_000))
    expect(page.get_by_role("link", name=job_id, exact=True)).to_be_visible()
    place.do(place.service.desk.admin.remove(job_id))
    expect(page.get_by_text("No jobs here")).to_be_visible()


def test_a_run_is_read_word_by_word_while_the_model_speaks(visit, place: Place):
    job_id = place.do(place.add("herd.count", {"stream": True}))
    page = visit().go(f"/jobs/{job_id}")
    words = page.locator("#stream .words.now")
    expect(words).to_have_text(re.compile(r"^Counting the herd: one ox"))
    expect(page.locator(".talk .output")).to_contain_text("one that is late.")


# -- acting


def test_nobody_sees_a_page_without_a_login(visit, place: Place):
    seen = visit(token=None)
    seen.page.goto(place.url("/jobs?state=failed"))
    expect(seen.page.get_by_role("heading", level=1)).to_have_text("Log in to agent-jobs")
    seen.page.get_by_label("Token").fill("wrong")
    seen.page.keyboard.press("Enter")
    expect(seen.page.get_by_role("alert")).to_have_text("The token is wrong.")
    seen.page.get_by_label("Token").fill(place.token)
    seen.page.keyboard.press("Enter")
    expect(seen.page).to_have_url(place.url("/jobs?state=failed"))
    seen.page.get_by_role("button", name="Log out").click()
    expect(seen.page).to_have_url(place.url("/login"))
    seen.page.goto(place.url("/"))
    expect(seen.page).to_have_url(re.compile("/login"))
    seen.complaints = [each for each in seen.complaints if "401" not in each]  # the page of the wrong token is one


def test_a_read_token_sees_everything_and_has_no_buttons(visit, place: Place):
    seen = visit(token=place.read_token)
    page = seen.go("/dead")
    expect(page.get_by_text("read only")).to_be_visible()
    expect(page.get_by_role("button", name="Replay all")).to_have_count(0)
    csrf = page.locator('input[name="csrf"]').first.get_attribute("value")
    answer = seen.context.request.post(
        place.url("/act/retryJob"), form={"id": place.jobs["label"], "csrf": csrf, "next": "/dead"}
    )
    assert "This login may read, not act" in answer.text()
    assert place.state(place.jobs["label"]) == "failed"


def test_an_action_needs_the_page_s_own_token(visit, place: Place):
    seen = visit()
    answer = seen.context.request.post(place.url("/act/retryJob"), form={"id": place.jobs["label"], "next": "/dead"})
    assert "missing or wrong" in answer.text()
    assert place.state(place.jobs["label"]) == "failed"


def test_a_job_is_cancelled_retried_and_replayed_from_its_page(visit, place: Place):
    job_id = place.do(place.add("report.write", {"pages": 1}, delay=3_600_000))
    seen = visit()
    page = seen.go(f"/jobs/{job_id}")
    page.get_by_role("button", name="Run now").click()
    seen.said(f"{job_id}: promoted.")
    place.do(place.until(job_id, "completed"))
    page.get_by_role("button", name="Replay from the journal").click()
    seen.said(f"Job {job_id} waits: 1 steps come from the journal.")
    place.do(place.until(job_id, "completed"))
    page.locator("summary", has_text="Fork").click()
    page.get_by_role("button", name="Fork").click()
    seen.said(f"Job {job_id} waits: 0 steps come from the journal.")
    running = place.do(place.add("long.haul"))
    place.do(place.until(running, "active"))
    page = seen.go(f"/jobs/{running}")
    page.get_by_role("button", name="Cancel").click()
    seen.said(f"{running}: stopping.")
    place.do(place.until(running, "failed"))
    page.get_by_role("button", name="Retry").click()
    seen.said(f"{running}: waiting.")
    place.do(place.until(running, "active"))
    place.do(place.service.desk.admin.cancel(running))
    place.do(place.until(running, "failed"))
    place.do(place.service.desk.admin.remove(running))


def test_a_group_of_dead_letters_is_replayed_with_one_click(visit, place: Place):
    seen = visit()
    group = seen.go("/dead").locator("article", has_text="label.print")
    expect(group.locator(".big")).to_have_text("4")
    group.get_by_role("button", name="Replay all").click()
    seen.said("4 done.")
    place.do(place.until(place.jobs["label"], "failed"))  # the tray is empty still
    lines = place.do(place.service.desk.stored.audit(limit=5))
    assert ("replayDeadLetters", 200) in [(line["action"], line["outcome"]) for line in lines]


def test_many_jobs_are_acted_on_at_once_by_keyboard(visit, place: Place):
    ids = [place.do(place.add("bulk.one", {"n": n}, delay=3_600_000)) for n in range(3)]
    seen = visit()
    page = seen.go("/jobs?name=bulk.one")
    page.get_by_label("Choose all on this page").focus()
    page.keyboard.press("Space")
    expect(page.locator("[data-chosen]")).to_have_text("With 3 chosen:")
    button = page.locator(".bulkbar").get_by_role("button", name="Cancel")
    button.focus()
    page.keyboard.press("Enter")
    seen.said("3 done.")
    assert [place.state(each) for each in ids] == ["unknown"] * 3


def test_a_schedule_is_paused_resumed_run_and_added(visit, place: Place):
    seen = visit()
    row = seen.go("/schedules").locator("tr", has_text="nightly")
    row.get_by_role("button", name="Pause").click()
    expect(row.get_by_text("paused")).to_be_visible()
    row.get_by_role("button", name="Resume").click()
    expect(row.get_by_text("paused")).to_have_count(0)
    row.get_by_role("button", name="Run now").click()
    seen.said(re.compile(r"^\d+: done\.$"))
    page = seen.page
    page.get_by_text("Add a schedule").click()
    page.get_by_label("Id").fill("weekly")
    page.get_by_label("Cron pattern").fill("0 4 * * 1")
    page.get_by_label("Job's name").fill("report.write")
    page.get_by_label("Payload, as JSON").fill("{no json")
    page.get_by_role("button", name="Add", exact=True).click()
    seen.said(re.compile("no JSON"))
    page.get_by_text("Add a schedule").click()
    page.get_by_label("Id").fill("weekly")
    page.get_by_label("Cron pattern").fill("0 4 * * 1")
    page.get_by_label("Job's name").fill("report.write")
    page.get_by_label("Payload, as JSON").fill('{"pages": 2}')
    page.get_by_role("button", name="Add", exact=True).click()
    seen.said("weekly: done.")
    assert place.do(place.service.desk.timetable.one("weekly"))["data"] == {"pages": 2}
    row = page.locator("tr", has_text="weekly")
    row.locator("summary").click()
    row.get_by_role("button", name="Remove").click()
    seen.said("weekly: removed.")


def test_a_question_is_answered_and_its_job_goes_on(visit, place: Place):
    seen = visit()
    page = seen.go("/approvals")
    question = page.locator("article", has_text="refund.pay")
    expect(question).to_contain_text("€ 48.00")
    question.get_by_label("A few words").fill("fine with me")
    question.get_by_role("button", name="Approve").click()
    seen.said("Approved.")
    place.do(place.until(place.jobs["question"], "completed"))
    expect(page.get_by_text("fine with me")).to_be_visible()


def test_the_queue_is_paused_with_a_reason_and_opened_again(visit, place: Place):
    seen = visit()
    page = seen.go("/")
    page.get_by_text("Queue controls").click()
    page.get_by_label("Why").fill("a fire drill")
    page.get_by_role("button", name="Stop taking jobs").click()
    expect(page.get_by_text("a fire drill")).to_be_visible()
    page.get_by_role("button", name="Take jobs again").click()
    seen.said("Workers take jobs again.")


def test_an_alert_is_shown_with_its_runbook_and_silenced(visit, place: Place):
    now = wall_ms() / 1000
    alert = Alert("queue-age", "", "The next job in line has waited for 900 s", "ticket", now - 600, now, now - 500)
    desk = place.service.desk
    place.do(AlertBook(desk.link, desk.keys).keep(Looked([alert], [], [])))
    seen = visit()
    notice = seen.go("/").locator(".notice", has_text="queue-age")
    expect(notice).to_contain_text("has waited for 900 s")
    assert notice.get_by_role("link", name="Runbook").get_attribute("href").endswith("/queue-age.md")
    notice.get_by_role("button", name="Silence for 2 h").click()
    seen.said("Silenced: queue-age.")
    expect(notice).to_contain_text("silenced")
    place.do(desk.levels.unsilence("queue-age"))
    place.do(AlertBook(desk.link, desk.keys).keep(Looked([], [], [])))


def test_the_first_tab_skips_to_the_content_and_the_theme_is_kept(visit):
    page = visit().go("/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("button", name="Theme: automatic").click()
    page.get_by_role("button", name="Theme: light").click()
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_pages_and_actions_work_without_scripts(visit, place: Place):
    seen = visit(java_script_enabled=False)
    page = seen.go("/schedules")
    page.locator("tr", has_text="heartbeat").get_by_role("button", name="Pause").click()
    seen.said("heartbeat: done.")
    page.locator("tr", has_text="heartbeat").get_by_role("button", name="Resume").click()
    seen.go("/jobs").get_by_label("Id").fill(place.jobs["reply"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(place.jobs["reply"])


# -- without


def test_without_a_database_pages_say_what_works_and_what_turns_it_on(visit, place: Place):
    with place.alone(place.redis_url) as address:
        seen = visit(token=None)
        seen.page.goto(address)
        expect(seen.page.get_by_text("needs DATABASE_URL")).to_be_visible()
        seen.page.goto(f"{address}/spend")
        expect(seen.page.get_by_role("heading", level=1)).to_have_text("This needs a database")
        expect(seen.page.get_by_text("oxherd db migrate")).to_be_visible()
        seen.page.goto(f"{address}/jobs/{place.jobs['reply']}")
        expect(seen.page.get_by_text("No run is kept")).to_be_visible()
        seen.context.close()
    seen.complaints = [each for each in seen.complaints if "501" not in each]
    seen.elsewhere = [each for each in seen.elsewhere if not each.startswith(address)]


def test_a_page_says_that_redis_is_away_and_comes_back_by_itself(visit, place: Place, own_valkey):
    with place.alone(own_valkey.url) as address:
        seen = visit(token=None)
        seen.page.goto(address)
        expect(seen.page.locator("#pulse")).to_have_attribute("data-state", "live")
        own_valkey.kill()
        seen.page.goto(f"{address}/dead")
        expect(seen.page.get_by_role("heading", level=1)).to_have_text("A service is away")
        own_valkey.start()
        expect(seen.page.get_by_role("heading", level=1)).to_have_text("Dead letters", timeout=15_000)
        seen.context.close()
    seen.complaints = [each for each in seen.complaints if "503" not in each]
    seen.elsewhere = [each for each in seen.elsewhere if not each.startswith(address)]


def test_what_is_not_there_is_told(visit, place: Place):
    seen = visit()
    page = seen.go(f"/jobs/{quote('a/b:c%', safe='')}", status=404)
    expect(page.get_by_role("heading", level=1)).to_have_text("Not there")
    seen.complaints = [each for each in seen.complaints if "404" not in each]
