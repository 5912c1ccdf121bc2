"""What is logged in a run: the tables that `log` fills, and what they hold."""

from statemachine_trainer.loops.metrics.log import NotLogging
from statemachine_trainer.loops.metrics.sizes import UnclearBatchSize
from statemachine_trainer.loops.metrics.table import MetricObject, Metrics

__all__ = ["MetricObject", "Metrics", "NotLogging", "UnclearBatchSize"]
