from __future__ import annotations

import asyncio

import pytest

from fakes.journal import MemoryJournal, attempt_of
from oxherd.context import Context
from oxherd.errors import Fatal, JournalMismatch
from oxherd.worker.retry import kind_of


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


@pytest.fixture
def run(journal: MemoryJournal):
    """Runs a program as a further attempt of the same job."""

    async def attempt(program):
        ctx = attempt_of(journal)
        ctx.begin()
        return await program(ctx)

    return attempt


def ask(*names, inputs=1):
    """A program that asks for these steps one after the other and answers with what ran."""

    async def program(ctx: Context) -> list[str]:
        ran: list[str] = []

        async def note(name: str, _: object) -> None:
            ran.append(name)

        for name in names:
            await ctx.step(name, note, name, inputs)
        return ran

    return program


async def test_the_same_program_goes_on_where_it_was(run):
    assert await run(ask("a", "b")) == ["a", "b"]
    assert await run(ask("a", "b", "c")) == ["c"]


@pytest.mark.parametrize(
    ("changed", "kept", "asked"),
    [
        (("a", "x", "b", "c"), "step 2 'b'", "step 2 'x'"),
        (("a", "c"), "step 2 'b'", "step 2 'c'"),
        (("a", "c", "b"), "step 2 'b'", "step 2 'c'"),
        (("x", "b", "c"), "step 1 'a'", "step 1 'x'"),
    ],
    ids=["inserted", "removed", "swapped", "renamed"],
)
async def test_a_changed_order_is_told_with_both_sides_before_anything_runs(run, changed, kept, asked):
    await run(ask("a", "b", "c"))
    journal_says = pytest.raises(JournalMismatch)
    with journal_says as caught:
        await run(ask(*changed))
    assert caught.value.kept.startswith(f"{kept} with inputs ")
    assert caught.value.asked.startswith(f"{asked} with inputs ")
    assert str(caught.value).startswith("the program changed since this run began: kept is ")
    assert f"oxherd runs replay 1 --fork-from {kept.split()[2].strip(chr(39))}" in caught.value.hint


async def test_other_arguments_are_told_with_both_sides(run):
    await run(ask("a"))
    with pytest.raises(JournalMismatch) as caught:
        await run(ask("a", inputs=2))
    kept, asked = (side.removeprefix("step 1 'a' with inputs ") for side in (caught.value.kept, caught.value.asked))
    assert kept != asked
    assert len(kept) == len(asked) == 12


async def test_it_fails_the_job_for_good_with_its_own_kind():
    error = JournalMismatch(kept="a", asked="b", hint="")
    assert isinstance(error, Fatal)
    assert kind_of(error) == "journal_mismatch"


async def test_objects_with_the_same_fields_in_another_order_are_the_same_arguments(run):
    await run(ask("a", inputs={"x": 1, "y": {"m": 1, "n": {3, 1}}}))
    assert await run(ask("a", inputs={"y": {"n": {1, 3}, "m": 1}, "x": 1})) == []


async def test_a_run_that_ends_earlier_than_its_steps_pays_for_nothing_and_is_fine(run):
    await run(ask("a", "b"))
    assert await run(ask("a")) == []


async def test_a_key_that_needs_quotes_gets_them_in_the_hint(run):
    await run(ask("my step"))
    with pytest.raises(JournalMismatch) as caught:
        await run(ask("other"))
    assert caught.value.hint.endswith("--fork-from 'my step'")


async def test_parallel_steps_may_be_asked_for_and_finish_in_any_order(run, journal):
    def parallel(*names):
        async def program(ctx):
            await asyncio.gather(*(ask(name)(ctx) for name in names))
            return await ask("after")(ctx)

        return program

    await run(parallel("a", "b", "c"))
    assert [journal.steps[key].place for key in ("a", "b", "c", "after")] == ["", "", "", "1"]
    assert await run(parallel("c", "new", "a", "b")) == []


async def test_a_branch_that_an_attempt_did_not_finish_runs_beside_the_kept_ones(run, journal):
    async def program(ctx):
        done = await asyncio.gather(*(ask(name)(ctx) for name in ("a", "b", "c")))
        return [*done[0], *done[1], *done[2]] + await ask("after")(ctx)

    await run(program)
    del journal.steps["b"], journal.steps["after"]
    assert await run(program) == ["b", "after"]


async def test_steps_inside_a_step_have_their_places_in_it(run, journal):
    async def program(ctx):
        async def outer():
            await ask("x", "y")(ctx)

        await ctx.step("first", lambda: 1)
        await ctx.step("outer", outer)
        await ctx.step("last", lambda: 1)

    await run(program)
    assert {key: step.place for key, step in journal.steps.items()} == {
        "first": "1", "outer/x": "2.1", "outer/y": "2.2", "outer": "2", "last": "3",
    }  # fmt: skip
    await run(program)
    del journal.steps["outer"], journal.steps["last"]
    await run(program)
    assert list(journal.steps) == ["first", "outer/x", "outer/y", "outer", "last"]


async def test_a_step_that_failed_then_and_succeeds_now_may_lead_elsewhere(run, journal):
    broken = True

    async def risky():
        if broken:
            raise ValueError

    async def program(ctx):
        try:
            await ctx.step("risky", risky)
        except ValueError:
            return await ask("plan b", "b2")(ctx)
        return await ask("plan a", "a2")(ctx)

    assert await run(program) == ["plan b", "b2"]
    broken = False
    assert await run(program) == ["plan a", "a2"]
    assert await run(program) == []


class TestIdempotencyKeys:
    async def keys(self, ctx: Context) -> list[str]:
        found = [ctx.idempotency_key("pay")]

        async def outer() -> None:
            found.append(ctx.idempotency_key("pay"))
            raise ConnectionError

        for name in ("first", "second"):
            with pytest.raises(ConnectionError):
                await ctx.step(name, outer)
        return found

    async def test_are_the_same_on_every_attempt(self, run):
        assert await run(self.keys) == await run(self.keys)

    async def test_differ_from_step_to_step(self, run):
        assert len(set(await run(self.keys))) == 3
