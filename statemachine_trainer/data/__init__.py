"""Where the data stands: batches in passes, exact positions, limits, users' sources."""

from statemachine_trainer.data.data_errors import (
    BadLimit,
    BadSetting,
    BadSource,
    DataChanged,
    DataError,
    EmptyLoader,
    NoPass,
    NotExact,
    OneShotExhausted,
    OrderKept,
    PassBroken,
    ReplayWarning,
    StrayStopIteration,
    UnbatchedData,
)
from statemachine_trainer.data.feed import Feed
from statemachine_trainer.data.makers import takes_epoch
from statemachine_trainer.data.prefetch import Prefetch
from statemachine_trainer.data.reader import END
from statemachine_trainer.data.several import InTurns, Mixture, SeveralLoaders, Together
from statemachine_trainer.data.sources import (
    as_loader,
    as_loaders,
    dataset_of,
    describe_limit,
    length_of,
    limit_batches,
    reloaded,
    targets_of,
)

__all__ = [
    "END",
    "BadLimit",
    "BadSetting",
    "BadSource",
    "DataChanged",
    "DataError",
    "EmptyLoader",
    "Feed",
    "InTurns",
    "Mixture",
    "NoPass",
    "NotExact",
    "OneShotExhausted",
    "OrderKept",
    "PassBroken",
    "Prefetch",
    "ReplayWarning",
    "SeveralLoaders",
    "StrayStopIteration",
    "Together",
    "UnbatchedData",
    "as_loader",
    "as_loaders",
    "dataset_of",
    "describe_limit",
    "length_of",
    "limit_batches",
    "reloaded",
    "takes_epoch",
    "targets_of",
]
