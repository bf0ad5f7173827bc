"""The page behind a link, asked as a browser asks."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette

from oxherd.errors import ApprovalClosed, ApprovalNotFound, StoreUnreachable, UsageError
from oxherd.store import WaitRow
from oxherd.web import approvals

NOON = 1_763_899_200_000
ROW = WaitRow(
    run_id="q/42@1", key="refund", id="0123456789abcdef", nonce="secret-nonce", queue="q", job_id="42",
    job="orders.refund", tenant="acme", inputs="ab", about={"order": "A-1", "arguments": {"cents": 500}}, state="open",
    asked_at=NOON, expires_at=NOON + 3_600_000, left_ms=3_600_000, approved=None, value=None, message="", by="",
    answered_at=None,
)  # fmt: skip


@dataclass
class Desk:
    """Has one question, behind the link `good`."""

    row: WaitRow = ROW
    error: Exception | None = None
    answers: list[tuple[bool, str]] = field(default_factory=list)

    async def by_link(self, token: str) -> WaitRow:
        if self.error is not None:
            raise self.error
        if token != "good":
            raise ApprovalNotFound("no such link")
        return self.row

    async def answer_by_link(self, token: str, *, approved: bool, message: str = "") -> WaitRow:
        await self.by_link(token)
        self.answers.append((approved, message))
        self.row = replace(self.row, state="answered", approved=approved, message=message, answered_at=NOON + 60_000)
        return self.row


class Browser:
    """Just enough of one."""

    def __init__(self, desk: Desk) -> None:
        self._site = Starlette(routes=approvals.routes(desk))

    async def ask(self, method: str = "GET", token: str = "good", body: bytes = b"") -> Answer:
        path = f"/approvals/{token}"
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "server": ("127.0.0.1", 80),
            "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
        }  # fmt: skip
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._site(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:]).decode())

    async def submit(self, token: str = "good", **form: str) -> Answer:
        return await self.ask("POST", token, urlencode(form).encode())


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str


class Read(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def browser(desk: Desk) -> Browser:
    return Browser(desk)


async def test_the_page_shows_what_is_asked_and_two_buttons(browser):
    answer = await browser.ask()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = Read(answer.text)
    for text in ("refund of orders.refund", "order", "A-1", "cents", "500", "orders.refund 42", "acme"):
        assert text in page.texts, text
    assert "Asked at 2025-11-23 12:00 UTC, to be answered before 2025-11-23 13:00 UTC." in page.texts
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [button["value"] for button in buttons] == ["approve", "deny"]
    assert ("form", {"method": "post"}) in page.tags
    assert "secret-nonce" not in answer.text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_looking_answers_nothing(browser, desk, method):
    for _ in range(3):
        assert (await browser.ask(method)).status == 200
    assert desk.answers == []


@pytest.mark.parametrize(("decision", "approved"), [("approve", True), ("deny", False)])
async def test_a_button_answers(browser, desk, decision, approved):
    answer = await browser.submit(decision=decision, message="  two\r\nlines ")
    assert (answer.status, desk.answers) == (200, [(approved, "two\nlines")])
    assert f"It was {'approved' if approved else 'denied'} at 2025-11-23 12:01 UTC." in answer.text


@pytest.mark.parametrize(
    "body",
    [b"", b"decision=", b"decision=maybe", b"\xff\xfe", b"&" * 50, b"decision=approve&message=" + b"a" * 30_000],
    ids=["nothing", "empty", "another", "no text", "many fields", "too long"],
)
async def test_a_form_that_does_not_say_which_answers_nothing(browser, desk, body):
    assert (await browser.ask("POST", body=body)).status == 400
    assert desk.answers == []


async def test_other_methods_are_refused(browser, desk):
    for method in ("PUT", "DELETE", "PATCH"):
        assert (await browser.ask(method)).status == 405
    assert desk.answers == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (replace(ROW, state="answered", approved=True, answered_at=NOON), "It was approved at 2025-11-23 12:00 UTC."),
        (replace(ROW, state="expired"), "Nobody answered before 2025-11-23 13:00 UTC."),
        (replace(ROW, state="withdrawn"), "The job that asked is gone."),
    ],
    ids=lambda value: getattr(value, "state", ""),
)
async def test_a_question_that_is_over_has_no_buttons(browser, desk, row, words):
    desk.row = row
    answer = await browser.ask()
    assert answer.status == 410
    assert words in answer.text
    assert "<button" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ApprovalClosed("question 1 can't be answered: it was denied before, by ana", state="answered"), 409),
        (ApprovalClosed("question 1 can't be answered: its time is over", state="expired"), 410),
        (StoreUnreachable("the database at db.internal is away"), 503),
        (UsageError("the question is of queue other"), 409),
    ],
)
async def test_what_prevents_an_answer_is_told(browser, desk, error, status):
    desk.error = error
    answer = await browser.submit(decision="approve")
    assert answer.status == status
    assert "db.internal" not in answer.text
    assert desk.answers == []


async def test_a_wrong_link_says_nothing_about_what_there_is(browser):
    answer = await browser.ask(token="bad")
    assert answer.status == 404
    assert "refund" not in answer.text


async def test_only_so_many_wrong_links_are_looked_at_and_good_ones_go_on(desk, monkeypatch):
    now = 100.0
    monkeypatch.setattr(approvals, "mono", lambda: now)
    browser = Browser(desk)
    seen = [(await browser.ask(token=f"bad{n}")).status for n in range(approvals.MOST_WRONG + 5)]
    assert seen.count(404) == approvals.MOST_WRONG
    last = await browser.ask(token="bad")
    assert (last.status, last.headers["retry-after"]) == (429, "60")
    assert (await browser.submit(decision="approve")).status == 200
    now += approvals.ONE_MORE_EVERY
    assert [(await browser.ask(token="bad")).status for _ in range(2)] == [404, 429]


EVIL = "</dd><script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"


async def test_all_that_is_asked_is_shown_as_text(browser, desk):
    desk.row = replace(
        ROW, key=EVIL, job=EVIL, job_id=EVIL, tenant=EVIL,
        about={EVIL: EVIL, "list": [EVIL], "deep": {"a": {"b": {"c": {EVIL: EVIL}}}}},
    )  # fmt: skip
    answer = await browser.ask()
    page = Read(answer.text)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "link", "title", "style", "body", "main", "h1", "p", "dl", "dt", "dd", "pre", "form",
        "label", "textarea", "div", "button",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.texts.count(EVIL) >= 3


@pytest.mark.parametrize("trick", ["\u202e", "\u2066", "\u200b", "\x00", "\x1b", "\ufeff", "\u061c"])
async def test_what_would_turn_or_hide_text_is_made_visible(browser, desk, trick):
    desk.row = replace(ROW, about={"pay to": f"good{trick}elif"})
    answer = await browser.ask()
    assert trick not in answer.text
    assert f"good\\u{ord(trick):04x}elif" in answer.text


@pytest.mark.parametrize("about", [None, "text", 5, [1, {"a": 2}], {}, {"a": None, "b": [], "c": {}}])
async def test_whatever_is_asked_about_can_be_shown(browser, desk, about):
    desk.row = replace(ROW, about=about)
    assert (await browser.ask()).status == 200


async def test_the_page_needs_nothing_from_elsewhere_and_lets_nothing_in(browser):
    answer = await browser.ask()
    policy = answer.headers["content-security-policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    assert "<script" not in answer.text
    assert not re.search(r"https?://|url\(", answer.text)


@pytest.mark.parametrize("token", ["good", "bad"])
async def test_no_answer_is_kept_indexed_or_tells_other_sites_the_link(browser, token):
    headers = (await browser.ask(token=token)).headers
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-robots-tag"].startswith("noindex")
    assert headers["x-content-type-options"] == "nosniff"


async def test_two_people_at_once_are_served(browser, desk):
    answers = await asyncio.gather(browser.ask(), browser.submit(decision="deny"))
    assert [answer.status for answer in answers][1] == 200
