"""One look at all plain values that a run reaches, at a checkpoint.

Each is put under the identity of its holder, what it is called, and its name. What stays the same from one look
to the next, while the search follows the same way, is worked out once: what each value is called, and the code.
"""

from __future__ import annotations

import functools
import os
import types
import zlib
from collections.abc import Collection, Hashable
from functools import cache, lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, cast

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
from statemachine_trainer.audit.set_at_times import set_at_ends, set_at_times
from statemachine_trainer.audit.value_names import (
    has_state,
    name_in_objects,
    name_in_process,
)
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.found import TENSORS
from statemachine_trainer.snapshot.kinds import (
    ATOMS,
    attributes_of_class,
    is_of_users,
    is_users,
    named,
)
from statemachine_trainer.snapshot.repeated_search import SearchResult

_MOST: Final = 20_000
"""Values that are looked at in one checkpoint."""

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
_SPACES: Final = (dict, types.FunctionType)
_ENVIRONMENT: Final = frozenset({"environ", "environb", "putenv"})
_CACHED: Final = type(cache(len))
"""The class of functions with a `functools.cache`."""

KeyPath = tuple[Any, ...]
"""The keys that lead to something in containers."""

Numbers = dict[tuple[int, str, KeyPath], tuple[Any, type, str]]
"""By identity, path of the data and place: what a tensor or an array holds, its class, what to do if it changes."""

Key = tuple[int, str, str]
"""Identity of the holder, what the value is called, and its name there."""


class ValueName(NamedTuple):
    """What a value is called.

    Attributes:
        what: In words.
        name: Its name at its holder.
        remedy: What to do so that it is held.
        holder: The class of the holder.
        of_library: Whether it lies in a module of a library, which changes in place what is its own.
        of_object: Whether it is an attribute of an object; not of a class, a variable, or a global.
    """

    what: str
    name: str
    remedy: str
    holder: type
    of_library: bool
    of_object: bool


class Known:
    """What stays as it is while searches follow the same way.

    Attributes:
        named: Of each note, what the value is called; None of those that are not looked at.
        codes: The code of users that was seen.
        in_environment: The names of environment variables in that code.
        at_times: The names that it sets where some condition holds.
        at_ends: The names that it sets at the end of a part of the loop, and reads before.
    """

    def __init__(self) -> None:
        self.named: list[ValueName | None] = []
        self.codes: set[types.CodeType] = set()
        self.in_environment: list[str] | None = None
        self.at_times: frozenset[str] | None = None
        self.at_ends: frozenset[str] | None = None


class Look:
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

    def __init__(self, roots: Roots, model: nn.Module, known: Known | None = None) -> None:
        self.values: dict[Key, Seen] = {}
        self.remedies: dict[Key, str] = {}
        self.holders: dict[Key, type] = {}
        self.of_process: dict[str, str] = {}
        self.numbers: Numbers = {}
        self._roots = roots
        names = PlainNames(model)
        held = (*names.parameters(), *names.buffers())
        self.reader = Reader({address(one) for _, one in held})
        self._is_known = known is not None
        self.known = known or Known()
        self._notes = 0  # that were taken
        if known is None:
            self.known.codes.update(code for one in roots.values() for code in codes_of(one))
        self._kinds: set[type] = set()
        self._changed: Changed | None = None

    @property
    def codes(self) -> set[types.CodeType]:
        """The code of users that was seen."""
        return self.known.codes

    def take(self, found: SearchResult) -> None:
        """Take a look at all that a search has found."""
        if not self._is_known:
            self.known.named += [self._named(path, one, name) for path, one, name, _ in found.notes]
            for _, holder, _, value in found.notes:
                self._note_code(holder, value)
        for path, thing in found.visits:
            if self._is_known or has_state_of_its_own(thing):
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
        elif type(value) in _LISTS:  # it may be a table of functions
            inside = cast(Any, value)
            for one in islice(inside.values() if type(value) is dict else inside, _BATCHES):
                if any(type(one) is kind for kind in _WITH_CODE):  # a class may not be hashable
                    codes.update(codes_of(one))
        if type(holder) in _WITH_CODE:
            codes.update(codes_of(holder))
        if type(holder) not in self._kinds:
            self._kinds.add(type(holder))
            codes.update(codes_of_class(type(holder)))

    def _named(self, path: str, holder: object, name: str) -> ValueName | None:
        """Return what a value is called; None of one that is not looked at."""
        if name.startswith("__"):
            return None
        kind = type(holder)
        if issubclass(kind, nn.Module) and name in vars(holder).get("_defaults", ()):
            return None  # a state of torchmetrics
        if not _is_own(kind, name):  # type: ignore[arg-type]
            return None
        words = name_in_objects(self._roots, path, holder, name)
        if words is None and (path.startswith("global ") or issubclass(kind, type)):
            words = name_in_process(self._roots, path, holder, name)
        if words is None:
            return None
        of_library = issubclass(kind, nn.Module) and not is_users(kind.__module__)
        of_object = kind not in _SPACES and not issubclass(kind, type)
        return ValueName(words[0], name, words[1], kind, of_library, of_object)

    def _note(self, named: ValueName, holder: object, value: object) -> None:
        """Take a look at one named value."""
        if type(value) is types.FunctionType and not named.of_object:
            return  # code, which is compared elsewhere
        seen = self.reader.seen(value)
        if seen is None:
            return
        if named.of_library and seen.itself is not None:
            seen = seen._replace(itself=None)
        what, name, remedy, kind, _, _ = named
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
            self.values[key], self.remedies[key] = seen._replace(words=shown), _OF_TOOL

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
                    key = (id(one), in_words(begins, place), "")
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
        if same:
            # The attributes of an object are looked at one by one, but its class may be another.
            return not now.is_object or now.shown != was.shown
        if self._changed is None:
            self._changed = Changed().with_those_of(map(changed_by, self.codes))
        names = {name, name.lstrip("_")}  # a property may have it
        in_place = now.of_many and (
            names & self._changed.in_place or (now.has_methods and "self" in self._changed.in_place)
        )
        decides = in_place or names & self._changed.updated or names & self._at_times()
        if not (decides and names & self._changed.read):
            return bool(names & self._at_ends())
        return not is_cache(was, now) or self._is_drawn(names)

    def of_class(self, key: Key) -> Seen | None:
        """Return what an attribute that an object has got was before: that of its class."""
        name, kind = key[2], self.holders.get(key)
        for base in () if kind is None or not name else kind.__mro__:
            if is_users(base.__module__) and name in attributes_of_class(base):
                return self.reader.seen(attributes_of_class(base)[name])
        return None

    def _at_times(self) -> frozenset[str]:
        if self.known.at_times is None:
            self.known.at_times = frozenset().union(*map(set_at_times, self.codes))
        return self.known.at_times

    def _at_ends(self) -> frozenset[str]:
        if self.known.at_ends is None:
            self.known.at_ends = set_at_ends(self.codes)
        return self.known.at_ends

    def _is_drawn(self, names: set[str]) -> bool:
        """Whether some code that names a cache draws random numbers: a new process draws others."""
        return any(
            names & {*code.co_names, *code.co_freevars} and _draws(code) for code in self.codes
        )


def in_words(begins: str, place: KeyPath) -> str:
    """Return the path of something in containers of the data."""
    return begins + "".join(f"[{key!r}]" for key in place)


def has_state_of_its_own(thing: object) -> bool:
    """Whether an object has more state than names; see `Look.take`."""
    return type(thing) is _CACHED or issubclass(type(thing), _OF_TORCH)


def _draws(code: types.CodeType) -> bool:
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return bool(DRAWS & {*code.co_names}) or any(map(_draws, inner))


def _numbers_in(value: Any, at: KeyPath = (), depth: int = 3) -> list[tuple[KeyPath, Any]]:
    """Return the first tensors and arrays in plain containers, each with the keys that lead to it."""
    kind = type(value)
    if issubclass(kind, _NUMBERS):
        return [(at, value)]
    found: list[tuple[KeyPath, Any]] = []
    base = base_of(kind)  # type: ignore[arg-type]
    if not depth or base is None or issubclass(base, set | frozenset):
        return found
    pairs = base.items(value) if issubclass(base, dict) else enumerate(base.__iter__(value))
    for key, one in islice(pairs, _BATCHES):
        kind = type(one)
        try:
            if kind in TENSORS:  # most are
                found.append(((*at, key), one))
            elif kind not in ATOMS:
                found += _numbers_in(one, (*at, key), depth - 1)
            else:
                continue
        except Exception:  # a class that cannot be hashed
            continue
        if len(found) >= _BATCHES:
            break
    return found[:_BATCHES]


def _is_of_numbers(value: object) -> bool:
    """Whether it is a list or a tuple of plain numbers, such as the indices of a `Subset`."""
    if not isinstance(value, list | tuple):
        return False
    return {*map(type, islice(value, _BATCHES))} <= {int, float, bool}


@lru_cache(maxsize=4096)
def _is_own(kind: type, name: str) -> bool:
    """Whether a holder of some type leaves this value to others to write down."""
    own = [attributes_of_class(one) for one in kind.__mro__ if is_users(one.__module__)]
    if any(one.keys() & {*_SAVES} for one in own):
        return False
    told_epoch = [code for one in own for code in codes_of(one.get("set_epoch"))]
    return not any(name in code.co_names for code in told_epoch)  # it follows from the epoch
