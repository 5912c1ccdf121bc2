"""Something is tried with a model and its data, and afterwards both are as they were, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from statemachine_trainer.data import SeveralLoaders
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.parallel import map_leaves
from statemachine_trainer.snapshot.held import own_states, restore_own
from statemachine_trainer.snapshot.modules import load_module_state, module_state
from statemachine_trainer.snapshot.rng import isolated_rng

_NUMBERS: Final = (bool, int, float, str, type(None))
_MOST_ITEMS: Final = 1000


@contextmanager
def untouched(model: nn.Module, data: object = None, optimizer: object = None) -> Iterator[None]:
    """Context manager after which a model, its data and an optimizer are as they were before.

    Put back are weights, buffers, gradients, modes, the device, attributes of modules that are numbers, texts or small
    collections of them; all generators that can be reached, and the global ones; the state of the optimizer, and what
    samplers and data sets count.

    Args:
        model: The model.
        data: What is read: a loader, or several.
        optimizer: One that was given as an object; anything else is left alone.

    Raises:
        SettingError: The model has lazy layers without a shape, which a first batch would give them; or the data can be
            read only once.
    """
    _refuse(model, data)
    roots: Mapping[str, object] = {"model": model, "data": data}
    state: dict[str, Any] = map_leaves(_copied, module_state(model, grads=True))  # type: ignore[assignment]
    devices = {one.device for one in model.parameters()}
    own = own_states(roots)
    attributes = [(one, _plain(one)) for one in [*model.modules(), *_readers(data)]]
    made = optimizer if isinstance(optimizer, Optimizer) else None
    groups = [] if made is None else [(one, dict(one)) for one in made.param_groups]
    learned = {} if made is None else {key: _deep(one) for key, one in made.state.items()}
    try:
        with isolated_rng():
            yield
    finally:
        if len(devices) == 1:
            model.to(devices.pop())
        load_module_state(model, state)
        for thing, plain in attributes:
            _restore(thing, plain)
        restore_own(roots, own)
        if made is not None:
            made.state.clear()
            made.state.update(learned)
            for group, values in groups:
                group.clear()
                group.update(values)


def _refuse(model: nn.Module, data: object) -> None:
    if any(is_lazy(one) for one in [*model.parameters(), *model.buffers()]):
        raise SettingError(
            f"{type(model).__name__} has lazy layers, which get their shape with the first batch, and that could not "
            "be undone. Call the model on a batch once before."
        )
    if isinstance(data, Iterator):
        raise SettingError(
            f"The data are a {type(data).__name__}, which can be read only once. Give a loader, or a list of batches."
        )


def _readers(data: object) -> Iterator[object]:
    """Yield what may count as it is read: loaders, their samplers and data sets."""
    if isinstance(data, Mapping):
        for one in data.values():
            yield from _readers(one)
    elif isinstance(data, SeveralLoaders):
        for one in data.parts:
            yield from _readers(one)
    elif isinstance(data, DataLoader):
        inner = getattr(data.batch_sampler, "sampler", None)
        found = (data, data.sampler, data.batch_sampler, inner, data.dataset)
        yield from {id(one): one for one in found if hasattr(one, "__dict__")}.values()


def _plain(thing: object) -> dict[str, Any]:
    return {name: _deep(value) for name, value in vars(thing).items() if _is_small(value)}


def _restore(thing: object, plain: Mapping[str, Any]) -> None:
    own = vars(thing)
    for name in [name for name, value in own.items() if name not in plain and _is_small(value)]:
        del own[name]
    for name, value in plain.items():
        here = own.get(name)
        if type(here) is list and type(value) is list:
            here[:] = value  # somebody else may hold the list
        elif type(here) is dict and type(value) is dict:
            here.clear()
            here.update(value)
        else:
            own[name] = value


def _is_small(value: object) -> bool:
    if isinstance(value, list | dict | set | tuple):
        inside = value.values() if isinstance(value, dict) else value
        return len(value) <= _MOST_ITEMS and all(isinstance(one, _NUMBERS) for one in inside)
    return isinstance(value, _NUMBERS)


def _deep(value: Any) -> Any:
    return copy.deepcopy(value)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf
