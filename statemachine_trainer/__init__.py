"""A PyTorch trainer whose training loop is an explicit hierarchical state machine.

See it (`trainer.graph()`), listen to it (`trainer.on`), swap any part of it (`trainer.loop.replace`), step it
(`trainer.step`, `trainer.run(until=...)`).

The names below are imported when they are first used, so that `statemachine_trainer.machine` works without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.lazy import public_names
from statemachine_trainer.version import __version__ as __version__

if TYPE_CHECKING:
    from statemachine_trainer.callbacks import EMA as EMA
    from statemachine_trainer.callbacks import SWA as SWA
    from statemachine_trainer.callbacks import Checkpoints as Checkpoints
    from statemachine_trainer.callbacks import EarlyStopping as EarlyStopping
    from statemachine_trainer.callbacks import ModelSummary as ModelSummary
    from statemachine_trainer.callbacks import Monitor as Monitor
    from statemachine_trainer.callbacks import Unfreeze as Unfreeze
    from statemachine_trainer.callbacks import summary as summary
    from statemachine_trainer.data import InTurns as InTurns
    from statemachine_trainer.data import Mixture as Mixture
    from statemachine_trainer.data import Together as Together
    from statemachine_trainer.finders import find_batch_size as find_batch_size
    from statemachine_trainer.finders import find_learning_rate as find_learning_rate
    from statemachine_trainer.graph import Graph as Graph
    from statemachine_trainer.graph import graph_of as graph_of
    from statemachine_trainer.loops import ActiveLearningLoop as ActiveLearningLoop
    from statemachine_trainer.loops import BatchLoop as BatchLoop
    from statemachine_trainer.loops import ClosureLoop as ClosureLoop
    from statemachine_trainer.loops import CompiledStep as CompiledStep
    from statemachine_trainer.loops import CustomLoop as CustomLoop
    from statemachine_trainer.loops import EpochLoop as EpochLoop
    from statemachine_trainer.loops import EvaluationLoop as EvaluationLoop
    from statemachine_trainer.loops import FitLoop as FitLoop
    from statemachine_trainer.loops import KFoldLoop as KFoldLoop
    from statemachine_trainer.loops import LabelFolder as LabelFolder
    from statemachine_trainer.loops import ManualLoop as ManualLoop
    from statemachine_trainer.loops import OptimizerLoop as OptimizerLoop
    from statemachine_trainer.loops import Phase as Phase
    from statemachine_trainer.loops import PhasesLoop as PhasesLoop
    from statemachine_trainer.loops import PredictionLoop as PredictionLoop
    from statemachine_trainer.loops import RecoverLoop as RecoverLoop
    from statemachine_trainer.loops import SAMLoop as SAMLoop
    from statemachine_trainer.loops import SanityLoop as SanityLoop
    from statemachine_trainer.loops import SplittingLoop as SplittingLoop
    from statemachine_trainer.loops import TestLoop as TestLoop
    from statemachine_trainer.loops import TrainingLoop as TrainingLoop
    from statemachine_trainer.loops import Turn as Turn
    from statemachine_trainer.loops import TurnDone as TurnDone
    from statemachine_trainer.loops import ValidationLoop as ValidationLoop
    from statemachine_trainer.loops import YieldingLoop as YieldingLoop
    from statemachine_trainer.loops import every as every
    from statemachine_trainer.loops import log as log
    from statemachine_trainer.loops import log_dict as log_dict
    from statemachine_trainer.loops.schedules import warmup as warmup
    from statemachine_trainer.machine import Driver as Driver
    from statemachine_trainer.machine import Loop as Loop
    from statemachine_trainer.machine import Moment as Moment
    from statemachine_trainer.machine import field as field
    from statemachine_trainer.machine import place as place
    from statemachine_trainer.machine import transient as transient
    from statemachine_trainer.machine.errors import StateMachineError as StateMachineError
    from statemachine_trainer.observe import MetricsTable as MetricsTable
    from statemachine_trainer.observe import Progress as Progress
    from statemachine_trainer.observe import Run as Run
    from statemachine_trainer.observe.best import load_weights as load_weights
    from statemachine_trainer.observe.difference import compare_runs as compare_runs
    from statemachine_trainer.observe.recorder import RunFolder as RunFolder
    from statemachine_trainer.snapshot import Best as Best
    from statemachine_trainer.snapshot import Mirror as Mirror
    from statemachine_trainer.snapshot import Retention as Retention
    from statemachine_trainer.trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = public_names(__name__)
