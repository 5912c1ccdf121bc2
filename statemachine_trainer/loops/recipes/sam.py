"""The loop of sharpness-aware minimization.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from statemachine_trainer.loops.loop_errors import StepOutputError
from statemachine_trainer.loops.metrics.table import Metrics
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.settings_checks import flags, number
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.loops.stepping import NonFinite, SteppingLoop
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.fields import field
from statemachine_trainer.parallel import to_device
from statemachine_trainer.snapshot.rng import devices_in_use, restore_rng, rng_state


class SAMLoop(SteppingLoop):
    """Replaces `OptimizerLoop`: any optimizer then steps with sharpness-aware gradients.

    From the weights w the loop climbs to `w + rho * g / |g|`, where g is the gradient at w. It finds
    the gradient up there, descends to w again, and lets the optimizer step with that gradient.

    What the training step does besides is done as if there were but the first pass, at w: metrics
    logged in the second one are dropped, buffers (the statistics of batch normalisation) are put
    back, and what the step returned the first time is its output. The second pass draws the same
    random numbers as the first, so that it is the gradient of the same function, with the same
    units dropped out. (A metric object that the step updates by itself sees both passes.)

    With accumulation each batch of a window climbs by itself, which the paper calls m-sharpness.

    Args:
        rho: How far to climb, in the 2-norm of all parameters of an optimizer.
        same_noise: Whether the second pass draws the same random numbers. Looking after the
            generators takes a fifth of a millisecond a batch.
        accumulate: Backward passes per step, as are the next three, see `OptimizerLoop`.
        clip_norm: Largest 2-norm of the gradients that an optimizer steps with.
        clip_value: Largest absolute value of such a gradient.
        nonfinite_loss: What to do with a NaN or infinite loss, of either pass.

    Raises:
        SettingError: A setting out of its range; an optimizer that evaluates the loss itself.
    """

    initial = "forward"
    transitions = (
        # event              source            destination
        ["forward_done", "forward", "climb"],
        ["next_optimizer", "forward", "forward"],
        ["climbed", "climb", "forward_above"],
        ["forward_done", "forward_above", "backward"],
        ["left_out", "forward_above", "descend"],
        ["backward_done", "backward", "descend"],
        ["descended", "descend", "optimizer_step"],
        ["next_optimizer", "descend", "forward"],
        ["next_optimizer", "optimizer_step", "forward"],
        ["next_window", "optimizer_step", "optimizer_step"],
    )
    outcomes = ("optimized", "flushed")
    entries = {"flush": "optimizer_step"}

    weights: list[Tensor] = field(factory=list)
    """The parameters at w, while the model has other weights."""

    buffers: list[Tensor] = field(factory=list)
    """The buffers of the model after the first pass."""

    noise: Any = None
    """Where the generators of random numbers stood before the first pass."""

    hiddens: Any = None
    """What the split before handed on."""

    propagated: bool = False
    """Whether there are gradients of the second pass."""

    def __init__(
        self,
        *,
        rho: float = 0.05,
        same_noise: bool = True,
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
    ) -> None:
        super().__init__(
            accumulate=accumulate,
            clip_norm=clip_norm,
            clip_value=clip_value,
            nonfinite_loss=nonfinite_loss,
        )
        self.rho = number(self, "rho", rho, hint=" The paper's is 0.05.")
        flags(self, same_noise=same_noise)
        self.same_noise = same_noise

    def why_whole(self) -> str | None:
        return "climbs along gradients that no rank has as a whole. Use OptimizerLoop."

    # -- states ----------------------------------------------------------------------------------

    def forward(self) -> Literal["forward_done", "next_optimizer", "optimized"]:
        """Call the training step at w. A step that returns None leaves this optimizer out."""
        context = self.context
        slot = self._take_turn()
        self._refuse_closure(slot)
        self.hiddens = context.hiddens
        self.noise = rng_state(devices_in_use()) if self.same_noise else None
        with slot.others_frozen():
            usable = self._call_step()
        if self.nonfinite_loss != "skip":  # with which they have just agreed on it
            usable = self._all_can(usable)
        if not usable:
            return self._turn_done()
        if context.outputs is not None:
            gather(context)
        return "forward_done"

    @transient
    def climb(self) -> Literal["climbed"]:
        """Climb along the gradient."""
        slot, loss = self._slot, self.context.loss
        assert loss is not None
        scaler = self.context.precision.scaler
        if scaler is not None:  # so that gradients do not vanish; their length is divided out
            loss = scaler.scale(loss)
        self.weights = [one.detach().clone() for one in slot.parameters]
        self.buffers = [one.detach().clone() for one in self.context.model.buffers()]
        own = [one for one in slot.parameters if one.requires_grad]
        with slot.others_frozen():
            grads = torch.autograd.grad(loss, own, allow_unused=True)
        found = [(one, grad) for one, grad in zip(own, grads, strict=True) if grad is not None]
        if found:
            _climb(found, self.rho)
        return "climbed"

    def forward_above(self) -> Literal["forward_done", "left_out"]:
        """Call the training step up there; only its loss is of interest."""
        context = self.context
        output, handed_on, table = context.output, context.hiddens, context.log_table
        if self.noise is not None:
            restore_rng(self.noise)
        context.keep_hiddens(to_device(self.hiddens, context.device))
        context.log_table = Metrics(context.model)
        try:
            with self._slot.others_frozen():
                usable = self._call_step()
        finally:
            context.output, context.log_table = output, table
            context.keep_hiddens(handed_on)
        if context.loss is None:
            raise StepOutputError(
                f"The training step returned a loss for batch {context.batch_idx + 1}, and None when it "
                "was called for it once more. SAMLoop needs the loss twice: leave a batch out both "
                "times."
            )
        return "forward_done" if usable else "left_out"

    @transient
    def backward(self) -> Literal["backward_done"]:
        """Clear the gradients at the beginning of a window, and propagate the loss backward."""
        slot = self._slot
        self._propagate(slot)
        slot.window += 1
        self.propagated = True
        return "backward_done"

    def descend(self) -> Literal["descended", "next_optimizer", "optimized"]:
        """Go back to w, with the gradients of above."""
        slot = self._slot
        with torch.no_grad():
            for parameter, value in zip(slot.parameters, self.weights, strict=True):
                parameter.copy_(value)
            for buffer, value in zip(self.context.model.buffers(), self.buffers, strict=True):
                buffer.copy_(value)
        steps = self.propagated and self._is_full(slot)
        self.weights, self.buffers, self.noise, self.hiddens = [], [], None, None
        self.propagated = False
        return "descended" if steps else self._turn_done()

    def optimizer_step(self) -> Literal["next_optimizer", "optimized", "next_window", "flushed"]:
        """Clip, step, and step the schedulers that count steps."""
        if self.context.flushing:
            return self._flush()
        self._step(self._slot)
        return self._turn_done()

    # -- parts -----------------------------------------------------------------------------------

    def _leave_out(self) -> None:
        """Leave it to `forward`: there is no exchange of gradients in which a rank could take part without any."""

    @property
    def _slot(self) -> OptimizerSlot:
        return self.context.slots[self.context.optimizer_idx]


def _climb(found: list[tuple[torch.nn.Parameter, Tensor]], rho: float) -> None:
    """Move parameters along their gradients, all of them together by `rho`."""
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(grad) for _, grad in found])
    )
    scale = rho / (norm + 1e-12)  # at a stationary point there is no way up
    with torch.no_grad():
        for parameter, grad in found:
            parameter.add_(grad * scale)
