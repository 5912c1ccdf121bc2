"""Cuts the samples of a batch into pieces, for a batch that does not fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.metrics.sizes import batch_size_of
from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves, parts

T = TypeVar("T")

_log = logging.getLogger("statemachine_trainer.loops.optimizer")


def why_not_cut(batch: object) -> str | None:
    """Return why a batch cannot be cut into samples; None if it can.

    Every tensor and array of at least one dimension must have as many entries along its first
    dimension as the batch has samples. Texts and numbers may lie in lists of that length, and so may
    records of one sample each.
    """
    size = batch_size_of(batch)
    if size is None:
        return "nothing in it tells how many samples it holds"
    for path, leaf in leaves_with_paths(batch, "batch", is_leaf=_is_listed):
        shape = getattr(leaf, "shape", None)
        if isinstance(leaf, Tensor) and (leaf.is_sparse or leaf.is_nested):
            return f"{path} is a {'sparse' if leaf.is_sparse else 'nested'} tensor"
        if isinstance(leaf, Tensor) or _is_array(leaf):
            if shape and shape[0] != size:
                return f"{path} has {shape[0]} entries, and the batch seems to hold {size} samples"
        elif isinstance(leaf, list | tuple):
            if len(leaf) != size:
                return f"{path} has {len(leaf)} entries, and the batch seems to hold {size} samples"
        elif leaf is not None and not isinstance(leaf, str | int | float | bool):
            return f"{path} is a {type(leaf).__name__}"
    return None


def cut(batch: Any, start: int, stop: int) -> Any:
    """Return some samples of a batch that can be cut. Tensors are views."""

    def piece(leaf: object) -> object:
        if isinstance(leaf, Tensor) or _is_array(leaf):
            array: Any = leaf
            return array[start:stop] if array.shape else array
        return leaf[start:stop] if isinstance(leaf, list | tuple) else leaf

    return map_leaves(piece, batch, is_leaf=_is_listed)


def why_not_weighted(loss: object) -> str | None:
    """Return why a loss does not count by shares of a batch: it is a sum over samples, and says so; else None."""
    keywords = getattr(loss, "keywords", None)  # of a functools.partial
    found = keywords.get("reduction") if isinstance(keywords, dict) else None
    if "sum" not in (found, getattr(loss, "reduction", None)):
        return None
    name = getattr(getattr(loss, "func", None), "__name__", type(loss).__name__)
    return f"{name}(reduction='sum') is a sum over samples, and not a mean"


def tell_of_sums(model: nn.Module) -> None:
    """Log which losses in a model are sums over samples, so that its pieces may not count by their shares."""
    for path, part in model.named_modules():
        why = why_not_weighted(part)
        if why is not None:
            _log.warning(
                "on_oom='split' weights the loss of a piece by its share of the batch, as a mean over samples "
                "asks for. %s: %s. If the training step returns it undivided, its gradients are too small: "
                "divide it by the number of samples.",
                *(path, why),
            )


def what_was_tried(batch: object, number: int, start: int, samples: int) -> str:
    """Return why a batch could not be done in pieces that fit into memory.

    Args:
        batch: The batch.
        number: Its number in the epoch, from 1.
        start: The first sample that is not done.
        samples: The number of samples in the batch.
    """
    why = why_not_cut(batch)
    if why is not None:
        return (
            f"on_oom='split' cannot cut batch {number}: {why}. It takes batches whose "
            "samples are along the first dimension of every tensor."
        )
    sizes = [samples]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return (
        f"on_oom='split' has tried pieces of down to one sample: {', '.join(map(str, sizes))}. Sample "
        f"{start + 1} of batch {number} does not fit by itself."
    )


def _is_array(leaf: object) -> bool:
    return type(leaf).__module__ == "numpy" and hasattr(leaf, "shape")


def _is_listed(tree: object) -> bool:
    """Return whether a list holds a text or a number for each sample, or a record with one."""
    if not isinstance(tree, list | tuple) or type(tree) not in (list, tuple) or not tree:
        return False
    if all(isinstance(one, str | int | float | bool) for one in tree):
        return True
    return len(tree) > 1 and all(parts(one) is not None for one in tree) and _are_records(tree)


def _are_records(listed: Sequence[object]) -> bool:
    """Return whether containers are alike, and each has one number or text at the same place."""
    first, *others = (dict(leaves_with_paths(one, is_leaf=_is_listed)) for one in listed)
    return all(one.keys() == first.keys() for one in others) and any(
        all(_is_single(one[place]) for one in (first, *others)) for place in first
    )


def _is_single(leaf: object) -> bool:
    if isinstance(leaf, Tensor) or _is_array(leaf):
        return not getattr(leaf, "shape", None)
    return isinstance(leaf, str | int | float | bool)


# -- Running out of memory ------------------------------------------------------------------------


_NO_MEMORY: Final = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says in an error that has no class of its own. Each device has its own words."""

_WRAPPED: Final = 8
"""Errors that may be around the one that says so."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory has run out, that of the CPU or of a device: an error says so, or one that caused it."""
    for _ in range(_WRAPPED):
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = None if error is None else error.__cause__
    return False


def within_memory(work: Callable[[], T]) -> T:
    """Call a function, and raise the error of torch for it whatever is raised when memory runs out.

    Raises:
        torch.OutOfMemoryError: Memory has run out, also that of the CPU.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(str(error) or "out of memory") from error
