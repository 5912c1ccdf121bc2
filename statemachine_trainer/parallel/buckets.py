"""The layout of the buckets in which `DistributedDataParallel` exchanges gradients, made before the first step.

It is made by a backward pass of zeros. `GradientSync.prepare` says why. Runs of one or two ranks do not need it.
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
    whole, parameters = wrapper._modules["module"], wrapper._module_parameters
    shares = wrapper.broadcast_buffers
    with _kept(parameters), torch.enable_grad():
        wrapper._modules["module"] = _Zeros(whole, parameters)
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

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter]) -> None:
        super().__init__()
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
            found = found.to(part.device) + 0 * part.float()
        return found


@contextmanager
def _kept(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Within the block all parameters take part; afterwards their gradients are as they were."""
    gradients = [(one.grad, one.requires_grad) for one in parameters]
    for one in parameters:
        one.grad = None
        one.requires_grad_(True)
    try:
        yield
    finally:
        for one, (gradient, required) in zip(parameters, gradients, strict=True):
            one.requires_grad_(required)
            one.grad = gradient
