from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import socket
from email import message_from_bytes, policy

import orjson
import pytest
from aiohttp import web
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from oxherd.settings import Secret
from oxherd.telemetry.alerts import Alert, Notice
from oxherd.telemetry.channels import Email, Slack, Telegram, Undelivered, Webhook, Wording, deliver

ALERT = Alert(
    "queue-age", "", "the next of 3 jobs has waited for <12> min", "ticket", since=1_780_000_000, seen=1_780_000_600
)


def words(what: str = "fired") -> Wording:
    return Wording(Notice(what, ALERT), "agent-jobs", "https://example.com/runbooks/")


@pytest.fixture
async def receiver():
    """An HTTP server that keeps what it is sent and answers as told."""

    class Receiver:
        url = ""
        status = 200
        got: list[tuple[str, dict[str, str], bytes]] = []  # noqa: RUF012  one test, one receiver

    kept = Receiver()
    kept.got = []

    async def take(request: web.Request) -> web.Response:
        kept.got.append((request.path, dict(request.headers), await request.read()))
        return web.Response(status=kept.status, text="so it says")

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kept.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    yield kept
    await runner.cleanup()


@pytest.mark.parametrize("prefix", ["", "whsec_"])
async def test_a_webhook_is_signed_over_its_id_its_time_and_its_body(receiver, prefix):
    key = secrets.token_bytes(24)
    text = prefix + base64.b64encode(key).decode()
    await Webhook(Secret(receiver.url + "/hook"), Secret(text)).send(words())
    ((path, headers, body),) = receiver.got
    headers = {name.lower(): value for name, value in headers.items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    used = key if prefix else text.encode()
    expected = base64.b64encode(hmac.new(used, signed, hashlib.sha256).digest()).decode()
    assert (path, headers["webhook-signature"]) == ("/hook", f"v1,{expected}")
    told = orjson.loads(body)
    assert told["type"] == "alert.fired"
    assert told["data"]["key"] == "queue-age"
    assert told["data"]["since"] == "2026-05-28T20:26:40Z"
    assert told["data"]["runbook"] == "https://example.com/runbooks/queue-age.md"


async def test_slack_gets_text_in_which_nothing_can_ping_a_channel(receiver):
    await Slack(Secret(receiver.url + "/slack")).send(words("resolved"))
    told = orjson.loads(receiver.got[0][2])
    assert told["text"] == "🟢 RESOLVED queue-age (agent-jobs)"
    assert "&lt;12&gt;" in told["blocks"][0]["text"]["text"]
    assert "Over since 2026-05-28T20:36:40Z." in told["blocks"][0]["text"]["text"]


async def test_telegram_gets_plain_text_in_its_chat(receiver):
    await Telegram(Secret("123:fake"), "@ops", base=receiver.url).send(words("again"))
    path, _, body = receiver.got[0]
    assert path == "/bot123:fake/sendMessage"
    told = orjson.loads(body)
    assert told["chat_id"] == "@ops"
    assert told["text"].startswith("🔴 STILL FIRING queue-age (agent-jobs)")
    assert "parse_mode" not in told


async def test_a_refusal_is_told_without_the_address(receiver):
    receiver.status = 403
    with pytest.raises(Undelivered, match="HTTP 403: so it says"):
        await Telegram(Secret("123:fake"), "@ops", base=receiver.url).send(words())
    with pytest.raises(Undelivered) as caught:
        await Webhook(Secret("http://127.0.0.1:9/secret-path"), None).send(words())
    assert "secret-path" not in str(caught.value)


async def test_a_redirect_is_not_followed(receiver):
    receiver.status = 302
    with pytest.raises(Undelivered, match="HTTP 302"):
        await Slack(Secret(receiver.url)).send(words())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802  aiosmtpd's name
        self.mails.append(envelope.content)
        return "250 OK"


@pytest.fixture
def mail_server():
    password, mailbox = secrets.token_hex(8), Mailbox()

    def check(_server, _session, _envelope, _mechanism, data):
        right = data.login == b"ops@x" and data.password == password.encode()
        return AuthResult(success=right, handled=right)

    server = Controller(
        mailbox, hostname="127.0.0.1", port=free_port(), authenticator=check, auth_required=True, auth_require_tls=False
    )
    server.start()
    port = server.server.sockets[0].getsockname()[1]
    yield mailbox, f"smtp://ops%40x:{password}@127.0.0.1:{port}", f"smtp://ops%40x:wrong@127.0.0.1:{port}"
    server.stop()


async def test_mail_is_sent_with_a_login_and_the_end_is_in_the_thread_of_the_beginning(mail_server):
    mailbox, url, _ = mail_server
    channel = Email(Secret(url), "oxherd@example.com", ["a@example.com", "b@example.com"])
    await channel.send(words("fired"))
    await channel.send(words("resolved"))
    fired, resolved = (message_from_bytes(raw, policy=policy.default) for raw in mailbox.mails)
    assert fired["subject"] == "🔴 FIRING queue-age (agent-jobs)"
    assert fired["to"] == "a@example.com, b@example.com"
    assert "the next of 3 jobs" in fired.get_content()
    assert fired["references"] == resolved["references"]


async def test_a_mail_server_that_refuses_is_told_without_the_password(mail_server):
    _, _, wrong = mail_server
    with pytest.raises(Undelivered) as caught:
        await Email(Secret(wrong), "oxherd@example.com", ["a@example.com"]).send(words())
    assert "535" in str(caught.value)
    assert "wrong@" not in str(caught.value)


class Flaky:
    name = "flaky"

    def __init__(self, faults: int) -> None:
        self.faults = faults

    async def send(self, _words: Wording) -> None:
        self.faults -= 1
        if self.faults >= 0:
            raise Undelivered("not now")


async def test_a_channel_is_tried_three_times_and_the_others_do_not_suffer():
    failed: list[tuple[str, str]] = []
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def tell(*channels) -> bool:
        return await asyncio.wait_for(deliver(channels, words(), lambda *fault: failed.append(fault), pause=pause), 5)

    assert await tell(Flaky(2))
    assert failed == []
    assert await tell(Flaky(3), Flaky(0))
    assert failed == [("flaky", "not now")]
    assert not await tell(Flaky(9))
    assert await tell()
    assert len(pauses) == 6
