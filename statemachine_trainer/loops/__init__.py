"""The loops of training, each a state machine that can be swapped for another."""

from statemachine_trainer.intervals import Every, every
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.loops.evaluation import (
    EvaluationLoop,
    PredictionLoop,
    SanityLoop,
    TestLoop,
    ValidationLoop,
)
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.metrics.log import log, log_dict
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.recipes.acquisition import PoolLoop
from statemachine_trainer.loops.recipes.active import ActiveLearningLoop
from statemachine_trainer.loops.recipes.closure import ClosureLoop
from statemachine_trainer.loops.recipes.custom import CustomLoop
from statemachine_trainer.loops.recipes.ensemble import EnsembleLoop
from statemachine_trainer.loops.recipes.kfold import KFoldLoop
from statemachine_trainer.loops.recipes.labelling import LabelFolder
from statemachine_trainer.loops.recipes.phases import Phase, PhasesLoop
from statemachine_trainer.loops.recipes.sam import SAMLoop
from statemachine_trainer.loops.recipes.yielding import Turn, TurnDone, YieldingLoop

__all__ = [
    "ActiveLearningLoop",
    "BatchLoop",
    "ClosureLoop",
    "CompiledStep",
    "Context",
    "CustomLoop",
    "EnsembleLoop",
    "EpochLoop",
    "EvaluationLoop",
    "Every",
    "FitLoop",
    "KFoldLoop",
    "LabelFolder",
    "ManualLoop",
    "NotCompiled",
    "OptimizerLoop",
    "Phase",
    "PhasesLoop",
    "PoolLoop",
    "PredictionLoop",
    "SAMLoop",
    "SanityLoop",
    "TestLoop",
    "TrainingLoop",
    "Turn",
    "TurnDone",
    "ValidationLoop",
    "YieldingLoop",
    "every",
    "log",
    "log_dict",
]
