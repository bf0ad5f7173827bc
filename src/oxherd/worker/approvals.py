"""People's answers: asking for one on behalf of a run, and giving one on behalf of a person.

`RunWaits` is what a context asks through. `Approvals` is what the command line, the HTTP API and the page behind a
link share; it is here because it needs the store, the queue and the vault, which may not know each other, and those
above get it from `app` (the web, a sibling of this folder, as callables).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from oxherd.codec import encode
from oxherd.context import Answer, Ask, Asked, Notify
from oxherd.errors import (
    ApprovalClosed,
    ApprovalNotFound,
    Fatal,
    LeaseLost,
    RedisRefused,
    RedisUnreachable,
    UsageError,
)
from oxherd.job import Job
from oxherd.queue.answers import Answers
from oxherd.settings import Secret, parse_duration
from oxherd.store import Question, Store, WaitRow
from oxherd.telemetry.events import ApprovalAnswered, ApprovalExpired, ApprovalRequested, emit
from oxherd.vault.keyring import KeyRing
from oxherd.vault.links import Links

T = TypeVar("T")

LONGEST_SECONDS = 365 * 86_400
REDIS_SECONDS = 5.0  # that an answer waits for Redis
NO_LINKS = Links(KeyRing(None), None)


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked.

    Attributes:
        timeout: how long they stand where the handler does not say, seconds.
        notify: tells a person of those that the handler tells nobody of, or None.
        links: makes the links that answer them.
    """

    timeout: float = 86_400.0
    notify: Notify | None = None
    links: Links = NO_LINKS


class RunWaits:
    """One run's questions.

    Parameters:
        store: where they are kept.
        asking: how they are asked.
        job, run_id, queue, tenant: whose they are.
        keep_secret: hides a link wherever it might show up.
        hide: takes the job's secrets out of what people are shown.
    """

    def __init__(
        self,
        store: Store,
        asking: Asking,
        job: Job,
        *,
        run_id: str,
        queue: str,
        tenant: str | None,
        keep_secret: Callable[[Secret], None],
        hide: Callable[[str], str],
    ) -> None:
        self.notify = asking.notify
        self._store = store
        self._asking = asking
        self._job = job
        self._run_id = run_id
        self._queue = queue
        self._tenant = tenant
        self._keep_secret = keep_secret
        self._hide = hide

    async def open(self, key: str, *, inputs: str, about: Any, lasts: str | float | None) -> Asked:
        """Ask, or look what became of an earlier asking.

        Raises:
            LeaseLost: a later attempt has begun.
            Fatal: the timeout is none; ResultInvalid or StoreRefused where the question can't be kept.
        """
        job = self._job
        question = Question(
            run_id=self._run_id,
            key=key,
            id=wait_id_of(self._run_id, key),
            nonce=secrets.token_hex(8),
            queue=self._queue,
            job_id=job.id,
            job=job.name,
            tenant=self._tenant,
            inputs=inputs,
            about=self._hide(encode(about, what=f"what {key!r} asks about").decode()),
            timeout_ms=self._timeout_ms(key, lasts),
        )
        found = await self._store.open_wait(question, fence=job.fence, attempt_started_at=job.processed_on)
        if found is None:
            raise LeaseLost(f"a later attempt of job {job.id} has begun")
        row, created = found
        answer = _answer_in(row)
        self._say(row, answer, created=created)
        return Asked(self._ask(row), row.inputs, answer, row.asked_at, row.left_ms)

    def _timeout_ms(self, key: str, lasts: str | float | None) -> int:
        try:
            seconds = parse_duration(lasts) if isinstance(lasts, str) else lasts
        except ValueError as error:
            raise Fatal(f"wait_for({key!r}): timeout {error}") from None
        if seconds is None:
            seconds = self._asking.timeout
        if not 0 < seconds <= LONGEST_SECONDS:
            raise Fatal(f"wait_for({key!r}): timeout must be above 0 and at most a year")
        return max(int(seconds * 1000), 1)

    def _ask(self, row: WaitRow) -> Ask:
        url = self._asking.links.url(row.id, row.nonce, row.expires_at) if row.state == "open" else None
        if url is not None:
            self._keep_secret(url)
        return Ask(row.id, row.key, row.about, row.expires_at, url)

    def _say(self, row: WaitRow, answer: Answer | None, *, created: bool) -> None:
        of = {"job": row.job, "id": row.job_id, "approval": row.id, "wait": row.key}
        if answer is None:
            if created:
                emit(ApprovalRequested(**of, expires_in_s=round(row.left_ms / 1000, 3)))
            return
        waited = round((answer.at - row.asked_at) / 1000, 3)
        if answer.expired:
            emit(ApprovalExpired(**of, waited_s=waited))
        else:
            emit(ApprovalAnswered(**of, approved=answer.approved, by=answer.by, waited_s=waited))


def wait_id_of(run_id: str, key: str) -> str:
    """What people call a question: 16 hex digits."""
    return hashlib.blake2b(f"{run_id}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _answer_in(row: WaitRow) -> Answer | None:
    match row.state:
        case "answered":
            assert row.answered_at is not None
            return Answer(bool(row.approved), row.value, row.by, False, row.answered_at, row.message)
        case "expired":
            return Answer(False, None, "", True, row.expires_at)
        case _:
            return None


class Approvals:
    """Looks at questions and answers them, for people.

    Parameters:
        store: where they are.
        answers: wakes the jobs.
        queue: whose questions are meant.
        links: makes and reads the links.
    """

    def __init__(self, store: Store, answers: Answers, *, queue: str, links: Links) -> None:
        self._store = store
        self._answers = answers
        self._queue = queue
        self._links = links

    async def list(self, *, state: str = "open", limit: int = 100) -> list[WaitRow]:
        """The queue's questions in one state: open ones by when they expire, others the newest first.

        Questions whose jobs are gone (removed, or ended in another way) are withdrawn on this occasion.

        Parameters:
            state: open, answered, expired or withdrawn.
            limit: how many at most.

        Raises:
            StoreUnreachable, RedisUnreachable, RedisRefused: as all that follow here.
        """
        rows = await self._store.list_waits(queue=self._queue, state=state, limit=limit)
        if state != "open" or not rows:
            return rows
        gone = await self._gone(rows)
        return [row for row in rows if row.id not in gone]

    async def show(self, wait_id: str) -> WaitRow:
        """One question, also of another queue. Raises ApprovalNotFound."""
        row = await self._store.get_wait(wait_id)
        if row is None:
            raise ApprovalNotFound(f"there is no question {wait_id!r}", hint="oxherd approvals list")
        return row

    def url(self, row: WaitRow) -> Secret | None:
        """A link that answers an open question; None where it is not open, or no link can be made here."""
        return self._links.url(row.id, row.nonce, row.expires_at) if row.state == "open" else None

    async def answer(
        self, wait_id: str, *, approved: bool, by: str, value: Any = None, message: str = "", nonce: str | None = None
    ) -> WaitRow:
        """Answer a question; its job goes on at once.

        Parameters:
            wait_id: the question's id.
            approved: yes or no.
            by: who answers.
            value: more than yes or no; plain data.
            message: words, for the job and for the record.
            nonce: of this asking only.

        Raises:
            ApprovalNotFound: there is no such question.
            ApprovalClosed: it was answered before, has expired, or its job is gone.
            UsageError: it is another queue's.
            ResultInvalid: the value can't be written as JSON.
        """
        packed = None if value is None else encode(value, what="the answer's value")
        row = await self.show(wait_id)
        if row.queue != self._queue:
            raise UsageError(f"the question is of queue {row.queue}", hint=f"set JOB_QUEUE_NAME={row.queue}")
        if row.state != "open":
            raise _closed(row)
        if await self._gone([row]):
            raise _closed(await self.show(wait_id))
        # Announced first: should this process die once the answer is stored, a worker still wakes the job.
        await _in_time(self._answers.announce(row.id, row.job_id))
        found = await self._store.answer_wait(
            row.id, approved=approved, value=packed, message=message, by=by, nonce=nonce
        )
        with contextlib.suppress(RedisUnreachable, RedisRefused):  # a worker finds the announcement
            await _in_time(self._answers.wake(row.id, row.job_id))
        if found is None:
            raise ApprovalNotFound(f"question {wait_id!r} was asked anew: this is no answer to it")
        row, won = found
        if not won:
            raise _closed(row)
        return row

    async def by_link(self, token: str) -> WaitRow:
        """The question that a link answers. Raises ApprovalNotFound."""
        claim = self._links.read(token)
        row = await self.show(claim.wait_id)
        if row.nonce != claim.nonce:
            raise ApprovalNotFound("the question was asked anew since this link was made")
        return row

    async def answer_by_link(self, token: str, *, approved: bool, message: str = "") -> WaitRow:
        """Answer as whoever has the link. Raises as `answer`."""
        claim = self._links.read(token)
        return await self.answer(claim.wait_id, approved=approved, by="link", message=message, nonce=claim.nonce)

    async def _gone(self, rows: Sequence[WaitRow]) -> set[str]:
        """The ids of the open questions of these whose jobs are gone. They are withdrawn."""
        alive = await _in_time(self._answers.alive([(row.job_id, _added_at(row)) for row in rows]))
        gone = [row.id for row, lives in zip(rows, alive, strict=True) if not lives]
        if gone:
            await self._store.withdraw_waits(gone)
        return set(gone)


def _added_at(row: WaitRow) -> int:
    return int(row.run_id.rpartition("@")[2])


def _closed(row: WaitRow) -> ApprovalClosed:
    match row.state:
        case "answered":
            said = f"it was {'approved' if row.approved else 'denied'} before, by {row.by}"
        case "expired":
            said = "its time is over"
        case _:
            said = "its job is gone"
    return ApprovalClosed(f"question {row.id} can't be answered: {said}", state=row.state)


async def _in_time(act: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            return await act
    except TimeoutError:
        raise RedisUnreachable(f"Redis did not answer for {REDIS_SECONDS:g} s") from None
