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

import dis
import time
import types
import warnings
import weakref
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.running.audit import NotHeld
from statemachine_trainer.running.reachable import Roots
from statemachine_trainer.running.value_names import name_in_objects, name_in_process
from statemachine_trainer.snapshot.kinds import attributes_of_class, is_users
from statemachine_trainer.snapshot.search import Search

_MOST: Final = 20_000
"""Values that are looked at in one checkpoint."""

_ELEMENTS: Final = 400
"""Elements of a container that are looked at: the first half and the last half of them."""

_BYTES: Final = 1 << 16
"""Bytes of a tensor or an array that are read; of a larger array, as many spread over it."""

_TOLD: Final = 8
_WEEK: Final = 7 * 24 * 60 * 60.0

_ATOMS: Final = (bool, int, float, complex, str, bytes, type(None))
_DICTS: Final = (dict, OrderedDict, defaultdict, Counter)
_CONTAINERS: Final = (list, tuple, deque, set, frozenset, *_DICTS)
"""Their own classes alone: those of users may do anything when they are read."""

_SAVES: Final = ("state_dict", "_save_to_state_dict", "on_save_checkpoint", "__getstate__")
"""Methods by which a class of a user writes down its attributes itself."""

_Key = tuple[int, str, str]
"""Identity of the holder, what the value is called, and its name there."""


class _Seen(NamedTuple):
    """A value as it was at one checkpoint.

    Attributes:
        content: What is compared.
        shown: The value in a few words.
        items: Of a dict, what is compared by key, if it has few; else None.
        itself: The object, if it is a tensor or an array.
        of_many: Whether it is a container.
        is_time: Whether it was read from a clock.
    """

    content: object
    shown: str
    items: Mapping[object, object] | None = None
    itself: weakref.ref[Any] | None = None
    of_many: bool = False
    is_time: bool = False


class ChangingValues:
    """Compares the plain values that a run reaches at each checkpoint with those at the one before."""

    def __init__(self) -> None:
        self._before: dict[_Key, _Seen] | None = None
        self._told: set[str] = set()

    def begin(self) -> None:
        """Forget what was seen: a fit begins, or goes on from a checkpoint."""
        self._before = None

    def look(self, model: nn.Module, roots: Roots, data: Roots) -> Search:
        """Look at all values, and tell of those that changed since the last time, each once.

        Args:
            model: The model, whose parameters and buffers are held.
            roots: Where the search begins, and by which values are named.
            data: The parts of the loaders, in which is searched too.

        Returns:
            The search from the roots, for others who look for something there.

        Warns:
            NotHeld: There is such a value. The message has its name and a way out.
        """
        look = _Look({**roots, **data}, model)
        search = Search(roots, notice=look.note, quiet=True)
        Search(data, notice=look.note, quiet=True)
        before, self._before = self._before, look.values
        if before is None:
            return search
        lines = []
        for key, remedy in look.remedies.items():
            (_, what, name), was, now = key, before.get(key), look.values[key]
            if was is None or what in self._told or not look.carries_over(name, was, now):
                continue
            self._told.add(what)
            lines.append(f"{what}, from {was.shown} to {now.shown}: {remedy}")
        _tell(lines)
        return search


class _Look:
    """One look at all values.

    Attributes:
        values: What was seen.
        remedies: What to do so that it is held.
    """

    def __init__(self, roots: Roots, model: nn.Module) -> None:
        self.values: dict[_Key, _Seen] = {}
        self.remedies: dict[_Key, str] = {}
        self._roots = roots
        self._held = {_address(one) for one in (*model.parameters(), *model.buffers())}
        self._codes = {code for one in roots.values() for code in _codes_of(one)}
        self._kinds: set[type] = set()
        self._changed: _Changed | None = None

    def note(self, path: str, holder: object, name: str, value: object) -> None:
        """Take a look at one named value, as `Search` calls it."""
        self._codes.update(_codes_of(value))
        self._codes.update(_codes_of(holder))
        if type(holder) not in self._kinds:
            self._kinds.add(type(holder))
            self._codes.update(_codes_of_class(type(holder)))
        if len(self.values) >= _MOST or name.startswith("__"):
            return
        if isinstance(holder, nn.Module) and name in vars(holder).get("_defaults", ()):
            return  # a state of torchmetrics
        if not _is_own(cast(Hashable, type(holder)), name):
            return
        words = name_in_objects(self._roots, path, holder, name)
        words = words or name_in_process(self._roots, path, holder, name)
        seen = self._seen(value) if words is not None else None
        if (
            seen is not None
            and isinstance(holder, nn.Module)
            and not is_users(type(holder).__module__)
        ):
            seen = seen._replace(itself=None)  # what a library changes in place is its own
        if words is not None and seen is not None:
            key = (id(holder), words[0], name)
            self.values[key], self.remedies[key] = seen, words[1]

    def carries_over(self, name: str, was: _Seen, now: _Seen) -> bool:
        """Whether a value changed, and what it was decides what it became."""
        if was.content == now.content or was.shown == "None":  # made when it was needed
            return False
        if now.is_time:
            return False
        if was.itself is not None and now.itself is not None and was.itself() is now.itself():
            return True
        if self._changed is None:
            self._changed = _Changed().with_those_of(map(_changed_by, self._codes))
        in_place = now.of_many and name in self._changed.in_place
        decides = in_place or name in self._changed.updated
        return decides and name in self._changed.read and not _is_cache(was, now)

    def _seen(self, value: Any) -> _Seen | None:
        kind = type(value)
        if kind in _ATOMS:
            text = repr(value)
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            return _Seen(text, shown, is_time=kind is float and _is_time(value))
        if kind is torch.Tensor or kind is np.ndarray:
            content = self._numbers(value)
            if content is None:
                return None
            shown = f"a {kind.__name__} {tuple(value.shape)}"
            return _Seen(content, shown, itself=weakref.ref(value))
        if kind in _CONTAINERS:
            items = None
            if isinstance(value, dict) and len(value) <= _ELEMENTS:
                items = {_plain_key(k): self._element(v) for k, v in [*value.items()]}
            shown = f"a {kind.__name__} of {len(value)}"
            return _Seen(self._elements(value), shown, items, of_many=True)
        return None

    def _numbers(self, value: Any) -> object:
        """Return what tells whether a tensor or an array changed; None if a checkpoint holds it."""
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biufc":
                return None
            step = max(1, value.nbytes // _BYTES)
            flat = value.reshape(-1) if value.flags.c_contiguous else value.flat
            return value.shape, zlib.crc32(np.ascontiguousarray(flat[::step]).tobytes())
        address = _address(value)
        if address is None or address in self._held or value.grad_fn is not None:
            return None
        if value.device.type == "cpu" and value.nbytes <= _BYTES:
            flat = value.detach().resolve_conj().resolve_neg().contiguous().flatten()
            return value.shape, zlib.crc32(flat.view(torch.uint8).numpy().tobytes())
        return value.shape, address, value._version

    def _elements(self, value: Any) -> object:
        kept: Iterable[Any]
        if isinstance(value, dict):
            kept = [*islice(value.items(), _ELEMENTS)]
        elif isinstance(value, (set, frozenset)):
            return len(value), frozenset(map(self._element, islice(value, _ELEMENTS)))
        elif len(value) <= _ELEMENTS:
            kept = [*value]
        else:
            half = _ELEMENTS // 2
            kept = [*islice(value, half), *islice(reversed(value), half)]
        return len(value), tuple(self._element(one) for one in kept)

    def _element(self, value: Any) -> object:
        kind = type(value)
        if kind in _ATOMS:
            return repr(value)
        if kind is torch.Tensor or kind is np.ndarray:
            return self._numbers(value)
        if kind in (tuple, list) and len(value) <= 8:
            return tuple(self._element(one) for one in value)
        return kind


def _is_time(value: float) -> bool:
    """Whether a number was read from a clock in the last week."""
    clocks = (time.time(), time.perf_counter(), time.monotonic())
    return value % 1 != 0 and any(0 <= clock - value < _WEEK for clock in clocks if value > 1000)


def _address(tensor: torch.Tensor) -> int | None:
    """Return where the numbers of a plain tensor are; None of any other."""
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        return None
    if tensor.is_inference() or tensor.is_quantized:
        return None
    try:
        return tensor.data_ptr() or None
    except (RuntimeError, NotImplementedError):  # of a class of its own
        return None


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
    told_epoch = [code for one in own for code in _codes_of(one.get("set_epoch"))]
    return not any(name in code.co_names for code in told_epoch)  # it follows from the epoch


def _is_cache(was: _Seen, now: _Seen) -> bool:
    """Whether a dict has all that it had, and more."""
    if was.items is None or now.items is None:
        return was.items is not None or now.items is not None  # it has become too large to say
    return len(now.items) > len(was.items) and was.items.items() <= now.items.items()


def _plain_key(key: object) -> object:
    return key if type(key) in _ATOMS else repr(type(key))


# -- What code does with names --------------------------------------------------------------------

_LOADS: Final = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME")
_STORES: Final = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")
_ENDS: Final = ("STORE_FAST", "STORE_NAME", "POP_TOP", "RETURN_VALUE")
_IN_PLACE: Final = ("STORE_SUBSCR", "DELETE_SUBSCR")
_ALL_ENDS: Final = (*_STORES, *_ENDS, *_IN_PLACE)
_METHODS: Final = frozenset(
    {
        *("append", "appendleft", "add", "extend", "extendleft", "insert", "update", "setdefault"),
        *("pop", "popleft", "popitem", "remove", "discard", "clear", "sort", "reverse", "rotate"),
        "subtract",
    }
)
"""Methods that change a container."""

_GROWING: Final = frozenset({"append", "appendleft", "extend", "add", "update"})
"""Those that give nothing back."""

_FUNCTIONS: Final = frozenset(
    {"shuffle", "heappush", "heappop", "heapreplace", "heappushpop", "insort"}
)
"""Functions that change the container that they are given."""


def _codes_of(thing: object) -> list[types.CodeType]:
    """Return the code of a function of a user, or of a bound method; none of anything else."""
    inner = getattr(thing, "__func__", thing) if type(thing) is types.MethodType else thing
    if type(inner) is not types.FunctionType:
        return []
    # What `functools.wraps` has made calls itself by the module of what it wraps.
    return [inner.__code__] if is_users(inner.__globals__.get("__name__")) else []


class _Changed(NamedTuple):
    """Names of what code changes.

    Attributes:
        updated: It assigns to them what it computes from the same name.
        in_place: It may change the containers that they name.
        read: It reads them for something else.
    """

    updated: frozenset[str] = frozenset()
    in_place: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()

    def with_those_of(self, others: Iterable[_Changed]) -> _Changed:
        """Return these names and those of others."""
        all_ = [self, *others]
        return _Changed(*(frozenset().union(*names) for names in zip(*all_, strict=True)))


def _codes_of_class(kind: type) -> list[types.CodeType]:
    """Return the code of the properties, class methods and static methods of a class of a user."""
    found = []
    for base in kind.__mro__:
        for one in attributes_of_class(base).values() if is_users(base.__module__) else ():
            if isinstance(one, property):
                found += _codes_of(one.fget) + _codes_of(one.fset)
            elif isinstance(one, (classmethod, staticmethod)):
                found += _codes_of(one.__func__)
    return found


@lru_cache(maxsize=4096)
def _changed_by(code: types.CodeType) -> _Changed:
    """Return the names of what code changes in a way that depends on what it was."""
    found = _Statements()
    for one in dis.get_instructions(code):
        found.take(one)
    changed = _Changed(*map(frozenset, (found.updated, found.in_place, found.read)))
    return changed.with_those_of(map(_changed_by, _inner(code)))


class _Statements:
    """Reads the instructions of a function, statement by statement."""

    def __init__(self) -> None:
        self.updated: set[str] = set()
        self.in_place: set[str] = set()
        self.read: set[str] = set()
        self._carried: set[tuple[str, str]] = set()  # read, and not set yet
        self._fresh: set[tuple[str, str]] = set()  # set, before it was read
        self._before: tuple[str, str] = ("", "")  # the instruction before, and its name
        self._begin()

    def _begin(self) -> None:
        self._loaded: set[tuple[str, str]] = set()  # names, each with that before it: ("self", "x")
        self._augmented: set[str] = set()
        self._set: set[str] = set()  # and what is only set here, or grows
        self._texts: set[str] = set()

    def take(self, one: dis.Instruction) -> None:
        """Take the next instruction."""
        kind = one.opname
        pair = kind.startswith("LOAD_FAST") and isinstance(one.argval, tuple)  # two at once
        name = str(one.argval[-1] if pair else one.argval)
        if kind in _LOADS or kind.startswith("LOAD_FAST"):
            owner = self._before[1] if kind in ("LOAD_ATTR", "LOAD_METHOD") else ""
            if self._before[0] == "COPY":  # `self.x += ...`
                self._augmented.add(name)
            if name in _METHODS:
                self.in_place.add(owner)
            if name in _GROWING:
                self._set.add(owner)
            self._loaded.add((owner, name))
        elif kind == "LOAD_CONST" and type(one.argval) is str:
            self._texts.add(name)
        elif kind in _STORES:
            place = (self._before[1] if kind == "STORE_ATTR" else "", name)
            by_text = name in self._texts and ("", "getattr") in self._loaded
            of_same = place in self._loaded or place in self._carried or by_text
            if of_same or (kind == "STORE_ATTR" and name in self._augmented):
                self.updated.add(name)
            self._set.add(name)
            self._fresh.add(place)
        names = {name for _, name in self._loaded}
        if kind in _IN_PLACE or (kind in _ALL_ENDS and names & _FUNCTIONS):
            self.in_place |= names
        if kind in _ALL_ENDS or "JUMP" in kind:
            if "setattr" in names:
                self.updated |= names & self._texts
            self.read |= names - self._set
            if "JUMP" not in kind:  # `if self.x is None: self.x = ...` makes it once
                self._carried |= self._loaded - self._fresh
            self._begin()
        self._before = kind, name


def _inner(code: types.CodeType) -> list[types.CodeType]:
    return [one for one in code.co_consts if isinstance(one, types.CodeType)]
