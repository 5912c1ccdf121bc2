"""Finds the device of a run, and moves batches to it."""

from __future__ import annotations

import datetime
import enum
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch

from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves
from statemachine_trainer.parallel.parallel_errors import CannotMove, NoNumbers, UnknownDevice

Batch = TypeVar("Batch")

# Data that lives on the host by nature: names, numbers, dates. It travels beside the tensors.
_HOST_DATA = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    set,
    frozenset,
    range,
    slice,
    enum.Enum,
    pathlib.PurePath,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    torch.Size,
    torch.dtype,
    torch.device,
)


@runtime_checkable
class Movable(Protocol):
    """Anything that can be put on a device: a tensor, a packed sequence, a batch of a graph."""

    def to(self, device: torch.device, /) -> object:
        """The same data on `device`."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        device: "auto" (the accelerator of this machine when it has one, else the CPU), a name that
            torch knows ("cpu", "cuda", "cuda:1", "mps"), or a `torch.device`. An accelerator
            without a number becomes the current one, so that devices compare equal.

    Raises:
        UnknownDevice: Torch knows no device of that name, or this machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        device = accelerator if accelerator is not None else torch.device("cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnknownDevice(
            f"{device!r} is not the name of a device. {_choices(accelerator)}"
        ) from error
    if found.type in ("cpu", "meta"):
        return torch.device(found.type)
    count = torch.accelerator.device_count() if accelerator is not None else 0
    if accelerator is None or found.type != accelerator.type or (found.index or 0) >= count:
        raise UnknownDevice(f"This machine has no device {str(found)!r}. {_choices(accelerator)}")
    if found.index is None:
        return torch.device(found.type, torch.accelerator.current_device_index())
    return found


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device; its containers keep their types.

    When the device is the CPU the batch itself is returned, untouched and not looked into.
    On another device tensors, and all else that has a method `to(device)`, are moved; a tensor in
    pinned memory without waiting for the copy. Numbers, strings, dates, paths, sets and numpy
    arrays stay on the host.

    Args:
        batch: A tensor, an object with `to`, or any nesting of mappings, lists, tuples, named
            tuples and dataclasses around such.
        device: Where to.

    Raises:
        CannotMove: Something in the batch is of a type that cannot be moved; the message names the
            type and where it lies.
    """
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return cast(Batch, _moved_tensor(batch, device))

    def moved(leaf: object) -> object:
        if isinstance(leaf, torch.Tensor):
            return _moved_tensor(leaf, device)
        if isinstance(leaf, Movable):
            return leaf.to(device)
        if _stays_on_host(leaf):
            return leaf
        raise _cannot_move(leaf, batch, device)

    return cast(Batch, map_leaves(moved, batch, is_leaf=_is_movable))


def _is_movable(tree: object) -> bool:
    return isinstance(tree, Movable) and not isinstance(tree, type)


def _moved_tensor(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # Only a copy out of pinned memory is safe to leave unfinished: the stream orders it before
    # the kernels that read it, and nobody can write to pageable memory in the meantime.
    pinned = tensor.device.type == "cpu" and tensor.is_pinned()
    return tensor.to(device, non_blocking=pinned)


def _stays_on_host(leaf: object) -> bool:
    return isinstance(leaf, _HOST_DATA) or type(leaf).__module__.partition(".")[0] == "numpy"


def _cannot_move(culprit: object, batch: object, device: torch.device) -> CannotMove:
    kind = type(culprit)
    leaves = leaves_with_paths(batch, "batch", _is_movable)
    places = (path for path, leaf in leaves if leaf is culprit)
    return CannotMove(
        f"{next(places, 'batch')} is a {kind.__module__}.{kind.__qualname__}, and nothing is known "
        f"about how to move one to {device}. Give the type a method `to(device)` that returns the "
        "moved object, or give the model a method `transfer_batch(batch, device)` that moves the "
        "whole batch."
    )


def on_accelerator(tree: object) -> list[bool]:
    """Return, for each tensor of a tree in order, whether it is on an accelerator."""
    leaves = (leaf for _, leaf in leaves_with_paths(tree))
    return [one.device.type != "cpu" for one in leaves if isinstance(one, torch.Tensor)]


def back_on_accelerator(tree: Batch, places: list[bool], device: torch.device) -> Batch:
    """Move those tensors of a tree to `device` for which `on_accelerator` was True."""
    left = iter(places)

    def place(leaf: object) -> object:
        if isinstance(leaf, torch.Tensor) and next(left, False):
            return to_device(leaf, device)
        return leaf

    return cast(Batch, map_leaves(place, tree)) if any(places) else tree


def _choices(accelerator: torch.device | None) -> str:
    names = ["'auto'", "'cpu'"]
    if accelerator is not None:
        count = torch.accelerator.device_count()
        names += [f"'{accelerator.type}:{index}'" for index in range(count)]
    return f"Here there are {', '.join(names)}."


@contextmanager
def numbers_needed_on(device: torch.device) -> Iterator[None]:
    """Context manager around a run: on the device "meta", an error of torch says what is missing.

    Raises:
        NoNumbers: Something in the run asked for the value of a tensor on "meta".
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if device.type != "meta" or "meta" not in str(error):
            raise
        raise NoNumbers(
            "Trainer(device='meta'): tensors there have shapes and no numbers, and something in this run needs "
            f"one ({error}). A model that only moves shapes runs there, without `log`, `.item()`, conditions on "
            "tensors and half precision. Choose another device for anything else."
        ) from error
