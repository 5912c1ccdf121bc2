"""A PyTorch trainer whose training loop is an explicit hierarchical state machine.

See it (`trainer.graph()`), listen to it (`trainer.on`), swap any part of it (`trainer.loop.replace`), step it
(`trainer.step`, `trainer.run(until=...)`).

The names below are imported when they are first used, so that `statemachine_trainer.machine` works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from statemachine_trainer.version import __version__ as __version__

if TYPE_CHECKING:
    from statemachine_trainer.callbacks import Checkpoints, EarlyStopping
    from statemachine_trainer.graph import Graph, graph_of
    from statemachine_trainer.loops import (
        ActiveLearningLoop,
        BatchLoop,
        ClosureLoop,
        CompiledStep,
        CustomLoop,
        EpochLoop,
        EvaluationLoop,
        FitLoop,
        KFoldLoop,
        LabelFolder,
        ManualLoop,
        OptimizerLoop,
        Phase,
        PhasesLoop,
        PredictionLoop,
        SAMLoop,
        SanityLoop,
        TestLoop,
        TrainingLoop,
        Turn,
        TurnDone,
        ValidationLoop,
        YieldingLoop,
        every,
        log,
        log_dict,
    )
    from statemachine_trainer.machine import Driver, Loop, Moment, field, place, transient
    from statemachine_trainer.machine.errors import StateMachineError
    from statemachine_trainer.observe import MetricsTable, Progress, Run
    from statemachine_trainer.observe.recorder import RunFolder
    from statemachine_trainer.snapshot import Best, Retention
    from statemachine_trainer.snapshot.store import load_weights
    from statemachine_trainer.trainer import Trainer

_HOMES = {
    **dict.fromkeys(
        ("Driver", "Loop", "Moment", "field", "place", "transient"), "statemachine_trainer.machine"
    ),
    **dict.fromkeys(("Graph", "graph_of"), "statemachine_trainer.graph"),
    "StateMachineError": "statemachine_trainer.machine.errors",
    "Trainer": "statemachine_trainer.trainer",
    **dict.fromkeys(("Checkpoints", "EarlyStopping"), "statemachine_trainer.callbacks"),
    **dict.fromkeys(("MetricsTable", "Progress", "Run"), "statemachine_trainer.observe"),
    "RunFolder": "statemachine_trainer.observe.recorder",
    **dict.fromkeys(("Best", "Retention"), "statemachine_trainer.snapshot"),
    "load_weights": "statemachine_trainer.snapshot.store",
    **dict.fromkeys(
        (
            "ActiveLearningLoop", "CustomLoop", "KFoldLoop", "LabelFolder", "Phase", "PhasesLoop",
            "BatchLoop", "EpochLoop", "EvaluationLoop", "FitLoop", "ManualLoop", "OptimizerLoop", "PredictionLoop",
            "SanityLoop", "TestLoop", "TrainingLoop", "ValidationLoop", "every", "log", "log_dict",
            "ClosureLoop", "CompiledStep", "SAMLoop", "Turn", "TurnDone", "YieldingLoop",
        ),
        "statemachine_trainer.loops",
    ),
}  # fmt: skip

__all__ = [
    "ActiveLearningLoop",
    "BatchLoop",
    "Best",
    "Checkpoints",
    "ClosureLoop",
    "CompiledStep",
    "CustomLoop",
    "Driver",
    "EarlyStopping",
    "EpochLoop",
    "EvaluationLoop",
    "FitLoop",
    "Graph",
    "KFoldLoop",
    "LabelFolder",
    "Loop",
    "ManualLoop",
    "MetricsTable",
    "Moment",
    "OptimizerLoop",
    "Phase",
    "PhasesLoop",
    "PredictionLoop",
    "Progress",
    "Retention",
    "Run",
    "RunFolder",
    "SAMLoop",
    "SanityLoop",
    "StateMachineError",
    "TestLoop",
    "Trainer",
    "TrainingLoop",
    "Turn",
    "TurnDone",
    "ValidationLoop",
    "YieldingLoop",
    "every",
    "field",
    "graph_of",
    "load_weights",
    "log",
    "log_dict",
    "place",
    "transient",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
