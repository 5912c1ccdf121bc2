"""The functions `log` and `log_dict`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol

from torch import Tensor

from statemachine_trainer.loops.foreign_names import check_arguments
from statemachine_trainer.loops.loop_errors import BadMetricValue, TrainingError
from statemachine_trainer.loops.metrics.numbers import LogSettings, Shown
from statemachine_trainer.loops.metrics.table import Metrics, is_metric


class NotLogging(TrainingError):
    """`log` was called outside of a run."""


class LogContext(Protocol):
    """Where `log` writes at present.

    Attributes:
        log_table: The table of the pass that is running; None between passes.
        log_suffix: Appended to names where there are several loaders.
        split: The batch that the step works on. Its size weights the means.
    """

    log_table: Metrics | None
    log_suffix: str
    split: Any


_NUMBERS: Final = frozenset((Tensor, float, int))
_SETTINGS: Final = frozenset({*LogSettings.__annotations__, "batch_size"})
_SHOWN: Final = frozenset(Shown.__slots__)
_current: ContextVar[LogContext | None] = ContextVar("statemachine_trainer_log", default=None)


@contextmanager
def logging_to(target: LogContext) -> Iterator[None]:
    """Let `log` write to `target` within the block."""
    token = _current.set(target)
    try:
        yield
    finally:
        _current.reset(token)


def log(name: str, value: Any, *, batch_size: int | None = None, **settings: Any) -> None:
    """Log a metric from within a step (or any receiver) of a running trainer.

    Within one pass the values of a name are averaged, weighted by batch size. Nothing waits for a
    device: tensors are accumulated where they are and read when somebody looks.

    Args:
        name: Name of the metric, such as "val_loss".
        value: A number, a tensor of one element, or a torchmetrics object (computed at the end of
            the pass).
        batch_size: Weight of the value; found in the batch unless given.
        **settings: `reduce="mean"` (or "sum", "min", "max", "last"), and the other settings of
            `Metrics.log`.

    Raises:
        NotLogging: No run is going on.
        BadMetricValue: The name is no text, or the value is no number.
        UnknownArgument: There is no such setting.
    """
    target = _current.get()
    table = None if target is None else target.log_table
    if target is None or table is None:
        raise NotLogging(
            f"log({name!r}, ...) was called outside of fit, validate, test or predict."
        )
    batch = target.split
    if settings and settings.get("reduce") == "mean":
        del settings["reduce"]  # it is that anyway
    # The usual kind first, by a short way: this is called in every batch.
    usual = not settings or _SHOWN.issuperset(settings)
    try:
        full = name + target.log_suffix
    except TypeError:
        raise _no_name(name) from None
    if usual and table.take(full, value, batch, batch_size):
        return
    if not name:
        raise _no_name(name)
    if settings.get("on_epoch") is False and not (
        settings.get("on_step") or settings.get("prog_bar")
    ):
        raise BadMetricValue(
            f"log({name!r}, ..., on_epoch=False) would be kept nowhere. Say on_step=True, or leave on_epoch out."
        )
    if (
        batch_size is None
        and batch is not None
        and (value.__class__ in _NUMBERS or not is_metric(value))
        and "reduce" not in settings
    ):
        batch_size = table.weight_of(batch, name)
    try:
        table.log(full, value, batch_size=batch_size, **settings)
    except TypeError:  # asked only now, because this is called at each batch
        unknown = {one: settings[one] for one in settings.keys() - _SETTINGS}
        check_arguments("log", unknown, _SETTINGS)
        raise


def _no_name(given: object) -> BadMetricValue:
    """Make the error of a metric whose name is no text, such as where name and value are exchanged."""
    shown = repr(given) if isinstance(given, str | int | float) else f"a {type(given).__name__}"
    return BadMetricValue(
        f"log() was given {shown} as the name of a metric. The name comes first: log('loss', loss)."
    )


def log_dict(values: Mapping[str, Any], **settings: Any) -> None:
    """Log several metrics at once; see `log`.

    Args:
        values: The metrics by name.
        **settings: Those of `log`, for each of them.

    Raises:
        BadMetricValue: What was given is no dict.
    """
    if not isinstance(values, Mapping):
        raise BadMetricValue(
            f"log_dict() was given a {type(values).__name__}. Give a dict of metrics by name: "
            "log_dict({'loss': loss, 'accuracy': accuracy})."
        )
    for name, value in values.items():
        log(name, value, **settings)
