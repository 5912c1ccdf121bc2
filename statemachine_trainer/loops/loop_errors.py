"""Mistakes in what is trained and how, one exception class for each kind."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError, UnknownSetting


class TrainingError(StateMachineError):
    """Base of the errors of training."""


class SettingError(TrainingError):
    """A setting of a loop or of the trainer that is invalid or unknown."""


class UnknownArgument(SettingError, UnknownSetting):
    """An argument that the trainer, or a method of it, does not have."""


class ModelError(TrainingError):
    """The model lacks a method that is needed, or has one that cannot be called."""


class OptimizerError(TrainingError):
    """What `configure_optimizers` returned cannot be used."""


class StepOutputError(TrainingError):
    """A step of the model returned something that is not understood."""


class NonFiniteLoss(TrainingError):
    """The loss is NaN or infinite and the optimizer loop was told to raise."""


class ChangedForGood(TrainingError):
    """A state raised after it had changed something that is not copied before each state."""


class NotRecovered(TrainingError):
    """Batches do harm more often than a `RecoverLoop` may go back."""


class MissingMetric(TrainingError):
    """A scheduler or callback monitors a name that was never logged."""


class LikelyMistake(UserWarning):
    """Base of the warnings of code that runs, but probably does not do what was meant."""


class NothingToDo(TrainingError):
    """A fit that would not do a single step."""


# -- Mistakes in what is logged -------------------------------------------------------------------


class MetricError(StateMachineError):
    """A mistake in what is logged, read or restored."""


class BadMetricValue(MetricError):
    """A value that is not one number, or a weight that is not one."""


class MetricConflict(MetricError):
    """One name logged in two ways within one pass."""


class UnsavableMetric(MetricError):
    """A metric object whose state cannot be written down."""


class LateMetric(MetricError):
    """A metric object that was used before its saved state could be given back to it."""


class UnknownMetric(MetricError, KeyError):
    """A name that nobody has logged in this pass."""

    def __str__(self) -> str:
        return str(self.args[0])  # A KeyError would quote the message.
