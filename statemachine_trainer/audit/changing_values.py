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

import functools
import os
import types
import warnings
import zlib
from collections.abc import Collection, Hashable
from functools import cache, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from statemachine_trainer.audit.changing_code import (
    DRAWS,
    Changed,
    changed_by,
    codes_of,
    codes_of_class,
)
from statemachine_trainer.audit.plain_values import (
    Reader,
    Seen,
    address,
    base_of,
    is_cache,
    is_numbers,
)
from statemachine_trainer.audit.reachable import Roots
from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.audit.value_names import (
    IN_PROCESS,
    has_state,
    name_in_objects,
    name_in_process,
)
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.kinds import (
    ATOMS,
    attributes_of_class,
    is_of_users,
    is_users,
    named,
)
from statemachine_trainer.snapshot.rounds import Round, Rounds, first_round
from statemachine_trainer.snapshot.search import TENSORS, Search, Unheld

if TYPE_CHECKING:
    from statemachine_trainer.audit.set_at_beginnings import Beginning, SetAtBeginnings

_MOST: Final = 20_000
"""Values that are looked at in one checkpoint."""

_TOLD: Final = 8
_SAVES: Final = ("state_dict", "_save_to_state_dict", "on_save_checkpoint", "__getstate__")
"""Methods by which a class of a user writes down its attributes itself."""

_BATCHES: Final = 64
"""Tensors of a list of batches, or of a data set of a library, that are looked at."""

_NUMBERS: Final = (torch.Tensor, np.ndarray)
_LISTS: Final = (list, tuple, dict)
_IN_BATCH: Final = (
    "something changes it in place, such as `batch.add_(1)`; make a new tensor, `batch = batch + 1`"
)

_OF_LIBRARY: Final = (
    "something changes it; make the loader anew for each epoch, `fit(model, lambda epoch: ...)`, or derive "
    "a class that has `state_dict` and `load_state_dict`"
)

_OF_TORCH: Final = (
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler,
)
_OF_TOOL: Final = (
    "return it from `configure_optimizers`, or save its `state_dict` in `get_extra_state` of the model or in "
    "a callback with `state_dict` and `load_state_dict`"
)

_WITH_CODE: Final = frozenset({types.FunctionType, types.MethodType, functools.partial})
_ENVIRONMENT: Final = frozenset({"environ", "environb", "putenv"})
_CACHED: Final = type(cache(len))
"""The class of functions with a `functools.cache`."""

_Place = tuple[Any, ...]
"""The keys that lead to something in containers."""

_Numbers = dict[tuple[int, str, _Place], tuple[Any, type, str]]
"""By identity, path of the data and place: what a tensor or an array holds, its class, what to do if it changes."""

_Key = tuple[int, str, str]
"""Identity of the holder, what the value is called, and its name there."""


class ChangingValues:
    """Compares the plain values that a run reaches at each checkpoint with those at the one before."""

    def __init__(self) -> None:
        self._before: dict[_Key, Seen] | None = None
        self._numbers: _Numbers = {}
        self._of_process: dict[str, str] = {}
        self._told: set[str] = set()
        self._unheld: set[str] | None = None
        self._at_beginnings: SetAtBeginnings | None = None
        self._known: _Known | None = None
        self._begin_rounds()
        self._first: Round | None = None

    def _begin_rounds(self) -> None:
        self._known = None
        self._rounds = Rounds(noting=True, visiting=_has_state_of_its_own)
        self._rounds_of_data = Rounds(noting=True, visiting=_has_state_of_its_own)

    def begin(self, unheld: Collection[str] | None = None) -> None:
        """Forget what was seen: a fit begins, or goes on from a checkpoint.

        Args:
            unheld: Paths of what no checkpoint can hold, and was told; None if nobody looked.
        """
        self._before, self._numbers = None, {}
        self._unheld = None if unheld is None else {*unheld}
        self._at_beginnings = None

    def search_at_start(self, roots: Roots) -> Search:
        """Search where a fit begins, or goes on, for all who look for something there."""
        self._begin_rounds()
        self._first = first_round(roots)
        assert self._first.search is not None
        return self._first.search

    def compare_with_start(
        self, found: list[Beginning], made_once: frozenset[str], model: nn.Module, roots: Roots
    ) -> None:
        """Note the values that `search_at_start` has seen, to tell of those that only code at beginnings of loops sets.

        Args:
            found: That code.
            made_once: Names of what steps make when it is first needed. Without any, and without such code,
                nothing is looked at.
            model: The model, whose parameters and buffers are held.
            roots: Where the search at the start began, by which values are named.
        """
        first, self._first = self._first, None
        if first is not None and (found or made_once):
            from statemachine_trainer.audit.set_at_beginnings import SetAtBeginnings

            look = _Look(roots, model)
            look.take(first)
            known = {id(thing) for _, thing in first.visits}
            known.update(holder for holder, _, _ in look.values)
            self._at_beginnings = SetAtBeginnings(found, look.values, known, made_once)

    def look(self, model: nn.Module, roots: Roots, data: Roots, at: str | None = None) -> Round:
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
        search, in_data = self._rounds.search(roots), self._rounds_of_data.search(data)
        known = self._known if search.same and in_data.same else None
        look = _Look({**roots, **data}, model, known)
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
            if was is None or was.content == now.content or what in self._told:
                continue
            if not look.carries_over(name, was, now):
                continue
            self._told.add(what)
            lines.append(f"{what}, from {was.shown} to {now.shown}: {remedy}")
        lines += self._changed_in_data(numbers, look.numbers)
        _tell(lines)
        return search

    def _changed_in_data(self, before: _Numbers, now: _Numbers) -> list[str]:
        """Return the tensors and arrays of the data that were changed in place, in words."""
        lines = []
        for key, (content, kind, remedy) in now.items():
            was = before[key][0] if key in before else content
            what = _words(*key[1:]) if was != content else None
            if what is not None and what not in self._told:
                self._told.add(what)
                one, other = (f"a {kind.__name__} {tuple(some[0])}" for some in (was, content))
                lines.append(f"{what}, from {one} to {other}: {remedy}")
        return lines

    def _set_at_beginnings(self, look: _Look, at: str | None) -> list[str]:
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


class _Named(NamedTuple):
    """What a value is called.

    Attributes:
        what: In words.
        name: Its name at its holder.
        remedy: What to do so that it is held.
        holder: The class of the holder.
        of_library: Whether it lies in a module of a library, which changes in place what is its own.
    """

    what: str
    name: str
    remedy: str
    holder: type
    of_library: bool


class _Known:
    """What stays as it is while searches follow the same way.

    Attributes:
        named: Of each note, what the value is called; None of those that are not looked at.
        codes: The code of users that was seen.
        in_environment: The names of environment variables in that code.
    """

    def __init__(self) -> None:
        self.named: list[_Named | None] = []
        self.codes: set[types.CodeType] = set()
        self.in_environment: list[str] | None = None


class _Look:
    """One look at all values.

    Args:
        roots: Where the searches began.
        model: The model, whose parameters and buffers are held.
        known: What is known from the last look, if the searches have followed the same ways.

    Attributes:
        values: What was seen.
        remedies: What to do so that it is held.
        holders: The classes of those that have them.
        reader: Reads values.
        of_process: What a new process begins anew, whoever changes it, in words.
        numbers: What the tensors and arrays of the data hold.
        known: What the next look may know.
    """

    def __init__(self, roots: Roots, model: nn.Module, known: _Known | None = None) -> None:
        self.values: dict[_Key, Seen] = {}
        self.remedies: dict[_Key, str] = {}
        self.holders: dict[_Key, type] = {}
        self.of_process: dict[str, str] = {}
        self.numbers: _Numbers = {}
        self._roots = roots
        names = PlainNames(model)
        held = (*names.parameters(), *names.buffers())
        self.reader = Reader({address(one) for _, one in held})
        self._is_known = known is not None
        self.known = known or _Known()
        self._notes = 0  # that were taken
        if known is None:
            self.known.codes.update(code for one in roots.values() for code in codes_of(one))
        self._kinds: set[type] = set()
        self._changed: Changed | None = None

    @property
    def codes(self) -> set[types.CodeType]:
        """The code of users that was seen."""
        return self.known.codes

    def take(self, found: Round) -> None:
        """Take a look at all that a search has found."""
        if not self._is_known:
            self.known.named += [self._named(path, one, name) for path, one, name, _ in found.notes]
            for _, holder, _, value in found.notes:
                self._note_code(holder, value)
        for path, thing in found.visits:
            if self._is_known or _has_state_of_its_own(thing):
                self._visit(path, thing)
        named = self.known.named[self._notes : self._notes + len(found.notes)]
        for one, (_, holder, _, value) in zip(named, found.notes, strict=True):
            if one is not None and len(self.values) < _MOST:
                self._note(one, holder, value)
        self._notes += len(found.notes)

    def _note_code(self, holder: object, value: object) -> None:
        """Note the code of users that a named value leads to."""
        codes = self.known.codes
        if type(value) in _WITH_CODE:
            codes.update(codes_of(value))
        elif isinstance(value, _LISTS) and type(value) in _LISTS:  # it may be a table of functions
            for one in islice(value.values() if isinstance(value, dict) else value, _BATCHES):
                if type(one) in _WITH_CODE:
                    codes.update(codes_of(one))
        if type(holder) in _WITH_CODE:
            codes.update(codes_of(holder))
        if type(holder) not in self._kinds:
            self._kinds.add(type(holder))
            codes.update(codes_of_class(type(holder)))

    def _named(self, path: str, holder: object, name: str) -> _Named | None:
        """Return what a value is called; None of one that is not looked at."""
        if name.startswith("__"):
            return None
        if isinstance(holder, nn.Module) and name in vars(holder).get("_defaults", ()):
            return None  # a state of torchmetrics
        kind = type(holder)
        if not _is_own(kind, name):  # type: ignore[arg-type]
            return None
        words = name_in_objects(self._roots, path, holder, name)
        if words is None and (path.startswith("global ") or isinstance(holder, type)):
            words = name_in_process(self._roots, path, holder, name)
        if words is None:
            return None
        of_library = issubclass(kind, nn.Module) and not is_users(kind.__module__)
        return _Named(words[0], name, words[1], kind, of_library)

    def _note(self, named: _Named, holder: object, value: object) -> None:
        """Take a look at one named value."""
        seen = self.reader.seen(value)
        if seen is None:
            return
        if named.of_library and seen.itself is not None:
            seen = seen._replace(itself=None)
        what, name, remedy, kind, _ = named
        key = (id(holder), what, name)
        self.values[key], self.remedies[key], self.holders[key] = seen, remedy, kind
        if seen.of_many:  # code may change a tensor in it by another name
            for _, one in _numbers_in(value):
                if (seen := self.reader.seen(one)) is not None:
                    key = (id(one), what, name)
                    self.values[key], self.remedies[key] = seen, remedy
                    self.holders[key] = type(one)

    def _visit(self, path: str, thing: Any) -> None:
        """Take a look at an object that has more state than names.

        That is a function with a `functools.cache` that draws random numbers; and an optimizer, a schedule
        or a scaler of torch that the fit does not know, and so does not save.
        """
        if type(thing) is _CACHED:
            codes = codes_of(thing.__wrapped__)
            self.codes.update(codes)
            if any(map(_draws, codes)):
                what = f"the results that the cache of {path} keeps, which are drawn at random"
                self.of_process[what] = f"{thing.cache_info().currsize} results"
        elif path not in self._roots:
            self._note_state(path, thing)

    def _note_state(self, path: str, thing: Any) -> None:
        owner = max((one for one in self._roots if path.startswith(one)), key=len, default="")
        root = self._roots.get(owner)
        if owner.startswith(("optimizer ", "scheduler ")) or any(
            thing is one for one in self._roots.values()
        ):
            return
        if has_state(root) and not isinstance(root, nn.Module):
            return  # which writes down what is its own
        seen = self.reader.seen(thing.state_dict())
        if seen is not None:
            shown = f"#{zlib.crc32(repr(seen.content).encode()):08x}"
            key = (id(thing), f"the state of {path} ({type(thing).__name__})", "")
            self.values[key], self.remedies[key] = seen._replace(shown=shown), _OF_TOOL

    def note_environment(self) -> None:
        """Take a look at the environment variables that some code sets."""
        if self.known.in_environment is None:
            self.known.in_environment = [
                name
                for code in self.codes
                if _ENVIRONMENT & {*code.co_names}
                for name in code.co_consts
                if isinstance(name, str) and name.isidentifier()
            ]
        for name in self.known.in_environment:
            value = os.environ.get(name)
            self.of_process[f"the environment variable {name}"] = repr(value)[:60]

    def note_numbers(self, path: str, part: object, parts: Collection[object]) -> None:
        """Take a look at the tensors of a list of batches; and at the numbers of a data set or a sampler of a library.

        Args:
            path: Of the list, the data set or the sampler.
            part: It.
            parts: All parts of the loaders: a sampler refers to its data set.
        """
        if is_of_users(type(part)) or isinstance(part, torch.Tensor):
            return  # whose attributes are looked at; whose rows are copied
        inside = {"": part} if type(part) in _LISTS else dict(named(part))
        for name, value in inside.items():
            if name and any(value is one for one in parts):
                continue
            if name and _is_of_numbers(value):
                key, seen = (id(part), f"{path}.{name}", ""), self.reader.seen(value)
                if seen is not None:
                    self.values[key], self.remedies[key] = seen, _OF_LIBRARY
            begins = f"{path}.{name}".rstrip(".")
            remedy = _OF_LIBRARY if path.endswith("sampler") else _IN_BATCH
            for place, one in _numbers_in(value):
                if is_numbers(cast(Hashable, type(one))):
                    content = self.reader.numbers(one)
                    if content is not None:
                        self.numbers[id(one), begins, place] = content, type(one), remedy
                elif (seen := self.reader.seen(one)) is not None:
                    key = (id(one), _words(begins, place), "")
                    self.values[key], self.remedies[key] = seen, remedy

    def carries_over(self, name: str, was: Seen, now: Seen) -> bool:
        """Whether a value changed, and what it was decides what it became."""
        if was.content == now.content or was.shown == "None":  # made when it was needed
            return False
        if now.is_time:
            return False
        if not name:  # of a data set or a sampler of a library, which reads it
            return True
        same = was.itself is not None and now.itself is not None and was.itself() is now.itself()
        if same:  # the attributes of an object are looked at one by one
            return not now.is_object
        if self._changed is None:
            self._changed = Changed().with_those_of(map(changed_by, self.codes))
        names = {name, name.lstrip("_")}  # a property may have it
        in_place = now.of_many and (
            names & self._changed.in_place or (now.has_methods and "self" in self._changed.in_place)
        )
        decides = in_place or names & self._changed.updated
        if not (decides and names & self._changed.read):
            return False
        return not is_cache(was, now) or self._is_drawn(names)

    def _is_drawn(self, names: set[str]) -> bool:
        """Whether some code that names a cache draws random numbers: a new process draws others."""
        return any(
            names & {*code.co_names, *code.co_freevars} and _draws(code) for code in self.codes
        )


def _words(begins: str, place: _Place) -> str:
    return begins + "".join(f"[{key!r}]" for key in place)


def _has_state_of_its_own(thing: object) -> bool:
    return type(thing) is _CACHED or issubclass(type(thing), _OF_TORCH)


def _draws(code: types.CodeType) -> bool:
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return bool(DRAWS & {*code.co_names}) or any(map(_draws, inner))


def _numbers_in(value: Any, at: _Place = (), depth: int = 3) -> list[tuple[_Place, Any]]:
    """Return the first tensors and arrays in plain containers, each with the keys that lead to it."""
    kind = type(value)
    if issubclass(kind, _NUMBERS):
        return [(at, value)]
    found: list[tuple[_Place, Any]] = []
    base = base_of(kind)  # type: ignore[arg-type]
    if not depth or base is None or issubclass(base, set | frozenset):
        return found
    pairs = base.items(value) if issubclass(base, dict) else enumerate(base.__iter__(value))
    for key, one in islice(pairs, _BATCHES):
        kind = type(one)
        if kind in TENSORS:  # most are
            found.append(((*at, key), one))
        elif kind not in ATOMS:
            found += _numbers_in(one, (*at, key), depth - 1)
        else:
            continue
        if len(found) >= _BATCHES:
            break
    return found[:_BATCHES]


def _is_of_numbers(value: object) -> bool:
    """Whether it is a list or a tuple of plain numbers, such as the indices of a `Subset`."""
    if not isinstance(value, list | tuple):
        return False
    return {*map(type, islice(value, _BATCHES))} <= {int, float, bool}


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


@lru_cache(maxsize=4096)
def _is_own(kind: type, name: str) -> bool:
    """Whether a holder of some type leaves this value to others to write down."""
    own = [attributes_of_class(one) for one in kind.__mro__ if is_users(one.__module__)]
    if any(one.keys() & {*_SAVES} for one in own):
        return False
    told_epoch = [code for one in own for code in codes_of(one.get("set_epoch"))]
    return not any(name in code.co_names for code in told_epoch)  # it follows from the epoch
