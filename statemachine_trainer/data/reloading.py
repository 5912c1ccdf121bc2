"""A loader made anew for another part of its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from statemachine_trainer.data.errors import BadSource


def reloaded(
    loader: DataLoader[Any], dataset: Dataset[Any], *, evaluate: bool = False
) -> DataLoader[Any]:
    """Return a loader with the settings of another one, for a data set of its own.

    Args:
        loader: Its batch size, workers, collate function, generator and so on are taken over, and
            whether it shuffles.
        dataset: What to load.
        evaluate: In order and whole: without shuffling, and with the last, smaller batch.

    Raises:
        BadSource: It has a sampler of its own, which knows the other data set only.
    """
    kept = {
        name: getattr(loader, name)
        for name in (
            "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
            "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers",
        )
    }  # fmt: skip
    size = loader.batch_size
    if evaluate and size is None:  # whatever chooses the batches to train on, here they go in order
        size = getattr(loader.batch_sampler, "batch_size", None)
    plain = type(loader.sampler) in (RandomSampler, SequentialSampler)
    if evaluate and (size is not None or loader.batch_sampler is None):
        return DataLoader(dataset, batch_size=size, **kept)
    if not plain or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        raise BadSource(
            f"The loader has a {type(loader.sampler).__name__} and a "
            f"{type(loader.batch_sampler).__name__} of its own, which know its whole data set only. "
            "Say how a part of it is loaded: `make_loader=lambda dataset: DataLoader(...)`."
        )
    return DataLoader(
        dataset,
        batch_size=size,
        shuffle=isinstance(loader.sampler, RandomSampler),
        drop_last=loader.drop_last,
        **kept,
    )


def dataset_of(loader: Any, kind: str) -> Dataset[Any]:
    """Return the map-style data set that a loader reads.

    Args:
        loader: A loader.
        kind: Of the loop that asks, for the error.

    Raises:
        BadSource: It is no `DataLoader`, or its data set has no length or no items by index.
    """
    dataset: Any = getattr(loader, "dataset", None)
    kinds = type(dataset)
    if not isinstance(loader, DataLoader) or not (
        hasattr(kinds, "__len__") and hasattr(kinds, "__getitem__")
    ):
        raise BadSource(
            f"{kind} takes the training data apart, and these are a {type(loader).__name__} of a "
            f"{kinds.__name__}. Give a DataLoader over a data set with a length and an index."
        )
    found: Dataset[Any] = dataset
    return found


def targets_of(dataset: Any) -> Sequence[Any]:
    """Return the second part of every sample, without reading the samples where that can be."""
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return list(found)
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) == 2:
        return list(tensors[1].tolist())
    return [dataset[i][1] for i in range(len(dataset))]
