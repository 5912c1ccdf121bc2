"""Finds the number of samples in a batch, and whether it is clear."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.parallel.containers import leaves_with_paths, parts


class UnclearBatchSize(UserWarning):
    """The parts of a batch differ in their number of samples, or it does not tell any."""


def batch_size_of(batch: object) -> int | None:
    """The number of samples in a batch: the first dimension of the first tensor that has one.

    Looks depth first through mappings, lists, tuples, dataclasses and the attributes of an object of
    a class of one's own. A tensor is all that has `shape` and `to`. A batch without tensors holds as
    many samples as its first list of texts, or else as its first array of numpy has entries along its first
    dimension; graphs tell it by `num_graphs`. None when there is nothing of that.
    """
    if (batch.__class__ is tuple or batch.__class__ is list) and batch:
        first = batch[0]
        if first.__class__ is Tensor and first.ndim:
            return first.size(0)  # what is usual: intervals by samples ask in every batch
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.dim() else None
    size = _first_dimension(batch)
    if size is None:
        size = _number_of_texts(batch)
    return size if size is not None else next(iter(_of_arrays(batch).values()), None)


def _first_dimension(batch: object) -> int | None:
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.dim() else None
    if isinstance(batch, PackedSequence):
        return int(batch.batch_sizes[0])
    inside = parts(batch)
    if inside is None:
        graphs = getattr(batch, "num_graphs", None)
        if isinstance(graphs, int):
            return graphs
        shape = getattr(batch, "shape", None)
        if hasattr(batch, "to") and isinstance(shape, tuple):
            return int(shape[0]) if shape else None
        inside = _attributes(batch)
    for part in inside:
        size = _first_dimension(part)
        if size is not None:
            return size
    return None


def _attributes(batch: object) -> list[object]:
    """What an object of a class of one's own holds; what lies deeper than its containers does not count."""
    held = [] if isinstance(batch, type) else list(getattr(batch, "__dict__", {}).values())
    return [one for one in held if isinstance(one, Tensor) or parts(one) is not None]


def _number_of_texts(batch: object) -> int | None:
    inside = parts(batch)
    if inside is None:
        return None
    if isinstance(batch, list | tuple) and batch and all(isinstance(one, str) for one in batch):
        return len(batch)
    return next((n for part in inside if (n := _number_of_texts(part)) is not None), None)


def is_array(leaf: object) -> bool:
    """Whether something is an array of numpy."""
    return type(leaf).__module__ == "numpy" and hasattr(leaf, "shape")


def _of_arrays(batch: object) -> dict[str, int]:
    """Return the lengths of the arrays in a batch, by their paths."""
    return {
        path: int(leaf.shape[0])  # type: ignore[attr-defined]
        for path, leaf in leaves_with_paths(batch, "batch")
        if is_array(leaf) and leaf.shape  # type: ignore[attr-defined]
    }


def why_unclear(batch: object, size: int | None) -> str:
    """Explain why the size of a batch is not clear; "" if it is.

    Args:
        batch: The batch.
        size: What `batch_size_of` found.
    """
    if size is None:
        if (
            parts(batch) is not None
            or batch is None
            or isinstance(batch, Tensor | str | int | float)
        ):
            return ""
        return f"a {type(batch).__name__} does not tell how many samples it holds"
    sizes: set[int] = set()
    said: dict[int, str] = {}
    _collect(batch, sizes)
    if _first_dimension(batch) is None and _number_of_texts(batch) is None:
        for path, length in _of_arrays(batch).items():
            said.setdefault(length, path)
        sizes.update(said)
    if len(sizes) < 2:
        return ""
    for path, leaf in leaves_with_paths(
        batch, "batch", lambda one: isinstance(one, PackedSequence)
    ):
        one = _first_dimension(leaf)
        if one is not None:
            said.setdefault(one, path)
    listed = [f"{path} has {one}" for one, path in said.items()][:3]
    others = sorted(sizes - said.keys())
    listed += [f"there is a list of {one}" for one in others[: 3 - len(listed)]]
    return f"{' and '.join(listed)} along the first dimension"


def tell_unclear(name: str, size: int | None, why: str) -> None:
    """Warn that the weight of a logged value is not clear.

    Args:
        name: Of the metric.
        size: What `batch_size_of` found.
        why: What `why_unclear` found.

    Warns:
        UnclearBatchSize: Always.
    """
    counts = "every batch counts the same" if size is None else f"this one counts as {size}"
    warnings.warn(
        f"The mean of {name!r} is weighted by the samples of each batch, and {why}. So {counts}. Say how many "
        f"it holds: log({name!r}, value, batch_size=...).",
        UnclearBatchSize,
        stacklevel=level_of_caller(),
    )


def _collect(batch: object, sizes: set[int]) -> None:
    """Find every number that might be the number of samples."""
    if isinstance(batch, Tensor):
        if batch.dim():
            sizes.add(batch.size(0))
        return
    inside = None if isinstance(batch, PackedSequence) else parts(batch)
    if inside is None:
        size = _first_dimension(batch)
        own = [] if hasattr(batch, "num_graphs") or hasattr(batch, "shape") else _attributes(batch)
        for part in own:
            _collect(part, sizes)
        if size is not None and not own:
            sizes.add(size)
        return
    for part in inside:
        _collect(part, sizes)
    if (
        isinstance(batch, list | tuple)
        and len(batch) > 1
        and (
            _is_record(batch[0])
            or (isinstance(batch[0], list | tuple) and are_records(batch))
            or may_be_rows(batch)
        )
    ):
        sizes.add(len(batch))  # one record for each sample


def may_be_rows(listed: object) -> bool:
    """Whether a list of arrays may be samples that nobody has put together, and not the columns of a batch.

    So may be a list of several arrays of numpy of one shape. Tensors have been put together by a loader.
    """
    if type(listed) is not list or len(listed) < 2 or not all(map(is_array, listed)):
        return False
    return len({one.shape for one in listed}) == 1 and listed[0].ndim > 0


def _is_record(value: object) -> bool:
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def are_records(listed: Sequence[object], is_leaf: Callable[[object], bool] | None = None) -> bool:
    """Whether containers are alike, and each has one number or text at the same place, as samples have.

    Args:
        listed: What may be containers.
        is_leaf: When it answers True for a container, that container is a leaf.
    """
    if any(parts(one) is None for one in listed):
        return False
    first, *others = (dict(leaves_with_paths(one, is_leaf=is_leaf)) for one in listed)
    return all(one.keys() == first.keys() for one in others) and any(
        all(_is_single(one[place]) for one in (first, *others)) for place in first
    )


def _is_single(leaf: object) -> bool:
    if isinstance(leaf, Tensor) or is_array(leaf):
        return not getattr(leaf, "shape", None)
    return isinstance(leaf, str | int | float | bool)
