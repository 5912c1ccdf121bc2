"""Models written for another library, with the hooks of that library."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

from torch import nn

from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.plain import NOTHING_GIVEN, PlainParts
from statemachine_trainer.loops.steps import Steps
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.gradient_sync import GradientSync


class Guest(nn.Module):
    """A model of another library, wrapped by an integration.

    Unlike a plain module it may provide its own data, another optimizer loop and receivers of
    signals. Loops and trainer call the `Steps` of the model, never the guest itself.
    """

    @abstractmethod
    def arrive(self, context: Context, stage: str, *data: Any) -> tuple[Any, ...]:
        """Prepare for a fit or an evaluation. Called before all other methods.

        Args:
            context: The context of the run, with model, device and trainer, and not yet any data.
            stage: "fit", "validate", "test" or "predict".
            data: As given to the trainer: for "fit" those of training and validation, else one.

        Returns:
            The data to use instead.
        """

    def data_again(self, context: Context, *data: Any) -> tuple[Any, ...]:
        """Return the data to use instead of those given to a fit that goes on; None for those that it has."""
        return data

    @abstractmethod
    def optimizer_loop(self, loop: OptimizerLoop) -> Loop:
        """Return the loop that takes the place of an `OptimizerLoop`.

        Its `stands_in_for` tells the loop that comes back for the next model.
        """

    @property
    def keeps_modes(self) -> bool:
        """Whether parts of the model are to stay in training mode in the present evaluation."""
        return False

    @abstractmethod
    def receiver(self) -> object:
        """Return the object whose methods receive signals, and whose state belongs to the run's."""

    @abstractmethod
    def subscribe(self, trainer: Any) -> None:
        """Subscribe these methods, unless they are subscribed."""

    def goes_on_from(self, path: object) -> bool:
        """Continue from a checkpoint of the other library; return whether the path names one."""
        return False

    def expect(self, state: Any) -> None:
        """Called with the state of the context before it, and that of the receiver, are loaded."""

    @abstractmethod
    def failed(self, error: BaseException) -> None:
        """Called with an exception that ends the run."""


class _GuestSteps(Steps):
    """The steps of a guest."""

    foreign = True
    model: Guest

    def arrive(self, stage: str, *data: Any) -> tuple[Any, ...]:
        found = self.model.arrive(cast(Context, self.source), stage, *data)
        if self.sync.by:  # what averages the gradients, the guest may have brought with it
            super()._call_through(self.sync)
        return found

    def data_again(self, *data: Any) -> tuple[Any, ...]:
        return self.model.data_again(cast(Context, self.source), *data)

    def _call_through(self, sync: GradientSync) -> None:
        """Do nothing yet: the guest has to arrive first."""

    def _goes_backward_itself(self) -> str:
        # A guest that optimizes by hand brings what averages its gradients.
        return "" if self.by_hand else super()._goes_backward_itself()

    def optimizer_loop(self, loop: Loop) -> Loop:
        return self.model.optimizer_loop(cast(OptimizerLoop, loop))

    @property
    def keeps_modes(self) -> bool:
        return self.model.keeps_modes

    def receiver(self) -> object:
        return self.model.receiver()

    def subscribe(self, trainer: Any) -> bool:
        self.model.subscribe(trainer)
        return True

    def failed(self, error: BaseException) -> None:
        self.model.failed(error)

    def expect(self, state: Any) -> None:
        self.model.expect(state)


def goes_on_from(model: nn.Module | None, path: object) -> bool:
    """Let a guest continue from a checkpoint of its library; return whether it does."""
    return isinstance(model, Guest) and model.goes_on_from(path)


def steps_of(
    model: nn.Module,
    context: Context,
    parts: PlainParts = NOTHING_GIVEN,
    sync: GradientSync | None = None,
    whole: nn.Module | None = None,
) -> Steps:
    """Make the steps of a model; see `Steps`. This is the one place that tells guests from modules."""
    kind = _GuestSteps if isinstance(model, Guest) else Steps
    return kind(model, context, parts, sync, whole)
