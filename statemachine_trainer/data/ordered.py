"""Loaders that shuffle, read in order: each pass begins with the same batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from statemachine_trainer.data.data_errors import BadSource
from statemachine_trainer.data.several import SeveralLoaders
from statemachine_trainer.data.sources import as_loader, reloaded


def in_order(loader: Any, name: str, *, strict: bool) -> Any:
    """Return a loader that reads the same data in order, or the loader itself if it does so already.

    Args:
        loader: A `DataLoader`, several loaders read as one, or an iterable of batches, which is left as it is.
        name: Of the data, for the error.
        strict: Refuse what may read in another order each time; else it is left as it is.

    Raises:
        BadSource: The order of a loader is not known.
    """
    if isinstance(loader, SeveralLoaders):
        return _each_in_order(loader, name, strict=strict)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if type(sampler) in (SequentialSampler, list, tuple, range):
        return loader
    if type(sampler) is RandomSampler and type(loader).__iter__ is DataLoader.__iter__:
        return reloaded(loader, loader.dataset, evaluate=True)
    if not strict:
        return loader
    chooser = type(sampler) if type(sampler) is not RandomSampler else type(loader)
    raise BadSource(
        f"overfit_batches trains on the same batches in each epoch, and in which order the {chooser.__name__} of "
        f"{name!r} gives them is not known. Give a DataLoader with shuffle=False."
    )


def _each_in_order(loader: SeveralLoaders, name: str, *, strict: bool) -> SeveralLoaders:
    ordered = {
        part: in_order(as_loader(one, f"{name}/{part}"), f"{name}/{part}", strict=strict)
        for part, one in zip(loader.names, loader.parts, strict=True)
    }
    found = copy.copy(loader)
    given = loader.loaders
    found.loaders = (
        dict(zip(given, ordered.values(), strict=True))
        if isinstance(given, Mapping)
        else [*ordered.values()]
    )
    return found
