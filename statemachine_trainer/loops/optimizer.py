"""The optimizer loop: forward, backward and step, for one optimizer after the other.

And what it becomes with `on_oom="split"`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from statemachine_trainer.loops.bare_calls import clear_gradients, run_backward, take_step
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.loops.metrics.sizes import batch_size_of
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.samples import InPieces, cut, tell_of_sums
from statemachine_trainer.loops.settings_checks import function, one_of, whole_number
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.loops.stepping import NonFinite, SteppingLoop
from statemachine_trainer.loops.verbs import count_step
from statemachine_trainer.machine.declaration import transient

T = TypeVar("T")


class OptimizerLoop(SteppingLoop):
    """One split of a batch: forward, zero_grad, backward, clipping, step, schedulers.

    Several optimizers take turns. The parameters of the others are frozen during the forward and
    backward pass of one. With accumulation, an optimizer steps at every n-th backward pass. If a
    window is still open when the data of an epoch ends, the loop is entered once more by `flush`
    and steps with gradients scaled to the true size of the window. (If `max_steps` counts all
    optimizers and was reached, the window is dropped.) With fp16, a step that the scaler skips
    because a gradient overflowed does not count: counters and schedulers stay.

    Args:
        accumulate: Backward passes per step: a number, or `{from_epoch: number}`.
        clip_norm: Largest 2-norm of the gradients of an optimizer.
        clip_value: Largest absolute value of a gradient.
        nonfinite_loss: What to do with a NaN or infinite loss: "ignore" (no check, so no waiting
            for the device), "raise", or "skip" (no backward pass for it).
        on_oom: What to do when memory runs out: "raise", or "split": the same batch again in smaller
            pieces. With "split" this makes a `SplittingLoop`, which has more settings.

    Raises:
        SettingError: A setting out of its range.
    """

    initial = "forward"
    transitions = (
        # event              source            destination
        ["forward_done", "forward", "backward"],
        ["closure", "forward", "optimizer_step"],
        ["next_optimizer", "forward", "forward"],
        ["backward_done", "backward", "optimizer_step"],
        ["next_optimizer", "backward", "forward"],
        ["next_optimizer", "optimizer_step", "forward"],
        ["next_window", "optimizer_step", "optimizer_step"],
    )
    outcomes = ("optimized", "flushed")
    entries = {"flush": "optimizer_step"}

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        """Make the loop; a `SplittingLoop` with `on_oom="split"`."""
        splits = cls is OptimizerLoop and settings.get("on_oom") == "split"
        return super().__new__(SplittingLoop if splits else cls, *args, **settings)

    def __init__(
        self,
        *,
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
        on_oom: Literal["raise", "split"] = "raise",
    ) -> None:
        super().__init__(
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            nonfinite_loss=nonfinite_loss,
        )
        one_of(self, "on_oom", on_oom, ("raise", "split"))
        if on_oom == "split" and not isinstance(self, SplittingLoop):
            raise SettingError(
                f"{type(self).__name__} has steps of its own, and on_oom='split' is what SplittingLoop "
                "does in its steps. Derive from SplittingLoop, or leave on_oom at 'raise'."
            )
        self._on_oom = on_oom

    @property
    def on_oom(self) -> Literal["raise", "split"]:
        """What to do when memory runs out. It decides the class of the loop, so it cannot be set later."""
        return self._on_oom

    @on_oom.setter
    def on_oom(self, value: object) -> None:
        if value != self._on_oom:
            raise SettingError(
                f"on_oom of a {type(self).__name__} is {self._on_oom!r}, and is chosen when the loop is "
                f"made. Put another loop in its place: replace(optimizer=OptimizerLoop(on_oom={value!r}))."
            )

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        """Call the training step. A step that returns None leaves this optimizer out."""
        # The usual case is inlined here and in the two states below, because it runs in every batch.
        context = self.context
        slots, steps = context.slots, context.steps
        if len(slots) > 1:
            slot = self._take_turn()
        else:
            context.optimizer_idx = 0
            slot = slots[0]
        if slot.takes_closure:
            return "closure"
        if slot.others:
            with slot.others_frozen():
                usable = self._call_step()
        elif (
            context.precision.autocasts
            or steps.takes_hiddens
            or steps.apart
            or self.nonfinite_loss != "ignore"
        ):
            usable = self._call_step()
        else:
            step = steps.training  # read first: CPython would search the class for a method
            output = context.output = step(context.split, context.batch_idx)
            # Only attributes are read, without calls.
            if output.__class__ is Tensor and output.requires_grad and not output.ndim:
                context.loss = output
                usable = True
            else:
                usable = self._read_loss(output)
        if not usable:
            return self._turn_done()
        if context.outputs is not None:
            gather(context)
        return "forward_done"

    @transient
    def backward(self) -> Literal["backward_done", "next_optimizer", "optimized"]:
        """Clear the gradients at the beginning of a window, and run the backward pass."""
        context = self.context
        slot = context.slots[context.optimizer_idx]
        if (
            self._size == 1
            and not slot.window
            and context.precision.scaler is None
            and not slot.others
            and not context.steps.apart
        ):
            slot.size = 1
            clear_gradients(slot.optimizer)
            run_backward(context.loss)  # type: ignore[arg-type]
            slot.window = 1
            return "backward_done"
        self._propagate(slot)
        slot.window += 1
        return "backward_done" if self._is_full(slot) else self._turn_done()

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Clip, step, and step the schedulers that count steps."""
        context = self.context
        if context.flushing:
            return self._flush()
        slot = context.slots[context.optimizer_idx]
        if slot.takes_closure:
            self._step_with_closure(slot)
        elif (
            self.clip_norm is None
            and self.clip_value is None
            and context.precision.scaler is None
            and not slot.schedulers
        ):
            take_step(slot.optimizer)  # the usual case of `step_optimizer`
            context.count_step(context.optimizer_idx)
        else:
            self._step(slot)
        return self._turn_done() if len(context.slots) > 1 else "optimized"

    # -- stepping --------------------------------------------------------------------------------

    def window_size(self) -> int | None:
        # A subclass may look at gradients after each backward pass.
        return self._size or self._size_by_epoch() if type(self) is OptimizerLoop else None

    def _step_with_closure(self, slot: OptimizerSlot) -> None:
        """Let the optimizer evaluate the loss itself, as often as it likes (LBFGS)."""
        context = self.context
        self._check_closure(slot)
        kind = type(slot.optimizer).__name__
        hiddens = context.hiddens
        evaluated = False

        def closure() -> torch.Tensor:
            nonlocal evaluated
            context.keep_hiddens(hiddens)
            if not self._evaluated(first=not evaluated) and not evaluated:
                raise _LeftOut
            loss = context.loss
            if loss is None:
                raise StepOutputError(
                    f"The training step returned None when {kind} evaluated it again. It may leave "
                    "a batch out the first time only."
                )
            evaluated = True
            clear_gradients(slot.optimizer)
            run_backward(loss)
            self._clip(slot)
            return context.steps.sync.mean(loss)

        try:
            with slot.others_frozen():
                slot.optimizer.step(closure)  # type: ignore[arg-type]
        except _LeftOut:
            return
        if context.outputs is not None:
            gather(context)
        count_step(context, context.optimizer_idx)


class SplittingLoop(InPieces, OptimizerLoop):
    """An optimizer loop that cuts a batch that does not fit into memory: `OptimizerLoop(on_oom="split")`.

    When memory runs out in the forward or backward pass, what is left of the batch is tried again in
    pieces of half as many samples. Each piece has a forward and a backward pass of its own, and the
    optimizer steps once. The gradients are those of the whole batch, up to rounding: the loss of a
    piece counts by its share of the batch. The number of samples that fits is remembered, in
    checkpoints too, and twice as many are tried every so many steps.

    What sees several samples at once sees those of a piece only: batch normalization, losses that
    compare samples. Dropout draws other numbers than for the whole batch. `context.output` is that of
    the last piece, `context.loss` that of the batch.

    Several ranks do as many pieces each, and each piece at all ranks fits, or goes in smaller ones at
    all. They agree on it after each forward and each backward pass. Gradients add up at each rank
    meanwhile, and are averaged in one exchange after the last piece of an accumulation window: no
    rank that runs out of memory leaves others waiting in the middle of a backward pass.

    Args:
        try_larger: Steps after which twice as many samples are tried.
        weight: What the mean in a loss counts, as a function of a batch or of a piece of it: the
            number of tokens that are not padding, say. None for the number of samples.
        on_oom: Always "split".
        **settings: As `OptimizerLoop`. `nonfinite_loss="skip"` would have to take back the pieces
            before, and is refused.

    Raises:
        SettingError: A setting out of its range; or, when it runs, a step that takes hiddens, an
            optimizer that evaluates the loss itself, or a batch whose samples are not first in its
            tensors.
    """

    transitions = (  # type: ignore[assignment]
        *OptimizerLoop.transitions,
        ["next_piece", "backward", "forward"],
        ["smaller", "smaller_pieces", "forward"],
    )
    errors = (
        [torch.OutOfMemoryError, ["forward", "backward"], "smaller_pieces", "can_be_smaller"],
    )
    _saved_as = "OptimizerLoop"
    """Checkpoints fit either of the two: memory may run out before somebody thinks of this loop."""

    def __init__(
        self,
        *,
        try_larger: int = 100,
        weight: Callable[[Any], float] | None = None,
        on_oom: Literal["split"] = "split",
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
    ) -> None:
        super().__init__(
            on_oom=on_oom,
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            nonfinite_loss=nonfinite_loss,
        )
        one_of(self, "on_oom", on_oom, ("split",))
        self.try_larger = whole_number(self, "try_larger", try_larger, 1)
        if weight is not None:
            function(self, "weight", weight, "of a batch that returns a number")
        self.weight = weight
        if nonfinite_loss == "skip":
            raise SettingError(
                f"{type(self).__name__}(nonfinite_loss='skip'): the pieces of a batch before the one "
                "with such a loss are in the gradients already. Use 'raise' or 'ignore'."
            )

    _last = True
    """Whether the piece at work is the last one of the split, at all ranks. Set before its forward pass."""

    def why_alone(self, context: Context) -> str | None:
        steps = context.steps
        who = f"{type(self).__name__} (on_oom='split') adds up gradients at each rank"
        steps.sync.check_aside(who, "leave on_oom at 'raise'")
        if steps.foreign:
            what = "the model is one of another library. Give a module of torch"
        elif steps.sync.waits_inside:
            what = "networks inside of the model are in DistributedDataParallel. Wrap the model as a whole"
        elif any(isinstance(one, nn.SyncBatchNorm) for one in steps.model.modules()):
            what = (
                "the model has a SyncBatchNorm, which exchanges in a forward pass. Use another one"
            )
        else:
            return None
        return (
            "would leave other ranks waiting for one whose memory has run out within its forward or "
            f"backward pass: {what}, or leave on_oom at 'raise' and make the batches smaller."
        )

    def why_whole(self) -> str | None:
        return (
            "would leave other ranks waiting for one whose memory has run out: parts of parameters are "
            "exchanged within a forward pass. Leave on_oom at 'raise' and make the batches smaller."
        )

    def window_size(self) -> int | None:
        return self._size or self._size_by_epoch() if type(self) is SplittingLoop else None

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        """Call the training step on the batch, or on the next piece of it.

        A step that returns None for the first piece leaves the whole batch out.
        """
        self._can_be_smaller = self._tells = False
        self._refuse_what_is_not_cut()
        context = self.context
        sync, (start, stop, samples) = context.steps.sync, self._piece()
        # A rank whose batch has fewer pieces goes along until the others have done theirs.
        self._last = context.piece_size is None or sync.objector(stop >= samples) is None
        if not start and not self._slot_at_work().window:
            sync.share_buffers()  # when the wrapper of the model would
        gathered = len(context.outputs or ())
        answer = self._unless_short(lambda: self._forward_piece(start, stop, samples))
        if not self._all_can(answer == "forward_done") and answer == "forward_done":
            if context.outputs is not None:
                del context.outputs[gathered:]  # as at the rank that has no loss
            answer = self._turn_done()
        if answer != "forward_done" and start:
            raise StepOutputError(
                f"The training step returned None for samples {start} to {stop} of a batch, and a loss "
                "for those before. It leaves out a batch as a whole, or none of it."
            )
        return answer

    @transient
    def backward(  # type: ignore[override]
        self,
    ) -> Literal["backward_done", "next_optimizer", "optimized", "next_piece"]:
        """Run the backward pass of the batch, or of a piece of it by its share of the batch."""
        self._can_be_smaller = self._tells = False
        context = self.context
        sync, slot = context.steps.sync, context.slots[context.optimizer_idx]
        start, stop, samples = self._piece()
        averages = self._last and sync.averages()
        if self._last and stop - start == samples:
            answer = self._unless_short(super().backward)
            if averages:
                self._average(slot)
            return answer
        self._unless_short(lambda: self._backward_piece(slot, start, stop, samples))
        if not self._last:
            context.piece_start = stop
            return "next_piece"
        context.loss, context.piece_start, context.pieces_loss = context.pieces_loss, 0, None
        if averages:
            self._average(slot)
        slot.window += 1
        return "backward_done" if self._is_full(slot) else self._turn_done()

    def smaller_pieces(self) -> Literal["smaller"]:
        """Note that so many samples do not fit: what is left of the batch goes in pieces of half as many."""
        context = self.context
        if context.piece_size is None:
            tell_of_sums(context.model)
        start, stop, _ = self._piece()
        (largest,) = context.steps.sync.largest([stop - start])
        context.piece_size = (int(largest) + 1) // 2
        context.piece_since = context.counts.step
        gc.collect()  # frames in a cycle would keep their tensors
        if context.device.type == "cuda":
            torch.cuda.empty_cache()  # what is cached in pieces of other sizes
        return "smaller"

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Clip and step as `OptimizerLoop` does; now and then let the next batch try larger pieces."""
        context = self.context
        samples = batch_size_of(context.split) or 0
        answer = super().optimizer_step()
        size = context.piece_size
        if size is not None and context.counts.step - context.piece_since >= self.try_larger:
            (largest,) = context.steps.sync.largest([samples])
            context.piece_size = None if 2 * size >= largest else 2 * size
            context.piece_since = context.counts.step
        return answer

    # -- pieces ----------------------------------------------------------------------------------

    def _forward_piece(
        self, start: int, stop: int, samples: int
    ) -> Literal["forward_done", "closure", "next_optimizer", "optimized"]:
        if start == stop:
            return "forward_done"  # other ranks have more pieces
        context = self.context
        whole = context.split
        if stop - start < samples:
            context.split = cut(whole, start, stop)
        try:
            with context.steps.sync.aside():
                return super().forward()
        finally:
            context.split = whole

    def _backward_piece(self, slot: OptimizerSlot, start: int, stop: int, samples: int) -> None:
        if start == stop:
            return
        context = self.context
        assert context.loss is not None
        loss = context.loss * self._share(start, stop, samples)
        before = context.pieces_loss
        so_far = loss.detach() if before is None else before + loss.detach()
        size = slot.size if start else self._window_size(slot)
        if not start and not slot.window:
            slot.size = size
            clear_gradients(slot.optimizer)
        scaler = context.precision.scaler
        loss = loss / size if scaler is None else scaler.scale(loss / size)
        with slot.others_frozen():
            run_backward(loss)
        context.pieces_loss = so_far

    def _share(self, start: int, stop: int, samples: int) -> float:
        """Return how much the loss of a piece counts in that of the split."""
        if self.weight is None or stop - start == samples:
            return (stop - start) / samples
        split = self.context.split
        part, whole = float(self.weight(cut(split, start, stop))), float(self.weight(split))
        if not 0 <= part <= whole < math.inf:
            raise SettingError(
                f"{type(self).__name__}(weight=...) gave {part} for a piece of a batch and {whole} for "
                "the batch. A weight counts something, such as tokens."
            )
        return part / whole if whole else (stop - start) / samples


class _LeftOut(Exception):
    """The training step left the batch out, within a closure."""
