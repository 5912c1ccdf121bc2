"""Quick checks: a fit of a few batches to find mistakes, and one on the same few batches over and over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from statemachine_trainer.data import BadLimit
from statemachine_trainer.loops.base import check_limit, training_loops
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.loops.evaluation import (
    EvaluationLoop,
    PredictionLoop,
    SanityLoop,
    TestLoop,
    ValidationLoop,
)
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.settings_checks import is_whole, refuse
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.running.arguments import Given
from statemachine_trainer.snapshot import Best

T = TypeVar("T")
_MEASURED = (ValidationLoop, TestLoop, PredictionLoop)


class QuickChecks:
    """What `Trainer(fast_dev_run=..., overfit_batches=...)` changes.

    It acts on the loops of the trainer, those inside other loops and those swapped in later included, whenever a fit or
    an evaluation begins.

    Args:
        fast_dev_run: One epoch of so many batches, True for one, and as many of each evaluation; without sanity check,
            checkpoints, folder of the run and trackers, and without the limits that were given. What names a checkpoint
            is left out.
        overfit_batches: Train on so many batches, the same in each epoch: an int, or a float for a fraction. Loaders
            that shuffle are read in order. Validation takes as many batches of its own data.

    Raises:
        SettingError: One is out of its range, or both are given.
    """

    def __init__(self, fast_dev_run: bool | int, overfit_batches: int | float) -> None:
        if not isinstance(fast_dev_run, bool) and not is_whole(fast_dev_run):
            refuse(
                "Trainer", "fast_dev_run", fast_dev_run,
                "use True for one batch, or how many batches; False or 0 for a usual run.",
            )  # fmt: skip
        try:
            check_limit(overfit_batches, "train")
        except BadLimit:
            refuse(
                "Trainer", "overfit_batches", overfit_batches,
                "use how many batches, or a float between 0 and 1 for a fraction of them.",
            )  # fmt: skip
        if overfit_batches is None:
            refuse("Trainer", "overfit_batches", None, "use 0 for a usual run.")
        self.dev_batches = int(fast_dev_run)
        self.overfit_batches = overfit_batches
        if self.dev_batches and overfit_batches:
            raise SettingError(
                f"Trainer(fast_dev_run={fast_dev_run!r}, overfit_batches={overfit_batches!r}): a dev run has one epoch "
                "of its own number of batches. Leave one of them out."
            )

    @property
    def overfits(self) -> bool:
        """Whether the fit trains on the same few batches in each epoch."""
        return bool(self.overfit_batches)

    def unless_dev_run(self, one: T, otherwise: T) -> T:
        """Return what was given, unless a dev run goes without it."""
        return otherwise if self.dev_batches else one

    def callbacks(self, given: Iterable[object]) -> list[object]:
        """Return the callbacks; those of a dev run without trackers (`writes_records = True`)."""
        return [
            one for one in given if not (self.dev_batches and getattr(one, "writes_records", False))
        ]

    def given(self, given: Given) -> Given:
        """Return the arguments of `fit`; those of a dev run name no checkpoint."""
        if not self.dev_batches:
            return given
        return replace(given, resume=None, fresh=(), restore_best=False)

    def checkpoint(self, checkpoint: str | Path | Best | None) -> str | Path | Best | None:
        """Return the argument of an evaluation: there are no checkpoints of a dev run."""
        ours = isinstance(checkpoint, Best) or checkpoint in ("best", "newest")
        return None if self.dev_batches and ours else checkpoint

    def shorten(self, root: Loop) -> None:
        """Set the limits of the loops of a tree.

        Raises:
            SettingError: A loop that overfits has a limit already.
        """
        if not (self.dev_batches or self.overfit_batches):
            return
        for path, loop in training_loops(root):
            if self.dev_batches:
                self._shorten_dev_run(loop)
            elif isinstance(loop, EpochLoop | ValidationLoop):
                self._limit(loop, path)

    def _shorten_dev_run(self, loop: Loop) -> None:
        if isinstance(loop, FitLoop):
            loop.max_epochs, loop.max_batches = 1, self.dev_batches
            loop.max_steps = loop.max_time = None
            loop.min_epochs = loop.min_steps = 0
        elif isinstance(loop, EpochLoop):
            loop.limit_batches = self.dev_batches
            loop.validate_every, loop.validate_epochs = 1.0, 1
        elif isinstance(loop, SanityLoop):
            loop.batches = 0
        elif isinstance(loop, _MEASURED):
            loop.limit_batches = self.dev_batches

    def _limit(self, loop: EpochLoop | EvaluationLoop, path: str) -> None:
        limit = loop.limit_batches
        if limit not in (None, 1.0, self.overfit_batches):
            raise SettingError(
                f"Trainer(overfit_batches={self.overfit_batches!r}) says how many batches there are, and so does "
                f"limit_batches={limit!r} of {path!r}. Leave one of them out."
            )
        loop.limit_batches = self.overfit_batches
