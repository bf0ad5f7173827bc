"""Bringing variables to a service: planned by name, applied in one write; then one redeploy, the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from oxherd.errors import SettingsError, UsageError
from oxherd.ops.env import KNOWN, shape_of
from oxherd.settings import Secret, load


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one variable.

    Attributes:
        action: create, update or keep.
        name: the variable.
        detail: in words, without values.
    """

    action: str
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Push:
    """The plan.

    Attributes:
        changes: by name.
        values: what is written; nothing else is touched, and nothing is removed.
    """

    changes: tuple[Change, ...]
    values: Mapping[str, Secret] = field(repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether all is as it should be."""
        return not self.values


def plan(wanted: Mapping[str, Secret], there: Mapping[str, Secret], sealed: Iterable[str] = ()) -> Push:
    """Compare what should be there with what is.

    Parameters:
        wanted: names and values.
        there: what is there, as far as it is shown.
        sealed: names that are there and never shown. What they hold is not known, so they are written.

    Raises:
        UsageError: a value is malformed, or a name is the platform's own.
    """
    hidden = set(sealed)
    own = sorted(name for name in wanted if name.startswith("RAILWAY_"))
    if own:
        raise UsageError(f"{own[0]} is set by Railway itself", hint="take it out of what you push")
    try:
        load({name: value.reveal() for name, value in {**there, **wanted}.items() if name in KNOWN}, needs=())
    except SettingsError as error:
        faults = [fault for fault in error.faults if fault.partition(" ")[0] in wanted]
        if faults:
            raise SettingsError(faults) from None
    changes, values = [], {}
    for name, value in sorted(wanted.items()):
        change = _change(name, value, there.get(name), is_sealed=name in hidden)
        changes.append(change)
        if change.action != "keep":
            values[name] = value
    return Push(tuple(changes), values)


def _change(name: str, value: Secret, there: Secret | None, *, is_sealed: bool) -> Change:
    about = shape_of(value) + ("" if name in KNOWN else "; Oxherd itself does not read it")
    if is_sealed:
        return Change("update", name, f"{about}; sealed: what is there can't be compared, and stays sealed")
    if there is None:
        return Change("create", name, about)
    if there == value:
        return Change("keep", name, "")
    return Change("update", name, about)
