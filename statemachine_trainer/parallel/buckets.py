"""Backward passes of zeros through a `DistributedDataParallel`.

One lays out the buckets in which it exchanges gradients, before the first step. `GradientSync.prepare` says
why. Runs of one or two ranks do not need it. Another one takes part in an exchange for a rank that has no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def lays_out_anew(wrapper: Any) -> bool:
    """Return whether a wrapper lays out its buckets after its first pass, and may be given one of zeros."""
    special = (
        wrapper.find_unused_parameters  # it keeps the first layout
        or wrapper.static_graph  # its first pass decides which parameters are in use
        or wrapper.mixed_precision is not None
        or wrapper._delay_all_reduce_params
        or wrapper._comm_hooks  # they may count the passes
        or wrapper._has_rebuilt_buckets
    )
    return not special


def lay_out_buckets(wrapper: Any) -> None:
    """Make a backward pass of zeros through a `DistributedDataParallel`. A collective.

    Its next forward pass lays out the buckets. Gradients, buffers and generators stay as they are.
    """
    with _kept(wrapper):
        _pass_zeros(wrapper, 0.0)


def exchange_nothing(wrapper: Any) -> bool:
    """Take part in an exchange of gradients without any; return whether another rank had some. A collective.

    This rank gives negative zeros. A sum of nothing else is negative zero, and no other sum is. Gradients,
    buffers and generators stay as they are.
    """
    with _kept(wrapper):
        _pass_zeros(wrapper, -0.0)
        found = [one.grad for one in wrapper._module_parameters if one.grad is not None]
        dense = [one.to_dense() if one.is_sparse else one for one in found]
        parts = [torch.view_as_real(one) if one.is_complex() else one for one in dense]
        return not all(
            bool((torch.signbit(one) & (one == 0)).all()) for one in parts if one.numel()
        )


def _pass_zeros(wrapper: Any, zero: float) -> None:
    whole, parameters = wrapper._modules["module"], wrapper._module_parameters
    shares = wrapper.broadcast_buffers
    with torch.enable_grad():
        wrapper._modules["module"] = _Zeros(whole, parameters, zero)
        wrapper.broadcast_buffers = False
        try:
            wrapper.forward().backward()  # not __call__, which would run hooks of the user
        finally:
            wrapper._modules["module"], wrapper.broadcast_buffers = whole, shares


class _Zeros(nn.Module):
    """Gives a zero that depends on all parameters, the last one first in the backward pass.

    That is the order of the gradients of a model whose parts are called in the order in which they
    were made.
    """

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter], zero: float) -> None:
        super().__init__()
        self._zero = zero
        self._ours = [parameters]  # in a list, so that they are not parameters of this module
        self._sparse = {
            id(one.weight)
            for one in model.modules()
            if isinstance(one, nn.Embedding | nn.EmbeddingBag) and one.sparse
        }

    def forward(self) -> torch.Tensor:
        found = torch.zeros(())
        for one in self._ours[0]:
            if id(one) in self._sparse:
                first = torch.zeros(1, dtype=torch.long, device=one.device)
                part = nn.functional.embedding(first, one, sparse=True).sum()
            else:
                part = (torch.view_as_real(one) if one.is_complex() else one).sum()
            found = found.to(part.device) + self._zero * part.float()
        return found


@contextmanager
def _kept(wrapper: Any) -> Iterator[None]:
    """Within the block all parameters take part; afterwards their gradients are as they were."""
    parameters: list[nn.Parameter] = wrapper._module_parameters
    gradients = [(one.grad, one.requires_grad) for one in parameters]
    # They may lie in the memory through which gradients are exchanged.
    shared = wrapper.gradient_as_bucket_view
    values = [one.grad.clone() if shared and one.grad is not None else None for one in parameters]
    for one in parameters:
        one.grad = None
        one.requires_grad_(True)
    try:
        yield
    finally:
        for one, (gradient, required), value in zip(parameters, gradients, values, strict=True):
            one.requires_grad_(required)
            one.grad = gradient
            if gradient is not None and value is not None:
                gradient.copy_(value)
