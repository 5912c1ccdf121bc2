"""The best weights of a run: finding their checkpoint, and loading them into a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from statemachine_trainer.files import is_address, path_given, shown
from statemachine_trainer.machine.errors import suggest
from statemachine_trainer.machine.keywords import refuses_unknown
from statemachine_trainer.observe.kept import (
    KeptCheckpoint,
    Mode,
    best_of,
    kept_checkpoints,
    mode_of,
)
from statemachine_trainer.observe.run import NoMetric, Run, check_mode, is_run
from statemachine_trainer.snapshot import NotACheckpoint


class NoBestCheckpoint(NotACheckpoint):
    """The best weights of a run are in no checkpoint of it."""


@refuses_unknown
def load_weights(
    model: nn.Module,
    checkpoint: str | Path,
    *,
    best: str | None = None,
    mode: Mode | None = None,
    average: bool = False,
) -> None:
    """Load the weights of a checkpoint into a model, and nothing else.

    The model keeps its device, its mode (training or evaluation) and what of it needs gradients.

    Example:
        >>> load_weights(model, "runs/mine", best="val_loss")  # doctest: +SKIP

    Args:
        model: A model with the parameters and buffers of the one that was saved.
        checkpoint: Folder of a checkpoint, or of a run (the newest whole one is taken); or an address of
            fsspec, such as "s3://bucket/runs/mine". From there it is brought to a temporary folder first.
        best: Name of a metric: take the checkpoint of the run with its best value.
        mode: Whether less ("min") or more ("max") of the metric is better; as the `Best` of the run
            says unless given, and "min" where it has none.
        average: Load the average that `EMA` or `SWA` keeps. With `best=` the weights are those that were
            measured, average or not.

    Raises:
        NotACheckpoint: There is none.
        NoBestCheckpoint: The best weights were not kept; the message says which were.
        SnapshotMismatch: The parameters differ; the message lists them. The model is unchanged.
        Damaged: The checkpoint is not what was written.
    """
    check_mode(mode or "min")
    if isinstance(checkpoint, str) and is_address(checkpoint):
        from statemachine_trainer.snapshot.remote import at_hand  # hardly ever needed

        with at_hand(checkpoint, whole_run=best is not None) as place:
            load_weights(model, place, best=best, mode=mode, average=average)
    elif best is None:
        _load(model, checkpoint, average=average)
    else:
        _load_best_weights(model, checkpoint, best, mode, average=average)


def _load(model: nn.Module, checkpoint: str | Path, *, average: bool) -> None:
    from statemachine_trainer.snapshot import loading  # most runs begin without

    loading.load_weights(model, checkpoint, average=average)


def _load_best_weights(
    model: nn.Module, checkpoint: str | Path, best: str, mode: Mode | None, *, average: bool
) -> None:
    found = best_checkpoint(checkpoint, best, mode)
    said = next(one for one in kept_checkpoints(found.parent) if one.path == found)
    if best in said.of_other_weights and best not in said.of_average:
        raise NoBestCheckpoint(
            f"{best!r} of {shown(found)} was measured with other weights than those in it: something replaced them "
            "for the validation. EMA and SWA keep what was measured."
        )
    _load(model, found, average=average or best in said.of_average)


def best_checkpoint(run: str | Path, metric: str, mode: Mode | None = None) -> Path:
    """Return the folder of the checkpoint with the best value of a metric.

    Where the run has a journal it is asked too: a better value that no checkpoint holds is an error, for then
    the best weights are gone.

    Args:
        run: The folder of the run.
        metric: Name of the metric.
        mode: As for `load_weights`.

    Raises:
        NotACheckpoint: There is none.
        NoBestCheckpoint: None has the metric, or the best value is in none of them.
        BadMode: The mode is neither "min" nor "max".
    """
    folder = path_given(run)
    kept = kept_checkpoints(folder)
    if not kept:
        raise NotACheckpoint(
            f"There is no checkpoint in {str(folder)!r} to take the best of. Name the folder of a run, such as "
            "'runs/name'."
        )
    mode = check_mode(mode_of(kept, metric) if mode is None else mode)
    found = best_of(kept, metric, mode)
    advice = f"Keep it next time: Checkpoints(..., retention=Retention(best=Best({metric!r}, mode={mode!r})))."
    if found is None:
        known = sorted({name for one in kept for name in one.metrics})
        raise NoBestCheckpoint(
            f"No checkpoint in {shown(folder)} was written when {metric!r} had just been measured. "
            f"{suggest(metric, known)} {advice}"
        )
    _refuse_second_best(folder, found, metric, mode, advice)
    return found.path


def _refuse_second_best(
    folder: Path, found: KeptCheckpoint, metric: str, mode: Mode, advice: str
) -> None:
    """Refuse a checkpoint that is the best only of those that were kept."""
    if not is_run(folder):
        return
    try:
        point = Run(folder).best(metric, mode)
    except NoMetric:
        return
    value = found.metrics[metric]
    if point is not None and (point.value < value if mode == "min" else point.value > value):
        raise NoBestCheckpoint(
            f"The best {metric!r} of {shown(folder)} is {point.value:.6g}, at step {point.step}, and its weights were "
            f"not kept. The best checkpoint that is there is {found.path.name}, with {value:.6g}: name it to take "
            f"that one. {advice}"
        )
