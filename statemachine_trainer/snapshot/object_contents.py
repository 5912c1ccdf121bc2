"""Reads at once what a search would look at in one object, to see whether that is still the same.

What is read decides what the search does with the object: the values that it goes on to, by name and in
its order. Values that lead nowhere, such as numbers and tensors, may be others each time.

No code of users runs, as in the search itself.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from statemachine_trainer.parallel.wrappers import inner_of, is_wrapper
from statemachine_trainer.snapshot.found import (
    FACTORY,
    HOOKS,
    KEYS,
    TENSORS,
    names_in,
    names_of_arguments,
    names_of_defaults,
)
from statemachine_trainer.snapshot.kinds import (
    ATOMS,
    HEAP,
    attributes_of_class,
    behind,
    behind_attributes,
    dictionary_alone,
    how_to_visit,
    is_a,
    is_harmless,
    is_users,
    named,
)
from statemachine_trainer.snapshot.sampling import INSIDE, LARGE, TYPED, Sampling

_IDENTITIES: Final = 1 << 32
"""A key from here on may be the identity of an object, which means nothing elsewhere."""


class Nothing:
    """Stands for a variable that has no value. It has a class of its own, because types are compared."""


NOTHING: Final = Nothing()

Contents = tuple[list[Any], list[Any], tuple[Any, ...], tuple[Any, ...]]
"""What a search looks at in one object.

The names of the values, as many of them as there are, none at all of elements; the values, in the order of
the search; what else decides what the search does, which is compared; what must be the very same object.
"""

Reader = Callable[[Any, Sampling], Contents | None]
"""Reads an object; returns None of one that has to be looked at anew each time."""


@functools.lru_cache(maxsize=4096)
def reader_of(kind: type) -> Reader:
    """Return what reads the objects of a class."""
    visit = how_to_visit(cast(Hashable, kind))[0]
    if visit == "_object" and not issubclass(kind, DataLoader):
        return _reader_of_objects(kind)
    return _reader_of_modules(kind) if visit == "_module" else _READERS[visit]


def is_bare(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no hooks, and no attributes that were set on it."""
    with torch._C.DisableTorchFunctionSubclass():
        return not (
            tensor._backward_hooks
            or getattr(tensor, "_post_accumulate_grad_hooks", None)
            or object.__getattribute__(tensor, "__dict__")
        )


# -- objects -------------------------------------------------------------------------------------


def _nothing(thing: object, _: Sampling) -> Contents:
    return [], [], (), ()


def _tensor(thing: Any, sampling: Sampling) -> Contents | None:
    if not is_bare(thing):
        return None
    of_users = is_users(type(thing).__module__)
    return _attributes(thing, sampling) if of_users else ([], [], (), ())


def _object_of_c(thing: object, sampling: Sampling) -> Contents:
    return _joined(_attributes(thing, sampling), ([], behind_attributes(thing), (), ()))


def _told(thing: object, _: Sampling) -> Contents:
    return [], [], (is_harmless(thing),), ()


def _reader_of_objects(kind: type) -> Reader:
    dictionary = dictionary_alone(kind)
    if dictionary is None:
        return _attributes
    get, its_class = dictionary.__get__, [kind] if is_users(kind.__module__) else []
    name_of_class = [_CLASS] * len(its_class)

    def read(thing: object, _: Sampling) -> Contents:
        inside = get(thing, kind)
        return [*inside, *name_of_class], [*inside.values(), *its_class], (), ()

    return read


def _attributes(thing: object, _: Sampling) -> Contents:
    pairs = named(thing)
    kind = type(thing)
    if is_a(thing, DataLoader):  # its iterator, of persistent workers, is begun anew with each pass
        pairs = [pair for pair in pairs if pair[0] != "_iterator"]
    names: list[Any] = [name for name, _ in pairs]
    values = [value for _, value in pairs]
    if is_users(kind.__module__):
        names.append(_CLASS)
        values.append(kind)
    return names, values, (), ()


_CLASS: Final = ("class",)


def _reader_of_modules(kind: type) -> Reader:
    own_attributes = _reader_of_objects(kind)

    def read(module: Any, sampling: Sampling) -> Contents | None:
        names, values, _, _ = own_attributes(module, sampling)  # type: ignore[misc]
        own = module.__dict__
        children = own.get("_modules", {})  # a compiled script has none
        names += children
        values += children.values()
        also: tuple[Any, ...] = (len(children),)
        if any(map(own.get, HOOKS)):
            for name in HOOKS:
                hooks = [*(own.get(name) or {}).values()]
                also += (len(hooks),)
                names += [_HOOK] * len(hooks)
                values += hooks
        for group in ("_parameters", "_buffers"):
            for tensor in own.get(group, {}).values():
                if type(tensor) not in TENSORS:
                    if tensor is not None and not is_bare(tensor):
                        return None
                elif (  # as `is_bare` says, in less time
                    tensor._backward_hooks or tensor._post_accumulate_grad_hooks or tensor.__dict__
                ):
                    return None
        return names, values, also, ()

    return _wrapper if is_wrapper(kind) else read


_HOOK: Final = ("hook",)


def _wrapper(module: nn.Module, _: Sampling) -> Contents:
    return [], [inner_of(module)], (), ()


def _referents(thing: object, _: Sampling) -> Contents:
    return [], gc.get_referents(thing)[:LARGE], (), ()


def _cache(thing: object, sampling: Sampling) -> Contents:
    return _joined(_referents(thing, sampling), _attributes(thing, sampling))


def _context_variable(variable: contextvars.ContextVar[Any], _: Sampling) -> Contents:
    return [], [behind(variable)], (), ()


def _of_thread(local: threading.local, _: Sampling) -> Contents:
    inside = threading.local.__getattribute__(local, "__dict__")
    return [*inside], [*inside.values()], (), ()


def _weak(reference: weakref.ref[Any], _: Sampling) -> Contents:
    return [], [weakref.ref.__call__(reference)], (), ()


# -- containers ----------------------------------------------------------------------------------


def _mapping(thing: dict[Any, Any], sampling: Sampling) -> Contents | None:
    count = dict.__len__(thing)
    if _leads_on(count, lambda: dict.keys(thing), INSIDE, sampling):
        return None
    if not _leads_on(count, lambda: dict.values(thing), TYPED, sampling):
        return _of_mapping(thing, ([], [], (), ()))
    names: list[Any] = [*dict.keys(thing)]
    if count > LARGE:
        return None
    if not _TEXTS.issuperset(map(type, names)):
        # The search takes a number for the identity of an object if there is such an object.
        if any(type(key) is int and key >= _IDENTITIES for key in names):
            return None
        names = [
            key if type(key) is str else (type(key), key) if type(key) in KEYS else (place,)
            for place, key in enumerate(names)
        ]
    return _of_mapping(thing, (names, [*dict.values(thing)], (), ()))


def _of_mapping(thing: dict[Any, Any], found: Contents) -> Contents:
    if issubclass(type(thing), defaultdict):
        factory = FACTORY.__get__(thing)
        found = _joined(found, ([_FACTORY], [factory], (), ()))
    return _with_own(thing, dict, found)


_TEXTS: Final = frozenset({str})
_FACTORY: Final = ("factory",)


def _sequence(thing: Any, sampling: Sampling) -> Contents | None:
    kind = type(thing)
    base: Any = list if issubclass(kind, list) else tuple if issubclass(kind, tuple) else deque
    return _elements(thing, base, TYPED, sampling)


def _set(thing: Any, sampling: Sampling) -> Contents | None:
    base: Any = set if issubclass(type(thing), set) else frozenset
    return _elements(thing, base, INSIDE, sampling)


def _elements(thing: Any, base: Any, most: int, sampling: Sampling) -> Contents | None:
    count, values = base.__len__(thing), []
    if _leads_on(count, lambda: base.__iter__(thing), most, sampling):
        values = [*base.__iter__(thing)]
        if len(values) > LARGE:
            return None
    return _with_own(thing, base, ([], values, (), ()))


def _leads_on(
    count: int, elements: Callable[[], Iterable[Any]], most: int, sampling: Sampling
) -> bool:
    """Whether the search visits elements of a container."""
    if count <= LARGE:  # as `Sampling.kinds` says, in less time
        kinds = {*map(type, elements())} - ATOMS
        if not kinds or not kinds <= _LOOKED_INTO:
            sampling.typed += count
            return bool(kinds)
    return bool(sampling.kinds(count, elements, most))


_LOOKED_INTO: Final = frozenset({list, tuple, dict})
"""Types of elements that are not visited where they hold nothing but plain values."""


def _array(thing: Any, _: Sampling) -> Contents | None:
    also: tuple[object, ...] = ()
    if issubclass(type(thing), np.memmap):
        also = thing.flags.writeable, getattr(thing, "mode", None)
    elif np.ndarray.view(thing, np.ndarray).dtype.hasobject:
        return None
    return _with_own(thing, np.ndarray, ([], [], also, ()))


def _with_own(thing: object, base: type, found: Contents) -> Contents:
    """Add what a subclass of a container has besides its elements."""
    if type(thing) is base or not type(thing).__flags__ & HEAP:
        return found
    return _joined(found, _attributes(thing, Sampling()))


def _joined(one: Contents, other: Contents) -> Contents:
    names = one[0] or [_ELEMENT] * len(one[1])
    return names + other[0], one[1] + other[1], (*one[2], len(one[1])), one[3]


_ELEMENT: Final = ("element",)


# -- functions and classes -----------------------------------------------------------------------


class _Variables(NamedTuple):
    """What a function may name: variables of its closure, and globals."""

    closure: tuple[str, ...]
    own: tuple[str, ...]
    all: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def _variables(code: types.CodeType) -> _Variables:
    found = names_in(code)
    return _Variables(
        code.co_freevars,
        tuple(name for name in found if not name.startswith("__")),
        found,
    )


def _function(function: types.FunctionType, _: Sampling) -> Contents:
    code, space = function.__code__, function.__globals__
    closure, own, named_all = _variables(code)
    home = function.__module__
    names: list[object] = [*closure]
    values: list[object] = [*map(_content, function.__closure__ or ())]
    also: list[object] = [home, function.__qualname__]
    if given := function.__defaults__:
        names += names_of_defaults(code, len(given))
        values += given[::-1]
        also.append(len(given))
    for inside in (function.__kwdefaults__, function.__dict__):
        if inside:
            names += inside
            values += inside.values()
            also.append(len(inside))
    if not is_users(home):
        return names, values, tuple(also), (code, space)
    fixed: list[object] = [code, space]
    also.append(space.get("__name__"))
    also += _drawn(function)
    for name in own:
        value = space.get(name, NOTHING)
        if not is_a(value, types.ModuleType):
            names.append(name)
            values.append(value)
            continue
        assert isinstance(value, types.ModuleType)
        fixed.append(value)
        also.append(value.__name__)
        if is_users(value.__name__):
            names += named_all
            values += [_no_module(vars(value).get(one, NOTHING)) for one in named_all]
    return names, values, tuple(also), tuple(fixed)


def _drawn(function: types.FunctionType) -> list[str]:
    # Not needed to build a trainer.
    from statemachine_trainer.snapshot.system_randomness import drawn_from_system, may_draw

    return drawn_from_system(function) if may_draw(function.__code__) else []


def _no_module(value: object) -> object:
    return NOTHING if is_a(value, types.ModuleType) else value


def _content(cell: types.CellType) -> object:
    try:
        content: object = cell.cell_contents
    except ValueError:  # nothing in it yet
        return NOTHING
    return content


def _partial(partial: functools.partial[Any], sampling: Sampling) -> Contents:
    known, count = names_of_arguments(partial.func), len(partial.args)
    names: list[object] = [
        ("function",),
        *known[:count],
        *((place,) for place in range(len(known), count)),
        *partial.keywords,
    ]
    values = [partial.func, *partial.args, *partial.keywords.values()]
    also = (getattr(partial.func, "__module__", None), count)
    return _joined((names, values, also, ()), _attributes(partial, sampling))


def _bound(method: Any, _: Sampling) -> Contents:
    owner = getattr(method, "__self__", None)  # a function of Cython may be unbound
    inner = method.__func__ if isinstance(method, types.MethodType) else None
    return [], [_no_module(owner), inner], (), ()


def _class(kind: type, _: Sampling) -> Contents:
    names: list[object] = []
    values: list[object] = []
    for base in kind.__mro__:
        if not is_users(base.__module__):
            continue
        for name, value in [*attributes_of_class(base).items()]:
            behind_it = _behind_attribute(name, value)
            # Of what lies behind an attribute nothing is noted.
            names += [name] if behind_it is None else [(name, type(value))] * len(behind_it)
            values += [value] if behind_it is None else behind_it
    return names, values, (), kind.__mro__


def _behind_attribute(name: str, value: Any) -> list[object] | None:
    """Return what the search goes on to from an attribute of a class; None where that is the value itself."""
    if type(value) is types.FunctionType:  # most are
        return None
    if is_a(value, property):
        return [value.fget, value.fset]
    if is_a(value, functools.cached_property):
        return [value.func]
    if is_a(value, (classmethod, staticmethod)):
        return [value.__func__]
    return [NOTHING] if name.startswith("__") and name.endswith("__") else None


_READERS: Final[dict[str, Reader]] = {
    "": _nothing,
    "tell": _told,
    "_object": _attributes,
    "_object_of_c": _object_of_c,
    "_tensor": _tensor,
    "_referents": _referents,
    "_cache": _cache,
    "_context_variable": _context_variable,
    "_of_thread": _of_thread,
    "_weak": _weak,
    "_mapping": _mapping,
    "_sequence": _sequence,
    "_set": _set,
    "_array": _array,
    "_function": _function,
    "_partial": _partial,
    "_bound": _bound,
    "_class": _class,
}
