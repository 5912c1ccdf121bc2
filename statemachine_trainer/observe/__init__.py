"""Watching a run: its progress, and the metrics of each epoch."""

from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.table import EpochRecord, MetricsTable

__all__ = ["EpochRecord", "MetricsTable", "Progress"]
