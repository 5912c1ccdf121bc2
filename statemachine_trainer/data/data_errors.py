"""What can go wrong with data: one class per kind of mistake."""

from __future__ import annotations

from statemachine_trainer.machine.errors import StateMachineError


class DataError(StateMachineError):
    """Base of the mistakes about data."""


class BadSource(DataError):
    """What was given as data can not be read batch by batch."""


class EmptyLoader(DataError):
    """A loader without a single batch."""


class BadLimit(DataError):
    """A limit on the number of batches that makes no sense."""


class NoPass(DataError):
    """A batch was asked for, but no pass over the data has begun."""


class OneShotExhausted(DataError):
    """A second pass over an iterator, which can be read only once."""


class PassBroken(DataError):
    """The pass can not go on after an error: the iterator that raised it is finished."""


class StrayStopIteration(DataError):
    """A `StopIteration` of user code amid the data, which must not pass for the end of it."""


class DataChanged(DataError):
    """The data differs from what it was when the state was taken."""


class BadSetting(DataError):
    """A setting that does not go with this loader."""


class ReplayWarning(UserWarning):
    """Going on where a run stopped means reading again what was read, and throwing it away."""


class OrderKept(UserWarning):
    """``in_order=False`` is set aside: a position is exact only if batches come in order."""


class UnbatchedData(UserWarning):
    """A data set was given without a loader, so each of its samples is a batch."""


class NotExact(UserWarning):
    """The run goes on, but not with the data of an uninterrupted one."""
