"""Models written for another library, which bring that library's hooks and ways with them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from statemachine_trainer.loops.context import Context
    from statemachine_trainer.loops.optimizer import OptimizerLoop
    from statemachine_trainer.machine.loop import Loop


class Guest(nn.Module):
    """A model that an integration has made of one of another library.

    The trainer asks it for what a plain module has no say in: its own data, another optimizer loop,
    receivers of signals.
    """

    @abstractmethod
    def arrive(self, context: Context, stage: str, *data: Any) -> tuple[Any, ...]:
        """Get ready for a fit or an evaluation, before anything else is asked of the model.

        Args:
            context: The context of the run, with model, device and trainer, and not yet any data.
            stage: "fit", "validate", "test" or "predict".
            data: As given to the trainer: for "fit" those of training and validation, else one.

        Returns:
            The data to use in their place.
        """

    @abstractmethod
    def optimizer_loop(self, loop: OptimizerLoop) -> Loop:
        """Return the loop that takes the place of an `OptimizerLoop`.

        It has an attribute `instead_of`, the loop that comes back for the next model.
        """

    @abstractmethod
    def receiver(self) -> object:
        """Return the object whose methods receive signals, and whose state belongs to the run's."""

    @abstractmethod
    def subscribe(self, trainer: Any) -> None:
        """Subscribe those methods, unless they are."""

    @abstractmethod
    def failed(self, error: BaseException) -> None:
        """Hear of an exception that ends the run."""
