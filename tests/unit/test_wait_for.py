"""What `ctx.wait_for` does with a run's journal and questions; tests/system/test_approvals.py has the real ones."""

from __future__ import annotations

import asyncio

import pytest

from fakes.journal import MemoryJournal, attempt_of
from fakes.waits import NOON, MemoryWaits
from oxherd.context import Answer, Context
from oxherd.errors import Fatal, JournalMismatch, StepRepeated, Waiting


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


@pytest.fixture
def waits() -> MemoryWaits:
    return MemoryWaits()


@pytest.fixture
def run(journal: MemoryJournal, waits: MemoryWaits):
    """Runs a program as a further attempt of the same job."""

    async def attempt(program, **more):
        ctx = attempt_of(journal, waits=waits, **more)
        ctx.begin()
        return await program(ctx)

    return attempt


async def ask(ctx: Context) -> Answer:
    return await ctx.wait_for("refund", timeout="1h", about={"order": "A-1"})


async def test_an_answer_is_returned_and_kept_as_a_step(run, waits, journal):
    with pytest.raises(Waiting, match="waits for an answer to 'refund'"):
        await run(ask)
    assert journal.steps == {}
    waits.answer("refund", value=[1], message="ok")
    answer = await run(ask)
    assert answer == Answer(True, [1], "ana", False, NOON + 5_000, "ok")
    step = journal.steps["refund"]
    assert (step.kind, step.started_at, step.ms, step.place) == ("wait", NOON, 5_000.0, "1")
    waits.given.clear()
    assert await run(ask) == answer  # from the journal


async def test_that_nobody_answered_is_an_answer(run, waits):
    waits.answer("refund", expired=True)
    answer = await run(ask)
    assert (answer.approved, answer.expired, answer.by, answer.value) == (False, True, "", None)


async def test_what_is_asked_about_may_not_change(run, waits):
    with pytest.raises(Waiting):
        await run(ask)
    waits.answer("refund")
    with pytest.raises(JournalMismatch, match=r"asked for is step 1 'refund'"):
        await run(lambda ctx: ctx.wait_for("refund", about={"order": "A-2"}))
    await run(ask)
    with pytest.raises(JournalMismatch):
        await run(lambda ctx: ctx.wait_for("refund", about={"order": "A-2"}))


async def test_how_long_it_stands_may_change(run, waits):
    waits.answer("refund")
    await run(ask)
    assert (await run(lambda ctx: ctx.wait_for("refund", timeout=5, about={"order": "A-1"}))).approved
    assert waits.lasts == {"refund": "1h"}


async def test_a_name_is_for_one_question(run, waits):
    async def twice(ctx: Context) -> None:
        await ask(ctx)
        await ask(ctx)

    waits.answer("refund")
    with pytest.raises(StepRepeated):
        await run(twice)


async def test_without_a_store_the_error_says_what_to_do(journal):
    with pytest.raises(Fatal, match=r"ctx.wait_for\('refund'\) needs a store") as caught:
        await ask(attempt_of(journal))
    assert caught.value.hint == "set DATABASE_URL, and start without --no-store"


async def test_a_person_is_told_once_and_for_all(run, waits, journal):
    told: list[str] = []

    async def tell(ctx, question):
        told.append(f"{question.id} {question.about}")
        return "https://example.com/secret"

    async def program(ctx: Context) -> Answer:
        return await ctx.wait_for("refund", about={"order": "A-1"}, notify=tell)

    for _ in range(3):
        with pytest.raises(Waiting):
            await run(program)
    assert told == ["id of refund {'order': 'A-1'}"]
    assert journal.steps["refund/notify"].output == b"null", "what it returns may hold the link"
    waits.answer("refund")
    assert (await run(program)).approved
    assert len(told) == 1


async def test_the_herd_s_way_of_telling_is_used_where_the_handler_has_none(run, waits):
    told: list[str] = []
    waits.notify = lambda _, question: told.append(question.name)
    with pytest.raises(Waiting):
        await run(ask)
    with pytest.raises(Waiting):
        await run(lambda ctx: ctx.wait_for("other", notify=lambda *_: told.append("mine")))
    assert told == ["refund", "mine"]


async def test_a_person_who_could_not_be_told_is_told_by_the_next_attempt(run):
    tried: list[int] = []

    async def tell(*_):
        tried.append(1)
        if len(tried) == 1:
            raise ConnectionError("no mail today")

    async def program(ctx: Context) -> Answer:
        return await ctx.wait_for("refund", notify=tell)

    with pytest.raises(ConnectionError):
        await run(program)
    with pytest.raises(Waiting):
        await run(program)
    assert len(tried) == 2


async def test_several_questions_are_open_at_once(run, waits):
    seen: list[dict] = []

    async def both(ctx: Context) -> list[Answer]:
        seen.append(ctx.open_waits)
        return await asyncio.gather(ctx.wait_for("a"), ctx.wait_for("b"))

    with pytest.raises(Waiting):
        await run(both)
    assert [name for name, _ in seen[-1].values()] == ["a", "b"]
    waits.answer("b")
    with pytest.raises(Waiting):
        await run(both)
    assert [name for name, _ in seen[-1].values()] == ["a"]
    waits.answer("a", approved=False)
    assert [answer.approved for answer in await run(both)] == [False, True]


async def test_what_runs_beside_a_question_is_finished_first_and_done_once(run, waits, journal):
    ran: list[str] = []

    async def work(name: str) -> str:
        for _ in range(20):
            await asyncio.sleep(0)
        ran.append(name)
        return name

    async def branch(ctx: Context) -> str:
        return await ctx.step("first", work, "first") + await ctx.step("second", work, "second")

    async def program(ctx: Context) -> tuple[Answer, str]:
        return await asyncio.gather(ask(ctx), branch(ctx))

    with pytest.raises(Waiting):
        await run(program)
    assert set(journal.steps) == {"first", "second"}
    waits.answer("refund")
    assert (await run(program))[1] == "firstsecond"
    assert ran == ["first", "second"]


async def test_questions_inside_steps_side_by_side_do_not_wait_for_each_other(run, waits):
    async def program(ctx: Context) -> list[bool]:
        async def inner(name: str) -> bool:
            return (await ctx.wait_for(name)).approved

        return await asyncio.gather(ctx.step("x", inner, "a"), ctx.step("y", inner, "b"))

    async with asyncio.timeout(2):
        with pytest.raises(Waiting):
            await run(program)
    assert list(waits.asked) == ["x/a", "y/b"]
    waits.answer("x/a")
    waits.answer("y/b", approved=False)
    assert await run(program) == [True, False]


async def test_a_question_waits_for_a_question_that_is_being_asked(run, waits):
    """Else the job would be parked until the first one expires, and the second would be nobody's."""
    slow = asyncio.Event()
    opened = waits.open

    async def open_slowly(key, **more):
        if key == "slow":
            await slow.wait()
        return await opened(key, **more)

    waits.open = open_slowly
    seen: list[dict] = []

    async def both(ctx: Context) -> None:
        seen.append(ctx.open_waits)
        await asyncio.gather(ctx.wait_for("quick"), ctx.wait_for("slow"))

    task = asyncio.ensure_future(run(both))
    for _ in range(20):
        await asyncio.sleep(0)
    assert list(waits.asked) == ["quick"]
    assert not task.done()
    slow.set()
    with pytest.raises(Waiting):
        await task
    assert {name for name, _ in seen[-1].values()} == {"quick", "slow"}
