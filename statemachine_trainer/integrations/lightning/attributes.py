"""Plain data that the hooks of a module, a data module and callbacks keep in attributes."""

from __future__ import annotations

import datetime
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from statemachine_trainer.integrations.lightning.library import Library
from statemachine_trainer.loops.metrics.table import is_metric
from statemachine_trainer.machine.errors import level_of_caller

_LEAVES: Final = (
    bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device, torch.Size, Path,
    datetime.datetime, datetime.timedelta,
)  # fmt: skip
_DEPTH: Final = 20
_HYPERPARAMETERS: Final = (
    "_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams", "trainer",
)  # fmt: skip
"""Set by Lightning when they are first asked for; they come from the script."""


class AttributeNotHeldWarning(UserWarning):
    """A hook has changed an attribute that is no plain data, so a resumed run will not have the change."""


class Attributes:
    """Holds the attributes that hooks change in a run, so that a resumed run has them again.

    Many modules collect outputs in a list of their own, or count in an attribute. What the attributes
    are when training begins comes from the script; only what is changed after that is held.

    Args:
        things: Returns what is looked at, by name: modules with all inside them, callbacks.
        library: Lightning, whose own attributes are left alone.
    """

    def __init__(
        self, things: Callable[[], Iterable[tuple[str, object]]], library: Library
    ) -> None:
        self._things = things
        self._theirs = {*vars(library.get("core.module:LightningModule")()), *_HYPERPARAMETERS}
        self._before: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()

    def note(self) -> None:
        """Note what the attributes are now, at the beginning of training."""
        self._before = {
            where: {name: _image(value) for name, value in attributes}
            for where, attributes in self._walk()
        }

    def changed(self) -> dict[str, dict[str, Any]]:
        """Return the attributes that were changed since, as plain data.

        Warns:
            AttributeNotHeldWarning: One of them is something else.
        """
        found: dict[str, dict[str, Any]] = {}
        for where, attributes in self._walk():
            before = self._before.get(where, {})
            for name, value in attributes:
                was = before.get(name, _NOTHING)
                if _is_same(was, value):
                    continue
                try:
                    found.setdefault(where, {})[name] = _written(value)
                except _NotPlainError as error:
                    self._tell(where, name, error)
        return found

    def put_back(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Set attributes to what was saved."""
        things = dict(self._things())
        for where, attributes in saved.items():
            thing = things.get(where)
            for name, value in attributes.items() if thing is not None else ():
                vars(thing)[name] = _read(value)

    def _walk(self) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
        for where, thing in self._things():
            if thing is not None and hasattr(thing, "__dict__"):
                yield where, [(n, v) for n, v in vars(thing).items() if n not in self._theirs]

    def _tell(self, where: str, name: str, error: _NotPlainError) -> None:
        address = f"{where}.{name}"
        if address not in self._told:
            self._told.add(address)
            warnings.warn(
                f"{address} was changed during the fit and holds a {error.args[0]}, which no checkpoint can hold: "
                "a resumed fit goes on without the change. Keep numbers, tensors and containers of them there, "
                "or save it in on_save_checkpoint and load it in on_load_checkpoint.",
                AttributeNotHeldWarning,
                stacklevel=level_of_caller(),
            )


def modules_by_name(root: nn.Module, where: str) -> Iterator[tuple[str, object]]:
    """Yield a module and those inside it, but for metrics, whose state is held elsewhere."""
    inside_metric = ""
    for name, module in root.named_modules():
        if inside_metric and name.startswith(inside_metric):
            continue
        if is_metric(module):
            inside_metric = f"{name}."
            continue
        yield (f"{where}.{name}" if name else where), module


class _NotPlainError(Exception):
    """Something that cannot be written down."""


class _Nothing:
    """Stands for an attribute that was not there."""


_NOTHING: Final = _Nothing()


class _Seen:
    """What a leaf was: the object, and for a tensor the version of its data."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.version = value._version if isinstance(value, torch.Tensor) else None
        self.copy = value.copy() if isinstance(value, np.ndarray) and value.size < 100_000 else None

    def is_same(self, value: Any) -> bool:
        if isinstance(self.value, torch.Tensor):
            return value is self.value and value._version == self.version
        if self.copy is not None:
            return value is self.value and np.array_equal(value, self.copy)
        if value is self.value:
            return True
        leaf = isinstance(value, _LEAVES) and type(value) is type(self.value)
        return leaf and bool(value == self.value or (value != value and self.value != self.value))


def _image(value: Any, depth: int = 0) -> Any:
    """Copy the containers of a value, and note its leaves."""
    if depth > _DEPTH:
        return _Seen(value)
    if type(value) is dict:
        return {key: _image(one, depth + 1) for key, one in value.items()}
    if type(value) in (list, tuple, deque):
        return (type(value), [_image(one, depth + 1) for one in value])
    if type(value) in (set, frozenset):
        return frozenset(value)
    return _Seen(value)


def _is_same(image: Any, value: Any) -> bool:
    if isinstance(image, _Seen):
        return image.is_same(value)
    if isinstance(image, frozenset):
        return isinstance(value, set | frozenset) and value == image
    if type(image) is dict:
        return (
            type(value) is dict
            and value.keys() == image.keys()
            and all(_is_same(image[key], one) for key, one in value.items())
        )
    if type(image) is tuple:
        kind, images = image
        return (
            type(value) is kind and len(value) == len(images) and all(map(_is_same, images, value))
        )
    return False


def _written(value: Any, depth: int = 0) -> Any:
    """Return a value as plain data; a deque as a dict that says so."""
    kind = type(value)
    if isinstance(value, nn.Parameter) or depth > _DEPTH:
        raise _NotPlainError(kind.__name__)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if kind is deque:
        items = [_written(one, depth + 1) for one in value]
        return {_DEQUE: items, "maxlen": value.maxlen}
    if kind is dict:
        return {_key(key): _written(one, depth + 1) for key, one in value.items()}
    if kind in (list, tuple, set, frozenset):
        return kind(_written(one, depth + 1) for one in value)
    if kind in _LEAVES or isinstance(
        value, _LEAVES[5:]
    ):  # a subclass of a number is more than that
        return value
    raise _NotPlainError(kind.__name__)


_DEQUE: Final = "$deque of an attribute"


def _key(key: Any) -> Any:
    if isinstance(key, str | int | float | bool | tuple | type(None)):
        return key
    raise _NotPlainError(type(key).__name__)


def _read(value: Any) -> Any:
    if type(value) is dict:
        if _DEQUE in value:
            return deque(map(_read, value[_DEQUE]), maxlen=value["maxlen"])
        return {key: _read(one) for key, one in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_read, value))
    return value.clone() if isinstance(value, torch.Tensor) else value
