"""The loops of training, each a state machine that can be swapped for another."""

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.loops.evaluation import (
    EvaluationLoop,
    SanityLoop,
    TestLoop,
    ValidationLoop,
)
from statemachine_trainer.loops.every import Every, every
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.log import log, log_dict
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.prediction import PredictionLoop

__all__ = [
    "BatchLoop",
    "Context",
    "EpochLoop",
    "EvaluationLoop",
    "Every",
    "FitLoop",
    "ManualLoop",
    "OptimizerLoop",
    "PredictionLoop",
    "SanityLoop",
    "TestLoop",
    "TrainingLoop",
    "ValidationLoop",
    "every",
    "log",
    "log_dict",
]
