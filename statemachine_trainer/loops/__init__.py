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
from statemachine_trainer.loops.recipes import (
    ActiveLearningLoop,
    ClosureLoop,
    CustomLoop,
    EnsembleLoop,
    KFoldLoop,
    LabelFolder,
    Phase,
    PhasesLoop,
    PoolLoop,
    SAMLoop,
    Turn,
    TurnDone,
    YieldingLoop,
)

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
