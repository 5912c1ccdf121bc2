"""Manual optimization: the training step steps its own optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch.optim import Optimizer

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.outputs import gather, read_manual_output
from statemachine_trainer.loops.settings_checks import refuse
from statemachine_trainer.loops.slots import stepping_through
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.containers import detach


class ManualLoop(TrainingLoop):
    """Replaces `OptimizerLoop` for a training step that runs backward and steps its optimizers itself.

    The step gets its optimizers by naming a parameter `optimizers`, calls `trainer.backward(loss)`
    (or, unless precision is fp16, `loss.backward()`) and steps them. As in automatic optimization,
    the steps of the first optimizer are counted, or of all if the limits say so. A split in which
    `max_steps` is reached is the last one. The training step also steps its schedulers.

    With fp16, `step()` of an optimizer goes through the gradient scaler, which unscales the
    gradients and skips the step if one has overflowed.

    Args:
        instead_of: The loop that returns for a model that does not optimize by hand.
    """

    initial = "manual_step"
    outcomes = ("optimized",)

    def __init__(self, *, instead_of: Loop | None = None) -> None:
        super().__init__()
        if instead_of is not None and not isinstance(instead_of, Loop):
            refuse(self, "instead_of", instead_of, "give the loop that comes back later, or None.")
        self.instead_of = instead_of

    @property
    def by_hand(self) -> bool:
        return True

    def stands_in_for(self) -> Loop | None:
        return self.instead_of

    def manual_step(self) -> Literal["optimized"]:
        """Call the training step. Its loss is only for receivers to read."""
        context = self.context
        steps = context.steps
        with ExitStack() as stack:
            for index, slot in enumerate(context.slots):
                stack.enter_context(_counted(slot.optimizer, context.count_step, index))
            if context.precision.scaler is not None:
                scaler = context.precision.scaler
                stack.enter_context(stepping_through(scaler, context.optimizers))
            stack.enter_context(context.precision.context())
            stack.enter_context(steps.sync.averaging())
            output = steps.training(context.split, context.batch_idx)
        context.output = output
        context.loss, hiddens = read_manual_output(output, steps.takes_hiddens)
        if hiddens is not None:
            context.keep_hiddens(detach(hiddens))
        if context.outputs is not None:
            gather(context)
        return "optimized"


@contextmanager
def _counted(optimizer: Optimizer, count: Callable[[int], None], index: int) -> Iterator[None]:
    """Within the block, call `count(index)` after each step of the optimizer."""
    hook = optimizer.register_step_post_hook(lambda *_: count(index))
    try:
        yield
    finally:
        hook.remove()
