"""The loops of training, each a state machine that can be swapped for another.

The names below are imported when they are first used: most runs need few of these loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.lazy import public_names

if TYPE_CHECKING:
    from statemachine_trainer.intervals import Every as Every
    from statemachine_trainer.intervals import every as every
    from statemachine_trainer.loops.base import TrainingLoop as TrainingLoop
    from statemachine_trainer.loops.batch import BatchLoop as BatchLoop
    from statemachine_trainer.loops.compiled import CompiledStep as CompiledStep
    from statemachine_trainer.loops.compiled import NotCompiled as NotCompiled
    from statemachine_trainer.loops.context import Context as Context
    from statemachine_trainer.loops.epoch import EpochLoop as EpochLoop
    from statemachine_trainer.loops.evaluation import EvaluationLoop as EvaluationLoop
    from statemachine_trainer.loops.evaluation import PredictionLoop as PredictionLoop
    from statemachine_trainer.loops.evaluation import SanityLoop as SanityLoop
    from statemachine_trainer.loops.evaluation import TestLoop as TestLoop
    from statemachine_trainer.loops.evaluation import ValidationLoop as ValidationLoop
    from statemachine_trainer.loops.fit import FitLoop as FitLoop
    from statemachine_trainer.loops.manual import ManualLoop as ManualLoop
    from statemachine_trainer.loops.metrics.log import log as log
    from statemachine_trainer.loops.metrics.log import log_dict as log_dict
    from statemachine_trainer.loops.optimizer import OptimizerLoop as OptimizerLoop
    from statemachine_trainer.loops.optimizer import SplittingLoop as SplittingLoop
    from statemachine_trainer.loops.recipes import ActiveLearningLoop as ActiveLearningLoop
    from statemachine_trainer.loops.recipes import ClosureLoop as ClosureLoop
    from statemachine_trainer.loops.recipes import CustomLoop as CustomLoop
    from statemachine_trainer.loops.recipes import EnsembleLoop as EnsembleLoop
    from statemachine_trainer.loops.recipes import KFoldLoop as KFoldLoop
    from statemachine_trainer.loops.recipes import LabelFolder as LabelFolder
    from statemachine_trainer.loops.recipes import Phase as Phase
    from statemachine_trainer.loops.recipes import PhasesLoop as PhasesLoop
    from statemachine_trainer.loops.recipes import PoolLoop as PoolLoop
    from statemachine_trainer.loops.recipes import RecoverLoop as RecoverLoop
    from statemachine_trainer.loops.recipes import SAMLoop as SAMLoop
    from statemachine_trainer.loops.recipes import Turn as Turn
    from statemachine_trainer.loops.recipes import TurnDone as TurnDone
    from statemachine_trainer.loops.recipes import YieldingLoop as YieldingLoop

__getattr__, __dir__, __all__ = public_names(__name__)
