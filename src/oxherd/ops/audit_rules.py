"""What a hit means: whose secret it is, how bad it is to find it, how it is replaced, and what only looks like one."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import orjson

from oxherd.ops.rotate_known import how_to_replace

RULES = Path(__file__).with_name("audit_rules.yml")


class Level(IntEnum):
    """How bad a finding is. Notes are told and do not fail the audit."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        """Such as `error`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of secret.

    Attributes:
        rule: its id, such as `oxherd.redis-url`.
        name: in words.
        service: who issued it.
        variable: Oxherd's name for it; empty where it is nothing of Oxherd's.
        level: how bad it is where everybody can read it.
    """

    rule: str
    name: str
    service: str
    variable: str = ""
    level: Level = Level.ERROR

    @property
    def rotation(self) -> str:
        """How to replace it."""
        if self.level is Level.NOTE:
            return "made to be public: nothing to do"
        if self.variable:
            return how_to_replace(self.variable)
        return f"make a new one at {self.service or 'whoever issued it'}, switch to it, then revoke this one"


_OURS = (
    Kind("oxherd.openrouter-key", "OpenRouter API key", "OpenRouter", "OPENROUTER_API_KEY"),
    Kind("oxherd.redis-url", "password in a Redis URL", "Redis", "REDIS_URL"),
    Kind("oxherd.postgres-url", "password in a Postgres URL", "Postgres", "DATABASE_URL"),
    Kind("oxherd.upstash-token", "Upstash REST token", "Upstash", "REDIS_URL"),
    Kind("oxherd.upstash-management-key", "Upstash management key", "Upstash", "UPSTASH_API_KEY"),
    Kind("oxherd.supabase-secret-key", "Supabase secret key", "Supabase", "SUPABASE_SERVICE_ROLE_KEY"),
    Kind("oxherd.supabase-publishable-key", "Supabase publishable key", "Supabase", level=Level.NOTE),
    Kind("oxherd.supabase-access-token", "Supabase access token", "Supabase", "SUPABASE_ACCESS_TOKEN"),
    Kind("oxherd.supabase-jwt-service", "Supabase JWT, role service_role", "Supabase", "SUPABASE_SERVICE_ROLE_KEY"),
    Kind("oxherd.supabase-jwt-anon", "Supabase JWT, role anon", "Supabase", level=Level.NOTE),
    Kind("oxherd.supabase-jwt-user", "Supabase JWT of a user", "Supabase", level=Level.WARNING),
    Kind("oxherd.railway-token", "Railway token", "Railway", "RAILWAY_TOKEN"),
    Kind("oxherd.sentry-token", "Sentry auth token", "Sentry", "SENTRY_AUTH_TOKEN"),
    Kind("oxherd.sentry-dsn", "Sentry DSN", "Sentry", "SENTRY_DSN", Level.WARNING),
    Kind("oxherd.encryption-key", "key of 32 bytes", "Oxherd", "ENCRYPTION_KEY"),
    Kind("oxherd.encryption-keys", "key of 32 bytes, first of several", "Oxherd", "ENCRYPTION_KEYS_PREVIOUS"),
    Kind("oxherd.aws-secret-key", "AWS secret access key", "AWS"),
    Kind("oxherd.api-token", "token of the HTTP API", "Oxherd", "API_TOKEN"),
    Kind("oxherd.password-variable", "password in a variable", ""),
    Kind("oxherd.secret-variable", "secret in a variable", ""),
    Kind("oxherd.redis-password", "password of a Redis user", "Redis", "REDIS_URL"),
    Kind("oxherd.postgres-password", "password of a Postgres user", "Postgres", "DATABASE_URL"),
    Kind("oxherd.login", "password of a login", ""),
)
KINDS = {kind.rule: kind for kind in _OURS}

# Rules of the scanner that find what one of ours finds: the same secret, called by our name.
_SAME = {
    "openrouter": "oxherd.openrouter-key",
    "supabase-management-token": "oxherd.supabase-access-token",
    "sentry": "oxherd.sentry-token",
    "upstash": "oxherd.upstash-token",
}
_ROLES = {
    "service_role": "oxherd.supabase-jwt-service",
    "supabase_admin": "oxherd.supabase-jwt-service",
    "anon": "oxherd.supabase-jwt-anon",
    "authenticated": "oxherd.supabase-jwt-user",
}
INSTALLED = "oxherd.installed."  # followed by a variable's name: the secret of this installation itself


def kind_of(rule: str, value: str) -> Kind:
    """What a scanner's rule has found.

    Parameters:
        rule: the rule's id.
        value: what it found; of a JWT, the role is read.
    """
    if rule.startswith(INSTALLED):
        variable = rule.removeprefix(INSTALLED)
        return Kind(rule, f"{variable} of this installation", "this installation", variable)
    if value.startswith("eyJ") and (found := _role(value)):
        return KINDS[found]
    ours = rule if rule in KINDS else next((ours for part, ours in _SAME.items() if part in rule), None)
    if ours:
        return KINDS[ours]
    service, *rest = (_SPELT.get(word, word) for word in rule.rpartition(".")[2].rpartition("/")[2].split("-"))
    service = service if any(map(str.isupper, service)) else service.capitalize()
    return Kind(rule, " ".join([service, *rest]), service)


_SPELT = {
    "api": "API", "aws": "AWS", "gcp": "GCP", "github": "GitHub", "gitlab": "GitLab", "jwt": "JWT", "openai": "OpenAI",
    "pat": "PAT", "pypi": "PyPI", "uri": "URI", "url": "URL",
}  # fmt: skip


def jwt_claims(text: str) -> dict[str, Any]:
    """What a JSON web token claims, unchecked; nothing where the text is none."""
    parts = text.split(".")
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, IndexError):
        return {}
    return claims if len(parts) == 3 and isinstance(claims, dict) else {}


def _role(jwt: str) -> str | None:
    claims = jwt_claims(jwt)
    return _ROLES.get(str(claims.get("role"))) if "supabase" in str(claims.get("iss", "")) else None


_PREFIXES = re.compile(
    r"sk-or-v1-|sk-ant-|sk-proj-|sk-|sb_secret_|sb_publishable_|sbp_|sntry[su]_|gh[pousr]_|github_pat_|xox[a-z]-|AKIA|eyJ|-----BEGIN"
)


def masked(value: str) -> str:
    """A secret for people: the prefix that all of its kind share, and how long it is."""
    known = _PREFIXES.match(value)
    return f"{known[0] if known else ''}… ({len(value)} characters)"


_FAKE = re.compile(
    r"example|your[-_]|changeme|change-me|placeholder|redacted|dummy|xxxx|\*\*\*|\.\.\.|…|<|>|\$\{?\w|\{\{|%\(|^\{|\}$|\]"
    r"|0123456789|123456789|abcdefgh",
    re.IGNORECASE,
)
# What is told by its variable's name alone may be any words. A secret that a program made has digits and letters; one
# with a known prefix is found by the rule for that, or is made up.
BY_NAME = {"oxherd.password-variable", "oxherd.secret-variable", "oxherd.redis-password", "oxherd.postgres-password"}
_DIGIT, _LETTER = re.compile(r"[0-9]"), re.compile(r"[A-Za-z]")
_SHORTEST_GENERIC = 12  # below that, what a generic rule takes for a password was not one, in all that were looked at
_WORDS = re.compile(
    r"(?i)^(?:[a-z]*(?:pass(?:word)?|secret|token|key)[-_a-z0-9]{0,6}|[a-z]+\d{0,2}(?:[-_][a-z]+\d{0,2})+)$"
)


def looks_fake(rule: str, value: str) -> bool:
    """Whether it is a placeholder, a template or words rather than a secret."""
    if len(set(value)) < 5:
        return True
    if rule in BY_NAME and (_PREFIXES.match(value) or not (_DIGIT.search(value) and _LETTER.search(value))):
        return True
    if rule.startswith(("oxherd.", "betterleaks.generic")) and (_FAKE.search(value) or _WORDS.match(value)):
        return True
    return "generic-credential-uri" in rule and len(value) < _SHORTEST_GENERIC
