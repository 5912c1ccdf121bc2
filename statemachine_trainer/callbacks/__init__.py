"""What can be handed to a trainer to act in the course of a run."""

from statemachine_trainer.callbacks.averages import EMA, SWA
from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.early_stopping import EarlyStopping
from statemachine_trainer.callbacks.monitor import Monitor
from statemachine_trainer.callbacks.unfreeze import Unfreeze

__all__ = ["EMA", "SWA", "Checkpoints", "EarlyStopping", "Monitor", "Unfreeze"]
