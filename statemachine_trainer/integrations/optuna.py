"""Optuna: trials that are pruned as they train, and that go on after their process was killed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from statemachine_trainer.callbacks.early_stopping import EarlyStopping
from statemachine_trainer.files import path_given
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.observe.run import Run, is_run

if TYPE_CHECKING:  # only who uses this module needs the package
    import optuna

_GOES_ON = "goes on from"
"""The attribute of a trial with the number of the one that it goes on from."""


class Pruning(EarlyStopping):
    """Reports a metric to a trial of Optuna, and asks the fit to stop when the trial is to be pruned.

    A value is reported once, with the number of its epoch, from 0. What was reported is in checkpoints. A trial that
    goes on is told it again, so that it is judged as one that was never interrupted.

    Example:
        >>> Pruning(trial, "val_loss")  # doctest: +SKIP

    Args:
        trial: The trial.
        monitor: Name of the metric, as it was logged.
        check: When to look: at "epoch_end" or at "validation_end".

    Attributes:
        pruned: Whether the pruner of the study has decided so.
        reported: The values so far, by epoch.

    Raises:
        SettingError: A setting out of its range.
    """

    def __init__(
        self,
        trial: optuna.Trial,
        monitor: str,
        *,
        check: Literal["epoch_end", "validation_end"] = "epoch_end",
    ) -> None:
        self.trial = trial
        mode = _better(trial)
        super().__init__(monitor, mode=mode, check=check, check_finite=False)

    def __repr__(self) -> str:
        return f"Pruning(trial {self.trial.number}, {self.monitor!r}, pruned={self.pruned})"

    def reset(self) -> None:
        """Forget everything, as at the beginning of a new run."""
        super().reset()
        self.pruned = False
        self.reported: dict[int, float] = {}

    @property
    def asks_to_stop(self) -> bool:
        """Whether it has asked the fit to stop."""
        return self.pruned

    def on_fit(self, trainer: Any) -> None:
        """Begin anew with a new run."""
        if trainer.context.counts.batch == 0:
            self.reset()

    def raise_if_pruned(self) -> None:
        """End the trial as pruned, after the fit.

        Raises:
            optuna.TrialPruned: The fit was stopped for that.
        """
        if self.pruned:
            raise import_module("optuna").TrialPruned(self.reason)

    def look(self, trainer: Any, moment: Moment) -> None:
        """Report the metric, and post `stop` if the trial is to be pruned.

        Raises:
            MissingMetric: It was never logged.
        """
        if moment.path.partition(".")[0] != "fit":
            return  # an evaluation by itself
        value = self._new_value(trainer.context, trainer.metrics)
        if value is None:
            return
        epoch = trainer.context.counts.epoch
        self.reported[epoch] = value
        if self._improves(value):
            self.best, self.best_epoch = value, epoch
        self.trial.report(value, epoch)
        if self.trial.should_prune():
            self.pruned = True
            self._stop(trainer, f"{self.monitor}={value:.6g} in epoch {epoch + 1}: Optuna prunes")

    def state_dict(self) -> dict[str, Any]:
        """Return what was reported so far."""
        return {
            **super().state_dict(),
            "pruned": self.pruned,
            "reported": dict(self.reported),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, and report it to a trial that does not know it yet."""
        super().load_state_dict(state)
        self.pruned = state["pruned"]
        self.reported = dict(state["reported"])
        study = getattr(self.trial, "study", None)
        if study is None:
            return  # a fixed trial, which keeps nothing
        known = study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        for epoch, value in self.reported.items():
            if epoch not in known:
                self.trial.report(value, epoch)


def _better(trial: Any) -> Literal["min", "max"]:
    """Return whether less or more is better in the study of a trial.

    Raises:
        SettingError: It is no trial, or one of a study with several objectives.
    """
    if not (callable(getattr(trial, "report", None)) and hasattr(trial, "number")):
        raise SettingError(
            f"Pruning({trial!r}, ...): give the trial that Optuna hands to the objective, or study.ask()."
        )
    study = getattr(trial, "study", None)  # a fixed trial has none
    directions = [] if study is None else study.directions
    if len(directions) > 1:
        raise SettingError(
            "Pruning(...): this study has several objectives, and Optuna prunes only where there is one."
        )
    return "max" if directions and directions[0].name == "MAXIMIZE" else "min"


def folder_of(trial: optuna.Trial, runs: str | Path) -> Path:
    """Return the folder of a trial: that of the trial which it goes on from, if it does.

    Args:
        trial: The trial.
        runs: The folder of the study, such as "runs/search".
    """
    first = trial.user_attrs.get(_GOES_ON, trial.number)
    return path_given(runs) / f"trial-{first:04d}"


def enqueue_interrupted(study: optuna.Study, runs: str | Path) -> list[int]:
    """Let the study go on with the trials whose process was killed, before it begins others.

    Such a trial is told to have failed. A new one with its hyperparameters waits in the queue; it has the same
    folder, so that `fit(..., resume="auto")` goes on from its newest checkpoint. Trials that are training in another
    process are left alone, and so are those without a folder, of which nobody knows.

    Args:
        study: A study with a storage that outlives a process, such as "sqlite:///search.db".
        runs: As for `folder_of`.

    Returns:
        The numbers of the trials that will be gone on with.
    """
    found, states = [], import_module("optuna.trial").TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        first = trial.user_attrs.get(_GOES_ON, trial.number)
        folder = path_given(runs) / f"trial-{first:04d}"
        if not is_run(folder) or Run(folder).status == "running":
            continue
        study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, _GOES_ON: first})
        study.tell(trial.number, state=states.FAIL)
        found.append(trial.number)
    return found
