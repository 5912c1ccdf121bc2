"""Cutting a batch along time, for truncated backpropagation through time.

Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
trajectories", Neural Computation 2(4), 1990.
"""

from __future__ import annotations

from typing import TypeGuard, TypeVar, cast

import torch
from torch.nn.utils.rnn import PackedSequence

from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves

Tree = TypeVar("Tree")

_WAY_OUT = (
    "Write a method `split_batch(self, batch, split_steps)` on the model that returns the list of "
    "splits (Lightning's name for it, `tbptt_split_batch`, is taken too)."
)


class SplitError(StateMachineError):
    """A batch cannot be cut along time."""


def split_batch(batch: Tree, split_steps: int, time_dim: int = 1) -> list[Tree]:
    """The batch in pieces of `split_steps` time steps, in order.

    Every tensor with a dimension `time_dim` is cut along it; the pieces are views. What has no
    such dimension goes to every piece whole: tensors with fewer dimensions (one label per
    sequence, lengths) and all that is not a tensor. Containers are cut part by part.

    A list is a container of fields, as torch's default collate function makes them: of a list with
    one sequence *per sample*, and of sequences that are not tensors, nothing is known here.

    Args:
        batch: Nested containers with at least one tensor of more than `time_dim` dimensions, such
            as a tuple of inputs of shape (batch, time, features) and targets of shape (batch,
            time).
        split_steps: Time steps in one piece, at least 1; the last piece holds what remains.
        time_dim: The dimension of time, counted from 0: 1 for (batch, time, ...), 0 for (time,
            ...).

    Raises:
        SplitError: The tensors differ in length along time, none has time at all, or a number is
            out of range.

    >>> [tuple(piece.shape) for piece in split_batch(torch.zeros(2, 5), 2)]
    [(2, 2), (2, 2), (2, 1)]
    """
    if split_steps < 1 or time_dim < 0:
        raise SplitError(
            f"A batch was to be split with split_steps={split_steps} and time_dim={time_dim}: "
            "split_steps is at least 1, and time_dim is counted from the front, from 0."
        )
    length = _length(batch, time_dim)

    def piece(start: int) -> Tree:
        steps = min(split_steps, length - start)

        def cut(leaf: object) -> object:
            return leaf.narrow(time_dim, start, steps) if _has_time(leaf, time_dim) else leaf

        return cast(Tree, map_leaves(cut, batch))

    return [piece(start) for start in range(0, length, split_steps)]


def detach(tree: Tree) -> Tree:
    """The same containers with every tensor cut off from the autograd graph (memory is shared).

    Between two splits it is applied to the hidden state: values go on, gradients end here.
    """

    def cut_off(leaf: object) -> object:
        return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf

    return cast(Tree, map_leaves(cut_off, tree))


def _has_time(leaf: object, time_dim: int) -> TypeGuard[torch.Tensor]:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > time_dim


def _is_packed(tree: object) -> bool:
    return isinstance(tree, PackedSequence)


def _length(batch: object, time_dim: int) -> int:
    """The number of time steps, the same in every tensor that has time."""
    found: tuple[str, int] | None = None
    for path, leaf in leaves_with_paths(batch, "batch", is_leaf=_is_packed):
        if isinstance(leaf, PackedSequence):
            raise SplitError(
                f"{path} is a PackedSequence, which holds the time steps of all sequences mixed. "
                f"Hand over padded tensors and pack each split in the step. {_WAY_OUT}"
            )
        if not _has_time(leaf, time_dim):
            continue
        length = leaf.shape[time_dim]
        if found is None:
            found = (path, length)
        elif length != found[1]:
            raise SplitError(
                f"The batch cannot be split along dimension {time_dim}: {found[0]} has {found[1]} "
                f"time steps and {path} has {length}. {_WAY_OUT}"
            )
    if found is None or found[1] == 0:
        what = "No tensor in the batch has" if found is None else f"{found[0]} has no steps along"
        raise SplitError(
            f"There is nothing to split: {what} dimension {time_dim}, the one of time. Set "
            f"time_dim if time is another dimension. {_WAY_OUT}"
        )
    return found[1]
