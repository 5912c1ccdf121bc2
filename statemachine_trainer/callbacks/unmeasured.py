"""Tells a metric that is never logged from one that will be logged later."""

from __future__ import annotations

from collections.abc import Iterable

from statemachine_trainer.loops.base import in_training, loops_around
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import MissingMetric
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.machine.loop import Loop

_EPOCH_AND_ITS_FIT = 2


def all_has_run(root: Loop, path: str) -> bool:
    """Return whether each part of a run that may log its own metrics has run.

    Args:
        root: The tree of the run.
        path: Path of the state that was left: the end of an epoch, or of a fold.
    """
    around = loops_around(root, path)
    more = [in_training(one).more_to_come() for one in around]
    inner = _EPOCH_AND_ITS_FIT if more[-1] is None else 1
    # Loops around fits that do not know it are assumed to have parts left.
    return all(one is False for one in more[:-inner]) and True not in more[-inner:]


def was_validated(context: Context) -> bool:
    """Return whether this epoch was validated; True without validation data."""
    counts, at = context.counts, context.validated_at
    began = counts.batch - counts.batch_in_epoch
    return not context.validation or (at is not None and at[0] > began)


def unmeasured(context: Context, metrics: Iterable[str]) -> str | None:
    """Return the first of these metrics that is unknown; None also if no metric was logged yet."""
    known = {*context.results, *context.train_metrics}
    return next((one for one in metrics if one not in known), None) if known else None


def refuse_unmeasured(context: Context, metrics: Iterable[str], until: str) -> None:
    """Refuse a metric that retention needs and that should have been logged by now.

    Args:
        context: The context of the run.
        metrics: The metrics that retention needs.
        until: The time up to which it was not logged, in words.

    Raises:
        MissingMetric: Such a metric was not logged.
    """
    metric = unmeasured(context, metrics)
    if metric is not None:
        raise MissingMetric(
            f"Retention keeps the best by {metric!r}, which was not logged up to {until}. "
            f"{suggest(metric, {*context.results, *context.train_metrics})}"
        )
