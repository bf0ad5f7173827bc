"""A worker that dies after each step of a job in turn, and whether the job comes to the same end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oxherd.codec import encode
from oxherd.context import Step
from oxherd.errors import UsageError
from oxherd.herd import Herd
from oxherd.job import Done, Park, Wait
from oxherd.testing.jobs import Answers, JobRun, Meanwhile, Place, described
from oxherd.testing.model import ScriptedModel


async def replay_every_step(
    herd: Herd,
    name: str,
    payload: Any = None,
    *,
    model: ScriptedModel | str | None = None,
    credentials: Mapping[str, str] | None = None,
    children: Mapping[str, Any] | None = None,
    answers: Answers | None = None,
    **opts: Any,
) -> JobRun:
    """Run a job, then again from the first n of its steps, for every n, as after a crash behind each step.

    A replay has the kept steps' results and runs the rest for real; the scripted model gives the replies that the first
    run got there. Each must end as the first run did, with the same children, without asking the model outside of
    steps; the one from all steps must run nothing.

    Steps may return something else each time. From the first one on that did, a replay is compared with a replay of its
    own steps, in place of the first run.

    Parameters:
        herd, name, payload, model, credentials, opts: as for `run_job`.
        children, answers: for a job that waits for its children or for people: their results and answers, as for
            `JobRun.again`. It is then replayed before and after they came.

    Returns:
        The undisturbed run.

    Raises:
        AssertionError: at the first step that can't be replayed, with what was different; or where the job does not end
            well by itself.
        UsageError: there is no such child or question.
    """
    place = Place(herd, name, encode({} if payload is None else payload), model, credentials or {}, opts)
    replays = _Replays(place, model if isinstance(model, ScriptedModel) else None)
    meanwhile = Meanwhile()
    first = await replays.check((), meanwhile)
    while (after := _next(first, meanwhile, children, answers or {})) is not None:
        meanwhile = after
        first = await replays.check(first.steps, meanwhile)
    if unused := set(answers or ()) - set(meanwhile.answers):
        raise UsageError(f"the job does not ask {min(unused)!r}")
    return first


def _next(run: JobRun, before: Meanwhile, children: Mapping[str, Any] | None, answers: Answers) -> Meanwhile | None:
    """What a parked job is given next; None where it has ended, or there is nothing new."""
    if isinstance(run.outcome, Park) and children and not before.results:
        return replace(before, results=run.results_of(children))
    if new := {ask.name: answers[ask.name] for ask in run.questions if ask.name in answers}:
        return replace(before, answers={**before.answers, **new})
    return None


@dataclass(slots=True)
class _Mark:
    """How far the model's script was when a step was kept."""

    position: int = 0
    asked: int = 0


class _Replays:
    """Runs of one job that begin with some of its steps."""

    def __init__(self, place: Place, model: ScriptedModel | None) -> None:
        self._place = place
        self._model = model
        self._marks: list[_Mark] = []

    async def check(self, steps: Sequence[Step], meanwhile: Meanwhile) -> JobRun:
        """Run from these steps on, then from each step that this finished. Raises AssertionError."""
        self._marks[len(steps) :] = [self._mark()]
        first = await self._place.attempt(steps, meanwhile, lambda: self._marks.append(self._mark()))
        if not isinstance(first.outcome, Done | Park | Wait):
            raise AssertionError(  # noqa: TRY004  it is the test that fails
                f"job {self._place.name!r} does not end well by itself: {described(first.outcome)}"
            )
        end = self._mark()
        # From all steps first: nothing runs then, so what is different is the handler's own doing.
        for count in (len(first.steps), *range(len(steps), len(first.steps))):
            self._rewind(self._marks[count])
            before = self._mark()
            replay = await self._place.attempt(first.steps[:count], meanwhile)
            fault = self._fault(first, replay, self._mark().asked - before.asked, end.asked - self._marks[count].asked)
            if fault is None and not _same_outputs(first, replay):
                again = await self._place.attempt(replay.steps, meanwhile)
                fault = _difference(replay, again)
            if fault:
                raise AssertionError(f"job {self._place.name!r} {_where(first.steps, count)} {fault}")
        return first

    def _fault(self, first: JobRun, replay: JobRun, asked: int, expected: int) -> str | None:
        if not _same_outputs(first, replay) and isinstance(replay.outcome, type(first.outcome)):
            return None
        if asked > expected:
            return f"asks the model {asked - expected} more times than before: a call outside of steps is paid again"
        return _difference(first, replay)

    def _mark(self) -> _Mark:
        return _Mark(self._model.position, len(self._model.asked)) if self._model else _Mark()

    def _rewind(self, mark: _Mark) -> None:
        if self._model:
            self._model.rewind(mark.position)


def _same_outputs(first: JobRun, replay: JobRun) -> bool:
    outputs = {step.key: step.output for step in first.steps}
    return all(outputs.get(step.key, step.output) == step.output for step in replay.steps)


def _difference(first: JobRun, replay: JobRun) -> str | None:
    """What a replay did otherwise than the run before it, in words."""
    if new := set(replay.ran) - {step.key for step in first.steps}:
        return f"runs step {min(new)!r}, which the run before did not have: its name must be the same each time"
    if (before := described(first.outcome)) != (now := described(replay.outcome)):
        return f"ends differently.\nbefore: {before}\nnow:    {now}"
    if (added := _children(first)) != (adds := _children(replay)):
        return f"adds other children.\nbefore: {added}\nnow:    {adds}"
    return None


def _children(run: JobRun) -> list[tuple[str, str, Any]]:
    return [(child.id, child.name, child.data) for child in run.children]


def _where(steps: Sequence[Step], count: int) -> str:
    if count == 0:
        return "begun again before its first step"
    return f"replayed from its first {count} of {len(steps)} steps, the last of them {steps[count - 1].key!r},"
