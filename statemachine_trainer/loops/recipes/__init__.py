"""Loops for particular ways of training, built on those of `loops`.

The names below are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.lazy import public_names

if TYPE_CHECKING:
    from statemachine_trainer.loops.recipes.acquisition import PoolLoop as PoolLoop
    from statemachine_trainer.loops.recipes.active import ActiveLearningLoop as ActiveLearningLoop
    from statemachine_trainer.loops.recipes.closure import ClosureLoop as ClosureLoop
    from statemachine_trainer.loops.recipes.custom import CustomLoop as CustomLoop
    from statemachine_trainer.loops.recipes.ensemble import EnsembleLoop as EnsembleLoop
    from statemachine_trainer.loops.recipes.kfold import KFoldLoop as KFoldLoop
    from statemachine_trainer.loops.recipes.labelling import LabelFolder as LabelFolder
    from statemachine_trainer.loops.recipes.phases import Phase as Phase
    from statemachine_trainer.loops.recipes.phases import PhasesLoop as PhasesLoop
    from statemachine_trainer.loops.recipes.recover import RecoverLoop as RecoverLoop
    from statemachine_trainer.loops.recipes.sam import SAMLoop as SAMLoop
    from statemachine_trainer.loops.recipes.yielding import Turn as Turn
    from statemachine_trainer.loops.recipes.yielding import TurnDone as TurnDone
    from statemachine_trainer.loops.recipes.yielding import YieldingLoop as YieldingLoop

__getattr__, __dir__, __all__ = public_names(__name__)
