"""The batch loop: one batch, whole or cut along time."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard, cast

import torch
from torch.nn.utils.rnn import PackedSequence

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.settings_checks import whole_number
from statemachine_trainer.loops.verbs import count_samples
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.loop import Loop, place
from statemachine_trainer.parallel.containers import Tree, leaves_with_paths, map_leaves


class SplitError(StateMachineError):
    """A batch cannot be cut along time."""


class BatchLoop(TrainingLoop):
    """One batch, optionally split along time. Each split goes to the optimizer loop.

    Truncated backpropagation through time: the `hiddens` that a step returns are detached and
    passed to the step of the next split. The model may split batches itself with a method
    `split_batch(batch, split_steps)`.

    Args:
        split_steps: Time steps in a split; None for whole batches.
        time_dim: The dimension of time in the tensors of a batch.
        carry_hiddens: Also pass the hiddens of a batch to the next one, until the epoch ends. For
            data in which each row of a batch continues the same row of the previous one (a long
            text cut into parallel streams): not shuffled, and all batches of one size.
        **loops: The loop for `optimizer`.

    Raises:
        SettingError: A setting of another type, or out of its range.
    """

    initial = "batch_start"
    transitions = (
        # event           source         destination
        ["batch_started", "batch_start", "batch_split"],
        ["split", "batch_split", "optimizer"],
        ["optimized", "optimizer", "batch_split"],
        ["batch_complete", "batch_split", "batch_end"],
    )
    outcomes = ("batch_done", "flushed")
    entries = {"flush": "optimizer"}

    optimizer: Loop = place(OptimizerLoop)

    def __init__(
        self,
        *,
        split_steps: int | None = None,
        time_dim: int = 1,
        carry_hiddens: bool = False,
        **loops: Any,
    ) -> None:
        super().__init__(**loops)
        if split_steps is not None:
            split_steps = whole_number(self, "split_steps", split_steps, 1, " Or None, for no cut.")
        if not isinstance(carry_hiddens, bool):
            raise SettingError(f"BatchLoop(carry_hiddens={carry_hiddens!r}): use True or False.")
        self.split_steps = split_steps
        self.time_dim = whole_number(self, "time_dim", time_dim)
        self.carry_hiddens = carry_hiddens

    @property
    def splits_batches(self) -> bool:
        return self.split_steps is not None

    def batch_start(self) -> Literal["batch_started"]:
        """Split the batch along time, if asked for."""
        context = self.context
        context.split_idx = -1
        if context.kept_hiddens and (not self.carry_hiddens or context.counts.batch_in_epoch == 0):
            context.kept_hiddens.clear()
        if self.split_steps is None:
            context.splits = [context.batch]
        else:
            own = context.steps.split(context.batch, self.split_steps)
            context.splits = (
                own
                if own is not None
                else split_batch(context.batch, self.split_steps, self.time_dim)
            )
        return "batch_started"

    def batch_split(self) -> Literal["split", "batch_complete"]:
        """Take the next split; when none is left, the batch is done and is counted."""
        context = self.context
        index = context.split_idx + 1
        if index < len(context.splits) and not context.finished:
            context.split_idx = index
            context.split = context.splits[index]
            return "split"
        counts = context.counts
        counts.batch += 1
        counts.batch_in_epoch += 1
        if context.sample_size is not None:
            count_samples(context)
        return "batch_complete"

    def batch_end(self) -> Literal["batch_done"]:
        """Drop the batch. Only carried hiddens are kept."""
        context = self.context
        context.batch = context.split = context.output = context.loss = None
        if context.kept_hiddens and not self.carry_hiddens:
            context.kept_hiddens.clear()
        context.splits = []
        return "batch_done"


# -- Cutting a batch along time -------------------------------------------------------------------

# Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent
# network trajectories", Neural Computation 2(4), 1990.


_WAY_OUT = (
    "Write a method `split_batch(self, batch, split_steps)` on the model that returns the list of "
    "splits (Lightning's name for it, `tbptt_split_batch`, is taken too)."
)


def split_batch(batch: Tree, split_steps: int, time_dim: int = 1) -> list[Tree]:
    """Split a batch into pieces of `split_steps` time steps, in order.

    Every tensor with a dimension `time_dim` is split along it; the pieces are views. Everything
    else goes to every piece whole: tensors with fewer dimensions (one label per sequence, lengths)
    and values that are not tensors. Containers are split part by part.

    A list is taken as a container of fields, as torch's default collate function makes it. A list
    with one sequence *per sample*, or with sequences that are not tensors, is not split.

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


def _has_time(leaf: object, time_dim: int) -> TypeGuard[torch.Tensor]:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > time_dim


def _is_packed(tree: object) -> bool:
    return isinstance(tree, PackedSequence)


def _length(batch: object, time_dim: int) -> int:
    """Return the number of time steps, which must be the same in every tensor with time."""
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
