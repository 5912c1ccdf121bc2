"""Averages gradients over the ranks where `DistributedDataParallel` cannot see a backward pass begin.

The wrapper gets ready for a backward pass in its `forward`. A training step that optimizes by hand or
yields its losses goes backward more than once, and not from what it returns. A compiled step has no
backward pass that the wrapper could see. Their gradients are averaged here, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer.parallel.parallel_errors import UnsupportedWrapper

_NONE: Final = 0
_DENSE: Final = 1
_SPARSE: Final = 2
"""What a gradient is, the largest of which holds for all ranks."""


def average(wrapper: DistributedDataParallel, parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients of parameters over the ranks of a wrapper. A collective.

    Each gradient is divided by the number of ranks, and then they are added, as the wrapper does. A
    parameter without a gradient at this rank counts as zero; one that no rank has a gradient of stays
    without. Parameters that the wrapper ignores stay as they are.

    Args:
        wrapper: The wrapper.
        parameters: The same at each rank, in the same order.
    """
    group = wrapper.process_group
    known = {id(one) for one in cast(Any, wrapper)._module_parameters}
    ours = [one for one in parameters if id(one) in known]
    device = next((one.device for one in ours), None)
    forms = torch.tensor([_form(one) for one in ours], dtype=torch.int, device=device)
    dist.all_reduce(forms, dist.ReduceOp.MAX, group=group)
    dense: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for one, form in zip(ours, forms.tolist(), strict=True):
        if form == _DENSE:
            dense.setdefault((one.dtype, one.device), []).append(one)
        elif form == _SPARSE:
            _average_sparse(one, group)
    for alike in dense.values():
        _average_alike(alike, group)


def _form(parameter: nn.Parameter) -> int:
    gradient = parameter.grad
    return _NONE if gradient is None else _SPARSE if gradient.is_sparse else _DENSE


def _average_sparse(parameter: nn.Parameter, group: Any) -> None:
    if parameter.grad is None:
        # Rows are what is sparse, as in the gradients of embeddings.
        parameter.grad = torch.sparse_coo_tensor(
            torch.empty(1, 0, dtype=torch.long, device=parameter.device),
            parameter.new_empty(0, *parameter.shape[1:]),
            parameter.shape,
            check_invariants=False,
        )
    parameter.grad = (parameter.grad * (1.0 / dist.get_world_size(group))).coalesce()
    dist.all_reduce(parameter.grad, group=group)


def _average_alike(parameters: list[nn.Parameter], group: Any) -> None:
    """Average gradients of one type on one device, in one call."""
    parts = [
        torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten()
        for one in parameters
    ]
    flat = torch.cat(parts).mul_(1.0 / dist.get_world_size(group))
    dist.all_reduce(flat, group=group)
    for one, part in zip(parameters, flat.split([part.numel() for part in parts]), strict=True):
        if one.grad is None:
            one.grad = torch.empty_like(one)
        one.grad.copy_(part.view_as(one))


@contextmanager
def averaging(wrapper: DistributedDataParallel) -> Iterator[None]:
    """Within the block, average the gradients of the model at the end of each backward pass.

    All ranks have to make as many of them. Within `wrapper.no_sync()` they stay at their rank.
    """
    parameters = [one for one in cast(Any, wrapper)._module_parameters if one.requires_grad]
    begun = False

    def end() -> None:
        nonlocal begun
        begun = False
        with torch.no_grad():
            average(wrapper, parameters)

    def begin(_: torch.Tensor) -> None:
        nonlocal begun
        if not begun and wrapper.require_backward_grad_sync:
            begun = True
            cast(Any, torch.autograd.Variable)._execution_engine.queue_callback(end)

    hooks = [one.register_post_accumulate_grad_hook(begin) for one in parameters]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def check_averaged_here(wrapper: DistributedDataParallel, who: str, instead: str) -> None:
    """Refuse wrappers that do more with gradients than to average them.

    Args:
        wrapper: The wrapper.
        who: What goes backward in a way that the wrapper cannot see, for messages.
        instead: What to do instead, for messages.

    Raises:
        UnsupportedWrapper: It has a communication hook, or a precision of its own.
    """
    inside: Any = wrapper
    if inside._comm_hooks:
        what = "has a communication hook"
    elif inside.mixed_precision is not None:
        what = "was given mixed_precision="
    else:
        return
    raise UnsupportedWrapper(
        f"{who}, so its gradients are averaged by the trainer and not by DistributedDataParallel. That wrapper "
        f"{what}, which would have no effect. Leave it out, or {instead}."
    )
