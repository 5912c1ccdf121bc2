"""A walk over everything that can be reached from some objects, in search of state.

It finds random number generators, wherever they lie, and things that no checkpoint can hold:
iterators, open files, queues, locks, sockets. Each is found by its path.

The walk runs no code of users: it reads instance dictionaries, slots, containers, closures,
defaults, class attributes and module globals as they are. It calls no property, no `__getattr__`
and no `__iter__`, and imports nothing.

It is bounded. It visits at most `MOST` objects, and few of each type in containers (`sampling.py`).
"""

from __future__ import annotations

import contextvars
import functools
import gc
import random
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from statemachine_trainer.parallel.wrappers import inner_of
from statemachine_trainer.snapshot.found import (
    EMPTY,
    FACTORY,
    HOOKS,
    OF_MODULES,
    TENSORS,
    Place,
    RawStep,
    Step,
    Unheld,
    Way,
    names_in,
    names_of_arguments,
    names_of_defaults,
)
from statemachine_trainer.snapshot.generators import Generator, identity_of, is_global
from statemachine_trainer.snapshot.kinds import (
    ATOMS,
    HEAP,
    LENT,
    attributes_of_class,
    behind,
    behind_attributes,
    has_usual_class,
    how_to_visit,
    is_a,
    is_harmless,
    is_of_users,
    is_transparent,
    is_users,
    named,
)
from statemachine_trainer.snapshot.sampling import INSIDE, LARGE, Group, Sampling, copied

MOST: Final = 50_000
"""Objects that one walk visits at most."""

Notice = Callable[[str, object, str, object], None]
"""Called for each named value: path of the holder, the holder, the name, the value."""

_OF_SYSTEM = "use `random.Random(seed)`"
_FRESH = "give it a seed, made from the index or the epoch; or make a generator once, and keep it"
_ODD = "its class, or that of what it holds, has a metaclass of its own: let that have `__hash__ = type.__hash__`"
_SET = "keep it in a list or a dict: the order of a set differs from process to process"


class Search:
    """One walk, done when the object is made.

    Args:
        roots: Where it begins, by the beginning of the paths. What is reached from two roots has
            the path from the first.
        most: Objects to visit at most.
        notice: Called for each named value of what users wrote: attributes, closure variables, arguments
            of partials, globals, class attributes, attributes of tensors. Of a context variable it gets
            what it has in this context.
        quiet: Whether it is not called for the attributes of what has a state of its own, and is for those
            of the modules of libraries.
        visit: Called for each object that is visited, with its path.
        holders: Paths of the objects to keep in `holders`.
        code: Whether to look at the globals and class attributes that the code of users reads.

    Attributes:
        places: The generators by path, in the order in which they were found; each once.
        unheld: What no checkpoint can hold.
        modules: The modules that were visited, by path, but for those whose holder writes them down.
        holders: The objects at the paths asked for.
        visited: Objects visited.
        complete: Whether the walk came to its end before `most`.
        is_odd: Whether something could not be looked into, because its class does not behave as others do.
        sampling: What of large containers was not visited.
    """

    def __init__(
        self,
        roots: Mapping[str, object],
        *,
        most: int = MOST,
        notice: Notice | None = None,
        visit: Callable[[str, object], None] | None = None,
        quiet: bool = False,
        holders: Iterable[str] = (),
        code: bool = True,
    ) -> None:
        self.places: dict[str, Place] = {}
        self.unheld: list[Unheld] = []
        self.modules: dict[str, nn.Module] = {}
        self.holders: dict[str, object] = {}
        self.visited = 0
        self.complete = True
        self.is_odd = False
        self.sampling = Sampling()
        self._notice = notice
        self._on_visit = visit
        self._quiet = quiet
        self._wanted = frozenset(holders)
        self._code = code
        self._most = most
        self._seen: set[int] = set()
        self._classes: set[int] = set()  # that wait to be looked at, or were
        self._found: dict[int, Place] = {}
        self._now: deque[tuple[object, str, RawStep, Way]] = deque()
        self._later: deque[tuple[object, str, RawStep, Way]] = deque()
        for path, root in roots.items():
            self._now.append((root, path, ("", "other", path), Way()))
        self._walk()

    # -- the walk ----------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Visit what is near first: code, which may lead far away, comes last."""
        while True:
            waiting = self._now or self._later
            if not waiting:
                if not (self._go_on_where_generators_lie() or self._go_on_with_unlike_ones()):
                    return
                continue
            thing, path, step, way = waiting.popleft()
            try:
                visit, told = how_to_visit(type(thing))  # type: ignore[arg-type]
                if visit == "_find":
                    self._find(cast(Generator, thing), path, step, way)
                elif id(thing) not in self._seen:
                    if self.visited == self._most:
                        self.complete = False
                        return
                    self.visited += 1
                    self._seen.add(id(thing))
                    if path in self._wanted:
                        self.holders[path] = thing
                    if self._on_visit is not None:
                        self._on_visit(path, thing)
                    if visit == "tell":
                        if not is_harmless(thing):
                            assert told is not None
                            self._tell(path, *told, way)
                    elif visit:
                        if told is not None:  # what is below is the business of this object
                            lent = told is LENT and (way.told or way.lent)
                            way = way._replace(told=False, lent=lent)
                        getattr(self, visit)(thing, path, way)
            except Exception as error:  # a metaclass may do anything
                self._tell_odd(path, error, way)

    def _go_on_where_generators_lie(self) -> bool:
        """Visit containers whole if a generator was found in one of the elements visited."""
        for group in self.sampling.further(self.places):
            for thing, mark in group.items():
                if len(self._now) > self._most:
                    self.complete = False
                    break
                if type(thing) not in ATOMS:
                    self._offer(thing, *group.at(mark), group.way)
        return bool(self._now)

    def _go_on_with_unlike_ones(self) -> bool:
        """Visit those of the objects passed over that have something which none of the visited ones has."""
        for group, (thing, mark) in self.sampling.unlike():
            through = group.way.through | {type(thing)}
            self._offer(thing, *group.at(mark), group.way._replace(through=through))
        return bool(self._now)

    def _find(self, generator: Generator, path: str, step: RawStep, way: Way) -> None:
        if is_global(generator):
            return
        if is_a(generator, random.SystemRandom):
            return self._tell(path, "drawn from the operating system", _OF_SYSTEM, way)
        step = Step(*step)
        known = self._found.get(identity_of(generator))
        if known is not None:
            if step not in (known.step, *known.also):
                known.also.append(step)
            return
        if not way.ordered:
            return self._tell(path, "a generator in a set", _SET, Way())
        self.sampling.leads |= way.through
        place = Place(path, generator, step)
        self._found[identity_of(generator)] = self.places[path] = place
        if is_a(generator, random.Random) and type(generator) is not random.Random:
            self._attributes(generator, path, way)

    def _note(self, path: str, holder: object, name: str, value: object) -> None:
        if self._notice is not None and is_a(name, str) and has_usual_class(value):
            self._notice(path, holder, name, behind(value))

    def _tell(self, path: str, what: str, remedy: str, way: Way) -> None:
        if way.told:
            self.unheld.append(Unheld(path, what, remedy))

    def _tell_odd(self, path: str, error: Exception, way: Way) -> None:
        self.is_odd = True
        what = f"something that cannot be looked into ({type(error).__name__})"
        self._tell(path, what, _ODD, way)

    def _offer(self, thing: object, path: str, step: RawStep, way: Way) -> None:
        kind = type(thing)
        try:
            if kind in ATOMS:
                return
        except Exception as error:
            return self._tell_odd(path, error, way)
        if kind in EMPTY and not thing:
            if path in self._wanted:  # a generator that appeared in it is to be put there
                self.holders[path] = thing
            return
        self._now.append((thing, path, step, way))

    # -- what to do with an object of some type ------------------------------------------------------

    def _object(self, thing: object, path: str, way: Way) -> None:
        # A loader's own iterator, of persistent workers, is begun anew with each pass.
        without = ("_iterator",) if is_a(thing, DataLoader) else ()
        self._attributes(thing, path, way, without)

    def _object_of_c(self, thing: object, path: str, way: Way) -> None:
        self._attributes(thing, path, way)
        for place, one in enumerate(behind_attributes(thing)):
            self._offer(one, f"{path}<{place}>", (path, "other", place), way)

    def _module(self, module: nn.Module, path: str, way: Way) -> None:
        inner = inner_of(module)
        if inner is not None:  # paths are those of a model without wrappers
            self._offer(inner, path, (path, "other", ""), way)
            return
        if way.told:
            self.modules[path] = module
        children = module.__dict__.get("_modules", {})  # a compiled script has none
        for name, child in children.items():
            if child is not None:
                self._offer(child, f"{path}.{name}", (path, "other", name), way)
        own = module.__dict__
        for name in HOOKS:
            if hooks := own.get(name):
                # Their keys are numbers that count the hooks of the whole process.
                for place, hook in enumerate([*hooks.values()]):
                    self._offer(hook, f"{path}.{name}[{place}]", (path, "other", name), way)
        for group in ("_parameters", "_buffers"):
            for name, tensor in own.get(group, {}).items():
                if tensor is not None:
                    self._beside_numbers(tensor, f"{path}.{name}", way)
        self._attributes(module, path, way, without=OF_MODULES)

    def _beside_numbers(
        self, tensor: torch.Tensor, path: str, way: Way, *, visited: bool = False
    ) -> None:
        """Look at the hooks of a tensor, and at attributes that were set on it."""
        if not visited:
            if id(tensor) in self._seen:
                return
            self._seen.add(id(tensor))
        with torch._C.DisableTorchFunctionSubclass():
            for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                if hooks := getattr(tensor, name, None):
                    for place, hook in enumerate([*hooks.values()]):
                        self._offer(hook, f"{path}.{name}[{place}]", (path, "other", name), way)
        kind = type(tensor)
        if kind not in TENSORS and is_users(kind.__module__):
            return self._attributes(tensor, path, way)
        for name, value in [*object.__getattribute__(tensor, "__dict__").items()]:
            if way.told or not self._quiet:
                self._note(path, tensor, name, value)
            self._offer(value, f"{path}.{name}", (path, "other", name), way)

    def _tensor(self, tensor: torch.Tensor, path: str, way: Way) -> None:
        """Look at a tensor of a class of its own; others are met as values."""
        self._beside_numbers(tensor, path, way, visited=True)

    def _attributes(
        self, thing: object, path: str, way: Way, without: tuple[str, ...] = ()
    ) -> None:
        kind = type(thing)
        heard = is_of_users(kind)
        if self._quiet:
            heard = way.told and (heard or is_a(thing, nn.Module))
        notice = self._notice if heard else None
        for place, (name, value) in enumerate(named(thing)):
            if type(name) is not str and not is_a(name, str):  # a dict given as that of an object
                self._offer(value, f"{path}.#{place}", (path, "other", place), way)
                continue
            if name in without:
                continue
            of_value = type(value)
            try:
                of_tensor = of_value in TENSORS
            except Exception as error:
                self._tell_odd(f"{path}.{name}", error, way)
                continue
            if notice is not None:
                of_context = of_value is contextvars.ContextVar
                notice(path, thing, name, behind(value) if of_context else value)
            if of_tensor:
                self._beside_numbers(cast(torch.Tensor, value), f"{path}.{name}", way)
            elif of_value not in ATOMS:  # most are: for those no step is made
                self._offer(value, f"{path}.{name}", (path, "attribute", name), way)
        if self._code and is_users(kind.__module__) and id(kind) not in self._classes:
            self._classes.add(id(kind))
            self._later.append((kind, f"{path}.__class__", (path, "other", ""), way))

    # -- containers --------------------------------------------------------------------------------

    def _mapping(self, thing: dict[Any, Any], path: str, way: Way) -> None:
        self._elements(self.sampling.values_of(thing, path, way, self._seen))
        if self.sampling.kinds(dict.__len__(thing), lambda: dict.keys(thing), INSIDE):
            for place, key in enumerate(islice(copied(dict.keys(thing)), LARGE)):
                self._offer(key, f"{path}.key[{place}]", (path, "other", None), way)
        if issubclass(type(thing), defaultdict):
            factory = FACTORY.__get__(thing)
            self._offer(factory, f"{path}.default_factory", (path, "other", "factory"), way)
        self._own_attributes(thing, dict, path, way)

    def _sequence(self, thing: Any, path: str, way: Way) -> None:
        base: Any = next(one for one in (list, tuple, deque) if issubclass(type(thing), one))
        self._elements(self.sampling.elements_of(thing, base, path, way))
        self._own_attributes(thing, base, path, way)

    def _set(self, thing: Any, path: str, way: Way) -> None:
        base: Any = set if issubclass(type(thing), set) else frozenset
        self._elements(self.sampling.members_of(thing, base, path, way))
        self._own_attributes(thing, base, path, way)

    def _array(self, thing: np.ndarray[Any, Any], path: str, way: Way) -> None:
        array: Any = thing
        if is_a(thing, np.memmap):
            if array.flags.writeable and array.mode != "c":
                remedy = "open it with mode='r', or write what depends on the run elsewhere"
                self._tell(path, "a file that the run may write to (np.memmap)", remedy, way)
        elif (plain := np.ndarray.view(thing, np.ndarray)).dtype.hasobject:
            self._sequence(plain.reshape(-1).tolist(), path, way)
        self._own_attributes(thing, np.ndarray, path, way)

    def _own_attributes(self, thing: object, base: type, path: str, way: Way) -> None:
        """Look at what a subclass of a container has besides its elements."""
        if type(thing) is not base and type(thing).__flags__ & HEAP:
            self._attributes(thing, path, way)

    def _elements(self, group: Group | None) -> None:
        if group is None:
            return
        ways = {
            kind: group.way._replace(through=group.way.through | {kind}) for kind in group.kinds
        }
        for value, mark in self.sampling.chosen(group):
            self._offer(value, *group.at(mark), ways[type(value)])

    # -- functions and classes -----------------------------------------------------------------------

    def _function(self, function: types.FunctionType, path: str, way: Way) -> None:
        code = function.__code__
        if not (is_users(function.__module__) or is_transparent(function.__module__)):
            way = way._replace(told=False)
        elif way.lent and is_users(function.__module__):
            way = way._replace(told=True, lent=False)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # nothing in it yet
                continue
            self._variable(function, path, name, value, (path, "closure", name), way)
        given = function.__defaults__ or ()
        for name, value in [
            *zip(names_of_defaults(code, len(given)), reversed(given), strict=True),
            *(function.__kwdefaults__ or {}).items(),
        ]:
            self._variable(function, path, name, value, (path, "other", name), way)
        for name, value in [*function.__dict__.items()]:
            if is_users(function.__module__):
                self._note(path, function, name, value)
            self._offer(value, f"{path}.{name}", (path, "attribute", name), way)
        if self._code and is_users(function.__module__):
            self._globals(function, way)
            if not path.endswith("worker_init_fn"):  # samples are seeded after it
                # Not needed to build a trainer.
                from statemachine_trainer.snapshot.system_randomness import drawn_from_system

                for call in drawn_from_system(function):
                    at = f"{path}: {call}(...)"
                    self._tell(at, "drawn from the operating system", _FRESH, way)

    def _variable(
        self, function: object, path: str, name: str, value: object, step: RawStep, way: Way
    ) -> None:
        if is_users(getattr(function, "__module__", None)):
            self._note(path, function, name, value)
        self._offer(value, f"{path}({name})", step, way)

    def _globals(self, function: types.FunctionType, way: Way) -> None:
        """Look at the globals that the code may read; an attribute of the same name is taken for one."""
        home, space = function.__globals__.get("__name__"), function.__globals__
        names = names_in(function.__code__)
        for name in names:
            if name not in space or name.startswith("__"):
                continue
            value = space[name]
            if is_a(value, types.ModuleType):
                assert isinstance(value, types.ModuleType)
                if is_users(value.__name__):
                    self._of_space(value.__name__, vars(value), names, way)
            else:
                self._of_space(str(home), space, (name,), way)

    def _of_space(
        self, home: str, space: Mapping[str, object], names: Iterable[str], way: Way
    ) -> None:
        for name in names:
            value = space.get(name)
            if name in space and not is_a(value, types.ModuleType):
                holder = f"global {home}"
                self._note(holder, space, name, value)
                if holder in self._wanted:
                    self.holders[holder] = space
                if type(value) not in ATOMS:
                    step = (holder, "item", name)
                    self._later.append((value, f"{holder}.{name}", step, way))

    def _partial(self, partial: functools.partial[Any], path: str, way: Way) -> None:
        self._offer(partial.func, f"{path}.func", (path, "other", "func"), way)
        names = names_of_arguments(partial.func)
        if is_users(getattr(partial.func, "__module__", None)):
            for name, value in [*zip(names, partial.args, strict=False), *partial.keywords.items()]:
                self._note(path, partial, name, value)
        for place, value in [*enumerate(partial.args), *partial.keywords.items()]:
            self._offer(value, f"{path}({place})", (path, "other", place), way)
        self._attributes(partial, path, way)

    def _bound(self, method: Any, path: str, way: Way) -> None:
        owner = getattr(method, "__self__", None)  # a function of Cython may be unbound
        if not is_a(owner, types.ModuleType):
            self._offer(owner, f"{path}.__self__", (path, "other", "__self__"), way)
        if isinstance(method, types.MethodType):
            self._offer(method.__func__, f"{path}.__func__", (path, "other", ""), way)

    def _referents(self, thing: object, path: str, way: Way) -> None:
        """Look at what an object of C refers to, such as a read-only view of a dict."""
        for place, one in enumerate(gc.get_referents(thing)[:LARGE]):
            self._offer(one, f"{path}<{place}>", (path, "other", place), way)

    def _cache(self, thing: object, path: str, way: Way) -> None:
        """Look at what a function with a `functools.cache` has returned."""
        self._referents(thing, path, way)
        self._attributes(thing, path, way)

    def _context_variable(self, variable: contextvars.ContextVar[Any], path: str, way: Way) -> None:
        self._offer(behind(variable), f"{path}.get()", (path, "other", "get"), way)

    def _of_thread(self, local: threading.local, path: str, way: Way) -> None:
        """Look at what this thread has in an object that has other attributes in each thread."""
        # Its class has no entry `__dict__`: only its own `__getattribute__` finds the dictionary.
        for name, value in [*threading.local.__getattribute__(local, "__dict__").items()]:
            if way.told or not self._quiet:
                self._note(path, local, name, value)
            self._offer(value, f"{path}.{name}", (path, "other", name), way)

    def _weak(self, reference: weakref.ref[Any], path: str, way: Way) -> None:
        thing = weakref.ref.__call__(reference)
        if thing is not None:
            self._offer(thing, f"{path}()", (path, "other", "()"), way)

    def _class(self, kind: type, _path: str, way: Way) -> None:
        """Look at the attributes and the code of a class that a user wrote, and of its bases."""
        for base in kind.__mro__:
            if not is_users(base.__module__) or (base is not kind and id(base) in self._seen):
                continue
            self._seen.add(id(base))
            path = f"class {base.__module__}.{base.__qualname__}"
            if path in self._wanted:
                self.holders[path] = base
            for name, value in [*attributes_of_class(base).items()]:
                self._of_class(base, path, name, value, way)

    def _of_class(self, base: type, path: str, name: str, value: Any, way: Way) -> None:
        if type(value) is types.FunctionType:  # most are
            self._note(path, base, name, value)
            self._later.append((value, f"{path}.{name}", (path, "other", name), way))
        elif is_a(value, property):
            for one in (value.fget, value.fset):
                self._later.append((one, f"{path}.{name}", (path, "other", name), way))
        elif is_a(value, functools.cached_property):  # whose lock, up to Python 3.11, is its own
            self._later.append((value.func, f"{path}.{name}", (path, "other", name), way))
        elif is_a(value, (classmethod, staticmethod)):
            self._later.append((value.__func__, f"{path}.{name}", (path, "other", name), way))
        elif not (name.startswith("__") and name.endswith("__")):
            self._note(path, base, name, value)
            if type(value) not in ATOMS:
                self._later.append((value, f"{path}.{name}", (path, "attribute", name), way))
