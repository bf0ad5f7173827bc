"""Every variable Oxherd reads, in one table; nothing else reads the environment.

The table drives parsing, `.env.example`, `docs/settings.md` and the start-up check. All faults are reported
at once.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from oxherd.errors import SettingsError


class Secret(str):
    """A value that shows as `***` wherever it is printed, formatted, logged or written as JSON.

    The text of the string *is* `***`, so a slip shows that; only `reveal()` gives the value.
    """

    __slots__ = ("_value",)
    _value: str

    def __new__(cls, value: str) -> Self:
        """Hide `value`."""
        secret = super().__new__(cls, "***")
        secret._value = value
        return secret

    def reveal(self) -> str:
        """The value itself. Call it only where the value leaves the process."""
        return self._value

    def __repr__(self) -> str:
        """Hide the value from reprs, tracebacks with locals included."""
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        """Compare two secrets in constant time."""
        return isinstance(other, Secret) and hmac.compare_digest(_bytes(self._value), _bytes(other._value))

    def __ne__(self, other: object) -> bool:
        """Compare two secrets in constant time."""
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __copy__(self) -> Self:
        """Be its own copy, as every immutable value is."""
        return self

    def __deepcopy__(self, _: Any) -> Self:
        """Be its own copy, so that a dataclass which holds a secret can be turned into a dict."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a pickle would hold the value in the clear."""
        raise TypeError("a Secret can't be pickled")

    def __getstate__(self) -> NoReturn:
        """Refuse what pickle's relatives ask for."""
        raise TypeError("a Secret can't be pickled")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # a variable may hold bytes that are no UTF-8


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """Where Redis is and how to log in, parsed from `REDIS_URL`.

    `prefix` is what the queue's keys begin with: on a Redis Cluster, the node that has those is meant.
    """

    host: str
    port: int
    path: str | None
    db: int
    username: str | None
    password: Secret | None
    tls: bool
    prefix: str = ""

    @property
    def shown(self) -> str:
        """The address without credentials, for logs and errors."""
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def parse_redis_url(text: str) -> RedisTarget:
    """Parse `redis://`, `rediss://` or `unix://`, with user, password and database.

    Parameters:
        text: such as `rediss://default:p%40ss@host:6379/2` or `unix:///run/redis.sock?db=1`. Special
            characters in the password may be percent-encoded or, except for `%`, left as they are.

    Raises:
        ValueError: saying what is wrong with the shape, never with the value.
    """
    scheme, mark, rest = text.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    userinfo, at, address = rest.rpartition("@") if not rest.startswith("/") else ("", "", rest)
    username, _, password = userinfo.partition(":") if at else ("", "", "")
    login = (unquote(username) or None, Secret(unquote(password)) if password else None)
    if scheme == "unix":
        return _unix_target(address, *login)
    return _tcp_target(address, *login, tls=scheme == "rediss")


def _unix_target(address: str, username: str | None, password: Secret | None) -> RedisTarget:
    path, _, query = address.partition("?")
    if not path.startswith("/"):
        raise ValueError("a unix:// address needs an absolute path, as in unix:///run/redis.sock")
    db = parse_qs(query).get("db", ["0"])[0]
    return RedisTarget("", 0, unquote(path), _database(db), username, password, tls=False)


def _tcp_target(address: str, username: str | None, password: Secret | None, *, tls: bool) -> RedisTarget:
    parts = _split(f"//{address}")
    try:
        port = parts.port or 6379
    except ValueError:
        raise ValueError(
            "the port must be a number from 1 to 65535 (and a password ends with @, as in redis://:password@host:6379)"
        ) from None
    if not parts.hostname:
        raise ValueError("the host is missing, as in redis://localhost:6379")
    db = parts.path.strip("/") or parse_qs(parts.query).get("db", ["0"])[0]
    return RedisTarget(parts.hostname, port, None, _database(db), username, password, tls)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its own message quotes the address, and a password with it where the @ was forgotten
        raise ValueError("the host can't be read; an IPv6 address stands in brackets, as in [::1]") from None


def _database(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("the database after the last / must be a number")
    return int(text)


_SHORTEST_TOKEN = 16
_MOST_DOLLARS = 1_000_000
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds in `90`, `90s`, `1.5m`, `2h`, `250ms` or `1d`.

    Raises:
        ValueError: when it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", text.strip())
    if not match:
        raise ValueError("must be a duration such as 30s, 10m or 1h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def parse_key(text: str) -> Secret:
    """Check that the text is base64 of exactly 32 bytes, and hide it."""
    try:
        size = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("must be base64; make one with: openssl rand -base64 32") from None
    if size != 32:
        raise ValueError(f"must be base64 of 32 bytes, this is {size}; make one with: openssl rand -base64 32")
    return Secret(text)


def parse_keys(text: str) -> tuple[Secret, ...]:
    """Check each of the comma-separated keys.

    Raises:
        ValueError: naming every one that is no key by its place.
    """
    keys, faults = [], []
    parts = [part for each in text.split(",") if (part := each.strip())]
    for place, part in enumerate(parts, 1):
        try:
            keys.append(parse_key(part))
        except ValueError as fault:
            faults.append(f"key {place} of {len(parts)} {fault}")
    if faults:
        raise ValueError(f"must hold keys only: {'; '.join(faults)}")
    return tuple(keys)


def _longer_than_nothing(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("must be above 0")
    return seconds


def _secret(text: str) -> Secret:
    return Secret(text)


def parse_token(text: str) -> Secret:
    """Check that a token is long enough not to be guessed, and made of what a header can carry, and hide it."""
    if len(text) < _SHORTEST_TOKEN:
        raise ValueError(f"must have {_SHORTEST_TOKEN} characters or more; make one with: openssl rand -hex 24")
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be of letters, digits and ASCII punctuation, without spaces")
    return Secret(text)


def _postgres_url(text: str) -> Secret:
    if not text.startswith(("postgres://", "postgresql://")):
        raise ValueError("must begin with postgresql://")
    return Secret(text)


def _http_url(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    return text.rstrip("/")


def _hidden_url(text: str) -> Secret:
    return Secret(_http_url(text))


def _smtp_url(text: str) -> Secret:
    parts = _split(text)
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
        raise ValueError("must be an smtp:// or smtps:// address with a host")
    return Secret(text)


def _webhook_secret(text: str) -> Secret:
    if text.startswith("whsec_"):
        try:
            base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("must be base64 after whsec_") from None
    return Secret(text)


def _addresses(text: str) -> tuple[str, ...]:
    found = tuple(part for each in text.split(",") if (part := each.strip()))
    if any(not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", each) for each in found):
        raise ValueError("must be addresses such as ops@example.com, separated by commas")
    return found


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def parse_dollars(text: str) -> Decimal:
    """US dollars, such as `20` or `0.5`.

    Raises:
        ValueError: when it is no amount.
    """
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 <= amount <= _MOST_DOLLARS:
        raise ValueError("must be an amount of US dollars such as 20 or 0.50")
    return amount


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("must be a number from 0 to 1, such as 0.1")
    return share


def _words(text: str) -> tuple[str, ...]:
    return tuple(part for each in text.split(",") if (part := each.strip()))


def _secrets(text: str) -> tuple[Secret, ...]:
    return tuple(map(Secret, _words(text)))


def _storage_url(text: str) -> str:
    scheme, mark, _ = text.partition("://")
    if mark and scheme not in {"s3", "gs", "az", "file"}:
        raise ValueError("must begin with s3://, gs://, az:// or file://, or be a folder")
    return text


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text.lower()

    return parse


def _queue_name(text: str) -> str:
    if ":" in text:
        raise ValueError("must not hold a colon; BullMQ separates the parts of its keys with it")
    return text


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table.

    Attributes:
        name: the environment variable.
        kind: the type in words, for the docs.
        parse: text in, value out; raises ValueError with the fix.
        default: what an unset variable means, as text; None where it has no value then.
        secret: whether the value must never be shown.
        needed_by: who can't do without it, in words.
        about: what it does, one sentence.
        example: for `.env.example`; obviously fake for secrets.
    """

    name: str
    kind: str
    parse: Callable[[str], Any]
    default: str | None
    secret: bool
    needed_by: str
    about: str
    example: str = ""


TABLE: tuple[Variable, ...] = (
    Variable(
        "REDIS_URL", "URL (redis, rediss, unix)", parse_redis_url, None, True,
        "everything that touches the queue",
        "Where the BullMQ queue lives; user, password and database are part of it.", "redis://localhost:6379/0",
    ),
    Variable(
        "DATABASE_URL", "URL (postgresql)", _postgres_url, None, True,
        "the worker, unless SUPABASE_URL is set or --no-store is given",
        "Postgres that keeps runs and steps; preferred over Supabase's REST when both are set.",
        "postgresql://user:password@localhost:5432/app",
    ),
    Variable(
        "SUPABASE_URL", "URL (https)", _http_url, None, False, "the worker, where DATABASE_URL is not set",
        "The Supabase project whose REST interface keeps runs and steps.", "https://your-project.supabase.co",
    ),
    Variable(
        "SUPABASE_SERVICE_ROLE_KEY", "text", _secret, None, True, "the worker, with SUPABASE_URL",
        "The service-role or secret key of that project.", "your-service-role-key",
    ),
    Variable(
        "ENCRYPTION_KEY", "base64, 32 bytes", parse_key, None, True, "stored credentials",
        "Encrypts customers' credentials; checked at start where it is set.", "",
    ),
    Variable(
        "ENCRYPTION_KEYS_PREVIOUS", "base64, 32 bytes each, comma-separated", parse_keys, "", True, "nobody",
        "Keys that ENCRYPTION_KEY replaced: what they sealed can be opened until `oxherd credentials rewrap` is done.",
    ),
    Variable(
        "OPENROUTER_API_KEY", "text", _secret, None, True,
        "agents, unless OPENROUTER_BASE_URL points elsewhere",
        "The key that model calls are made and paid with.", "sk-or-v1-your-key",
    ),
    Variable(
        "OPENROUTER_BASE_URL", "URL (http, https)", _http_url, "https://openrouter.ai/api/v1", False,
        "nobody",
        "Any OpenAI-compatible endpoint: OpenRouter, Ollama, vLLM, llama.cpp.",
    ),
    Variable(
        "BUDGET_DAILY_USD", "US dollars", parse_dollars, None, False, "nobody",
        "What model calls of all queues of a prefix may cost in a day (UTC); at the cap, workers take no more jobs.",
    ),
    Variable(
        "BUDGET_TENANT_DAILY_USD", "US dollars", parse_dollars, None, False, "nobody",
        "The same for each tenant: at its cap, its runs end.",
    ),
    Variable(
        "BUDGET_AGENT_DAILY_USD", "US dollars", parse_dollars, None, False, "nobody",
        "The same for each agent, by its name.",
    ),
    Variable(
        "JOB_QUEUE_NAME", "text", _queue_name, "agent-jobs", False, "nobody", "The BullMQ queue to serve.",
    ),
    Variable(
        "JOB_QUEUE_PREFIX", "text", str, "bull", False, "nobody",
        "BullMQ's key prefix; set it only where the producers set one. On a Redis Cluster it needs a hash tag: {bull}.",
    ),
    Variable(
        "JOB_CONCURRENCY", "whole number, 1 to 100000", _count(1, 100_000), "5", False, "nobody",
        "How many jobs one worker runs at the same time.",
    ),
    Variable(
        "JOB_TENANT_TURNS", "on, off", _choice("on", "off"), "on", False, "nobody",
        "Whether tenants (the payload's `tenant`) take turns; off runs all jobs in the order in which they came.",
    ),
    Variable(
        "JOB_TENANT_CONCURRENCY", "whole number, 0 to 100000", _count(0, 100_000), "0", False, "nobody",
        "How many jobs of one tenant all workers of the queue together run at the same time; 0 is no limit.",
    ),
    Variable(
        "JOB_TIMEOUT", "duration", parse_duration, "15m", False, "nobody",
        "How long one attempt may take in all, unless its handler says otherwise; 0 is no limit.",
    ),
    Variable(
        "JOB_IDLE_TIMEOUT", "duration", parse_duration, "0", False, "nobody",
        "How long an attempt may go without a step, progress or log line, unless its handler says otherwise; "
        "0 is no limit.",
    ),
    Variable(
        "APPROVAL_TIMEOUT", "duration", _longer_than_nothing, "24h", False, "nobody",
        "How long a question to a person stands, unless its handler says otherwise; then nobody has answered.",
    ),
    Variable(
        "PUBLIC_URL", "URL (http, https)", _http_url, None, False, "links that answer a question, except on Railway",
        "Where people reach this worker's HTTP server, such as https://oxherd.example.com.",
    ),
    Variable(
        "JOB_CRASH_LIMIT", "whole number, 0 to 100", _count(0, 100), "2", False, "nobody",
        "How many times a job may take its worker down before it is quarantined as failed.",
    ),
    Variable(
        "SHUTDOWN_GRACE", "duration", parse_duration, "25s", False, "nobody",
        "How long running jobs may go on after SIGTERM before they are handed back; keep it below the "
        "platform's draining time.",
    ),
    Variable(
        "PORT", "port, 0 to 65535", _count(0, 65535), "8080", False, "nobody",
        "Where /health and /metrics are served; 0 takes a free one.",
    ),
    Variable(
        "HOST", "address", str, "0.0.0.0", False, "nobody",  # noqa: S104  a container's probe comes from outside
        "The address that the HTTP server binds to.",
    ),
    Variable(
        "API_TOKEN", "text, 16 characters or more", parse_token, None, True,
        "the HTTP API and the dashboard, unless they are asked from the same machine",
        "Lets whoever has it see and do everything over HTTP; make one with: openssl rand -hex 24",
    ),
    Variable(
        "API_READ_TOKEN", "text, 16 characters or more", parse_token, None, True, "nobody",
        "Lets whoever has it see everything over HTTP, and change nothing.",
    ),
    Variable(
        "LOG_LEVEL", "debug, info, warning, error", _choice("debug", "info", "warning", "error"), "info",
        False, "nobody",
        "The least severe line that is logged.",
    ),
    Variable(
        "LOG_FORMAT", "auto, pretty, json", _choice("auto", "pretty", "json"), "auto", False, "nobody",
        "Pretty for people, JSON for collectors; auto is pretty on a terminal.",
    ),
    Variable(
        "BACKUP_URL", "URL (s3, gs, az, file) or folder", _storage_url, None, False, "`oxherd backup`",
        "Where backups are kept; a prefix of its own for each database.", "s3://bucket/oxherd",
    ),
    Variable(
        "BACKUP_RECIPIENTS", "age or SSH public keys, comma-separated", _words, "", False, "`oxherd backup create`",
        "Whom backups are encrypted to; who has only these can't read one. Made by: oxherd backup keygen",
    ),
    Variable(
        "BACKUP_IDENTITY", "age identities, comma-separated", _secrets, "", True,
        "`oxherd backup verify` and `restore`",
        "The secret halves, which open backups: keep them away from workers that only write some.",
    ),
    Variable(
        "BACKUP_SCHEMAS", "names, comma-separated", _words, "", False, "nobody",
        "Only these schemas are backed up; when unset, all but those that Supabase manages.",
    ),
    Variable(
        "BACKUP_SPOOL", "folder", Path, None, False, "nobody",
        "A backup waits there, encrypted, until it is stored: its upload goes on after a crash.", "/var/spool/oxherd",
    ),
    Variable(
        "BACKUP_PGBACKREST_STANZA", "text", str, "", False, "nobody",
        "pgBackRest's name for your own server: base backups and `rewind` are then left to it.", "main",
    ),
    Variable(
        "AWS_ACCESS_KEY_ID", "text", _secret, None, True, "BACKUP_URL with s3://, unless the machine has a role",
        "The key's id for the bucket.",
    ),
    Variable("AWS_SECRET_ACCESS_KEY", "text", _secret, None, True, "AWS_ACCESS_KEY_ID", "The key itself."),
    Variable("AWS_SESSION_TOKEN", "text", _secret, None, True, "nobody", "The session's token, of temporary keys."),
    Variable("AWS_REGION", "text", str, "us-east-1", False, "nobody", "The bucket's region."),
    Variable(
        "AWS_ENDPOINT_URL", "URL (http, https)", _http_url, None, False, "S3-compatible storage that is not Amazon's",
        "Where such a storage answers: Cloudflare R2, Backblaze, MinIO, Supabase, Railway.",
    ),
    Variable(
        "GOOGLE_SERVICE_ACCOUNT_KEY", "JSON", _secret, None, True,
        "BACKUP_URL with gs://, unless the machine has a role",
        "The service account's key file, its text.",
    ),
    Variable(
        "AZURE_STORAGE_ACCOUNT_NAME", "text", str, "", False, "BACKUP_URL with az://", "The storage account.",
    ),
    Variable(
        "AZURE_STORAGE_ACCOUNT_KEY", "text", _secret, None, True, "BACKUP_URL with az://", "The storage account's key.",
    ),
    Variable(
        "AUDIT_KEY", "base64, 32 bytes", parse_key, None, True, "`oxherd audit fingerprints`",
        "Keys the fingerprints of secrets in `.oxherd-audit.toml`; the same for all who run `oxherd audit secrets`.",
    ),
    Variable(
        "SENTRY_AUTH_TOKEN", "text", _secret, None, True, "`oxherd slo push`",
        "A Sentry token with the scopes org:write and alerts:write.",
    ),
    Variable("SENTRY_ORG", "text", str, "", False, "`oxherd slo push`", "The organisation's slug in Sentry."),
    Variable("SENTRY_PROJECT", "text", str, "", False, "`oxherd slo push`", "The project's slug in Sentry."),
    Variable(
        "SENTRY_URL", "URL (http, https)", _http_url, "https://sentry.io", False, "nobody",
        "Where Sentry's API is: a region's address, or your own Sentry.",
    ),
    Variable(
        "OXHERD_CONFIG", "path", str, "oxherd.toml", False, "nobody",
        "The file with objectives and what alerts wait for; without the file, the defaults hold.",
    ),
    Variable(
        "ALERT_WEBHOOK_URL", "URL (http, https)", _hidden_url, None, True, "nobody",
        "Alerts are POSTed there as JSON.",
    ),
    Variable(
        "ALERT_WEBHOOK_SECRET", "text, or whsec_ and base64", _webhook_secret, None, True, "nobody",
        "Signs what is POSTed there, as Standard Webhooks has it.",
    ),
    Variable(
        "ALERT_SLACK_URL", "URL (https)", _hidden_url, None, True, "nobody",
        "A Slack incoming webhook for alerts.",
    ),
    Variable(
        "ALERT_TELEGRAM_TOKEN", "text", _secret, None, True, "nobody", "The Telegram bot that tells of alerts.",
    ),
    Variable(
        "ALERT_TELEGRAM_CHAT", "text", str, "", False, "ALERT_TELEGRAM_TOKEN",
        "The chat it tells them in: a number, or @channel.",
    ),
    Variable(
        "ALERT_SMTP_URL", "URL (smtp, smtps)", _smtp_url, None, True, "nobody",
        "The mail server for alerts, such as smtps://user:password@host:465.",
    ),
    Variable(
        "ALERT_EMAIL_TO", "addresses, comma-separated", _addresses, "", False, "ALERT_SMTP_URL", "Who gets mail.",
    ),
    Variable(
        "ALERT_EMAIL_FROM", "address", str, "", False, "nobody", "Who it comes from; the first receiver when unset.",
    ),
    Variable(
        "RUNBOOKS_URL", "text", str, "docs/runbooks", False, "nobody",
        "Where your copy of the runbooks is read; alerts link there.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "URL (http, https)", _http_url, None, False, "nobody",
        "Traces are sent there as OTLP over HTTP, to /v1/traces below it; needs the extra otel.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "URL (http, https)", _http_url, None, False, "nobody",
        "The same, the whole address.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_HEADERS", "name=value, comma-separated", _secret, None, True, "nobody",
        "Sent with them, such as the collector's key. The SDK reads its other OTEL_* variables itself.",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "name=value, comma-separated", _secret, None, True, "nobody",
        "The same, for traces alone.",
    ),
    Variable(
        "OTEL_SDK_DISABLED", "true, false", _choice("true", "false"), "false", False, "nobody", "Sends no traces.",
    ),
    Variable(
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true, false", _choice("true", "false"), "false", False,
        "nobody",
        "Puts prompts, replies, and what tools were given and gave into traces; they may hold customers' data.",
    ),
    Variable(
        "SENTRY_DSN", "URL (https)", _hidden_url, None, True, "nobody",
        "Errors, traces and check-ins of schedules are sent to this Sentry project; needs the extra sentry.",
    ),
    Variable(
        "SENTRY_TRACES_SAMPLE_RATE", "share, 0 to 1", _share, "0", False, "nobody",
        "The share of jobs whose traces are sent to Sentry.",
    ),
    Variable(
        "SENTRY_ENVIRONMENT", "text", str, "", False, "nobody",
        "What Sentry calls this deployment; Railway's environment, else production, when unset.",
    ),
    Variable(
        "SENTRY_RELEASE", "text", str, "", False, "nobody",
        "What Sentry calls this version of your code; the commit, else Oxherd's version, when unset.",
    ),
    Variable(
        "OPENROUTER_MANAGEMENT_KEY", "text", _secret, None, True, "`oxherd rotate OPENROUTER_API_KEY`",
        "A management key of OpenRouter: makes and deletes keys, and can't pay for a model call. Not for workers.",
    ),
    Variable(
        "SUPABASE_ACCESS_TOKEN", "text", _secret, None, True,
        "`oxherd rotate SUPABASE_SERVICE_ROLE_KEY`, and `DATABASE_URL` on Supabase",
        "A personal access token of Supabase, for its Management API. Not for workers.",
    ),
    Variable(
        "SUPABASE_PROJECT_REF", "text", str, "", False, "nobody",
        "The project's ref, 20 letters, where SUPABASE_URL is a domain of your own.",
    ),
    Variable(
        "SUPABASE_API_URL", "URL (http, https)", _http_url, "https://api.supabase.com", False, "nobody",
        "Where Supabase's Management API is.",
    ),
    Variable(
        "UPSTASH_EMAIL", "text", str, "", False, "`oxherd rotate REDIS_URL` on Upstash",
        "The account that UPSTASH_API_KEY belongs to.",
    ),
    Variable(
        "UPSTASH_API_KEY", "text", _secret, None, True, "`oxherd rotate REDIS_URL` on Upstash",
        "A key of Upstash's Developer API. Not for workers.",
    ),
    Variable(
        "UPSTASH_API_URL", "URL (http, https)", _http_url, "https://api.upstash.com/v2", False, "nobody",
        "Where Upstash's Developer API is.",
    ),
    Variable(
        "REDIS_ADMIN_URL", "URL (redis, rediss, unix)", parse_redis_url, None, True, "nobody",
        "A login that may change Redis's users, for `oxherd rotate REDIS_URL` where that of REDIS_URL may not.",
    ),
    Variable(
        "DATABASE_ADMIN_URL", "URL (postgresql)", _postgres_url, None, True, "`oxherd rotate DATABASE_URL`",
        "A login of the same Postgres that may make roles. Not for workers.",
    ),
    Variable(
        "RAILWAY_TOKEN", "text", _secret, None, True,
        "`oxherd deploy` and `oxherd env`, unless RAILWAY_API_TOKEN is set",
        "A project token of Railway: good for one environment of one project, and preferred.",
    ),
    Variable(
        "RAILWAY_API_TOKEN", "text", _secret, None, True,
        "`oxherd deploy` and `oxherd env`, unless RAILWAY_TOKEN is set",
        "A token of a Railway account or workspace; not used where RAILWAY_TOKEN is set.",
    ),
    Variable(
        "RAILWAY_PROJECT_ID", "id or name", str, "", False, "`oxherd deploy` and `oxherd env`, with RAILWAY_API_TOKEN",
        "The project on Railway; set by Railway in its containers.",
    ),
    Variable(
        "RAILWAY_ENVIRONMENT_ID", "id or name", str, "", False, "nobody",
        "The environment there, where the token sees several; set by Railway in its containers.",
    ),
    Variable(
        "RAILWAY_SERVICE_ID", "id or name", str, "", False, "nobody",
        "The service there, where the project has several; set by Railway in its containers.",
    ),
    Variable(
        "RAILWAY_API_URL", "URL (http, https)", _http_url, "https://backboard.railway.com/graphql/v2", False, "nobody",
        "Where Railway's API is.",
    ),
    Variable(
        "NOTIFY_SOCKET", "text", str, "", False, "nobody",
        "Set by systemd: where the worker says that it is ready, alive and stopping.",
    ),
    Variable(
        "WATCHDOG_USEC", "whole number of microseconds", _count(0, 10**12), "0", False, "nobody",
        "Set by systemd: how long it waits for a sign of life before it kills the worker.",
    ),
    Variable(
        "RAILWAY_ENVIRONMENT_NAME", "text", str, "", False, "nobody",
        "Set by Railway; what Sentry calls this deployment.",
    ),
    Variable(
        "RAILWAY_GIT_COMMIT_SHA", "text", str, "", False, "nobody",
        "Set by Railway; shown as the commit in /health and the start-up line.",
    ),
    Variable(
        "RAILWAY_PUBLIC_DOMAIN", "text", str, "", False, "nobody",
        "Set by Railway; used where PUBLIC_URL is not set.",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The parsed variables, one attribute per row of the table, in lower case."""

    redis_url: RedisTarget
    database_url: Secret | None
    supabase_url: str | None
    supabase_service_role_key: Secret | None
    encryption_key: Secret | None
    encryption_keys_previous: tuple[Secret, ...]
    openrouter_api_key: Secret | None
    openrouter_base_url: str
    budget_daily_usd: Decimal | None
    budget_tenant_daily_usd: Decimal | None
    budget_agent_daily_usd: Decimal | None
    job_queue_name: str
    job_queue_prefix: str
    job_concurrency: int
    job_tenant_turns: str
    job_tenant_concurrency: int
    job_timeout: float
    job_idle_timeout: float
    approval_timeout: float
    public_url: str | None
    job_crash_limit: int
    shutdown_grace: float
    port: int
    host: str
    api_token: Secret | None
    api_read_token: Secret | None
    log_level: str
    log_format: str
    backup_url: str | None
    backup_recipients: tuple[str, ...]
    backup_identity: tuple[Secret, ...]
    backup_schemas: tuple[str, ...]
    backup_spool: Path | None
    backup_pgbackrest_stanza: str
    aws_access_key_id: Secret | None
    aws_secret_access_key: Secret | None
    aws_session_token: Secret | None
    aws_region: str
    aws_endpoint_url: str | None
    google_service_account_key: Secret | None
    azure_storage_account_name: str
    azure_storage_account_key: Secret | None
    audit_key: Secret | None
    sentry_auth_token: Secret | None
    sentry_org: str
    sentry_project: str
    sentry_url: str
    oxherd_config: str
    alert_webhook_url: Secret | None
    alert_webhook_secret: Secret | None
    alert_slack_url: Secret | None
    alert_telegram_token: Secret | None
    alert_telegram_chat: str
    alert_smtp_url: Secret | None
    alert_email_to: tuple[str, ...]
    alert_email_from: str
    runbooks_url: str
    otel_exporter_otlp_endpoint: str | None
    otel_exporter_otlp_traces_endpoint: str | None
    otel_exporter_otlp_headers: Secret | None
    otel_exporter_otlp_traces_headers: Secret | None
    otel_sdk_disabled: str
    otel_instrumentation_genai_capture_message_content: str
    sentry_dsn: Secret | None
    sentry_traces_sample_rate: float
    sentry_environment: str
    sentry_release: str
    openrouter_management_key: Secret | None
    supabase_access_token: Secret | None
    supabase_project_ref: str
    supabase_api_url: str
    upstash_email: str
    upstash_api_key: Secret | None
    upstash_api_url: str
    redis_admin_url: RedisTarget | None
    database_admin_url: Secret | None
    railway_token: Secret | None
    railway_api_token: Secret | None
    railway_project_id: str
    railway_environment_id: str
    railway_service_id: str
    railway_api_url: str
    notify_socket: str
    watchdog_usec: int
    railway_environment_name: str
    railway_git_commit_sha: str
    railway_public_domain: str

    @property
    def has_store(self) -> bool:
        """Whether a database is configured."""
        return self.database_url is not None or self.supabase_url is not None

    @property
    def reached_at(self) -> str | None:
        """Where people reach the HTTP server, or None where nobody said."""
        return self.public_url or (f"https://{self.railway_public_domain}" if self.railway_public_domain else None)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret value, and the passwords inside URLs, so that logs can hide them."""
        return tuple(secret for _, secret in self.named_secrets)

    @property
    def named_secrets(self) -> tuple[tuple[str, Secret], ...]:
        """The same, each with the name of its variable."""
        named: list[tuple[str, Any]] = [
            (variable.name, getattr(self, variable.name.lower())) for variable in TABLE if variable.secret
        ]
        named.append(("REDIS_URL", getattr(self.redis_url, "password", None)))
        named.append(("REDIS_ADMIN_URL", getattr(self.redis_admin_url, "password", None)))
        for name, parts in _INSIDE:
            named += [(name, part) for part in parts(getattr(self, name.lower()))]
        return tuple((name, value) for name, value in named if isinstance(value, Secret))


def _in_headers(headers: Secret | None) -> list[Secret]:
    """The values in `name=value,name=value`, as they are written and as they are meant."""
    values = [part.partition("=")[2].strip() for part in headers.reveal().split(",")] if headers else []
    return [Secret(form) for value in values if value for form in {value, unquote(value)}]


def _passwords(url: Secret | None) -> list[Secret]:
    """The password in a URL as it is written and as it is meant."""
    login, at, _ = url.reveal().rpartition("@") if url else ("", "", "")
    password = login.partition("://")[2].partition(":")[2]
    return [Secret(password), Secret(unquote(password))] if at and password else []


# The secrets inside the values of variables.
_INSIDE: tuple[tuple[str, Callable[[Any], Iterable[Secret]]], ...] = (
    ("DATABASE_URL", _passwords),
    ("DATABASE_ADMIN_URL", _passwords),
    ("ALERT_SMTP_URL", _passwords),
    ("ENCRYPTION_KEYS_PREVIOUS", tuple),
    ("BACKUP_IDENTITY", tuple),
    ("OTEL_EXPORTER_OTLP_HEADERS", _in_headers),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", _in_headers),
)


def load(environ: Mapping[str, str] | None = None, *, needs: tuple[str, ...] = ("REDIS_URL",)) -> Settings:
    """Parse the environment.

    Parameters:
        environ: names and values; this process's environment when left out.
        needs: variables the caller can't do without; `STORE` stands for a database of either kind, `RAILWAY` for a
            token of either kind.

    Raises:
        SettingsError: listing every fault, each with its fix and never with a value.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    faults: list[str] = []
    for variable in TABLE:
        try:
            values[variable.name.lower()] = _value(variable, source)
        except ValueError as fault:
            faults.append(f"{variable.name} {fault} (got {_shape(source[variable.name])})")
    faults += _missing(values, source, needs)
    if faults:
        raise SettingsError(faults)
    if values["redis_url"] is not None:
        values["redis_url"] = replace(values["redis_url"], prefix=values["job_queue_prefix"])
    return Settings(**values)


def variables_set(settings: Settings) -> frozenset[str]:
    """The names of the variables that say something else than their default."""
    return frozenset(
        variable.name for variable in TABLE if getattr(settings, variable.name.lower()) != _value(variable, {})
    )


def _value(variable: Variable, source: Mapping[str, str]) -> Any:
    text = source.get(variable.name, "").strip() or variable.default
    return None if text is None else variable.parse(text)


def _shape(text: str) -> str:
    kind = "digits" if text.strip().isdecimal() else "text"
    return f"{len(text)} characters of {kind}"


def _missing(values: Mapping[str, Any], source: Mapping[str, str], needs: tuple[str, ...]) -> list[str]:
    missing = [
        f"{variable.name} is missing; {variable.about}"
        + (f" For example {variable.example}" if variable.example else "")
        for variable in TABLE
        if variable.name in needs and not source.get(variable.name, "").strip()
    ]
    stores = ("DATABASE_URL", "SUPABASE_URL")
    if "STORE" in needs and not any(source.get(name, "").strip() for name in stores):
        missing.append(
            "DATABASE_URL (or SUPABASE_URL with SUPABASE_SERVICE_ROLE_KEY) is missing: runs would not be "
            "recorded; set one, or start with --no-store to accept that"
        )
    if "RAILWAY" in needs and not any(source.get(name, "").strip() for name in ("RAILWAY_TOKEN", "RAILWAY_API_TOKEN")):
        missing.append(
            "RAILWAY_TOKEN is missing (or RAILWAY_API_TOKEN, of an account or a workspace); make one in the project's "
            "settings on Railway, under Tokens"
        )
    if values.get("encryption_keys_previous") and not source.get("ENCRYPTION_KEY", "").strip():
        missing.append("ENCRYPTION_KEY is missing; ENCRYPTION_KEYS_PREVIOUS only opens what was sealed before")
    for name, companion in (("ALERT_TELEGRAM_TOKEN", "ALERT_TELEGRAM_CHAT"), ("ALERT_SMTP_URL", "ALERT_EMAIL_TO")):
        if source.get(name, "").strip() and not source.get(companion, "").strip():
            missing.append(f"{companion} is missing; {name} needs it")
    if values.get("job_tenant_concurrency") and values.get("job_tenant_turns") == "off":
        missing.append("JOB_TENANT_TURNS must be on where JOB_TENANT_CONCURRENCY is set; turns are what it limits")
    missing += _tokens(values, source)
    only_rest = values.get("supabase_url") and not source.get("DATABASE_URL", "").strip()
    if only_rest and not values.get("supabase_service_role_key"):
        missing.append("SUPABASE_SERVICE_ROLE_KEY is missing; SUPABASE_URL needs it")
    return missing


def _tokens(values: Mapping[str, Any], source: Mapping[str, str]) -> list[str]:
    read, full = values.get("api_read_token"), values.get("api_token")
    if read is not None and not source.get("API_TOKEN", "").strip():
        return ["API_TOKEN is missing; without it, API_READ_TOKEN would keep nobody out"]
    if read is not None and read == full:
        return ["API_READ_TOKEN must differ from API_TOKEN; else it lets its owner do everything"]
    return []


def set_here() -> dict[str, str]:
    """The table's variables that are set in this environment, as text."""
    return {variable.name: os.environ[variable.name] for variable in TABLE if variable.name in os.environ}


def child_environ(variables: Mapping[str, str], *, inherit: bool = True) -> dict[str, str]:
    """The environment for a child process.

    Parameters:
        variables: values of the table's variables.
        inherit: whether those that are not given are this process's own; otherwise they are unset.
    """
    ours = {variable.name for variable in TABLE}
    inherited = {name: value for name, value in os.environ.items() if inherit or name not in ours}
    return {**inherited, **variables}


def env_example() -> str:
    """The text of `.env.example`: required variables open, the rest commented out with their defaults."""
    lines = ["# Made from the settings table by `make docs`; docs/settings.md says more."]
    for variable in TABLE:
        shown = variable.example or variable.default or ""
        mark = "" if variable.default is None and variable.example else "# "
        lines += ["", f"# {variable.about}", f"{mark}{variable.name}={shown}"]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """The text of `docs/settings.md`."""
    head = (
        "# Settings\n\nMade from the table in `settings.py` by `make docs`. "
        "Oxherd reads these variables and no others.\n\n"
    )
    rows = ["| variable | type | default | secret | needed by | what it does |", "|---|---|---|---|---|---|"]
    for variable in TABLE:
        default = f"`{variable.default}`" if variable.default else "none"
        rows.append(
            f"| `{variable.name}` | {variable.kind} | {default} | {'yes' if variable.secret else 'no'} "
            f"| {variable.needed_by} | {variable.about} |"
        )
    return head + "\n".join(rows) + "\n"
