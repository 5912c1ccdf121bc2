"""Functions that make loaders: without arguments, or for an epoch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.data.data_errors import BadSource

_EPOCH: Final = "epoch"


def is_maker(source: Any) -> bool:
    """Whether a source of data is a function that makes a loader."""
    if isinstance(source, DataLoader | Dataset):
        return False
    return callable(source) and not is_iterable(source)


def is_iterable(source: Any) -> bool:
    """Whether something can be read item by item."""
    kind = type(source)
    return hasattr(kind, "__iter__") or (hasattr(kind, "__getitem__") and hasattr(kind, "__len__"))


def takes_epoch(source: Any) -> bool:
    """Whether a source, or one of several, is a function with a parameter `epoch`."""
    if isinstance(source, Mapping | list | tuple):
        parts = source.values() if isinstance(source, Mapping) else source
        return any(map(takes_epoch, parts))
    return is_maker(source) and _EPOCH in _parameters(source)


def made_by(source: Any, name: str, epoch: int | None) -> Any:
    """Return what a function makes for an epoch.

    Args:
        source: The function.
        name: Of the data, for the error.
        epoch: The number of the epoch, from 0; None where loaders are made once.

    Raises:
        BadSource: It needs something else.
    """
    parameters = _parameters(source)
    needed = [
        one.name
        for one in parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    others = [one for one in needed if one != _EPOCH]
    spread = any(one.kind is one.VAR_POSITIONAL for one in parameters.values())
    if isinstance(source, type) and (others or spread):
        raise BadSource(
            f"{name!r} is the class {source.__name__}, which cannot be made without arguments. Make one: "
            f"{source.__name__}({', '.join(f'{one}' for one in others) or '...'})."
        )
    if others:
        raise BadSource(
            f"The function given as {name!r} needs {', '.join(others)}. It is called without arguments, or with the "
            "number of the epoch if it has a parameter of the name epoch: lambda epoch: DataLoader(...)."
        )
    parameter = parameters.get(_EPOCH)
    if parameter is None:
        return source()
    if epoch is None:
        raise BadSource(
            f"The function given as {name!r} takes the epoch, and here it would be called once: loops that divide or "
            "exchange the data keep what they were given. Give a loader, or a function without arguments."
        )
    return source(epoch) if parameter.kind is parameter.POSITIONAL_ONLY else source(epoch=epoch)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # it is not written in Python
        return {}
