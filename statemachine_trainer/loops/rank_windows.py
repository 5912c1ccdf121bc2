"""Accumulation with several ranks: gradients are averaged once a window, not at each backward pass."""

from __future__ import annotations

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.stepping import SteppingLoop
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.program import Program
from statemachine_trainer.parallel.wrapped import Wrapped


class Windows:
    """Tells which backward passes close a window, and averages what one holds that is left open.

    It does so where `OptimizerLoop` alone steps the optimizers: other loops may use gradients after
    each backward pass, which are averaged each time then.

    Args:
        driver: The driver of the fit.
        context: The context of the fit.
        wrapped: Its model.
    """

    def __init__(self, driver: Driver, context: Context, wrapped: Wrapped) -> None:
        self._driver = driver
        self._context = context
        self._wrapped = wrapped
        self._program: Program | None = None
        self._found: OptimizerLoop | None = None

    def closes(self) -> bool:
        """Whether the next backward pass is the last of its window."""
        loop = self._loop()
        if loop is None:
            return True
        slot = self._context.slots[self._context.optimizer_idx]
        return slot.window + 1 >= (loop._size or loop._size_by_epoch())

    def average_open(self) -> None:
        """Average the gradients of windows that the end of the data has left open. A collective."""
        if self._loop() is not None:
            for slot in self._context.slots:
                if slot.window:
                    self._wrapped.average_gradients(slot.parameters)

    def _loop(self) -> OptimizerLoop | None:
        """The loop that steps the optimizers; None if there are others."""
        driver = self._driver
        if self._program is not driver.program:  # the first time, or loops were replaced
            loops = [loop for _, loop in driver.root.walk() if isinstance(loop, SteppingLoop)]
            plain = [loop for loop in loops if isinstance(loop, OptimizerLoop)]
            alone = [type(loop) for loop in loops] == [OptimizerLoop]
            self._program, self._found = driver.program, plain[0] if alone else None
        return self._found
