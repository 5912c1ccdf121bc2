"""What can be handed to a trainer to act in the course of a run.

The names below are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.lazy import public_names

if TYPE_CHECKING:
    from statemachine_trainer.callbacks.averages import EMA as EMA
    from statemachine_trainer.callbacks.averages import SWA as SWA
    from statemachine_trainer.callbacks.checkpoints import Checkpoints as Checkpoints
    from statemachine_trainer.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from statemachine_trainer.callbacks.model_summary import ModelSummary as ModelSummary
    from statemachine_trainer.callbacks.model_summary import Summary as Summary
    from statemachine_trainer.callbacks.model_summary import summary as summary
    from statemachine_trainer.callbacks.monitor import Monitor as Monitor
    from statemachine_trainer.callbacks.unfreeze import Unfreeze as Unfreeze

__getattr__, __dir__, __all__ = public_names(__name__)
