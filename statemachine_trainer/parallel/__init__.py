"""Devices, precision, and the nested containers that batches come in."""

from statemachine_trainer.parallel.containers import leaves_with_paths, map_leaves, parts
from statemachine_trainer.parallel.device import resolve_device, to_device
from statemachine_trainer.parallel.parallel_errors import (
    CannotMove,
    CannotRebuild,
    PrecisionMismatch,
    UnknownDevice,
    UnknownPrecision,
    UnsupportedWrapper,
)
from statemachine_trainer.parallel.precision import Precision

__all__ = [
    "CannotMove",
    "CannotRebuild",
    "Precision",
    "PrecisionMismatch",
    "UnknownDevice",
    "UnknownPrecision",
    "UnsupportedWrapper",
    "leaves_with_paths",
    "map_leaves",
    "parts",
    "resolve_device",
    "to_device",
]
