"""A metric that retention goes by and that nobody logs is found out, whatever is around the fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer.callbacks import Checkpoints
from statemachine_trainer.loops import (
    ActiveLearningLoop,
    FitLoop,
    KFoldLoop,
    Phase,
    PhasesLoop,
)
from statemachine_trainer.loops.loop_errors import MissingMetric
from statemachine_trainer.snapshot import Best, Retention
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, loader


def epochs(count: int) -> FitLoop:
    return FitLoop(max_epochs=count, sanity_batches=0)


def phases(**settings: Any) -> PhasesLoop:
    return PhasesLoop(Phase("a", epochs(2)), Phase("b", epochs(2)), **settings)


def rounds() -> ActiveLearningLoop:
    return ActiveLearningLoop(fit=epochs(2), first=4, query=4, rounds=2)


def trainer_of(loop: Any, folder: Path, metric: str) -> Trainer:
    checkpoints = Checkpoints(folder / "run", retention=Retention(best=Best(metric)))
    return Trainer(loop, checkpoints=checkpoints, progress=False, device="cpu")


@pytest.mark.parametrize(
    "loop, until, path",
    [
        (phases(), "the end of epoch 3", "fit.b.next_epoch"),
        (phases(cycles=2), "the end of epoch 3", "fit.b.next_epoch"),
        (KFoldLoop(3, fit=epochs(2)), r"the end of a fold \('fit.fold_end'\)", "fit.fold_start"),
        (KFoldLoop(3, fit=phases()), r"the end of a fold \('fit.fold_end'\)", "fit.fold_start"),
        (rounds(), "the end of epoch 1", "fit.fit.next_epoch"),
    ],
    ids=["phases", "cycles", "folds", "phases in folds", "rounds"],
)
def test_a_misspelt_metric_is_an_error_as_soon_as_nothing_is_left_that_could_log_it(
    tmp_path: Path, loop: Any, until: str, path: str
) -> None:
    trainer = trainer_of(loop, tmp_path, "val_ac")
    with pytest.raises(MissingMetric, match=rf"'val_ac'.* up to {until}\. Did you mean 'val_acc'"):
        trainer.fit(Net(), loader(12), loader(8))
    assert trainer.path == path
    assert trainer.checkpoints is not None
    assert trainer.checkpoints.last is not None  # what was due is there


@pytest.mark.parametrize("metric", ["val_acc", "loss"])
@pytest.mark.parametrize("loop", [phases, rounds, lambda: KFoldLoop(2, fit=epochs(1))])
def test_a_metric_that_every_fit_logs_is_no_mistake(tmp_path: Path, loop: Any, metric: str) -> None:
    trainer = trainer_of(loop(), tmp_path, metric)
    trainer.fit(Net(), loader(12), loader(8))
    assert trainer.path is None


def test_a_metric_of_the_test_of_a_fold_is_waited_for(tmp_path: Path) -> None:
    trainer = trainer_of(KFoldLoop(3, fit=epochs(1)), tmp_path, "acc")
    trainer.on("fold_end", lambda trainer: trainer.checkpoint())
    trainer.fit(Net(), loader(12), loader(8))
    assert trainer.path is None


def test_a_metric_that_the_last_phase_alone_logs_is_waited_for_until_its_first_validation(
    tmp_path: Path,
) -> None:
    loader_of_last = {"clean": loader(4), "noisy": loader(4)}
    late = Phase("late", FitLoop(max_epochs=3, sanity_batches=0), validation=loader_of_last)
    late.loop["epoch"].validate_epochs = 2  # type: ignore[union-attr, index]
    loop = PhasesLoop(Phase("early", epochs(1)), late)
    trainer = trainer_of(loop, tmp_path, "val_acc/clean")
    trainer.fit(Net(), loader(12), loader(8))
    assert "val_acc/clean" in trainer.metrics
