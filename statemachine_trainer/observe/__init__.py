"""Watching a run: its progress, the metrics of each epoch, and what its folder tells.

The names below are imported when they are first used: a run that shows nothing reads no folder.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statemachine_trainer.observe.blackbox import read_blackbox
    from statemachine_trainer.observe.epoch_table import EpochRecord, MetricsTable
    from statemachine_trainer.observe.progress import Progress
    from statemachine_trainer.observe.run import Run

_HOMES = {
    "EpochRecord": "epoch_table",
    "MetricsTable": "epoch_table",
    "Progress": "progress",
    "Run": "run",
    "read_blackbox": "blackbox",
}

__all__ = ["EpochRecord", "MetricsTable", "Progress", "Run", "read_blackbox"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
