"""Finds names that code does not set each time before they are read, so that they go on from one step to the next.

They are set where some condition holds (`if step == 100: self.scale = 0.5`), or at the end of a part of the loop, and
read in a part that comes before it (`on_epoch_end` sets `self.temperature`, and `training_step` reads it).

It reads instructions, not source, as `changing_code` does.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

_STORES: Final = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")
_RETURNS: Final = ("RETURN_VALUE", "RETURN_CONST")

_SAME_IN_A_RUN: Final = frozenset({"training", "fast_dev_run", "sanity_checking", "TYPE_CHECKING"})
"""Names of conditions that hold at each step, or at none."""

_STEPS: Final = frozenset(
    {"training_step", "forward", "__call__", "__getitem__", "__getitems__", "__iter__", "loss"}
)
"""Names of functions that are called before the end of a batch."""

_CALLS: Final = 3
"""How many calls deep functions are looked for that those call."""


@dataclass
class _Condition:
    """A part of some code that is run where a condition holds.

    Attributes:
        end: Where it ends.
        tested: Names that the condition asks for.
        stored: Names that are set in it.
        always: Those of them that are set wherever it holds.
    """

    end: float
    tested: frozenset[str]
    stored: set[str] = field(default_factory=set)
    always: set[str] = field(default_factory=set)

    @property
    def is_guard(self) -> bool:
        """Whether it asks for what is set in it: what is made when it is needed, or follows something else."""
        return bool(self.tested & self.stored) or self.tested <= _SAME_IN_A_RUN


@functools.lru_cache(maxsize=4096)
def set_at_times(code: types.CodeType) -> frozenset[str]:
    """Return the names of attributes and variables that code sets where some condition holds, and only there."""
    always: set[str] = set()
    at_times: list[tuple[str, list[_Condition]]] = []
    within: list[_Condition] = []
    both: list[tuple[_Condition, _Condition]] = []  # of which one holds
    names: set[str] = set()  # of the condition that is being worked out
    before = ""
    for one in dis.get_instructions(code):
        within = [each for each in within if each.end > one.offset]
        kind = one.opname
        if kind.startswith("LOAD_") and type(one.argval) is str:
            if kind in ("LOAD_ATTR", "LOAD_METHOD"):
                names.discard(before)  # whose attribute it is
            names.add(one.argval)
            before = one.argval
        elif kind in _STORES:
            name = str(one.argval)
            for each in within:
                each.stored.add(name)
            if within:
                within[-1].always.add(name)
                at_times.append((name, within))
            else:
                always.add(name)
        if kind in _RETURNS:
            # What comes after it is run where the condition does not hold.
            for each in within[-1:]:
                other = _Condition(float("inf"), each.tested)
                both.append((each, other))
                within = [*within, other]
        if "JUMP" in kind and "IF" in kind and one.argval > one.offset:
            within = [*within, _Condition(one.argval, frozenset(names))]
        if kind in _STORES or "JUMP" in kind or kind.startswith(("STORE_FAST", "POP_TOP")):
            names = set()
    for one_case, other_case in both:
        always |= one_case.always & other_case.always
    found = {name for name, around in at_times if not any(each.is_guard for each in around)}
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return frozenset(found - always).union(*map(set_at_times, inner))


def set_at_ends(codes: Iterable[types.CodeType]) -> frozenset[str]:
    """Return the names that functions such as `on_epoch_end` set, and functions that come before read."""
    codes = [*codes]
    stored = {name for code in codes if _is_end(code) for name in _stored(code)}
    if not stored:
        return frozenset()
    before = [code for code in codes if _is_before(code)]
    for _ in range(_CALLS):
        called = {name for code in before for name in _names(code)}
        more = [one for one in codes if one.co_name in called and one not in before]
        before += [one for one in more if not _is_end(one)]
    read = {name for code in before for name in _names(code)}
    return frozenset(stored & read)


def _is_end(code: types.CodeType) -> bool:
    return code.co_name.startswith("on_") and code.co_name.endswith("_end")


def _is_before(code: types.CodeType) -> bool:
    return code.co_name in _STEPS or (
        code.co_name.startswith("on_") and code.co_name.endswith("_start")
    )


@functools.lru_cache(maxsize=4096)
def _stored(code: types.CodeType) -> Collection[str]:
    return {str(one.argval) for one in dis.get_instructions(code) if one.opname in _STORES}


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> Collection[str]:
    """Return the names that code loads, also those in functions inside it."""
    return {*_loaded(code)}


def _loaded(code: types.CodeType) -> Iterator[str]:
    for one in dis.get_instructions(code):
        if one.opname.startswith("LOAD_") and type(one.argval) is str:
            yield one.argval
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _loaded(inner)
