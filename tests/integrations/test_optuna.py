"""Trials of Optuna: pruned as they train, and gone on with after a kill as if there had been none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from statemachine_trainer import Checkpoints, Trainer
from statemachine_trainer.integrations.optuna import Pruning, enqueue_interrupted, folder_of
from statemachine_trainer.loops.loop_errors import MissingMetric, SettingError
from tests.callbacks.kit import Net, batches, same, trainer_with, weights_of

optuna = pytest.importorskip("optuna", reason="needs the package `optuna`")
PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
VALUES = (0.5, 0.4, 0.9, 0.3)


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def study_of(storage: str | None = None) -> Any:
    """A study whose pruner ends what is above 0.8."""
    pruner = optuna.pruners.ThresholdPruner(upper=0.8)
    return optuna.create_study(study_name="it", storage=storage, pruner=pruner)


def trainer_of(trial: Any, runs: Path) -> tuple[Trainer, Pruning]:
    pruning = Pruning(trial, "score")
    checkpoints = Checkpoints(folder_of(trial, runs), every=3)
    return trainer_with(checkpoints, max_epochs=4, callbacks=[pruning]), pruning


def train(trainer: Trainer) -> None:
    trainer.fit(Net(values=VALUES), batches(), batches(1), resume="auto")


def test_a_trial_is_pruned_with_the_epoch_in_which_it_is_worse(tmp_path: Path) -> None:
    study = study_of()

    def objective(trial: Any) -> float:
        trainer, pruning = trainer_of(trial, tmp_path)
        train(trainer)
        assert trainer.path is None
        assert trainer.epoch == 3
        pruning.raise_if_pruned()
        return 0.0

    study.optimize(objective, n_trials=1)
    assert study.trials[0].state is optuna.trial.TrialState.PRUNED
    assert study.trials[0].intermediate_values == {0: 0.5, 1: 0.4, 2: 0.9}


@pytest.mark.parametrize("stop", [2, 8, 13, 20, 24])
def test_a_trial_that_was_killed_goes_on_as_if_it_had_not_been(stop: int, tmp_path: Path) -> None:
    whole = study_of()
    undisturbed, _ = trainer_of(whole.ask(), tmp_path / "whole")
    train(undisturbed)

    storage, runs = f"sqlite:///{tmp_path}/search.db", tmp_path / "runs"
    study = study_of(storage)
    study.enqueue_trial({"lr": 0.25})
    trial = study.ask()
    assert trial.suggest_float("lr", 0, 1) == 0.25
    first, _ = trainer_of(trial, runs)
    first.on("batch_end", first.pause, when=lambda one: one.steps == stop)
    train(first)
    first.checkpoint()
    del first  # the process is gone

    again = optuna.load_study(study_name="it", storage=storage, pruner=study.pruner)
    assert enqueue_interrupted(again, runs) == [0]
    trial = again.ask()
    assert trial.suggest_float("lr", 0, 1) == 0.25
    second, pruning = trainer_of(trial, runs)
    train(second)
    assert pruning.pruned
    assert same(weights_of(second), weights_of(undisturbed))
    assert again.trials[1].intermediate_values == {0: 0.5, 1: 0.4, 2: 0.9}
    assert [one.name for one in runs.iterdir()] == ["trial-0000"]


def test_a_metric_that_is_never_logged_is_an_error(tmp_path: Path) -> None:
    trainer = trainer_with(None, callbacks=[Pruning(optuna.create_study().ask(), "scoer")])
    with pytest.raises(MissingMetric, match=r"^Pruning monitors 'scoer'.*Did you mean 'score'"):
        trainer.fit(Net(values=VALUES), batches(), batches(1))


@pytest.mark.parametrize("what", [None, "trial", optuna.create_study, {"lr": 0.1}])
def test_what_is_no_trial_is_refused(what: Any) -> None:
    with pytest.raises(SettingError, match="give the trial"):
        Pruning(what, "score")


def test_a_study_with_several_objectives_is_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(SettingError, match="several objectives"):
        Pruning(study.ask(), "score")


def test_a_fixed_trial_trains_to_its_end() -> None:
    pruning = Pruning(optuna.trial.FixedTrial({}), "score")
    trainer_with(None, max_epochs=4, callbacks=[pruning]).fit(
        Net(values=VALUES), batches(), batches(1)
    )
    assert not pruning.pruned


def test_the_page_searches_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(block, names)
    names["search"](2)
    study = names["search"](1)
    assert len(study.trials) == 3
    assert study.best_value < 10
    assert len([*(tmp_path / "runs" / "search").iterdir()]) == 3
    assert torch.isfinite(torch.tensor(study.best_value))
