"""Mistakes in what is trained and how, one exception class for each kind."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class TrainingError(StateMachineError):
    """Base of the errors of training."""


class SettingError(TrainingError):
    """A setting of a loop or of the trainer that makes no sense, or that nobody knows."""


class UnknownArgument(SettingError, TypeError):
    """An argument that a method of the trainer does not have."""


class ModelError(TrainingError):
    """The model lacks a method that is needed, or has one that cannot be called."""


class OptimizerError(TrainingError):
    """What `configure_optimizers` returned cannot be used."""


class StepOutputError(TrainingError):
    """A step of the model returned something that is not understood."""


class NonFiniteLoss(TrainingError):
    """The loss is NaN or infinite and the optimizer loop was told to raise."""


class MissingMetric(TrainingError):
    """A scheduler or callback monitors a name that was never logged."""


class LikelyMistake(UserWarning):
    """Base of the warnings of what runs, and hardly does what was meant."""


class NothingToDo(TrainingError):
    """A fit that would not do a single step."""
