"""The page behind a link that answers a question: what is asked, two buttons, a few words. It needs no script.

Whoever has the link may answer, so the page does all it can to keep it from leaking, and a GET answers nothing: chat
programs open links to show a preview. What is asked came from a model or a customer, so all of it is shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from html import escape
from typing import Any, Protocol
from urllib.parse import parse_qs

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oxherd.clock import mono
from oxherd.errors import ApprovalClosed, ApprovalNotFound, OxherdError, RedisRefused, Unreachable
from oxherd.store import WaitRow

MOST_BYTES = 20_000  # of a form
MOST_WORDS = 2_000  # characters of a message
MOST_WRONG = 30  # links that answer nothing, at once
ONE_MORE_EVERY = 2.0  # seconds until one more may be tried
DEEPEST = 3  # objects within objects that are shown as lists; what is deeper is shown as JSON

STYLE = """
:root { color-scheme: light dark; --back: #f6f5f2; --card: #fff; --text: #1d1c1a; --faint: #66635c; --line: #dddad3;
  --yes: #17693b; --no: #a3261d; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --back: #171614; --card: #211f1c; --text: #efece6; --faint: #a9a49a;
  --line: #3b3833; --yes: #5fc88c; --no: #ff8f84; --on: #14110f; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 40rem; margin: 0 auto; padding: 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; }
h1 { margin: 0 0 .25rem; font-size: 1.35rem; line-height: 1.25; }
p { margin: .25rem 0 1rem; color: var(--faint); }
dl { margin: 0 0 1rem; }
dt { color: var(--faint); font-size: .875rem; }
dd { margin: 0 0 .75rem; white-space: pre-wrap; }
dd > dl { margin: .25rem 0 0; padding-left: .75rem; border-left: 2px solid var(--line); }
pre { margin: 0; white-space: pre-wrap; font: .875rem/1.5 ui-monospace, monospace; }
label { display: block; margin-bottom: .25rem; }
textarea { width: 100%; min-height: 4.5rem; padding: .5rem; font: inherit; color: inherit; background: var(--back);
  border: 1px solid var(--line); border-radius: .5rem; }
.ways { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: 1rem; }
button { flex: 1 1 9rem; min-height: 3rem; font: inherit; font-weight: 600; border-radius: .5rem; cursor: pointer;
  border: 2px solid var(--yes); background: var(--yes); color: var(--on); }
button.no { border-color: var(--no); background: none; color: var(--no); }
:focus-visible { outline: 3px solid var(--text); outline-offset: 2px; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex, nofollow, noarchive",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# What can't be seen or turns the text around, so that it would read as something else.
_TREACHEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


class Questions(Protocol):
    """What the page and the API need; `oxherd.worker.approvals.Approvals` is one."""

    async def list(self, *, state: str = "open", limit: int = 100) -> list[WaitRow]:
        """The queue's questions in one state. Raises Unreachable, RedisRefused, as all do that follow."""

    async def show(self, wait_id: str) -> WaitRow:
        """One question. Raises ApprovalNotFound."""

    async def answer(self, wait_id: str, *, approved: bool, by: str, value: Any = None, message: str = "") -> WaitRow:
        """Answer one. Raises ApprovalNotFound, ApprovalClosed, UsageError, ResultInvalid."""

    async def by_link(self, token: str) -> WaitRow:
        """The question that a link answers. Raises ApprovalNotFound, Unreachable."""

    async def answer_by_link(self, token: str, *, approved: bool, message: str = "") -> WaitRow:
        """Answer it. Raises ApprovalNotFound, ApprovalClosed, UsageError, Unreachable."""


def routes(questions: Questions) -> list[Route]:
    """The page and its form."""
    strangers = _Strangers()

    async def page(request: Request) -> Response:
        token = request.path_params["token"]
        if request.method == "POST":
            return await strangers.guard(_answered(questions, token, request))
        return await strangers.guard(_asked(questions, token))

    return [Route("/approvals/{token}", page, methods=["GET", "POST"])]


class _Strangers:
    """Those whose link answers nothing: only so many of them get an answer. Good links are served all the same."""

    def __init__(self) -> None:
        self._left = float(MOST_WRONG)
        self._at = mono()

    async def guard(self, act: Any) -> Response:
        try:
            response: Response = await act
        except ApprovalNotFound:
            if self._too_many():
                return _told(429, "Too many wrong links", "Try again in a minute.", {"Retry-After": "60"})
            return _told(404, "No such question", "The link is not complete, or the question was asked anew since.")
        except ApprovalClosed as error:
            return _told(409 if error.state == "answered" else 410, "Not answered", f"{_capital(error.message)}.")
        except (Unreachable, RedisRefused):
            return _told(
                503, "Not now", "A service is away. Nothing was changed; try again soon.", {"Retry-After": "10"}
            )
        except OxherdError as error:
            return _told(409, "Not answered", f"{_capital(error.message)}.")
        return response

    def _too_many(self) -> bool:
        now = mono()
        self._left = min(self._left + (now - self._at) / ONE_MORE_EVERY, MOST_WRONG)
        self._at = now
        if self._left < 1:
            return True
        self._left -= 1
        return False


async def _asked(questions: Questions, token: str) -> Response:
    row = await questions.by_link(token)
    if row.state != "open":
        return _told(410, _title(row), _ended(row))
    return _html(200, _title(row), f"{_what(row)}{_FORM}")


async def _answered(questions: Questions, token: str, request: Request) -> Response:
    form = await _form(request)
    decision = form.get("decision", "")
    if decision not in {"approve", "deny"}:
        return _told(400, "Not answered", "Go back, and press one of the two buttons.")
    words = form.get("message", "").replace("\r\n", "\n").strip()[:MOST_WORDS]
    row = await questions.answer_by_link(token, approved=decision == "approve", message=words)
    return _told(200, _title(row), f"{_ended(row)} You can close this page.")


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return {}
    try:
        fields = parse_qs(body.decode(), max_num_fields=10)
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}


_FORM = """<form method="post">
<label for="message">A few words, if you like</label>
<textarea id="message" name="message" maxlength="2000"></textarea>
<div class="ways"><button name="decision" value="approve">Approve</button>
<button class="no" name="decision" value="deny">Deny</button></div>
</form>"""


def _title(row: WaitRow) -> str:
    return f"{row.key.rpartition('/')[2]} of {row.job}"


def _ended(row: WaitRow) -> str:
    match row.state:
        case "answered":
            return f"It was {'approved' if row.approved else 'denied'} at {_moment(row.answered_at or 0)}."
        case "expired":
            return f"Nobody answered before {_moment(row.expires_at)}."
        case _:
            return "The job that asked is gone."


def _what(row: WaitRow) -> str:
    about = "" if row.about is None else _shown(row.about if isinstance(row.about, dict) else {"About": row.about})
    until = f"Asked at {_moment(row.asked_at)}, to be answered before {_moment(row.expires_at)}."
    whose = {"Job": f"{row.job} {row.job_id}", "Tenant": row.tenant}
    return f"<p>{escape(until)}</p>{about}{_shown({name: text for name, text in whose.items() if text})}"


def _shown(value: Any, depth: int = 0) -> str:
    """A value as HTML, all of it escaped."""
    if isinstance(value, dict) and value and depth < DEEPEST:
        rows = (f"<dt>{_text(str(name))}</dt><dd>{_shown(each, depth + 1)}</dd>" for name, each in value.items())
        return f"<dl>{''.join(rows)}</dl>"
    if isinstance(value, str):
        return _text(value)
    return f"<pre>{_text(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())}</pre>"


def _text(text: str) -> str:
    return escape(visible(text))


def visible(text: str) -> str:
    """A text in which everything can be seen, in the order in which it is written."""
    return _TREACHEROUS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _moment(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _told(status: int, title: str, words: str, headers: dict[str, str] | None = None) -> Response:
    return _html(status, title, f"<p>{_text(words)}</p>", headers)


def _html(status: int, title: str, content: str, headers: dict[str, str] | None = None) -> Response:
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="robots" content="noindex, nofollow">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>"
    )
    page = f"{head}<body><main><h1>{_text(title)}</h1>{content}</main></body></html>"
    return Response(
        page.encode(errors="backslashreplace"), status, media_type="text/html", headers={**HEADERS, **(headers or {})}
    )
