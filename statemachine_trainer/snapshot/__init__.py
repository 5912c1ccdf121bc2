"""Writing down the state of a run, and reading it back to the bit."""

from statemachine_trainer.snapshot.checkpoint import Info, Loaded
from statemachine_trainer.snapshot.codec import decode, encode
from statemachine_trainer.snapshot.mirror import Mirror
from statemachine_trainer.snapshot.retention import Best, KeepEvery, Retention
from statemachine_trainer.snapshot.snapshot_errors import (
    BadMirror,
    BadName,
    CleanupWarning,
    Damaged,
    DamagedCheckpointWarning,
    FormatTooNew,
    NotACheckpoint,
    SnapshotError,
    SnapshotMismatch,
    Unreadable,
    Unwritable,
    WriteFailed,
)
from statemachine_trainer.snapshot.store import Store

__all__ = [
    "BadMirror",
    "BadName",
    "Best",
    "CleanupWarning",
    "Damaged",
    "DamagedCheckpointWarning",
    "FormatTooNew",
    "Info",
    "KeepEvery",
    "Loaded",
    "Mirror",
    "NotACheckpoint",
    "Retention",
    "SnapshotError",
    "SnapshotMismatch",
    "Store",
    "Unreadable",
    "Unwritable",
    "WriteFailed",
    "decode",
    "encode",
]
