"""Devices, precision, ranks, and the nested containers that batches come in."""

from typing import TYPE_CHECKING, Any

from statemachine_trainer.parallel.containers import leaves, leaves_with_paths, map_leaves, parts
from statemachine_trainer.parallel.device import numbers_needed_on, resolve_device, to_device
from statemachine_trainer.parallel.parallel_errors import (
    CannotMove,
    CannotRebuild,
    NoNumbers,
    PrecisionMismatch,
    RankLost,
    RanksPart,
    UnknownDevice,
    UnknownPrecision,
    UnsupportedWrapper,
)
from statemachine_trainer.parallel.precision import Precision

if TYPE_CHECKING:
    from statemachine_trainer.parallel.wrapping import ddp, fsdp

__all__ = [
    "CannotMove",
    "CannotRebuild",
    "NoNumbers",
    "Precision",
    "PrecisionMismatch",
    "RankLost",
    "RanksPart",
    "UnknownDevice",
    "UnknownPrecision",
    "UnsupportedWrapper",
    "ddp",
    "fsdp",
    "leaves",
    "leaves_with_paths",
    "map_leaves",
    "numbers_needed_on",
    "parts",
    "resolve_device",
    "to_device",
]


def __getattr__(name: str) -> Any:
    if name in ("ddp", "fsdp"):  # most runs have one process
        from statemachine_trainer.parallel import wrapping

        return getattr(wrapping, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
