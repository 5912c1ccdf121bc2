"""A model inside `DistributedDataParallel`: its methods are called so that gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_NONE: Final = object()


class Wrapped:
    """A model, and the `DistributedDataParallel` around it.

    Gradients are averaged over the ranks if what finds the loss goes through the wrapper's own
    `forward`. That knows of nothing but the `forward` of the model, and calls of a training step
    would pass it by.

    Args:
        wrapper: The wrapper.

    Attributes:
        wrapper: The wrapper.
        module: The model in it, without further wrappers.
        averages: Asked at each call through the wrapper whether its backward pass averages the
            gradients; if not, they add up at each rank until one does.
    """

    averages: Callable[[], bool] = staticmethod(lambda: True)

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.wrapper = wrapper
        self.module: nn.Module = wrapper.module

    @classmethod
    def of(cls, model: object) -> Wrapped | None:
        """Return a model as a wrapped one; None if it is none."""
        return cls(model) if isinstance(model, DistributedDataParallel) else None

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are; None if there are none."""
        return next((one.device for one in self.module.parameters()), None)

    def through(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is called by way of the wrapper.

        For that call the function stands in for the model's `forward`, which is itself again before
        the function begins: that may call the model, as often as it likes.
        """
        wrapper = self.wrapper
        module: nn.Module = wrapper.module  # what the wrapper calls, compiled or not

        def call(*arguments: Any, **named: Any) -> Any:
            own = vars(module).get("forward", _NONE)

            def put_back() -> None:
                if own is not _NONE:
                    module.forward = own
                else:
                    vars(module).pop("forward", None)

            def forward(*arguments: Any, **named: Any) -> Any:
                put_back()
                return function(*arguments, **named)

            module.forward = forward
            try:
                with nullcontext() if self.averages() else wrapper.no_sync():
                    return wrapper(*arguments, **named)
            finally:
                put_back()

        return call

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over the ranks, as they are. A collective.

        A parameter that no rank used stays without one.
        """
        ours = list(parameters)
        group = self.wrapper.process_group
        used = torch.tensor([one.grad is not None for one in ours], device=self.device).int()
        dist.all_reduce(used, dist.ReduceOp.MAX, group=group)
        for parameter, is_used in zip(ours, used.tolist(), strict=True):
            if is_used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= dist.get_world_size(group)

    def share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, as the wrapper does before each training step.

        A collective. Where the wrapper was told not to, nothing happens.
        """
        if self.wrapper.broadcast_buffers:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, 0, group=self.wrapper.process_group)
