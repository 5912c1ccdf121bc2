"""Parameters and buffers of a model, found again without a walk as long as it holds the same objects.

For what looks at a model in each step. Only names are kept, and the `id` of each object, and never a tensor or a
module: what the run lets go of is freed. An average, which keeps the parameters anyway, uses `KnownParameters` of
`parallel/wrappers.py`: it looks at parameters alone, and takes less time.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

_HELD: Final = attrgetter("_parameters", "_buffers", "_modules")
_WALKS: Final = (
    "named_parameters", "parameters", "named_buffers", "buffers", "named_modules", "modules", "_named_members",
)  # fmt: skip


class NamedTensors(NamedTuple):
    """Tensors with their names. Names that are the same object are the same."""

    names: tuple[str, ...]
    tensors: list[Tensor]


class Members(NamedTuple):
    """What a model holds: its modules, and each of its parameters and buffers once."""

    modules: list[nn.Module]
    parameters: NamedTensors
    buffers: NamedTensors


class KnownMembers:
    """Finds what a model holds, again and again. The model is only walked when it holds other objects than before."""

    def __init__(self) -> None:
        self._modules: list[weakref.ref[nn.Module]] = []
        self._marks: object = None
        self._chosen: tuple[tuple[tuple[str, ...], list[int]], ...] = ()

    def of(self, model: nn.Module) -> Members:
        """Return what a model holds now, as `named_parameters`, `named_buffers` and `modules` do."""
        modules: list[Any] = [one() for one in self._modules]
        if modules and modules[0] is model and None not in modules:
            values, marks = _values_of(modules)
            if marks == self._marks:
                parameters, buffers = (
                    NamedTensors(names, [values[at] for at in places])
                    for names, places in self._chosen
                )
                return Members(modules, parameters, buffers)
        return self._walk(model)

    def _walk(self, model: nn.Module) -> Members:
        modules = [*model.modules()]
        named = [*model.named_parameters()], [*model.named_buffers()]
        parameters, buffers = (
            NamedTensors(tuple(name for name, _ in each), [one for _, one in each])
            for each in named
        )
        self._modules = []
        if all(map(_is_usual, modules)):
            values, marks = _values_of(modules)
            places: dict[int, int] = {}
            for at, one in enumerate(values):
                places.setdefault(id(one), at)
            self._modules, self._marks = [*map(weakref.ref, modules)], marks
            self._chosen = tuple(
                (each.names, [places[id(one)] for one in each.tensors])
                for each in (parameters, buffers)
            )
        return Members(modules, parameters, buffers)


def _values_of(modules: Sequence[nn.Module]) -> tuple[list[Any], object]:
    """Return what modules hold, and what tells whether they hold the same as before.

    Objects are told apart by their `id`. An object may get the `id` of another that was freed, and stand in its place.
    That makes no difference: names and places are the same, and the new object is what is returned.
    """
    held = [*chain.from_iterable(map(_HELD, modules))]
    values = [value for one in held for value in one.values()]
    return values, ([*chain.from_iterable(held)], [*map(id, values)], [*map(len, held)])


def _is_usual(module: nn.Module) -> bool:
    """Whether a module walks through what it holds as those of torch do."""
    kind: Any = type(module)
    return _is_usual_type(kind) and vars(module).keys().isdisjoint(_WALKS) and all(
        type(one) in (dict, OrderedDict) for one in _HELD(module)
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _is_usual_type(kind: type) -> bool:
    return all(getattr(kind, name) is getattr(nn.Module, name) for name in _WALKS)
