"""The code of an optimizer's step: which function it is, and what it reads and changes.

The code is run once, to be traced, and never again. So it may do nothing but compute on parameters,
gradients and state: what else it reads must stay as it is, and what else it changes would change no
more. Torch's own optimizers are known to be so. Of others the attributes, and the globals that
their code names, are compared.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from statemachine_trainer.loops.compiled import private_names
from statemachine_trainer.loops.compiled.compiled_errors import NotTraceable
from statemachine_trainer.loops.compiled.lookups import OFTEN, Names, function_of, never, words

Step = Callable[[Optimizer], object]

Undo = Callable[[], object]
"""Puts something back as it was."""

_WRAPPERS: Final = ("torch.optim.optimizer", "torch.utils._contextlib", "torch.optim.lr_scheduler")
"""Modules whose wrappers around a step may be left out: hooks, profiling, no_grad, counting."""

_OWN: Final = {"param_groups", "state", "defaults", "step", "zero_grad"}
"""Attributes of each optimizer that are looked at elsewhere."""

_PURE: Final = (
    "torch", "math", "typing", "collections", "itertools", "functools", "operator", "warnings",
    "abc", "enum", "dataclasses", "builtins", "copy", "typing_extensions",
)  # fmt: skip
"""Modules that tell the same each time they are asked."""

_DEPTH: Final = 6
_ATOMS: Final = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


class SteppingCode:
    """What an optimizer does in a step.

    Args:
        optimizer: The optimizer.
        before: What it did earlier in the run; None if that is not known.

    Attributes:
        refused: Why it cannot be traced; None if it may be tried.
        surroundings: As text, what the code reads besides groups and state.
    """

    def __init__(self, optimizer: Optimizer, before: SteppingCode | None = None) -> None:
        self._optimizer = optimizer
        self._of_class = type(optimizer).step
        self._methods = _methods(optimizer)
        self._names = _names_of_code(optimizer)
        self._replaced: bool = before is not None and (
            before._replaced or not before.is_untouched()
        )
        self.refused: str | None = None
        self.surroundings = ""
        self._foreign = False
        self._function: Step | None = None
        try:
            if self._replaced:
                raise NotTraceable(
                    "a function that its step calls was replaced after the first compiled step"
                )
            self._function = plain_step(optimizer)
            _check_state(optimizer)
            self._foreign = not _is_of_torch(optimizer, self._function)
            if self._foreign:
                self.surroundings = self._read(optimizer)
        except NotTraceable as error:
            self.refused = self.surroundings = str(error)
        self._attributes = vars(optimizer)
        self._is_untouched: Callable[[], bool] = never
        self._rearmed = 0
        self._arm()

    def holds(self) -> bool:
        """Tell whether the optimizer has the code that it had, and what this reads is the same."""
        optimizer = self._optimizer
        # In nearly all steps this is all: one call, in C.
        if (
            type(optimizer).step is self._of_class
            and optimizer.__dict__ is self._attributes
            and self._is_untouched()
        ):
            return True
        if not self._looks_alike():
            return False
        if self._rearmed < OFTEN:
            self._rearmed += 1
            self._arm()
        else:  # something writes to it all the time
            self._is_untouched = never
        return True

    def _arm(self) -> None:
        """Remember the versions of all dictionaries that decide about a step of torch's own code."""
        of_torch = self.refused is None and not self._foreign
        spaces = [*self._names.spaces, self._attributes] if of_torch else []
        self._is_untouched = (private_names.unchanged(spaces) if spaces else None) or never

    def _looks_alike(self) -> bool:
        """Tell the same as `holds`, one by one."""
        step = vars(self._optimizer).get("step")
        if type(self._optimizer).step is not self._of_class:
            return False
        if self.refused is None:
            if step is not None and not _is_counting(step):
                return False
            if not self._methods.isdisjoint(vars(self._optimizer)):
                return False
            if not (self._names.unchanged() or self._names.hold()):
                return False
        if not self._foreign or self.refused is not None:
            return True
        try:
            return self._read(self._optimizer) == self.surroundings
        except NotTraceable:
            return False

    def is_untouched(self) -> bool:
        """Tell whether the functions of torch that it calls are those that they were."""
        return self._names.hold()

    def run(self, double: Optimizer) -> None:
        """Let a copy of the optimizer step.

        Raises:
            NotTraceable: It does more than to compute on parameters, gradients and state.
        """
        assert self._function is not None
        if not self._foreign:
            self._function(double)
            return
        undo: list[Undo] = []
        before = self._read(double, undo)
        try:
            with _no_draws():
                self._function(double)
            changed = self._read(double) != before
        finally:
            for back in undo:
                back()
        if changed:
            raise NotTraceable(
                "its step changes something that is neither parameter nor state, an attribute or a "
                "global, which would change only once"
            )

    def _read(self, optimizer: Optimizer, undo: list[Undo] | None = None) -> str:
        return repr(list(_Reader(optimizer, undo).all(self._function)))


def plain_step(optimizer: Optimizer) -> Step:
    """Return the function that steps an optimizer, without what torch wraps around it.

    Raises:
        NotTraceable: Somebody else has wrapped or replaced it.
    """
    of_class = _unwrapped(type(optimizer).step)
    own = vars(optimizer).get("step")
    if own is not None and not (_is_counting(own) and _unwrapped(own) is of_class):
        raise NotTraceable("its step was replaced")
    if getattr(of_class, "__wrapped__", None) is not None:
        raise NotTraceable("its step has a decorator, whose work would be done only once")
    if not isinstance(of_class, types.FunctionType):
        raise NotTraceable("its step is no function")
    if type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer):
        raise NotTraceable("it clears gradients in a way of its own")
    replaced = _methods(optimizer).intersection(vars(optimizer))
    if replaced:
        raise NotTraceable(f"its {min(replaced)} was replaced")
    return of_class


def _methods(optimizer: Optimizer) -> frozenset[str]:
    """Return the names of the methods of an optimizer; `step`, which is often wrapped, is not there."""
    kind = type(optimizer)
    return frozenset(n for n in dir(kind) if n != "step" and callable(getattr(kind, n, None)))


def _names_of_code(optimizer: Optimizer) -> Names:
    """Return the methods of an optimizer, and what it looks up in the modules of torch.

    What the code of others looks up is read.
    """
    found = Names()
    for kind in type(optimizer).__mro__:
        found.look_at_class(kind)
        if not kind.__module__.startswith("torch."):
            continue
        space = vars(sys.modules[kind.__module__])
        found.look_at_all(space)
        functions = [
            one for one in map(function_of, [*space.values(), *vars(kind).values()]) if one
        ]
        named = set().union(*(words(one.__code__) for one in functions))
        found.look_at(vars(torch), named.intersection(vars(torch)))
    found.arm()
    return found


def _is_counting(step: Any) -> bool:
    """Tell whether a step is the one that schedulers put there, to see that it is called."""
    inner = getattr(step, "__func__", step)
    return getattr(inner, "__globals__", {}).get("__name__") == "torch.optim.lr_scheduler"


def _unwrapped(function: Any) -> Any:
    function = getattr(function, "__func__", function)
    while hasattr(function, "__wrapped__"):
        if getattr(function, "__globals__", {}).get("__name__") not in _WRAPPERS:
            break
        inner = function.__wrapped__
        function = getattr(inner, "__func__", inner)
    return function


def _is_of_torch(optimizer: Optimizer, step: Any) -> bool:
    """Tell whether all code of an optimizer is torch's, but for how it is made."""
    own = [kind for kind in type(optimizer).__mro__ if not kind.__module__.startswith("torch.")]
    bare = all(
        not isinstance(value, types.FunctionType) or name == "__init__"
        for kind in own
        if kind is not object
        for name, value in vars(kind).items()
    )
    return bare and str(step.__globals__.get("__name__", "")).startswith("torch.optim.")


def _check_state(optimizer: Optimizer) -> None:
    """Refuse state that would be shared with the copy that is traced.

    Raises:
        NotTraceable: There is some.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter, entries in optimizer.state.items():
        if id(parameter) not in known or not isinstance(entries, dict):
            raise NotTraceable("its state holds something that belongs to none of its parameters")
        for key, value in entries.items():
            if not isinstance(value, (Tensor, *_ATOMS)):
                raise NotTraceable(f"its state holds {key!r}, a {type(value).__name__}")
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key not in ("params", "lr") and _has_tensor(value):
                raise NotTraceable(f"the setting {key!r} is a tensor, which may change unseen")
        if group.get("differentiable"):
            raise NotTraceable("its step is to be differentiated")


def _has_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


@contextmanager
def _no_draws() -> Iterator[None]:
    """Refuse random numbers that are not part of a graph.

    Raises:
        NotTraceable: Some were drawn within the block.
    """
    before = random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state()
    yield
    after = random.getstate(), repr(np.random.get_state(legacy=False)), torch.get_rng_state()
    if before[:2] != after[:2] or not bool(torch.equal(before[2], after[2])):
        raise NotTraceable("its step draws random numbers outside of torch")


# -- what the code of others reads ----------------------------------------------------------------


class _Reader:
    """Reads all that the code of an optimizer can tell apart from one step to the next.

    Args:
        optimizer: The optimizer.
        undo: Takes what puts back the things that were read.
    """

    def __init__(self, optimizer: Optimizer, undo: list[Undo] | None) -> None:
        self._optimizer = optimizer
        self._undo = undo
        self._seen: set[int] = set()

    def all(self, step: Any) -> Iterator[Any]:
        """Read attributes, methods, and what these name.

        Raises:
            NotTraceable: There is something that cannot be compared.
        """
        for name, value in vars(self._optimizer).items():
            if name not in _OWN and not name.startswith("_optimizer_") and name != "_opt_called":
                yield name, self._plain(value, 0)
        for kind in type(self._optimizer).__mro__:
            if not kind.__module__.startswith("torch.") and kind is not object:
                for name, value in vars(kind).items():
                    if not name.startswith("__") or name == "__call__":
                        yield name, self._plain(value, 0)
        yield self._plain(step, 0)

    def _plain(self, value: Any, depth: int) -> Any:
        """Return a value as one that can be compared by its text."""
        if isinstance(value, _ATOMS):
            return value
        if isinstance(value, Tensor | nn.Module | Optimizer):
            raise NotTraceable(f"its step reads a {type(value).__name__} that is not in its state")
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in _PURE:
                raise NotTraceable(f"its step reads the module {value.__name__}")
            return value.__name__
        if id(value) in self._seen:
            return id(value)
        self._seen.add(id(value))
        if depth > _DEPTH:
            raise NotTraceable(f"its step reads a {type(value).__name__} that is nested too deep")
        return self._opened(value, depth + 1)

    def _opened(self, value: Any, depth: int) -> Any:
        inner = getattr(value, "__func__", None) or getattr(value, "fget", None)
        if inner is not None:
            return self._plain(inner, depth), id(getattr(value, "__self__", None))
        if isinstance(value, types.FunctionType):
            return self._of_function(value, depth)
        if isinstance(value, type | types.BuiltinFunctionType):
            return id(value)
        if isinstance(value, dict | list | set | deque):
            self._remember(value)
        if isinstance(value, Mapping):
            items = list(value.items())
            return [(self._plain(k, depth), self._plain(v, depth)) for k, v in items]
        if isinstance(value, list | tuple | set | frozenset | deque):
            return [self._plain(one, depth) for one in list(value)]
        if str(type(value).__module__).startswith(("torch", "typing")):
            return id(value)
        if hasattr(value, "__dict__"):
            return id(value), self._plain(vars(value), depth)
        raise NotTraceable(f"its step reads a {type(value).__name__}")

    def _of_function(self, function: types.FunctionType, depth: int) -> Any:
        module = str(function.__globals__.get("__name__", ""))
        if module.partition(".")[0] in _PURE and not hasattr(function, "__wrapped__"):
            return id(function)
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(self._plain(cell.cell_contents, depth))
            except ValueError:  # it is empty
                cells.append(None)
                continue
            self._later(setattr, cell, "cell_contents", cell.cell_contents)
        read = []
        space = function.__globals__
        for name in _names(function.__code__):
            if name in space:
                read.append((name, self._plain(space[name], depth)))
                self._later(space.__setitem__, name, space[name])
        wrapped = getattr(function, "__wrapped__", None)
        rest = self._plain(function.__defaults__, depth), self._plain(wrapped, depth)
        return id(function), id(function.__code__), cells, read, rest

    def _later(self, function: Callable[..., object], *arguments: Any) -> None:
        if self._undo is not None:
            self._undo.append(lambda: function(*arguments))

    def _remember(self, value: Any) -> None:
        was = value.copy()

        def back() -> None:
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(was)

        self._later(back)


def _names(code: types.CodeType) -> list[str]:
    names = [*code.co_names]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return sorted(set(names))
