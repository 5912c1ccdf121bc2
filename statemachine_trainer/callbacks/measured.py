"""Which metrics belong to a checkpoint: when they were measured, with which weights, and which are missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from statemachine_trainer.callbacks.averages import Average
from statemachine_trainer.loops.base import in_training, loops_around
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import LikelyMistake, MissingMetric
from statemachine_trainer.loops.metrics.fingerprint import fingerprint_of_weights
from statemachine_trainer.loops.metrics.named import near_metric
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import Best, Store
from statemachine_trainer.snapshot.ranked import do_together
from statemachine_trainer.snapshot.retention import Kept

_EPOCH_AND_ITS_FIT = 2


class OtherWeights(LikelyMistake):
    """A checkpoint holds other weights than those that its metrics were measured with."""


def metrics_of_this_moment(context: Context) -> dict[str, float]:
    """Return the metrics that were measured at this very moment of the run."""
    return {
        name: value
        for name, value in context.results.items()
        if name in context.measured and context.measured[name][1:] == context.moment
    }


def of_other_weights(context: Context, now: Collection[str], *, tell: bool) -> list[str]:
    """Return which metrics of this moment were measured with weights that are not written.

    A callback that puts in an average for the validation takes it out again after it.

    Args:
        context: What the loops of the run share.
        now: Names of the metrics of this moment.
        tell: Whether to warn of them.

    Warns:
        OtherWeights: There are some.
    """
    if context.validated_at != context.moment or context.validated_weights is None:
        return []
    found = [name for name in context.validation_metrics.compute() if name in now]
    if not found or fingerprint_of_weights(context.model) == context.validated_weights:
        return []
    if tell:
        warnings.warn(
            f"{found[0]!r} was measured with other weights than those of the model now, which a "
            "checkpoint holds: something replaced them for the validation, such as an average. "
            "The metrics of such a checkpoint are not those of its weights; its manifest names "
            "them under 'of_other_weights'. What was measured is in the state of the callback "
            "that replaced them.",
            OtherWeights,
            stacklevel=level_of_caller(),
        )
    return found


def metadata_of(
    context: Context, callbacks: Callable[[], Sequence[object]], *, tell: bool
) -> dict[str, Any]:
    """Return what the manifest of a checkpoint of this moment says of the run.

    Args:
        context: What the loops of the run share.
        callbacks: Returns the callbacks that have a state, of which one may hold an average of the weights.
        tell: Whether to warn of metrics that are of other weights than those in the checkpoint.

    Warns:
        OtherWeights: There are some.
    """
    counts, now = context.counts, metrics_of_this_moment(context)
    found: list[str] = []
    held = False
    if context.validated_at == context.moment:
        averages = [one for one in callbacks() if isinstance(one, Average)]
        held = context.validated_weights in [one.measured for one in averages if one.updates]
        found = of_other_weights(context, now, tell=tell and not held)
    return {
        "epoch": counts.epoch,
        "batch": counts.batch,
        "batch_in_epoch": counts.batch_in_epoch,
        "step": counts.step,
        "seconds": context.read_clock(),
        "metrics": now,
        "earlier_metrics": {n: v for n, v in context.results.items() if n not in now},
        "of_other_weights": found,
        "of_average": found if held else [],
    }


def would_be_kept(
    store: Store, context: Context, rules: Iterable[Best], measured: Iterable[str]
) -> bool:
    """Whether a checkpoint of this moment would be kept for a metric that was just measured.

    Where there are several ranks, a collective if any of the rules goes by such a metric.
    """
    measured = set(measured)
    rules = [rule for rule in rules if rule.metric in measured]
    if not rules:
        return False
    ranks, now = Ranks.here(), metrics_of_this_moment(context)
    kept = False

    def look() -> None:
        nonlocal kept
        kept = (ranks is None or ranks.rank == 0) and _would_keep(store, rules, now)

    do_together(ranks, look)  # it raises where a write in the background has failed
    # The others may see the folder at another moment.
    return kept if ranks is None else bool(ranks.from_first(kept))


def _would_keep(store: Store, rules: Sequence[Best], metrics: Mapping[str, float]) -> bool:
    """Whether one of the rules would keep a checkpoint with these metrics, if it were written now."""
    store.wait()
    present = [one for one in store.list() if one.damage is None]
    candidate = _Candidate(datetime.now(UTC), {"metrics": dict(metrics)})
    candidates: list[Kept] = [*present, candidate]
    return any(len(present) in rule.choose(candidates) for rule in rules)


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint that might be written."""

    created: datetime
    metadata: dict[str, object]


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
            + near_metric(
                metric,
                {*context.results, *context.train_metrics},
                validated=bool(context.validation),
            )
        )
