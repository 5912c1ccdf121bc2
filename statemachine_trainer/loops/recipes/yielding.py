"""The yielding loop: the training step is a generator that yields one loss for each optimizer."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from statemachine_trainer.loops.bare_calls import run_backward
from statemachine_trainer.loops.loop_errors import StepOutputError
from statemachine_trainer.loops.outputs import gather, read_output
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.loops.stepping import SteppingLoop
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.parallel.containers import detach


@dataclass(frozen=True, slots=True)
class Turn:
    """What a yielding step may yield in place of a loss, to say whose loss it is.

    `(loss, optimizer_idx)` and `{"loss": ..., "optimizer_idx": ...}` say the same.

    Attributes:
        loss: The loss, a tensor of one element; None to leave the optimizer out.
        optimizer_idx: The optimizer to step; None for the next one.
    """

    loss: torch.Tensor | None
    optimizer_idx: int | None = None


@dataclass(frozen=True, slots=True)
class TurnDone:
    """What a `yield` of a yielding step evaluates to, after the optimizer has had its turn.

    Attributes:
        optimizer_idx: Which optimizer it was.
        loss: The loss, without its graph; None if the optimizer was left out.
        stepped: Whether it has stepped: not in the middle of an accumulation window, nor where the
            loss was left out or the scaler of fp16 found an overflow.
        norm: The 2-norm of its gradients before they were clipped; None where it did not step or
            `clip_norm` is not set (`clip_norm=float("inf")` measures and never clips).
    """

    optimizer_idx: int
    loss: torch.Tensor | None
    stepped: bool = False
    norm: torch.Tensor | None = None


Step = Generator[Any, TurnDone, Any]


class YieldingLoop(SteppingLoop):
    """Replaces `OptimizerLoop` for a training step that yields its losses.

        def training_step(self, batch, batch_idx):
            fake = self.generator(noise)
            yield self.adversarial_loss(fake)                    # steps the first optimizer
            yield self.discriminator_loss(batch, fake.detach())  # steps the second one

    At each yield the loop clears the gradients, propagates the loss backward and steps an optimizer:
    the n-th at the n-th yield, or the one that is named (see `Turn`). (Where optimizers have
    frequencies, those whose batch it is not are left out.) Then the step goes on, with a
    `TurnDone` as the value of the `yield`. Gradients go to the parameters of that optimizer alone;
    nothing has to be frozen.

    `yield None` leaves an optimizer out; a step that ends without a yield leaves the batch out. A
    step that names every optimizer may yield as often as it likes. One that takes `hiddens` returns
    at its end those for the next split. Between the first yield and the end of the step nothing can
    be written down, for a suspended generator cannot: a run that is killed there does the batch
    again when it is resumed, from the gradients and random numbers with which it began.

    Accumulation, clipping, scaling, schedulers and limits are as in `OptimizerLoop`, as are the
    settings.
    """

    initial = "forward"
    transitions = (
        # event            source            destination
        ["forward_done", "forward", "backward"],
        ["left_out", "forward", "resume"],
        ["backward_done", "backward", "optimizer_step"],
        ["accumulated", "backward", "resume"],
        ["stepped", "optimizer_step", "resume"],
        ["next_window", "optimizer_step", "optimizer_step"],
        ["forward_done", "resume", "backward"],
        ["left_out", "resume", "resume"],
    )
    outcomes = ("optimized", "flushed")
    entries = {"flush": "optimizer_step"}

    named: bool = False
    """Whether the step has named an optimizer, so that it need not yield once for each."""

    # What is suspended between two states; it cannot be written down, and the states say so.
    _step_in_hand: Step | None = None
    _steps_before: int = 0
    _norm: torch.Tensor | None = None

    def why_whole(self) -> str | None:
        return (
            "looks for the optimizer of a loss among whole parameters. "
            "Return one loss, or optimize by hand."
        )

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "left_out", "optimized"]:
        """Begin the training step, which runs to its first yield."""
        context = self.context
        context.optimizer_idx = 0  # the hiddens of the step are kept under the first
        made = context.steps.training(context.split, context.batch_idx)
        if not isinstance(made, Generator):
            raise StepOutputError(
                f"YieldingLoop needs a training_step that yields its losses, and that of "
                f"{type(context.model).__name__} returned a {type(made).__name__}. Write `yield "
                "loss` in it, or put an OptimizerLoop into this place."
            )
        self.turn, self.named = 0, False
        self._step_in_hand = made
        return self._go_on(None)

    @transient
    def backward(self) -> Literal["backward_done", "accumulated"]:
        """Run the backward pass, to the parameters of the optimizer."""
        slot = self._slot
        loss = self._begin_backward(slot)
        with self.context.steps.sync.averaging():
            if slot.others:
                own = [one for one in slot.parameters if one.requires_grad]
                if own:  # torch takes an empty list for a mistake
                    loss.backward(inputs=own)
                self._check_gradients(slot)
            else:
                run_backward(loss)
        slot.window += 1
        return "backward_done" if self._is_full(slot) else "accumulated"

    @transient
    def optimizer_step(self) -> Literal["stepped", "next_window", "flushed"]:
        """Clip, step, and step the schedulers that count steps."""
        if self.context.flushing:
            return self._flush()
        self._step(self._slot)
        return "stepped"

    @transient
    def resume(self) -> Literal["forward_done", "left_out", "optimized"]:
        """Let the training step go on, to its next yield or to its end."""
        context = self.context
        if self._step_in_hand is None:
            raise StepOutputError(
                f"The training step of batch {context.batch_idx + 1} ended with an error, so it cannot go "
                "on from the middle. Resume from a checkpoint: `fit(..., resume=...)`."
            )
        if context.finished and context.limits.every_optimizer:
            self._step_in_hand.close()
            self._step_in_hand = None
            return "optimized"
        loss = context.loss
        done = TurnDone(
            context.optimizer_idx,
            None if loss is None else loss.detach(),
            self._slot.steps > self._steps_before,
            self._norm,
        )
        return self._go_on(done)

    # -- the generator ---------------------------------------------------------------------------

    def _go_on(self, done: TurnDone | None) -> Literal["forward_done", "left_out", "optimized"]:
        """Run the step to its next yield, and find the optimizer of that loss."""
        context, step = self.context, self._step_in_hand
        assert step is not None
        # It stays so if the step raises, or is wrong: it cannot do again what it did last.
        self._step_in_hand = None
        try:
            with context.precision.context():
                yielded = step.send(done)  # type: ignore[arg-type]
        except StopIteration as end:
            self._end(end.value)
            return "optimized"
        loss = self._read(yielded)
        if loss is not None:
            context.output = yielded if isinstance(yielded, Mapping) else loss
        if self.nonfinite_loss != "ignore" and not self._is_usable(loss):
            loss = None
        context.loss = loss
        self._step_in_hand = step
        if loss is None:
            return "left_out"
        if context.outputs is not None:
            gather(context)
        due = context.optimizer_idx in context.turns.at(context.counts.batch)
        return "forward_done" if due else "left_out"

    def _read(self, yielded: Any) -> torch.Tensor | None:
        """Find the loss in what was yielded; make its optimizer the one at work."""
        output, index = yielded, None
        if isinstance(yielded, tuple) and len(yielded) == 2:
            output, index = yielded
        elif isinstance(yielded, Mapping):
            index = yielded.get("optimizer_idx")
        elif isinstance(yielded, Turn):
            output, index = yielded.loss, yielded.optimizer_idx
        self.context.optimizer_idx = self._next_optimizer() if index is None else self._named(index)
        slot = self._slot
        self._refuse_closure(slot)
        self._steps_before, self._norm = slot.steps, None
        loss, _ = read_output(output, False, self.context.model, verb="yielded")
        return loss

    def _next_optimizer(self) -> int:
        count = len(self.context.slots)
        if self.turn == count:
            many = "is one optimizer" if count == 1 else f"are {count} optimizers"
            raise StepOutputError(
                f"The training step yielded more losses than there are optimizers: there {many}. "
                "Yield one loss for each, or say whose it is: `yield loss, 0`."
            )
        self.turn += 1
        return self.turn - 1

    def _named(self, index: Any) -> int:
        count = len(self.context.slots)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise StepOutputError(
                f"The training step yielded a loss for the optimizer {index!r}; the number of an "
                f"optimizer is a whole number from 0 to {count - 1}."
            )
        self.named = True
        return index

    def _end(self, returned: Any) -> None:
        """Check the output of the step at its end."""
        context = self.context
        if not self.named and 0 < self.turn < len(context.slots):
            raise StepOutputError(
                f"The training step yielded {self.turn} of {len(context.slots)} losses: optimizer "
                f"{self.turn} had no turn. Yield one loss for each optimizer, in their order; "
                "`yield None` leaves one out."
            )
        yielded = self.named or self.turn
        if context.steps.takes_hiddens:
            if returned is None and yielded:
                raise StepOutputError(
                    "The training step takes `hiddens` and returned none at its end. Write `return "
                    "hiddens` after the last yield."
                )
            if returned is not None:
                context.optimizer_idx = 0
                context.keep_hiddens(detach(returned))
        elif returned is not None:
            raise StepOutputError(
                f"The training step returned a {type(returned).__name__} at its end, which nobody "
                "reads. Yield losses: `yield loss`; only hiddens are returned."
            )

    # -- parts -----------------------------------------------------------------------------------

    @property
    def _slot(self) -> OptimizerSlot:
        return self.context.slots[self.context.optimizer_idx]

    def _check_gradients(self, slot: OptimizerSlot) -> None:
        """Refuse a loss that has nothing to do with the parameters of its optimizer."""
        if slot.window == 0 and all(one.grad is None for one in slot.parameters):
            raise StepOutputError(
                f"The loss that the training step yielded for optimizer {self.context.optimizer_idx} "
                f"({type(slot.optimizer).__name__}) does not depend on any of its parameters. Yield "
                "the losses in the order of the optimizers, or say whose it is: `yield loss, 1`."
            )

    def _clip(self, slot: OptimizerSlot) -> torch.Tensor | None:
        self._norm = super()._clip(slot)
        return self._norm
