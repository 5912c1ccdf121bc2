"""Watching a run: its progress, the metrics of each epoch, and what its folder tells.

The names below are imported when they are first used: a run that shows nothing reads no folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine_trainer.lazy import public_names

if TYPE_CHECKING:
    from statemachine_trainer.observe.blackbox import read_blackbox as read_blackbox
    from statemachine_trainer.observe.epoch_table import EpochRecord as EpochRecord
    from statemachine_trainer.observe.epoch_table import MetricsTable as MetricsTable
    from statemachine_trainer.observe.profiles import (
        profiles_side_by_side as profiles_side_by_side,
    )
    from statemachine_trainer.observe.progress import Progress as Progress
    from statemachine_trainer.observe.run import Run as Run

__getattr__, __dir__, __all__ = public_names(__name__)
