"""Averages gradients over the ranks where `DistributedDataParallel` cannot see a backward pass begin.

The wrapper gets ready for a backward pass in its `forward`. A training step that optimizes by hand or
yields its losses goes backward more than once, and not from what it returns. A compiled step has no
backward pass that the wrapper could see. Their gradients are averaged here, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from statemachine_trainer.parallel.parallel_errors import RanksPart, UnsupportedWrapper
from statemachine_trainer.parallel.ranks import Ranks

_NONE: Final = 0
_DENSE: Final = 1
_SPARSE: Final = 2
"""What a gradient is, the largest of which holds for all ranks."""

_ENDED: Final = 2**30
"""In place of the number of a backward pass: this rank makes none, and checks that the others make none."""


def average(
    wrapper: DistributedDataParallel,
    parameters: Sequence[nn.Parameter],
    where: tuple[int, int] = (0, 0),
) -> None:
    """Average the gradients of parameters over the ranks of a wrapper. A collective.

    Each gradient is divided by the number of ranks, and then they are added, as the wrapper does. A
    parameter without a gradient at this rank counts as zero; one that no rank has a gradient of stays
    without. Parameters that the wrapper ignores stay as they are.

    Args:
        wrapper: The wrapper.
        parameters: The same at each rank, in the same order.
        where: The batch, and the number of the backward pass in it.

    Raises:
        RanksPart: Another rank is in another backward pass.
    """
    group = wrapper.process_group
    known = {id(one) for one in cast(Any, wrapper)._module_parameters}
    ours = [one for one in parameters if id(one) in known]
    forms = _of_all(wrapper, {id(one): _form(one) for one in ours}, where)
    dense: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for one in ours:
        form = forms[id(one)]
        if form == _DENSE:
            dense.setdefault((one.dtype, one.device), []).append(one)
        elif form == _SPARSE:
            _average_sparse(one, group)
    for alike in dense.values():
        _average_alike(alike, group)


def check_none_averages(wrapper: DistributedDataParallel, batch: int) -> None:
    """Check that no rank averages gradients while this one has none to average. A collective.

    Args:
        wrapper: The wrapper.
        batch: The batch before which this rank averages none.

    Raises:
        RanksPart: One does.
    """
    _of_all(wrapper, {}, (batch, _ENDED))


def _of_all(
    wrapper: DistributedDataParallel, forms: dict[int, int], where: tuple[int, int]
) -> dict[int, int]:
    """Return the largest form of each gradient over the ranks. A collective.

    Args:
        wrapper: The wrapper.
        forms: The form of each gradient that this rank averages, by the `id` of its parameter.
        where: The batch, and the number of the backward pass in it.

    Raises:
        RanksPart: Another rank is in another backward pass.
    """
    parameters: list[nn.Parameter] = cast(Any, wrapper)._module_parameters
    batch, number = where
    sent = [batch, number, -batch, -number, *(forms.get(id(one), _NONE) for one in parameters)]
    # All parameters of the wrapper, so that ranks that are not in the same pass exchange as many numbers.
    found = torch.tensor(sent, dtype=torch.int, device=parameters[0].device)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=wrapper.process_group)
    last, most, first, fewest, *told = found.tolist()
    if (last, most) != (-first, -fewest):
        _raise_parted(wrapper, where)
    return {id(one): form for one, form in zip(parameters, told, strict=True)}


def _raise_parted(wrapper: DistributedDataParallel, where: tuple[int, int]) -> NoReturn:
    """Raise an error that says where each rank is. A collective."""
    mine = torch.tensor(where, device=next(wrapper.parameters()).device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(wrapper.process_group))]
    dist.all_gather(found, mine, group=wrapper.process_group)
    Ranks.forget()
    places = [
        f"rank {rank} has no more of them before batch {batch}"
        if number == _ENDED
        else f"rank {rank} is in number {number} of batch {batch}"
        for rank, (batch, number) in enumerate(one.tolist() for one in found)
    ]
    raise RanksPart(
        "The ranks make different numbers of backward passes, and each of them averages gradients over all "
        f"ranks: {', '.join(places)}. Let each rank go backward equally often in each batch, from a loss of zero if "
        "need be: 0 * loss."
    )


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
def averaging(
    wrapper: DistributedDataParallel, batch: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """Within the block, average the gradients of the model at the end of each backward pass.

    All ranks have to make as many of them. Within `wrapper.no_sync()` they stay at their rank.

    Args:
        wrapper: The wrapper.
        batch: Returns the number of the batch.
    """
    parameters = [one for one in cast(Any, wrapper)._module_parameters if one.requires_grad]
    begun = False
    passes = 0

    def end() -> None:
        nonlocal begun, passes
        begun = False
        passes += 1
        with torch.no_grad():
            average(wrapper, parameters, (batch(), passes))

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
