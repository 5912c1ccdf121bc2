"""Tells of plain values that change in the course of a run, and that no checkpoint holds.

A counter in a model, a running mean in a loss, a list in a sampler: nothing marks them as state. They
are seen when they differ at two checkpoints. Nothing looks at them in between.

Most values that differ are no state: the last loss, a table that is filled as it is needed, the number
of the batch. So a value is told only if what it was decides what it becomes: a tensor or an array that was
changed in place, or a name that code of the user changes and does not just set (`self.count += 1`,
`self.mean = 0.9 * self.mean + 0.1 * x`, `self.order.append(x)`) and reads elsewhere: a list of losses to be
plotted later is no state. A dict that only got more keys is taken for a cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from torch import nn

from statemachine_trainer.audit.look_at_values import (
    Key,
    Known,
    Look,
    Numbers,
    has_state_of_its_own,
    in_words,
)
from statemachine_trainer.audit.plain_values import Seen
from statemachine_trainer.audit.reachable import Roots
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.audit.value_names import IN_PROCESS
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.snapshot.found import Unheld
from statemachine_trainer.snapshot.repeated_search import RepeatedSearch, SearchResult, search_once
from statemachine_trainer.snapshot.search import Search

if TYPE_CHECKING:
    from statemachine_trainer.audit.set_at_beginnings import Beginning, SetAtBeginnings

_TOLD: Final = 8


class ChangingValues:
    """Compares the plain values that a run reaches at each checkpoint with those at the one before."""

    def __init__(self) -> None:
        self._before: dict[Key, Seen] | None = None
        self._numbers: Numbers = {}
        self._of_process: dict[str, str] = {}
        self._told: set[str] = set()
        self._unheld: set[str] | None = None
        self._at_beginnings: SetAtBeginnings | None = None
        self._known: Known | None = None
        self._search_anew()

    def _search_anew(self) -> None:
        self._known = None
        self._search = RepeatedSearch(noting=True, visiting=has_state_of_its_own)
        self._search_of_data = RepeatedSearch(noting=True, visiting=has_state_of_its_own)

    def begin(self, unheld: Collection[str] | None = None) -> None:
        """Forget what was seen: a fit begins, or goes on from a checkpoint.

        Args:
            unheld: Paths of what no checkpoint can hold, and was told; None if nobody looked.
        """
        self._before, self._numbers = None, {}
        self._unheld = None if unheld is None else {*unheld}
        self._at_beginnings = None

    def search_at_start(self, roots: Roots) -> tuple[Search, SearchResult]:
        """Search where a fit begins, or goes on, once for all who look for something there.

        Returns:
            The search, and what it found with the values that `compare_with_start` looks at.
        """
        self._search_anew()
        return search_once(roots)

    def compare_with_start(
        self,
        seen: SearchResult,
        found: list[Beginning],
        made_once: frozenset[str],
        model: nn.Module,
        roots: Roots,
    ) -> None:
        """Note the values at the start, to tell of those that only code at beginnings of loops sets.

        Args:
            seen: What `search_at_start` has found.
            found: That code.
            made_once: Names of what steps make when it is first needed. Without any, and without such code,
                nothing is looked at.
            model: The model, whose parameters and buffers are held.
            roots: Where the search at the start began, by which values are named.
        """
        if found or made_once:
            from statemachine_trainer.audit.set_at_beginnings import SetAtBeginnings

            look = Look(roots, model)
            look.take(seen)
            known = {id(thing) for _, thing in seen.visits}
            known.update(holder for holder, _, _ in look.values)
            self._at_beginnings = SetAtBeginnings(found, look.values, known, made_once)

    def look(
        self, model: nn.Module, roots: Roots, data: Roots, at: str | None = None
    ) -> SearchResult:
        """Look at all values, and tell of those that changed since the last time, each once.

        Args:
            model: The model, whose parameters and buffers are held.
            roots: Where the search begins, and by which values are named.
            data: The parts of the loaders, in which is searched too.
            at: The state at which a resumed run goes on.

        Returns:
            What was found from the roots, for others who look for something there.

        Warns:
            NotHeld: There is such a value. The message has its name and a way out.
        """
        search, in_data = self._search.search(roots), self._search_of_data.search(data)
        known = self._known if search.same and in_data.same else None
        look = Look({**roots, **data}, model, known)
        for one in (search, in_data):
            look.take(one)
        self._known = look.known
        for path, part in data.items():
            look.note_numbers(path, part, data.values())
        look.note_environment()
        before, self._before = self._before, look.values
        numbers, self._numbers = self._numbers, look.numbers
        of_process, self._of_process = self._of_process, look.of_process
        lines = self._appeared([*in_data.unheld, *search.unheld])
        lines += self._set_at_beginnings(look, at)
        if before is None:
            _tell(lines)
            return search
        for what, now_shown in look.of_process.items():
            was_shown = of_process.get(what, now_shown)
            if was_shown != now_shown and what not in self._told:
                self._told.add(what)
                lines.append(f"{what}, from {was_shown} to {now_shown}: {IN_PROCESS}")
        for key, remedy in look.remedies.items():
            (_, what, name), was, now = key, before.get(key), look.values[key]
            was = look.of_class(key) if was is None else was
            if was is None or was.content == now.content or what in self._told:
                continue
            if not look.carries_over(name, was, now):
                continue
            self._told.add(what)
            lines.append(f"{what}, from {was.shown} to {now.shown}: {remedy}")
        lines += self._changed_in_data(numbers, look.numbers)
        _tell(lines)
        return search

    def _changed_in_data(self, before: Numbers, now: Numbers) -> list[str]:
        """Return the tensors and arrays of the data that were changed in place, in words."""
        lines = []
        for key, (content, kind, remedy) in now.items():
            was = before[key][0] if key in before else content
            what = in_words(*key[1:]) if was != content else None
            if what is not None and what not in self._told:
                self._told.add(what)
                one, other = (f"a {kind.__name__} {tuple(some[0])}" for some in (was, content))
                lines.append(f"{what}, from {one} to {other}: {remedy}")
        return lines

    def _set_at_beginnings(self, look: Look, at: str | None) -> list[str]:
        """Return what only code sets that a resumed run does not call again, in words."""
        if self._at_beginnings is None:
            return []
        lines = []
        missing = self._at_beginnings.missing(
            at, look.values, look.holders, look.codes, look.reader.seen
        )
        found = [
            (key, f"which {by} has set to {{}} and a resumed run does not set again")
            for key, by in missing
        ]
        found += [
            (key, "which was made when it was first needed, as {}: a resumed run makes another")
            for key in self._at_beginnings.made_when_needed(look.values, look.codes)
        ]
        for key, words in found:
            _, what, _ = key
            if what not in self._told:
                self._told.add(what)
                told = words.format(look.values[key].shown)
                lines.append(
                    f"{what}, {told}. Make it before the fit, in `__init__`; or {look.remedies[key]}"
                )
        return lines

    def _appeared(self, unheld: list[Unheld]) -> list[str]:
        """Return what no checkpoint can hold, and was not there when the fit began, in words."""
        known, paths = self._unheld, {one.path for one in unheld}
        self._unheld = paths | (known or set())
        if known is None:
            return []
        new = {one.path: one for one in unheld if one.path not in known}
        return [
            f"{path}, which was made on the way, is {one.what}: {one.remedy}"
            for path, one in new.items()
        ]


def _tell(lines: list[str]) -> None:
    if not lines:
        return
    shown = lines if len(lines) <= _TOLD else [*lines[:_TOLD], f"and {len(lines) - _TOLD} more"]
    warnings.warn(
        "Between two checkpoints the following changed, and no checkpoint holds it: a run that is resumed "
        "begins with what the script makes.\n  " + "\n  ".join(shown),
        NotHeld,
        stacklevel=level_of_caller(),
    )
