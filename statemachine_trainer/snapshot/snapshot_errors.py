"""What can go wrong with a checkpoint, one class for each kind of mistake."""

from __future__ import annotations

from pathlib import Path

from statemachine_trainer.machine.errors import StateMachineError


class SnapshotError(StateMachineError):
    """Base of every error about checkpoints."""


class Unwritable(SnapshotError):
    """A value that a checkpoint cannot hold.

    Args:
        where: the address of the value inside the tree, as in ``loops.fit.epoch.batches[3].x``
        problem: what is wrong with it
        remedy: what to do about it
    """

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        super().__init__(f"{where or 'the tree itself'}: {problem}; {remedy}")
        self.where = where


class BadName(SnapshotError, ValueError):
    """A name that no checkpoint can have."""


class NotACheckpoint(SnapshotError):
    """There is no checkpoint at this place."""


class Damaged(SnapshotError):
    """A checkpoint whose files are not what was written.

    Args:
        file: the file that is damaged
        damage: what is wrong with it
    """

    def __init__(self, file: Path, damage: str) -> None:
        super().__init__(f"{file}: {damage}; use an older checkpoint, or a copy of this one")
        self.file = file
        self.damage = damage


class Unreadable(SnapshotError, OSError):
    """A checkpoint that may be whole, and cannot be read here and now."""


class FormatTooNew(SnapshotError):
    """A whole checkpoint, of a format that this version does not know yet."""


class SnapshotMismatch(SnapshotError):
    """A whole checkpoint of another model, other loops, optimizers or data.

    The message says what differs.
    """


class BadMirror(SnapshotError, ValueError):
    """An address that no checkpoints can be sent to: of no known kind, or its package is not installed."""


class WriteFailed(SnapshotError):
    """The disk did not take a checkpoint. Those written before are untouched."""


class DamagedCheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over for an older one."""


class PassedOver(UserWarning):
    """A whole checkpoint was passed over for an older one, because this run cannot go on from it."""


class CleanupWarning(UserWarning):
    """A checkpoint that is no longer needed could not be deleted."""
