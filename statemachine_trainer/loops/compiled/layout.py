"""Where tensors lie: which share memory, and which gradients have to be copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node


def span(tensor: Tensor) -> tuple[int, int, int]:
    """Return storage, first byte and the byte after the last of a tensor, within its storage."""
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    if not tensor.numel():
        return 0, 0, 0
    reach = int(sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)))
    return tensor.untyped_storage().data_ptr(), begin, begin + (reach + 1) * size


def overlaps_itself(tensor: Tensor) -> bool:
    """Tell whether two elements may lie in the same place, as in an expanded tensor."""
    dims = sorted((step, n) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    reach = 0
    for step, n in dims:
        if step <= reach:
            return tensor.numel() > 0
        reach += (n - 1) * step
    return False


def overlapping(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return the pairs of places of those tensors that share memory."""
    spans = sorted((*span(one), place) for place, one in enumerate(tensors) if one.numel())
    pairs = []
    for n, (storage, _, end, place) in enumerate(spans):
        for other_storage, begin, _, other in spans[n + 1 :]:
            if other_storage != storage or begin >= end:
                break
            pairs.append((place, other))
    return pairs


def share_memory(some: Iterable[Tensor], all_of_them: Sequence[Tensor]) -> bool:
    """Tell whether one of some tensors shares memory with another one of all."""
    wanted = {id(one) for one in some}
    return any(
        id(all_of_them[one]) in wanted or id(all_of_them[other]) in wanted
        for one, other in overlapping(all_of_them)
    )


def storage_of(tensor: Tensor) -> int:
    """Return what is the same for all tensors with one storage, of fake tensors too."""
    return int(tensor.untyped_storage()._cdata)


def written_by(graph: GraphModule, inputs: Sequence[Tensor]) -> list[bool]:
    """Tell for each input of a graph whether an operation writes to its memory.

    Args:
        graph: With the values that were seen when it was traced.
        inputs: What it was traced with.
    """
    written: set[int] = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = (
                    node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
                )
                for one in given if isinstance(given, list | tuple) else [given]:
                    value = one.meta.get("val") if isinstance(one, Node) else None
                    if isinstance(value, Tensor):
                        written.add(storage_of(value))
    return [storage_of(one) in written for one in inputs]


def as_accumulated(grad: Tensor, parameter: Tensor, taken: set[int]) -> Tensor:
    """Return a gradient as the backward pass would have put it into `grad` of its parameter.

    That is memory of its own, laid out as the parameter is.

    Args:
        grad: As it was computed; may be expanded, or the gradient of another parameter too.
        parameter: Whose it is.
        taken: The storages of what must not be written to; that of the result is added.
    """
    if grad.layout != torch.strided:
        return grad
    dense = not overlaps_itself(parameter) and _is_dense(parameter)
    wanted = parameter.stride() if dense else _contiguous(parameter.shape)
    if _strides_differ(grad, wanted):
        made = torch.empty_strided(grad.shape, wanted, dtype=grad.dtype, device=grad.device)
        grad = made.copy_(grad)
    elif storage_of(grad) in taken:
        grad = grad.clone()
    taken.add(storage_of(grad))
    return grad


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill their span without a gap."""
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == reach + 1


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def _strides_differ(grad: Tensor, wanted: Sequence[int]) -> bool:
    return any(
        n > 1 and step != other
        for n, step, other in zip(grad.shape, grad.stride(), wanted, strict=True)
    )
