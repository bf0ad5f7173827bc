"""Asking services whether they still take a secret. Only for `--verify`: secrets go to those who issued them.

Every question is one that reads. What comes back is put in words of our own, so that no answer can quote a secret. A
service that can't be reached proves nothing, and neither does one that may never have issued the secret: it stays open.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache
from typing import Any

import orjson

from oxherd.ops.audit_reach import (
    SECONDS,
    Answer,
    Doors,
    ask_postgres,
    ask_redis,
    log_in,
    postgres_logins,
    redis_logins,
)
from oxherd.ops.audit_rules import INSTALLED, jwt_claims
from oxherd.ops.audit_secrets import Finding, Report
from oxherd.settings import Settings

AT_ONCE = 8  # secrets
LONGEST = 30  # seconds for one secret, which may be of several places
MOST = 1 << 16  # bytes of an answer
MOST_PLACES = 3  # projects, accounts that one secret is tried with
PROJECT = "https://{}.supabase.co"
_REF = re.compile(r"https://([a-z]{20})\.supabase\.co\b")
_SENTRY = re.compile(r"https://(?:[a-z]+\.)?sentry\.io")  # and its regions
_EMAIL = re.compile(r"(?i)upstash[\w-]{0,12}e?mail[\"'\s:=]{1,6}([\w.+-]+@[\w.-]+\w)")


async def verified(report: Report, settings: Settings) -> Report:
    """The report with what each service said."""
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        asker = _Asker(session, settings)
        gate = asyncio.Semaphore(AT_ONCE)

        async def asked(finding: Finding) -> Finding:
            async with gate:
                live, answer = await asker.ask(finding)
            return dataclasses.replace(finding, live=live, answer=answer)

        findings = await asyncio.gather(*map(asked, report.findings))
    return dataclasses.replace(report, findings=tuple(findings))


class _Asker:
    def __init__(self, session: Any, settings: Settings) -> None:
        self._session = session
        self._settings = settings
        self._doors = Doors(settings)
        self._scanner = asyncio.Lock()
        self._questions: Mapping[str, Callable[[Finding], Awaitable[Answer]]] = {
            "oxherd.openrouter-key": self._openrouter, "OPENROUTER_API_KEY": self._openrouter,
            "OPENROUTER_MANAGEMENT_KEY": self._openrouter, "oxherd.sentry-token": self._sentry,
            "SENTRY_AUTH_TOKEN": self._sentry, "oxherd.supabase-secret-key": self._supabase,
            "oxherd.supabase-publishable-key": self._supabase, "oxherd.supabase-jwt-service": self._supabase,
            "oxherd.supabase-jwt-anon": self._supabase, "SUPABASE_SERVICE_ROLE_KEY": self._supabase,
            "oxherd.supabase-access-token": self._supabase_account, "SUPABASE_ACCESS_TOKEN": self._supabase_account,
            "oxherd.railway-token": self._railway, "RAILWAY_TOKEN": self._railway, "RAILWAY_API_TOKEN": self._railway,
            "oxherd.upstash-management-key": self._upstash, "UPSTASH_API_KEY": self._upstash,
            "oxherd.redis-url": self._redis, "REDIS_URL": self._redis, "REDIS_ADMIN_URL": self._redis,
            "oxherd.postgres-url": self._postgres, "DATABASE_URL": self._postgres,
            "DATABASE_ADMIN_URL": self._postgres,
        }  # fmt: skip

    async def ask(self, finding: Finding) -> Answer:
        question = self._questions.get(finding.kind.rule.removeprefix(INSTALLED))
        try:
            if question is None:
                return await self._service_of_the_scanner(finding)
            async with asyncio.timeout(LONGEST):
                return await question(finding)
        except TimeoutError:
            return None, "no answer in time"
        except Exception as error:  # noqa: BLE001  whatever it is, its words may quote the secret
            return None, f"asking failed: {type(error).__name__}"

    async def _get(self, url: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        """The HTTP status and what came with it as data; 0 where nobody answered."""
        import aiohttp

        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as reply:
                raw = await reply.content.read(MOST)
                status = int(reply.status)
        except (aiohttp.ClientError, TimeoutError):
            return 0, None
        try:
            return status, orjson.loads(raw)
        except orjson.JSONDecodeError:
            return status, None

    async def _openrouter(self, finding: Finding) -> Answer:
        status, said = await self._get(f"{self._settings.openrouter_base_url}/key", _bearer(finding.value.reveal()))
        data = said.get("data") if isinstance(said, dict) else None
        if status == 200 and isinstance(data, dict):
            if data.get("is_management_key"):
                return True, "OpenRouter takes it: it makes and deletes keys"
            limit = data.get("limit")
            most = "without a limit" if limit is None else f"up to {limit:g} US dollars"
            return True, f"OpenRouter takes it, {most}"
        return (False, "OpenRouter refuses it") if status == 401 else (None, _no_answer("OpenRouter", status))

    async def _sentry(self, finding: Finding) -> Answer:
        value, here = finding.value.reveal(), self._settings.sentry_url.rstrip("/")
        home = _home_of(value)
        if home not in {"", here} and not (_SENTRY.fullmatch(home) and _SENTRY.fullmatch(here)):
            return None, "it belongs to a Sentry that SENTRY_URL does not name"
        status, said = await self._get(f"{here}/api/0/", _bearer(value))
        auth = said.get("auth") if isinstance(said, dict) else None
        if status == 200 and isinstance(auth, dict):
            scopes = ", ".join(sorted(str(each) for each in auth.get("scopes") or ()))
            return True, f"Sentry takes it, for {scopes or 'nothing'}"
        if status == 401:
            return (False, "Sentry refuses it") if home else (None, "SENTRY_URL does not take it; another Sentry may")
        return None, _no_answer("Sentry", status)

    async def _supabase(self, finding: Finding) -> Answer:
        """At this installation's project, and those that the key or the text around it names. Only they can bury it."""
        value, own = finding.value.reveal(), self._settings.supabase_url
        ref = str(jwt_claims(value).get("ref", ""))
        refs = [ref] if ref else _REF.findall(" ".join(_texts(finding)))
        named = [PROJECT.format(each) for each in dict.fromkeys(refs) if re.fullmatch("[a-z]{20}", each)][:MOST_PLACES]
        headers = {"apikey": value, **(_bearer(value) if value.startswith("eyJ") else {})}
        answers = {}
        for url in dict.fromkeys((*([own] if own else []), *named)):
            answers[url] = _of_gateway(*await self._get(f"{url}/rest/v1/", headers))
            if answers[url][0]:
                return answers[url]
        if not named:
            return None, "SUPABASE_URL does not take it; another project may" if own else "no project stands beside it"
        return next((answers[url] for url in named if answers[url][0] is None), answers[named[0]])

    async def _supabase_account(self, finding: Finding) -> Answer:
        url = f"{self._settings.supabase_api_url}/v1/organizations"
        status, _ = await self._get(url, _bearer(finding.value.reveal()))
        if status == 200:
            return True, "Supabase takes it: all that its owner may do"
        return (False, "Supabase refuses it") if status == 401 else (None, _no_answer("Supabase", status))

    async def _railway(self, finding: Finding) -> Answer:
        """As each of the kinds that there are: nothing in a token tells which it is."""
        from oxherd.cloud.railway import Railway
        from oxherd.errors import ServiceRefused, ServiceUnreachable

        url = self._settings.railway_api_url
        for railway in (Railway(url, project_token=finding.value), Railway(url, api_token=finding.value)):
            try:
                async with railway:
                    good_for = await railway.good_for()
            except ServiceUnreachable:
                return None, "Railway did not answer"
            except ServiceRefused:
                return None, "Railway answers something else"
            if good_for:
                return True, f"Railway takes it: {good_for}"
        return False, "Railway does not know it"

    async def _upstash(self, finding: Finding) -> Answer:
        """With the e-mail address that it is of, which has to stand beside it."""
        own = self._settings.upstash_email
        emails = dict.fromkeys((*([own] if own else []), *_EMAIL.findall(" ".join(_texts(finding)))))
        for email in list(emails)[:MOST_PLACES]:
            login = base64.b64encode(f"{email}:{finding.value.reveal()}".encode()).decode()
            status, _ = await self._get(
                f"{self._settings.upstash_api_url}/redis/databases", {"Authorization": f"Basic {login}"}
            )
            if status == 200:
                return True, "Upstash takes it: all databases of the account"
            if status != 401:
                return None, _no_answer("Upstash", status)
        return None, "Upstash refuses it with the addresses that are known" if emails else "it needs UPSTASH_EMAIL"

    async def _redis(self, finding: Finding) -> Answer:
        logins = redis_logins(finding.value.reveal(), _texts(finding), self._settings)
        return await log_in(logins, self._doors, ask_redis)

    async def _postgres(self, finding: Finding) -> Answer:
        logins = postgres_logins(finding.value.reveal(), _texts(finding), self._settings)
        return await log_in(logins, self._doors, ask_postgres)

    async def _service_of_the_scanner(self, finding: Finding) -> Answer:
        """The scanner's own call of the service, with what stands around the secret: some take two secrets together."""
        async with self._scanner:  # in turns: waiting takes none of a secret's own time
            outcomes = await asyncio.to_thread(_outcomes, finding)
        if "verified_active" in outcomes:
            return True, "its service takes it"
        if "verified_inactive" in outcomes:
            return False, "its service refuses it"
        return None, "its service did not answer" if "unavailable" in outcomes else "there is nobody to ask"


def _outcomes(finding: Finding) -> set[str]:
    from kingfisher_sdk import Validator

    value, outcomes = finding.value.reveal(), set()
    for text in _texts(finding):
        found = _scanner().scan(text)
        parts = [each for each in found if each.secret == value or not each.visible]
        # Where it is the second part of two, such as the key to an id, the first one speaks for both.
        whole = parts if any(each.secret == value and each.visible for each in parts) else found
        for each in Validator(timeout=SECONDS).validate(whole, timeout=LONGEST):
            held = [] if each.credential is None else [part.secret for part in each.credential.components]
            if value in {each.finding.secret, *held}:
                outcomes.add(each.outcome)
    return outcomes


@cache
def _scanner() -> Any:
    from kingfisher_sdk import Scanner

    return Scanner()


def _texts(finding: Finding) -> Iterator[str]:
    return (each.reveal() for each in finding.around)


def _bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def _no_answer(service: str, status: int) -> str:
    return f"{service} answers HTTP {status}" if status else f"{service} did not answer"


def _home_of(token: str) -> str:
    """The Sentry that a token of an organisation says it is of; nothing where it does not say."""
    if not token.startswith("sntrys_"):
        return ""
    middle = token.removeprefix("sntrys_").partition("_")[0]
    try:
        said = orjson.loads(base64.b64decode(middle + "=" * (-len(middle) % 4)))
    except (binascii.Error, ValueError):
        return ""
    return str(said.get("url", "")).rstrip("/") if isinstance(said, dict) else ""


def _of_gateway(status: int, said: Any) -> Answer:
    """What Supabase's gateway, or PostgREST behind it, makes of a key. Only the latter's errors have a code."""
    code = str(said.get("code") or "") if isinstance(said, dict) else ""
    message = str(said.get("message") or "") if isinstance(said, dict) else ""
    if code.startswith("PGRST30") or (status == 401 and message.startswith(("Invalid API key", "Legacy API keys"))):
        return False, "its Supabase project refuses it"
    if 200 <= status < 300 or (400 <= status < 500 and code):
        return True, "its Supabase project takes it"
    return None, _no_answer("Supabase", status)
