"""The loops of training, each a state machine that can be swapped for another."""

from statemachine_trainer.loops.active import ActiveLearningLoop
from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.closure import ClosureLoop
from statemachine_trainer.loops.compiled import CompiledStep, NotCompiled
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.custom import CustomLoop
from statemachine_trainer.loops.ensemble import EnsembleLoop
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.loops.evaluation import (
    EvaluationLoop,
    SanityLoop,
    TestLoop,
    ValidationLoop,
)
from statemachine_trainer.loops.every import Every, every
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.kfold import KFoldLoop
from statemachine_trainer.loops.labelling import LabelFolder
from statemachine_trainer.loops.log import log, log_dict
from statemachine_trainer.loops.manual import ManualLoop
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.loops.phases import Phase, PhasesLoop
from statemachine_trainer.loops.pool import PoolLoop
from statemachine_trainer.loops.prediction import PredictionLoop
from statemachine_trainer.loops.sam import SAMLoop
from statemachine_trainer.loops.yielding import Turn, TurnDone, YieldingLoop

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
