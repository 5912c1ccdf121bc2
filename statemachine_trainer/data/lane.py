"""The way of a batch to the device, beside the kernels of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from statemachine_trainer.parallel import leaves_with_paths, map_leaves, to_device


@runtime_checkable
class Pinnable(Protocol):
    """Anything that can be put into pinned memory: a tensor, a packed sequence, a batch of a graph."""

    def pin_memory(self) -> object:
        """The same data in pinned memory."""

    def is_pinned(self) -> bool:
        """Whether it is there."""


class Lane:
    """Sends batches to a device; on CUDA from pinned memory and on a stream of its own.

    A way of the user's own is followed on the stream of the kernels: it may read what they write,
    such as weights or buffers of the model, and must then come after them. Its copies from pinned
    memory still need not be waited for.

    Args:
        device: Where to.
        move: The user's own way.
    """

    def __init__(self, device: torch.device, move: Callable[[Any], Any] | None = None) -> None:
        self._device = device
        self._move = move
        self._pins = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._pins and move is None else None

    def send(self, batch: Any) -> Any:
        """Start to move a batch; `hand_over` makes sure that it has arrived."""
        if self._pins:
            batch = map_leaves(_pinned, batch, is_leaf=_is_pinnable)
        if self._move is not None:
            return self._move(batch)
        with torch.cuda.stream(self._stream):
            return to_device(batch, self._device)

    def hand_over(self, batch: Any) -> None:
        """Let the kernels that follow wait for the batch."""
        self.wait()
        if self._stream is None:
            return
        kernels = torch.cuda.current_stream(self._device)
        for _, leaf in leaves_with_paths(batch):
            if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                # Its memory belongs to the stream of the copies, and may not be given to the next
                # batch while kernels still read it.
                leaf.record_stream(kernels)

    def wait(self) -> None:
        """Let the kernels that follow wait for all that is on its way."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _is_pinnable(tree: object) -> bool:
    return isinstance(tree, Pinnable) and not isinstance(tree, type)


def _pinned(leaf: object) -> object:
    if not _is_pinnable(leaf):
        return leaf
    assert isinstance(leaf, Pinnable)
    if isinstance(leaf, torch.Tensor) and (
        leaf.device.type != "cpu" or leaf.layout != torch.strided
    ):
        return leaf
    return leaf if leaf.is_pinned() else leaf.pin_memory()
