"""The closure loop: for optimizers that evaluate the loss themselves, one round of states each time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from statemachine_trainer.loops.bare_calls import clear_gradients, run_backward
from statemachine_trainer.loops.loop_errors import SettingError, StepOutputError
from statemachine_trainer.loops.outputs import gather
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.loops.stepping import NonFinite, SteppingLoop
from statemachine_trainer.loops.verbs import count_step
from statemachine_trainer.machine.declaration import transient
from statemachine_trainer.machine.fields import field
from statemachine_trainer.parallel import to_device


class ClosureLoop(SteppingLoop):
    """Replaces `OptimizerLoop` for optimizers that call their closure several times.

    `OptimizerLoop` lets them do so within one state, which is the fast way. Here every evaluation of
    the loss is a round of states of its own, which can be watched, stopped at and resumed from:

        closure -> forward -> backward -> closure -> forward -> ... -> closure -> optimizer_step

    The weights are the same, to the bit. In `closure` the optimizer runs until it needs the loss at
    a point that was not evaluated yet. It cannot be suspended there. So its step is undone, and
    repeated from the beginning, with all known losses, once the new one is there. The loss is never
    evaluated twice, but the optimizer's own arithmetic is (a step with n evaluations runs n + 1
    times), and the gradients of all evaluations of a step are kept until it is done. The optimizer
    must therefore be deterministic and keep its memory in its `state`, as those of torch do. It may
    be any optimizer, and one of several.

    Random numbers are drawn, and buffers updated, at each evaluation, as in a plain loop.

    Args:
        accumulate: 1, as there is no accumulation here; what another loop had set is not dropped
            in silence.
        clip_norm: Largest 2-norm of the gradients of an optimizer, at each evaluation.
        clip_value: Largest absolute value of a gradient, at each evaluation.
        nonfinite_loss: See `OptimizerLoop`; a batch is left out at its first evaluation only.

    Raises:
        SettingError: A setting out of its range; accumulation; fp16, which scales the loss.
    """

    initial = "closure"
    transitions = (
        # event              source            destination
        ["evaluate", "closure", "forward"],
        ["forward_done", "forward", "backward"],
        ["evaluated", "backward", "closure"],
        ["next_optimizer", "forward", "closure"],
        ["settled", "closure", "optimizer_step"],
        ["next_optimizer", "optimizer_step", "closure"],
    )
    outcomes = ("optimized",)

    origin: list[Tensor] = field(factory=list)
    """The parameters where the step began; empty between two steps."""

    answers: list[tuple[Tensor, list[Tensor | None]]] = field(factory=list)
    """Loss and gradients of each evaluation in this step."""

    hiddens: Any = None
    """What the split before handed on: the same for every evaluation."""

    def __init__(
        self,
        *,
        accumulate: int | Mapping[int, int] = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite_loss: NonFinite = "ignore",
    ) -> None:
        if accumulate != 1 or accumulate is True:
            raise SettingError(
                f"{type(self).__name__}(accumulate={accumulate!r}): it does not accumulate, since "
                "the optimizer asks for the loss of one batch again and again. Use larger batches "
                "and accumulate=1, or leave the OptimizerLoop in this place."
            )
        super().__init__(clip_norm=clip_norm, clip_value=clip_value, nonfinite_loss=nonfinite_loss)

    def why_whole(self) -> str | None:
        return "lets the optimizer compute with whole parameters. Use OptimizerLoop."

    # -- states ----------------------------------------------------------------------------------

    def closure(self) -> Literal["evaluate", "settled"]:
        """Run the optimizer until it needs a new loss, or has made its step."""
        slot = self._take_turn()
        if self.origin:
            self._go_back(slot)
        else:
            self._check_closure(slot)
            self.origin = [one.detach().clone() for one in slot.parameters]
            self.hiddens = self.context.hiddens
        if not _repeat(slot.optimizer, self.answers):
            return "evaluate"
        self._forget()
        return "settled"

    def forward(self) -> Literal["forward_done", "next_optimizer", "optimized"]:
        """Call the training step at the point that the optimizer asks about."""
        context = self.context
        slot = context.slots[context.optimizer_idx]
        context.keep_hiddens(to_device(self.hiddens, context.device))
        with slot.others_frozen():
            usable = self._evaluated(first=not self.answers)
        if not usable and not self.answers:
            self._go_back(slot)
            self._forget()
            return self._turn_done()
        if context.loss is None:
            raise StepOutputError(
                f"The training step returned None when {type(slot.optimizer).__name__} evaluated it "
                "again. It may leave a batch out the first time only."
            )
        return "forward_done"

    @transient
    def backward(self) -> Literal["evaluated"]:
        """Compute the gradients there, and keep them for the optimizer."""
        context = self.context
        slot, loss = context.slots[context.optimizer_idx], context.loss
        assert loss is not None
        clear_gradients(slot.optimizer)
        with slot.others_frozen():
            run_backward(loss)
        self._clip(slot)
        grads = [None if one.grad is None else one.grad.clone() for one in slot.parameters]
        self.answers.append((context.steps.sync.mean(loss.detach()), grads))
        return "evaluated"

    def optimizer_step(self) -> Literal["next_optimizer", "optimized"]:
        """Count the step, and step the schedulers that count steps."""
        context = self.context
        if context.outputs is not None:
            gather(context)
        count_step(context, context.optimizer_idx)
        return self._turn_done()

    # -- parts -----------------------------------------------------------------------------------

    def _go_back(self, slot: OptimizerSlot) -> None:
        with torch.no_grad():
            for parameter, value in zip(slot.parameters, self.origin, strict=True):
                parameter.copy_(value)

    def _forget(self) -> None:
        self.origin, self.answers, self.hiddens = [], [], None


class _Asked(BaseException):
    """The optimizer needs an evaluation that was not made yet."""


def _repeat(optimizer: Optimizer, answers: list[tuple[Tensor, list[Tensor | None]]]) -> bool:
    """Run a step of an optimizer on answers that are there; tell whether they were enough.

    If not, the optimizer's state is what it was, and the parameters are where it asks for the loss.
    """
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    left = iter(answers)

    def closure() -> Tensor:
        answer = next(left, None)
        if answer is None:
            raise _Asked
        loss, grads = answer
        for parameter, grad in zip(parameters, grads, strict=True):
            # A copy: optimizers may write into gradients.
            parameter.grad = None if grad is None else grad.to(parameter.device, copy=True)
        return loss.to(parameters[0].device, copy=True)

    before = optimizer.state
    optimizer.state = _copy(before)
    try:
        optimizer.step(closure)  # type: ignore[arg-type]
    except BaseException as error:
        optimizer.state = before
        if isinstance(error, _Asked):
            return False
        raise
    return True


def _copy(state: defaultdict[Tensor, Any]) -> defaultdict[Tensor, Any]:
    """Copy the state of an optimizer. Its keys are the parameters themselves."""
    return defaultdict(dict, {parameter: deepcopy(kept) for parameter, kept in state.items()})
