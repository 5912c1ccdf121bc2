"""Loops for particular ways of training, built on those of `loops`."""

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
    "ClosureLoop",
    "CustomLoop",
    "EnsembleLoop",
    "KFoldLoop",
    "LabelFolder",
    "Phase",
    "PhasesLoop",
    "PoolLoop",
    "SAMLoop",
    "Turn",
    "TurnDone",
    "YieldingLoop",
]
