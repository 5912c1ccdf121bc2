"""What users give as data, made into loaders with names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from statemachine_trainer.data.errors import BadSource, UnbatchedData
from statemachine_trainer.machine.caller import level_of_caller

Source = Any
"""A loader, a data set, or a function that makes either."""


def as_loader(source: Source, name: str = "train") -> Iterable[Any]:
    """The loader that a source stands for.

    Args:
        source: a `DataLoader`, a list of batches, or any iterable of them, as it is; a `Dataset`,
            in a `DataLoader` of batches of one (torch's default); or a function without parameters
            that makes one of these, called each time anew
        name: for the error

    Raises:
        BadSource: for anything else, saying what to give

    Warns:
        UnbatchedData: for a data set, saying how it is given in batches
    """
    if _is_maker(source):
        source = source()
        if _is_maker(source):
            raise BadSource(f"The function given as {name!r} made another function, not a loader.")
    if isinstance(source, (torch.Tensor, np.ndarray)):
        raise BadSource(
            f"{name!r} is a bare {type(source).__name__} of shape {tuple(source.shape)}, which "
            "does not say how it is batched. Give DataLoader(TensorDataset(inputs, targets), "
            "batch_size=32, shuffle=True)."
        )
    if isinstance(source, Dataset):
        _warn_of_single_samples(source, name)
        return DataLoader(source)
    if source is None or isinstance(source, (str, bytes, Mapping)) or not _is_iterable(source):
        raise BadSource(
            f"{name!r} is {_described(source)}, which can not be read batch by batch. Give a "
            "DataLoader, a list of batches, a Dataset, or a function that makes one of them."
        )
    if isinstance(source, (list, tuple)) and source and all(map(_is_loader, source)):
        raise BadSource(
            f"{name!r} is a {type(source).__name__} of {len(source)} loaders or data sets, and one "
            "is read here. Give validation its own argument, fit(model, train, validation); join "
            "data sets by ConcatDataset; for batches of several loaders at once give an iterable of "
            "such batches."
        )
    loader: Iterable[Any] = source
    return loader


def as_loaders(source: Source, name: str = "validation") -> list[tuple[str, Iterable[Any]]]:
    """The loaders that a source stands for, with their names.

    Args:
        source: what `as_loader` takes, for one loader called ``name``; a list or tuple of loaders
            or data sets, called ``name/0``, ``name/1`` and so on; a dict of them, called by its
            keys
        name: of the one, and the beginning of the names of several
    """
    if _is_maker(source):
        source = source()
    if isinstance(source, Mapping):
        return [(str(key), as_loader(one, str(key))) for key, one in source.items()]
    if isinstance(source, (list, tuple)) and source and all(map(_is_loader, source)):
        names = [name] if len(source) == 1 else [f"{name}/{i}" for i in range(len(source))]
        return [(called, as_loader(one, called)) for called, one in zip(names, source, strict=True)]
    return [(name, as_loader(source, name))]


def length_of(loader: Any) -> int | None:
    """Batches in a pass over a loader, ``None`` if unknown, without any effect on the loader."""
    # A DataLoader over an iterable data set that was asked for its length warns later if it gives
    # more than that.
    asked = vars(loader).get("_IterableDataset_len_called") if _is_torch(loader) else None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
    finally:
        if _is_torch(loader):
            loader._IterableDataset_len_called = asked


def _warn_of_single_samples(data: Dataset[Any], name: str) -> None:
    kind = type(data).__name__
    if isinstance(data, IterableDataset):
        what = "each of its items is a batch of one, with a dimension more"
        give = "DataLoader(data, batch_size=32) if it yields samples, batch_size=None if batches"
    else:
        what = "one sample is a batch, in the order of the data set"
        give = f"DataLoader(data, batch_size=32{', shuffle=True' if name == 'train' else ''})"
    warnings.warn(
        f"{name!r} is a {kind} without a loader, so {what}. Give {give}; DataLoader(data) says that "
        "it is meant so.",
        UnbatchedData,
        stacklevel=level_of_caller(),
    )


def _is_torch(loader: Any) -> bool:
    return isinstance(loader, DataLoader)


def _is_maker(source: Source) -> bool:
    if isinstance(source, (DataLoader, Dataset)):
        return False
    return callable(source) and not _is_iterable(source)


def _is_loader(one: Any) -> bool:
    return isinstance(one, (DataLoader, Dataset)) or _is_maker(one)


def _is_iterable(source: Any) -> bool:
    kind = type(source)
    return hasattr(kind, "__iter__") or (hasattr(kind, "__getitem__") and hasattr(kind, "__len__"))


def _described(source: Any) -> str:
    return "None" if source is None else f"a {type(source).__name__}"
