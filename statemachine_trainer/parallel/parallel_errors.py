"""What can go wrong with containers, devices and precision, one class for each kind of mistake."""

from __future__ import annotations

from datetime import datetime

from statemachine_trainer.machine.errors import StateMachineError


class CannotMove(StateMachineError):
    """Something inside a batch cannot be moved to the device of the model."""


class CannotRebuild(StateMachineError):
    """A container cannot be made again around other contents."""


class UnknownDevice(StateMachineError):
    """A device was asked for that does not exist, or that this machine does not have."""


class NoNumbers(StateMachineError):
    """Something needs the numbers of a tensor on the device "meta", which has none."""


class UnknownPrecision(StateMachineError):
    """A precision was asked for that does not exist, or that is reached in another way."""


class PrecisionMismatch(StateMachineError):
    """A saved state belongs to a run of another precision."""


class UnsupportedWrapper(StateMachineError):
    """A model is in a wrapper that cuts its parameters up, so that nothing could be saved by name."""


class RanksPart(StateMachineError):
    """One rank does something in a batch that the others do not, and that all have to do together."""


class RankLost(StateMachineError):
    """Another rank of the run is gone, or does not answer in the time that `init_process_group` was given.

    Attributes:
        rank: Its number; None if it is not known which one it is.
        state: Path of the state that it was last seen in; None if it wrote no black box.
        since: When it began that state; None if it wrote no black box.
    """

    def __init__(
        self,
        message: str,
        rank: int | None = None,
        state: str | None = None,
        since: datetime | None = None,
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.state = state
        self.since = since
