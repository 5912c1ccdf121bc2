"""What users give as data, made into loaders with names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from statemachine_trainer.data.data_errors import BadLimit, BadSource, UnbatchedData
from statemachine_trainer.data.makers import is_iterable, is_maker, made_by
from statemachine_trainer.data.several import Together
from statemachine_trainer.machine.errors import level_of_caller

Source = Any
"""A loader, a data set, or a function that makes either."""


def as_loader(source: Source, name: str = "train", epoch: int | None = None) -> Iterable[Any]:
    """The loader that a source stands for.

    Args:
        source: a `DataLoader`, a list of batches, or any iterable of them, as it is; a `Dataset`,
            in a `DataLoader` of batches of one (torch's default); a dict of these, read `Together`; or a
            function that makes one of these, called each time anew
        name: for the error
        epoch: the number of the epoch, for a function with a parameter ``epoch``, which is refused without

    Raises:
        BadSource: for anything else, saying what to give

    Warns:
        UnbatchedData: for a data set, saying how it is given in batches
    """
    if is_maker(source):
        source = made_by(source, name, epoch)
        if is_maker(source):
            raise BadSource(f"The function given as {name!r} made another function, not a loader.")
    if isinstance(source, (torch.Tensor, np.ndarray)):
        raise BadSource(
            f"{name!r} is a bare {type(source).__name__} of shape {tuple(source.shape)}, which "
            f"does not say how it is batched. Give {_way_to_batch(name)}."
        )
    if _are_inputs_and_targets(source):
        raise BadSource(
            f"{name!r} is a pair of tensors, {' and '.join(str(tuple(one.shape)) for one in source)}, and would be "
            f"read as two batches. Give {_way_to_batch(name)}; for one batch, a list of it: [(inputs, targets)]."
        )
    if isinstance(source, Dataset):
        if not isinstance(source, IterableDataset) and not hasattr(source, "__len__"):
            raise BadSource(
                f"{name!r} is a {type(source).__name__}, a data set without a length. Write __len__, which returns "
                "how many samples there are; or derive it from IterableDataset, with __iter__."
            )
        _warn_of_single_samples(source, name)
        return DataLoader(source)
    if isinstance(source, Mapping) and source:
        _refuse_splits(source, name)
        return Together(
            {key: as_loader(one, f"{name}/{key}", epoch) for key, one in source.items()}
        )
    if source is None or isinstance(source, (str, bytes, Mapping)) or not is_iterable(source):
        raise BadSource(
            f"{name!r} is {_described(source)}, which can not be read batch by batch. Give a "
            "DataLoader, a list of batches, a Dataset, or a function that makes one of them."
        )
    if isinstance(source, (list, tuple)) and source and all(map(_is_loader, source)):
        raise BadSource(
            f"{name!r} is a {type(source).__name__} of {len(source)} loaders or data sets, and one "
            "is read here. Give validation its own argument, fit(model, train, validation); join "
            "data sets by ConcatDataset; for batches of several loaders at once give a dict of them, or "
            "Together([...]), InTurns([...]), Mixture([...])."
        )
    loader: Iterable[Any] = source
    return loader


def _are_inputs_and_targets(source: Any) -> bool:
    """Whether a source is two tensors of one length that cannot both be batches: they differ in shape or dtype."""
    if not (isinstance(source, (tuple, list)) and len(source) == 2):
        return False
    one, other = source
    tensors = all(isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim for part in source)
    return (
        tensors
        and len(one) == len(other)
        and (one.shape[1:] != other.shape[1:] or one.dtype != other.dtype)
    )


def as_loaders(
    source: Source, name: str = "validation", epoch: int | None = None
) -> list[tuple[str, Iterable[Any]]]:
    """The loaders that a source stands for, with their names.

    Args:
        source: what `as_loader` takes, for one loader called ``name``; a list or tuple of loaders
            or data sets, called ``name/0``, ``name/1`` and so on; a dict of them, called by its
            keys
        name: of the one, and the beginning of the names of several
        epoch: as for `as_loader`
    """
    if is_maker(source):
        source = made_by(source, name, epoch)
    if isinstance(source, Mapping):
        return [(str(key), as_loader(one, str(key), epoch)) for key, one in source.items()]
    if isinstance(source, (list, tuple)) and source and all(map(_is_loader, source)):
        names = [name] if len(source) == 1 else [f"{name}/{i}" for i in range(len(source))]
        return [
            (called, as_loader(one, called, epoch))
            for called, one in zip(names, source, strict=True)
        ]
    return [(name, as_loader(source, name, epoch))]


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


def limit_batches(limit: int | float | None, length: int | None, name: str = "train") -> int | None:
    """The number of batches to use of each pass over a loader.

    Args:
        limit: ``None`` for all; an ``int`` for at most so many batches, 0 for none; a ``float``
            from 0.0 to 1.0 for this fraction of them, rounded down. So ``1`` is one batch, and
            ``1.0`` is all of them.
        length: batches in a pass, ``None`` if unknown
        name: the loader's name, for the error

    Returns:
        the number of batches, or ``None`` for as many as there are (the length is unknown)

    Raises:
        BadLimit: for a negative limit, a bool, a fraction above 1 or of an unknown length, and for
            a fraction that leaves no batch

    >>> limit_batches(1, 40), limit_batches(1.0, 40), limit_batches(0.25, 10)
    (1, 40, 2)
    """
    if limit is None:
        return length
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit!r}. Give an int (a count of batches), "
            "a float from 0.0 to 1.0 (a fraction of them) or None (all of them)."
        )
    if isinstance(limit, int):
        return _count(limit, length, name)
    return _fraction(limit, length, name)


def describe_limit(limit: int | float | None) -> str:
    """How a limit is understood, in words: the place where 1 and 1.0 part.

    >>> describe_limit(1), describe_limit(1.0)
    ('1 batch (int: a count)', 'all batches (float: 100% of them)')
    >>> describe_limit(0.1)
    '10% of the batches (float: a fraction)'
    """
    if limit is None:
        return "all batches"
    if isinstance(limit, int):
        return f"{limit} {'batch' if limit == 1 else 'batches'} (int: a count)"
    if limit == 1.0:
        return "all batches (float: 100% of them)"
    return f"{100 * limit:g}% of the batches (float: a fraction)"


def reloaded(
    loader: DataLoader[Any],
    dataset: Dataset[Any],
    *,
    evaluate: bool = False,
    batch_size: int | None = None,
) -> DataLoader[Any]:
    """Return a loader with the settings of another one, for a data set of its own.

    Args:
        loader: Its batch size, workers, collate function, generator and so on are taken over, and
            how it shuffles: with replacement or not, and how many samples a pass has.
        dataset: What to load.
        evaluate: In order and whole: without shuffling, and with the last, smaller batch.
        batch_size: Another size of its batches; that of the other loader unless given.

    Raises:
        BadSource: Something of its own chooses samples or batches, which knows the other data set
            only.
    """
    kept = {
        name: getattr(loader, name)
        for name in (
            "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn",
            "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers",
        )
    }  # fmt: skip
    batches: Any = loader.batch_sampler
    grouped = type(batches) is BatchSampler
    # A batch sampler that was given has the sampler, the size and `drop_last` that count.
    sampler: Any = batches.sampler if grouped else loader.sampler
    size = getattr(batches, "batch_size", None) if batches is not None else None
    size = size if batch_size is None else batch_size
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise _cannot_reload(f"it is a {type(loader).__name__}, which makes batches in its own way")
    if evaluate and (size is not None or batches is None):
        # Whatever chooses the batches to train on, here they go in order.
        return DataLoader(dataset, batch_size=size, **kept)
    if batches is not None and not grouped:
        raise _cannot_reload(f"its {type(batches).__name__} chooses the batches")
    if type(sampler) is DistributedSampler and dataset is loader.dataset:
        return DataLoader(
            dataset,
            batch_size=size,
            sampler=sampler,
            drop_last=batches.drop_last if grouped else False,
            **kept,
        )
    if type(sampler) not in (RandomSampler, SequentialSampler):
        raise _cannot_reload(f"its {type(sampler).__name__} chooses the samples")
    seen, whole = len(sampler.data_source), len(loader.dataset)  # type: ignore[arg-type]
    if seen != whole:
        raise _cannot_reload(
            f"its {type(sampler).__name__} chooses of {seen} samples, and the data set has {whole}"
        )
    return DataLoader(
        dataset,
        batch_size=size,
        sampler=_sampler_like(sampler, dataset),
        drop_last=batches.drop_last if grouped else False,
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


def _refuse_splits(source: Mapping[Any, Any], name: str) -> None:
    """Refuse a dict of the parts of a data set, as a hub gives them: they are not to be trained on together."""
    others = [one for one in source if one in ("validation", "valid", "val", "test", "eval")]
    if "train" in source and others:
        raise BadSource(
            f"{name!r} is a dict with 'train' and {others[0]!r}: parts of a data set, it seems, and a dict of "
            f"loaders is read together. Give one of them: fit(model, data['train'], data[{others[0]!r}])."
        )


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


def _way_to_batch(name: str) -> str:
    """Return how tensors are given in batches: shuffled in training, and only then."""
    if name == "train":
        return "DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)"
    if name.partition("/")[0] == "predict":
        return (
            "a loader without shuffle=True, so that predictions stand in the order of the data: "
            "DataLoader(inputs, batch_size=32)"
        )
    return "DataLoader(TensorDataset(inputs, targets), batch_size=32)"


def _is_torch(loader: Any) -> bool:
    return isinstance(loader, DataLoader)


def _is_loader(one: Any) -> bool:
    return isinstance(one, (DataLoader, Dataset)) or is_maker(one)


def _described(source: Any) -> str:
    return "None" if source is None else f"a {type(source).__name__}"


def _count(limit: int, length: int | None, name: str) -> int:
    if limit < 0:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a count (an int), which "
            "can not be negative. Use None for all batches, 0 for none."
        )
    return limit if length is None else min(limit, length)


def _fraction(limit: float, length: int | None, name: str) -> int | None:
    if not 0.0 <= limit <= 1.0:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a fraction (a float), "
            "which must lie between 0.0 and 1.0. "
            f"For a count of batches give an int{_as_int(limit)}."
        )
    if limit == 1.0:
        return length
    if limit == 0.0:
        return 0
    if length is None:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a fraction (a float), but "
            "the loader has no length to take a fraction of. Give a count of batches (an int)."
        )
    count = int(length * limit)
    if count == 0 and length > 0:
        raise BadLimit(
            f"The limit on the batches of {name!r} is {limit}, taken as a fraction (a float): "
            f"{limit} of {length} {'batch' if length == 1 else 'batches'} leaves none. Give a "
            "count (an int), a larger fraction, or 0 to use no batch on purpose."
        )
    return count


def _as_int(limit: float) -> str:
    return f", {int(limit)}" if limit == limit and 1.0 < limit < 1e9 else ""


def _sampler_like(sampler: Any, dataset: Any) -> Any:
    """Return a sampler of another data set; None for one that goes in order."""
    if isinstance(sampler, SequentialSampler):
        return None
    return RandomSampler(
        dataset,
        replacement=sampler.replacement,
        num_samples=sampler._num_samples,  # None unless it was given
        generator=sampler.generator,
    )


def _cannot_reload(why: str) -> BadSource:
    return BadSource(
        f"Parts of the data cannot be loaded as the whole is: {why}, and knows the whole only. Say how "
        "a part of it is loaded: `make_loader=lambda dataset: DataLoader(...)`."
    )
