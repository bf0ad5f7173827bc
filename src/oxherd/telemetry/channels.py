"""Where alerts are told: a signed webhook, Slack, Telegram, e-mail. One class each; all say the same."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import orjson

from oxherd.clock import wall_ms
from oxherd.settings import Secret, Settings
from oxherd.telemetry.alerts import KINDS, Alert, Notice
from oxherd.telemetry.events import AlertFired, AlertResolved, emit

PATIENCE = 10.0  # seconds for one message
TRIES = 3
MOST_SHOWN = 300  # characters of what a service answered
TELEGRAM = "https://api.telegram.org"
WORDS = {"fired": "FIRING", "again": "STILL FIRING", "resolved": "RESOLVED"}
MARKS = {"fired": "🔴", "again": "🔴", "resolved": "🟢"}


class Undelivered(Exception):
    """A channel did not take a message; its text says why, without secrets."""


class Channel(Protocol):
    """Somewhere people are told."""

    @property
    def name(self) -> str:
        """What logs and `oxherd alerts test` call it."""

    async def send(self, words: Wording) -> None:
        """Tell once. Raises Undelivered."""


@dataclass(frozen=True, slots=True)
class Wording:
    """A notice in words.

    Attributes:
        notice: what happened.
        queue: of which queue.
        runbooks: the address of the runbooks' folder.
    """

    notice: Notice
    queue: str
    runbooks: str

    @property
    def title(self) -> str:
        """One line: what, which alert, of which queue."""
        alert = self.notice.alert
        return f"{MARKS[self.notice.what]} {WORDS[self.notice.what]} {alert.key} ({self.queue})"

    @property
    def text(self) -> str:
        """All there is to say, as plain text."""
        alert = self.notice.alert
        over = f"Over since {_time(alert.seen)}." if self.notice.what == "resolved" else ""
        lines = (
            KINDS[alert.kind].about,
            alert.summary,
            f"Since {_time(alert.since)}.",
            over,
            f"Runbook: {self.runbook}",
        )
        return "\n".join(line for line in lines if line)

    @property
    def runbook(self) -> str:
        """The page that says what to do."""
        return f"{self.runbooks.rstrip('/')}/{self.notice.alert.kind}.md"

    def announce(self) -> None:
        """Tell those who listen to events: the log, metrics, Sentry."""
        alert = self.notice.alert
        common = {"alert": alert.kind, "subject": alert.subject, "severity": alert.severity}
        if self.notice.what == "resolved":
            emit(AlertResolved(**common, seconds=round(alert.seen - alert.since, 1)))
        else:
            again = self.notice.what == "again"
            emit(AlertFired(**common, summary=alert.summary, runbook=self.runbook, again=again))

    def data(self) -> dict[str, Any]:
        """As JSON-able data, for programs."""
        alert: Alert = self.notice.alert
        return {
            "type": f"alert.{'resolved' if self.notice.what == 'resolved' else 'fired'}",
            "timestamp": _time(wall_ms() / 1000),
            "data": {
                "alert": alert.kind, "subject": alert.subject, "key": alert.key, "severity": alert.severity,
                "summary": alert.summary, "about": KINDS[alert.kind].about, "queue": self.queue,
                "since": _time(alert.since), "seen": _time(alert.seen), "again": self.notice.what == "again",
                "runbook": self.runbook,
            },
        }  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Webhook:
    """POSTs JSON, signed as the Standard Webhooks specification has it (https://www.standardwebhooks.com).

    The signature is base64 of HMAC-SHA256 over `id.timestamp.body`. A secret that begins with `whsec_` is base64 after
    that, any other counts as it is written.
    """

    url: Secret
    secret: Secret | None
    name: str = "webhook"

    async def send(self, words: Wording) -> None:
        """See Channel."""
        body = orjson.dumps(words.data())
        headers = {"content-type": "application/json", "webhook-id": f"msg_{uuid4().hex}"}
        headers["webhook-timestamp"] = str(wall_ms() // 1000)
        if self.secret is not None:
            headers["webhook-signature"] = sign(self.secret, headers, body)
        await _post(self.url.reveal(), body, headers)


def sign(secret: Secret, headers: Mapping[str, str], body: bytes) -> str:
    """The `webhook-signature` of a message with these `webhook-id` and `webhook-timestamp` headers."""
    text = secret.reveal()
    key = text.encode()
    if text.startswith("whsec_"):
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


@dataclass(frozen=True, slots=True)
class Slack:
    """POSTs to a Slack incoming webhook (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks)."""

    url: Secret
    name: str = "slack"

    async def send(self, words: Wording) -> None:
        """See Channel."""
        block = {
            "type": "section",
            "text": {"type": "mrkdwn", "text": f"*{_slack(words.title)}*\n{_slack(words.text)}"},
        }
        body = orjson.dumps({"text": words.title, "blocks": [block]})
        await _post(self.url.reveal(), body, {"content-type": "application/json"})


def _slack(text: str) -> str:
    # The three characters that Slack's mrkdwn wants escaped; what a job's error says must not ping a channel.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True, slots=True)
class Telegram:
    """Sends with a Telegram bot (https://core.telegram.org/bots/api#sendmessage)."""

    token: Secret
    chat: str
    base: str = TELEGRAM
    name: str = "telegram"

    async def send(self, words: Wording) -> None:
        """See Channel."""
        text = f"{words.title}\n\n{words.text}"[:4096]
        body = {"chat_id": self.chat, "text": text, "link_preview_options": {"is_disabled": True}}
        url = f"{self.base}/bot{self.token.reveal()}/sendMessage"
        await _post(url, orjson.dumps(body), {"content-type": "application/json"})


@dataclass(frozen=True, slots=True)
class Email:
    """Sends through an SMTP server: `smtps://user:password@host:465`, or `smtp://…:587` with STARTTLS where offered."""

    url: Secret
    sender: str
    to: Sequence[str]
    name: str = "email"

    async def send(self, words: Wording) -> None:
        """See Channel."""
        message = EmailMessage()
        message["Subject"] = words.title
        message["From"] = self.sender
        message["To"] = ", ".join(self.to)
        alert = words.notice.alert
        # One thread for each alert, so that its end is read beside its beginning.
        message["References"] = f"<{hashlib.sha256(f'{alert.key}{alert.since}'.encode()).hexdigest()[:32]}@oxherd>"
        message.set_content(words.text)
        await asyncio.to_thread(self._send, message)

    def _send(self, message: EmailMessage) -> None:
        import smtplib
        import ssl

        parts = urlsplit(self.url.reveal())
        host, context = parts.hostname or "", ssl.create_default_context()
        try:
            if parts.scheme == "smtps":
                server: smtplib.SMTP = smtplib.SMTP_SSL(host, parts.port or 465, timeout=PATIENCE, context=context)
            else:
                server = smtplib.SMTP(host, parts.port or 587, timeout=PATIENCE)
            with server:
                server.ehlo()
                if parts.scheme == "smtp" and server.has_extn("starttls"):
                    server.starttls(context=context)
                    server.ehlo()
                if parts.username:
                    server.login(unquote(parts.username), unquote(parts.password or ""))
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise Undelivered(f"{type(error).__name__}: {error}"[:MOST_SHOWN]) from None


async def _post(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session,
            session.post(url, data=body, headers=dict(headers), allow_redirects=False) as response,
        ):
            if response.status >= 300:
                text = await response.text(errors="replace")
                raise Undelivered(f"HTTP {response.status}: {text[:MOST_SHOWN]}")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # The address may be the secret, and aiohttp quotes it: the error's type has to do.
        raise Undelivered(f"no answer ({type(error).__name__})") from None


async def deliver(
    channels: Sequence[Channel],
    words: Wording,
    failed: Callable[[str, str], None],
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Tell all channels, each up to three times.

    Parameters:
        channels: where to.
        words: what.
        failed: called with a channel's name and the reason when it took none of the tries.
        pause: waits for so many seconds between tries.

    Returns:
        Whether somebody heard it; True without channels, since there is nobody to tell later either.
    """

    async def tell(channel: Channel) -> bool:
        for attempt in range(1, TRIES + 1):
            try:
                await channel.send(words)
            except Undelivered as error:
                if attempt == TRIES:
                    failed(channel.name, str(error))
                    return False
                await pause(2**attempt * random.uniform(0.5, 1.0))
            else:
                return True
        return False

    heard = await asyncio.gather(*(tell(channel) for channel in channels))
    return any(heard) or not channels


def channels_of(settings: Settings) -> list[Channel]:
    """The channels that the variables configure."""
    found: list[Channel] = []
    if settings.alert_webhook_url is not None:
        found.append(Webhook(settings.alert_webhook_url, settings.alert_webhook_secret))
    if settings.alert_slack_url is not None:
        found.append(Slack(settings.alert_slack_url))
    if settings.alert_telegram_token is not None and settings.alert_telegram_chat:
        found.append(Telegram(settings.alert_telegram_token, settings.alert_telegram_chat))
    if settings.alert_smtp_url is not None and settings.alert_email_to:
        sender = settings.alert_email_from or settings.alert_email_to[0]
        found.append(Email(settings.alert_smtp_url, sender, settings.alert_email_to))
    return found
