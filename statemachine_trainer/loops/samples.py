"""Cuts the samples of a batch into pieces, for a batch that does not fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.sizes import (
    are_records,
    batch_size_of,
    is_array,
    may_be_rows,
)
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.loops.stepping import SteppingLoop
from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves

T = TypeVar("T")

_log = logging.getLogger("statemachine_trainer.loops.optimizer")


def why_not_cut(batch: object) -> str | None:
    """Return why a batch cannot be cut into samples; None if it can.

    Every tensor and array of at least one dimension must have as many entries along its first
    dimension as the batch has samples. Texts and numbers may lie in lists of that length, and so may
    records of one sample each.
    """
    size = batch_size_of(batch)
    if size is None:
        return "nothing in it tells how many samples it holds"
    for path, leaf in leaves_with_paths(batch, "batch", is_leaf=_is_leaf):
        if may_be_rows(leaf):
            count = len(leaf)  # type: ignore[arg-type]
            return (
                f"{path} is a list of {count} arrays of one shape, which may be {count} samples, or {count} columns: "
                "put it into one array, or columns into a tuple"
            )
        shape = getattr(leaf, "shape", None)
        if isinstance(leaf, Tensor) and (leaf.is_sparse or leaf.is_nested):
            return f"{path} is a {'sparse' if leaf.is_sparse else 'nested'} tensor"
        if isinstance(leaf, Tensor) or is_array(leaf):
            if shape and shape[0] != size:
                return f"{path} has {shape[0]} entries, and the batch seems to hold {size} samples"
        elif isinstance(leaf, list | tuple):
            if len(leaf) != size:
                return f"{path} has {len(leaf)} entries, and the batch seems to hold {size} samples"
        elif leaf is not None and not isinstance(leaf, str | int | float | bool):
            return f"{path} is a {type(leaf).__name__}"
    return None


def cut(batch: Any, start: int, stop: int) -> Any:
    """Return some samples of a batch that can be cut. Tensors are views."""

    def piece(leaf: object) -> object:
        if isinstance(leaf, Tensor) or is_array(leaf):
            array: Any = leaf
            return array[start:stop] if array.shape else array
        return leaf[start:stop] if isinstance(leaf, list | tuple) else leaf

    return map_leaves(piece, batch, is_leaf=_is_listed)


def why_not_weighted(loss: object) -> str | None:
    """Return why a loss does not count by shares of a batch: it is a sum over samples, and says so; else None."""
    keywords = getattr(loss, "keywords", None)  # of a functools.partial
    found = keywords.get("reduction") if isinstance(keywords, dict) else None
    if "sum" not in (found, getattr(loss, "reduction", None)):
        return None
    name = getattr(getattr(loss, "func", None), "__name__", type(loss).__name__)
    return f"{name}(reduction='sum') is a sum over samples, and not a mean"


def tell_of_sums(model: nn.Module) -> None:
    """Log which losses in a model are sums over samples, so that its pieces may not count by their shares."""
    for path, part in model.named_modules():
        why = why_not_weighted(part)
        if why is not None:
            _log.warning(
                "on_oom='split' weights the loss of a piece by its share of the batch, as a mean over samples "
                "asks for. %s: %s. If the training step returns it undivided, its gradients are too small: "
                "divide it by the number of samples.",
                *(path, why),
            )


def what_was_tried(batch: object, number: int, start: int, samples: int) -> str:
    """Return why a batch could not be done in pieces that fit into memory.

    Args:
        batch: The batch.
        number: Its number in the epoch, from 1.
        start: The first sample that is not done.
        samples: The number of samples in the batch.
    """
    why = why_not_cut(batch)
    if why is not None:
        return (
            f"on_oom='split' cannot cut batch {number}: {why}. It takes batches whose "
            "samples are along the first dimension of every tensor."
        )
    sizes = [samples]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return (
        f"on_oom='split' has tried pieces of down to one sample: {', '.join(map(str, sizes))}. Sample "
        f"{start + 1} of batch {number} does not fit by itself."
    )


def _is_listed(tree: object) -> bool:
    """Return whether a list holds a text or a number for each sample, or a record with one."""
    if not isinstance(tree, list | tuple) or type(tree) not in (list, tuple) or not tree:
        return False
    known = [one for one in tree if one is not None]  # samples without a label may have None
    if known and all(isinstance(one, str | int | float | bool) for one in known):
        return True
    return len(tree) > 1 and are_records(tree, _is_listed)


def _is_leaf(tree: object) -> bool:
    return _is_listed(tree) or may_be_rows(tree)


# -- Running out of memory ------------------------------------------------------------------------


_NO_MEMORY: Final = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says in an error that has no class of its own. Each device has its own words."""

_WRAPPED: Final = 8
"""Errors that may be around the one that says so."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory has run out, that of the CPU or of a device: an error says so, or one that caused it."""
    for _ in range(_WRAPPED):
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = None if error is None else error.__cause__
    return False


def within_memory(work: Callable[[], T]) -> T:
    """Call a function, and raise the error of torch for it whatever is raised when memory runs out.

    Raises:
        torch.OutOfMemoryError: Memory has run out, also that of the CPU.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(str(error) or "out of memory") from error


# -- A loop that does a batch piece by piece ------------------------------------------------------


class InPieces(SteppingLoop):
    """Base of a loop that goes through the samples of a batch in pieces.

    It has no states. It tells which piece is next, and lets the ranks agree on whether memory suffices.
    """

    _can_be_smaller = False
    """Whether all ranks can go on in smaller pieces. Set before an error is raised that asks for it."""
    _tells = False
    """Whether this rank is one that cannot, so that its error says what was tried."""

    # -- memory ----------------------------------------------------------------------------------

    def _leave_out(self) -> None:
        """Leave it to `forward`, where all ranks agree on it."""

    def can_be_smaller(self) -> bool:
        """Guard of the edge for errors: each rank can do what is left of its batch in smaller pieces."""
        return self._can_be_smaller

    def undo_of(self, state: str) -> Callable[[Exception], None] | None:
        undo = super().undo_of(state)
        if undo is None or state != "forward":
            return undo

        def undo_and_tell(error: Exception) -> None:
            undo(error)
            if self._tells and isinstance(error, torch.OutOfMemoryError):
                context = self.context
                start, _, samples = self._piece()
                error.add_note(what_was_tried(context.split, context.batch_idx + 1, start, samples))

        return undo_and_tell

    def _unless_short(self, work: Callable[[], T]) -> T:
        """Let each rank do its work, and raise at all of them if memory runs out at one. A collective."""
        objector = self.context.steps.sync.objector
        answer: Any = None
        error: torch.OutOfMemoryError | None = None
        try:
            answer = within_memory(work)
        except torch.OutOfMemoryError as raised:
            error = raised
        rank = objector(error is None)
        if rank is None:
            return answer  # type: ignore[no-any-return]
        start, stop, _ = self._piece()
        # A rank whose own piece did fit need not be able to cut it.
        can = stop - start > 1 or error is None
        can = can and (stop - start < 2 or why_not_cut(self.context.split) is None)
        cannot = objector(can)
        self._can_be_smaller, self._tells = cannot is None, not can
        if error is None:
            number = self.context.batch_idx + 1
            error = torch.OutOfMemoryError(
                f"Rank {rank} has run out of memory for its piece of batch {number}."
            )
        if can and cannot is not None:
            error.add_note(
                f"Rank {cannot} cannot cut its batch further, so no rank goes on. Its own error says why."
            )
        try:
            raise error
        finally:
            del error  # a frame and its error in a cycle would keep tensors alive

    # -- pieces ----------------------------------------------------------------------------------

    def _average(self, slot: OptimizerSlot) -> None:
        """Average gradients over the ranks. A collective; a rank short of memory here ends the run."""
        self._can_be_smaller = False
        self.context.steps.sync.average(slot.parameters)

    def _slot_at_work(self) -> OptimizerSlot:
        slots = self.context.slots
        return self._take_turn() if len(slots) > 1 else slots[0]

    def _piece(self) -> tuple[int, int, int]:
        """Return first and last sample of the piece to do next, and the number of samples in the split.

        What is left is cut into pieces of about the same size. A batch that cannot be cut is done whole: the size of
        the pieces may be one that a batch of another form has left.
        """
        context = self.context
        samples, start = batch_size_of(context.split) or 1, context.piece_start
        left = samples - start
        most = context.piece_size or max(left, 1)
        pieces = -(-left // most) or 1
        if pieces > 1 and not start and why_not_cut(context.split) is not None:
            return 0, samples, samples
        return start, start + -(-left // pieces), samples

    def _refuse_what_is_not_cut(self) -> None:
        context = self.context
        around: Any = self._parent
        if context.steps.takes_hiddens:
            what = "passes hiddens on, whose samples this loop cannot find"
        elif any(slot.takes_closure for slot in context.slots):
            what = "has an optimizer that evaluates the loss itself"
        elif getattr(around, "split_steps", None) is not None and around.time_dim == 0:
            what = "has time, not samples, along the first dimension (time_dim=0)"
        elif (why := why_not_weighted(context.steps.given.loss)) is not None:
            what = f"has a loss whose pieces do not count by their share: {why}"
        else:
            return
        raise SettingError(
            f"on_oom='split' cuts batches into samples, and this training {what}. Leave on_oom at 'raise'."
        )
