"""One batch ahead: the next batch is read and on its way to the device while the step runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from statemachine_trainer.data.feed import Feed
from statemachine_trainer.data.reader import END
from statemachine_trainer.parallel import leaves_with_paths, map_leaves, to_device
from statemachine_trainer.parallel.device import back_on_accelerator, on_accelerator


@dataclass
class _Held:
    """A batch that was read and not handed out."""

    batch: Any
    moved: bool = False


class Prefetch(Feed):
    """A feed that reads one batch ahead of the one it hands out, and moves it to the device.

    Whenever a batch is handed out the next one is read and sent: to a CUDA device from pinned
    memory and on a stream of its own, so that the copy runs beside the kernels of the step. Nothing
    of this runs in a thread: what hides the reading itself are the workers of the loader.

    The position counts the batches handed out, as that of any feed. The batch ahead is part of the
    state: a run that goes on gets that very batch, with whatever random numbers went into it. An
    error of the data or of the move surfaces when its batch is asked for.

    Reading ahead moves the draws of a data set that draws from the global generators without
    workers: those of a batch come before those of the step before it. Such a run has other random
    numbers than one without prefetching, and the same on every device and after every resume. With
    a limit on the batches one more is read than is used. And since there always is a batch ahead,
    a run with checkpoints needs batches that a checkpoint can hold: tensors and plain data in
    containers, named tuples and dataclasses.

    Args:
        loader: As for `Feed`.
        device: Where to.
        move: Puts a batch there, in the order of the kernels; `to_device` on a stream of its own
            unless given.
        **settings: As for `Feed`.

    Example:
        >>> feed = Prefetch([10, 20, 30], device=torch.device("cpu"))
        >>> feed.begin(epoch=0)
        >>> feed.next_batch(), feed.position
        (10, 1)
        >>> [ahead["batch"] for ahead in feed.state_dict()["ahead"]]
        [20]
    """

    moves = True

    def __init__(
        self,
        loader: Any,
        *,
        device: torch.device,
        move: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        self._held: list[_Held] = []  # one at most, but for a Ctrl-C between two
        self._error: Exception | None = None
        self._device = device
        self._lane = Lane(device, move)
        super().__init__(loader, **settings)

    @property
    def position(self) -> int:
        """Batches handed out in this pass."""
        return self._read - len(self._held)

    @position.setter
    def position(self, value: int) -> None:
        # The feed beneath counts what it reads, and reads only while nothing is held.
        self._read = value

    def begin(self, epoch: int) -> None:
        self._forget()
        super().begin(epoch)

    def next_batch(self) -> Any:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._read_ahead()
        if not self._held:
            return END
        first = self._held.pop(0)
        try:
            self._read_ahead()
        except Exception as error:
            self._error = error
        except BaseException:  # Ctrl-C: this batch is not handed out
            self._held.insert(0, first)
            raise
        self._lane.hand_over(first.batch)
        return first.batch

    def close(self) -> None:
        self._forget()
        super().close()

    def state_dict(self) -> dict[str, Any]:
        held, self._held = self._held, []
        try:
            state = super().state_dict()
        finally:
            self._held = held
        self._lane.wait()
        ahead = [
            {"batch": one.batch, "moved": one.moved, "on_device": on_accelerator(one.batch)}
            for one in held
        ]
        return {**state, "ahead": ahead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ahead = state.get("ahead", [])
        super().load_state_dict({**state, "ahead": []})
        self._held = [
            _Held(back_on_accelerator(one["batch"], one["on_device"], self._device), one["moved"])
            for one in ahead
        ]

    def _read_ahead(self) -> None:
        """Hold a batch, and have it moved, unless the data have ended."""
        if not self._held:
            batch = super().next_batch()
            if batch is END:
                return
            self._held.append(_Held(batch))
        first = self._held[0]
        if not first.moved:
            first.batch = self._lane.send(first.batch)
            first.moved = True

    def _forget(self) -> None:
        self._held, self._error = [], None


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
