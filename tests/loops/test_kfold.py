"""K-fold: each fold begins afresh, nothing leaks, and any fold can be resumed in its middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.callbacks import EarlyStopping
from statemachine_trainer.data import BadSource
from statemachine_trainer.loops import FitLoop, KFoldLoop, TrainingLoop
from statemachine_trainer.loops.loop_errors import ModelError, SettingError
from statemachine_trainer.loops.recipes.kfold import NoEnsemble, make_folds
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, digits, loader, samples


def kfold(folds: Any = 3, *, epochs: int = 2, **settings: Any) -> KFoldLoop:
    return KFoldLoop(folds, fit=FitLoop(max_epochs=epochs, sanity_batches=1), **settings)


def trainer_of(loop: TrainingLoop, **settings: Any) -> Trainer:
    return Trainer(loop, progress=False, **settings)


def digest(model: torch.nn.Module) -> float:
    return float(sum(value.double().sum() for value in model.state_dict().values()))


# -- what happens --------------------------------------------------------------------------------


def test_each_sample_is_left_out_once_and_never_trained_on_in_that_fold() -> None:
    trainer = trainer_of(kfold(4))
    trainer.fit(Net(), loader(14))
    left_out = torch.cat([test for _, test in trainer.loop.folds])
    assert sorted(left_out.tolist()) == list(range(14))
    for train, test in trainer.loop.folds:
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(14))


def test_every_fold_begins_with_the_first_weights_new_optimizers_and_counters() -> None:
    trainer, seen = trainer_of(kfold()), []

    @trainer.on("fit.fit.fit_start")
    def look(trainer: Trainer) -> None:
        slot = trainer.context.slots[0]
        rate, state = slot.optimizer.param_groups[0]["lr"], len(slot.optimizer.state)
        seen.append((digest(trainer.model), trainer.steps, trainer.epoch, rate, state))

    model = Net()
    trainer.fit(model, loader())
    assert seen == [seen[0]] * 3
    assert seen[0][1:] == (0, 0, 0.02, 0)
    assert digest(model) == seen[0][0]


def test_max_steps_counts_within_each_fold() -> None:
    trainer, steps = trainer_of(KFoldLoop(3, fit=FitLoop(max_steps=3))), []
    trainer.on("fit.test", lambda trainer: steps.append(trainer.steps))
    trainer.fit(Net(), loader())
    assert steps == [3, 3, 3]


def test_a_stop_ends_the_fit_of_the_present_fold_only() -> None:
    trainer, epochs = trainer_of(kfold(epochs=3)), []
    trainer.on("epoch_end", lambda trainer: trainer.stop(), once=True)
    trainer.on("fit.test", lambda trainer: epochs.append(trainer.epoch))
    trainer.fit(Net(), loader())
    assert epochs == [1, 3, 3]


def test_a_stop_posted_in_the_test_of_a_fold_does_not_stop_the_next() -> None:
    trainer, epochs = trainer_of(kfold(epochs=3)), []
    trainer.on("fit.test.test_step", lambda trainer: trainer.stop(), once=True)
    trainer.on("fit.test", lambda trainer: epochs.append(trainer.epoch))
    trainer.fit(Net(), loader())
    assert epochs == [3, 3, 3]


def test_early_stopping_begins_anew_with_each_fold() -> None:
    stopping = EarlyStopping("never_better", patience=1)
    trainer, epochs = trainer_of(kfold(epochs=5), callbacks=[stopping]), []
    trainer.on("fit.test", lambda trainer: epochs.append((trainer.epoch, stopping.best)))

    class Flat(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("never_better", 1.0)  # type: ignore[operator]
            return super().training_step(batch, batch_idx)

    trainer.fit(Flat(), loader())
    assert epochs == [(2, 1.0)] * 3


def test_scores_have_mean_deviation_and_the_ensemble() -> None:
    trainer = trainer_of(kfold(test_data=loader(30, shuffle=False, seed=1)))
    metrics = trainer.fit(Net(), loader())
    values = torch.tensor([one["acc"] for one in trainer.loop.scores], dtype=torch.float64)
    assert metrics["acc/mean"] == pytest.approx(values.mean().item())
    assert metrics["acc/std"] == pytest.approx(values.std().item())
    assert 0 <= metrics["acc/ensemble"] <= 1


@pytest.mark.parametrize("combine", ["mean", "vote", lambda outputs: outputs.mean(0)])
def test_an_ensemble_of_the_same_model_is_that_model(combine: Any) -> None:
    test = loader(30, shuffle=False, seed=1)
    loop = KFoldLoop(2, fit=FitLoop(max_steps=1), test_data=test, ensemble=combine)
    trainer = trainer_of(loop)

    @trainer.on("fit.ensemble.ensemble_start")
    def make_them_equal(trainer: Trainer) -> None:
        loop.ensemble.models = [loop.models[1]] * 3  # type: ignore[attr-defined]

    metrics = trainer.fit(Net(), loader())
    loop.load(1)
    assert metrics["acc/ensemble"] == trainer.test(trainer.model, test)["acc"]


def test_a_second_fit_does_it_all_again() -> None:
    trainer = trainer_of(kfold())
    model, data = Net(), loader()
    trainer.fit(model, data)
    folds = [test.tolist() for _, test in trainer.loop.folds]
    trainer.fit(model, data)
    assert len(trainer.loop.models) == 3
    assert [test.tolist() for _, test in trainer.loop.folds] == folds


# -- how the data are divided --------------------------------------------------------------------


def test_stratified_folds_have_the_same_share_of_each_label() -> None:
    labels = [0] * 20 + [1] * 10 + [2] * 5
    for _, test in make_folds(35, 5, labels=labels):
        assert [[labels[i] for i in test].count(label) for label in (0, 1, 2)] == [4, 2, 1]


def test_no_group_is_on_both_sides() -> None:
    groups = [i // 3 for i in range(30)]
    for train, test in make_folds(30, 4, groups=groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert 6 <= len(test) <= 9


def test_repeats_divide_anew_and_the_seed_decides() -> None:
    def out(**settings: Any) -> list[list[int]]:
        return [test.tolist() for _, test in make_folds(20, 2, **settings)]

    twice = out(repeats=2)
    assert len(twice) == 4
    assert twice[:2] != twice[2:]
    assert twice == out(repeats=2)
    assert out(shuffle=False) == [list(range(0, 20, 2)), list(range(1, 20, 2))]


def test_the_global_generators_have_no_part_in_the_division() -> None:
    before = torch.get_rng_state()
    make_folds(20, 2, repeats=2)
    assert torch.equal(before, torch.get_rng_state())


def test_splitters_of_scikit_learn_are_accepted() -> None:
    from sklearn.model_selection import GroupKFold, StratifiedShuffleSplit

    trainer = trainer_of(
        kfold(StratifiedShuffleSplit(2, test_size=6, random_state=0), stratify=True)
    )
    trainer.fit(Net(), loader(30))
    assert [len(test) for _, test in trainer.loop.folds] == [6, 6]
    trainer = trainer_of(kfold(GroupKFold(3), groups=[i // 2 for i in range(12)]))
    trainer.fit(Net(), loader())
    assert all({i ^ 1 for i in test.tolist()} == {*test.tolist()} for _, test in trainer.loop.folds)


# -- mistakes ------------------------------------------------------------------------------------


def test_what_cannot_be_divided_is_refused_with_a_way_out() -> None:
    with pytest.raises(SettingError, match="fewer folds"):
        trainer_of(kfold(5)).fit(Net(), loader(4))
    with pytest.raises(SettingError, match="StratifiedGroupKFold"):
        trainer_of(kfold(stratify=True, groups=[0] * 12)).fit(Net(), loader())
    with pytest.raises(BadSource, match="DataLoader over a data set"):
        trainer_of(kfold()).fit(Net(), [samples()[:4]])
    with pytest.raises(SettingError, match="'mean', 'vote'"):
        kfold(ensemble="median")


def test_a_sampler_of_ones_own_needs_a_function_that_makes_loaders() -> None:
    weighted = DataLoader(samples(), sampler=WeightedRandomSampler([1.0] * 12, 12))
    with pytest.raises(BadSource, match="make_loader"):
        trainer_of(kfold()).fit(Net(), weighted)
    loop = kfold(make_loader=lambda part: DataLoader(part, batch_size=3))
    trainer_of(loop).fit(Net(), weighted)
    assert len(loop.models) == 3


def test_an_optimizer_that_was_made_once_is_refused() -> None:
    model = Net()
    with pytest.raises(SettingError, match="lambda parameters"):
        trainer_of(kfold()).fit(
            model, loader(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
        )


def test_a_fit_without_a_limit_is_refused() -> None:
    with pytest.raises(SettingError, match="never end"):
        trainer_of(KFoldLoop(3)).fit(Net(), loader())


# -- resuming ------------------------------------------------------------------------------------


def make_trainer() -> Trainer:
    loop = KFoldLoop(
        2, fit=FitLoop(max_epochs=1, sanity_batches=1), test_data=loader(4, shuffle=False, seed=1)
    )
    stopping = EarlyStopping("loss", patience=1)
    trainer = Trainer(loop, callbacks=[stopping], progress=False)
    trainer.start(Net(), loader(12), loader(4, shuffle=False, seed=2))
    return trainer


def test_k_fold_is_resumed_to_the_same_bits() -> None:
    assert_resumable(make_trainer, examples=5, stops_per_run=2, seed=0)


@pytest.mark.slow
def test_k_fold_is_resumed_to_the_same_bits_at_every_boundary() -> None:
    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 50


def test_a_run_killed_in_the_second_fold_leaks_nothing_into_the_third(tmp_path: Any) -> None:
    """Conformance case 25: the third fold begins with the very first weights."""

    def begun(trainer: Trainer) -> list[float]:
        seen: list[float] = []
        trainer.on("fit.fit.fit_start", lambda trainer: seen.append(digest(trainer.model)))
        return seen

    model, data = Net(), loader(18)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    whole = trainer_of(kfold())
    undisturbed = begun(whole)
    whole.fit(model, data)

    model.load_state_dict(first)
    torch.manual_seed(3)
    killed = trainer_of(kfold(), checkpoints=tmp_path / "run")

    @killed.on("batch_end")
    def stop_in_the_second_fold(trainer: Trainer) -> None:
        if trainer.loop.fold == 1 and trainer.context.counts.batch == 4:
            trainer.checkpoint()
            trainer.pause()

    killed.fit(model, data)
    assert killed.loop.fold == 1

    resumed = trainer_of(kfold(), checkpoints=tmp_path / "run")
    seen = begun(resumed)
    resumed.fit(Net(), data, resume="auto")
    assert seen == undisturbed[2:]
    assert resumed.loop.scores == whole.loop.scores
    assert resumed.metrics == whole.metrics


# -- worth it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_ensemble_is_better_than_the_mean_of_its_folds_on_the_digits() -> None:
    inputs, labels = digits()
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(inputs[:500], labels[:500]), batch_size=32, shuffle=True)
    test = DataLoader(TensorDataset(inputs[500:], labels[500:]), batch_size=1297)
    loop = KFoldLoop(5, stratify=True, fit=FitLoop(max_epochs=15), test_data=test)
    trainer = trainer_of(loop)
    ensemble = trainer.fit(Net(64, 64, 10), train)["acc/ensemble"]
    alone = []
    for fold in range(5):
        loop.load(fold)
        alone.append(trainer.test(trainer.model, test)["acc"])
    assert ensemble > sum(alone) / 5


def test_a_model_without_a_test_step_is_told_what_it_is_for_before_the_first_fit() -> None:
    class Untested(torch.nn.Linear):
        def training_step(self, batch: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = trainer_of(kfold())
    with pytest.raises(ModelError, match=r"on the part that it left out: write test_step"):
        trainer.fit(Untested(4, 3), loader())
    assert trainer.steps == 0


@pytest.mark.parametrize("ensemble", ["vote", "mean"])
def test_an_ensemble_without_test_data_is_told(ensemble: str) -> None:
    loop = KFoldLoop(2, fit=FitLoop(max_epochs=1), ensemble=ensemble)
    trainer = Trainer(loop, progress=False)
    with pytest.warns(NoEnsemble, match="no test_data") as told:
        trainer.fit(Net(), loader())
    assert told[0].filename == __file__


def test_a_fold_that_there_is_not_is_an_error_of_settings() -> None:
    loop = KFoldLoop(2, fit=FitLoop(max_epochs=1))
    with pytest.raises(SettingError, match="no fold has ended yet"):
        loop.load(0)
    Trainer(loop, progress=False).fit(Net(), loader())
    with pytest.raises(SettingError, match="2 folds have ended, from 0 to 1"):
        loop.load(2)


def test_another_number_of_folds_at_a_resume_is_told_and_that_of_the_checkpoint_holds(
    tmp_path: Path,
) -> None:
    def trainer(folds: int) -> Trainer:
        loop = KFoldLoop(folds, fit=FitLoop(max_epochs=1))
        return Trainer(loop, progress=False, checkpoints=tmp_path)

    trainer(2).fit(Net(), loader(), until="fold_end")
    again = trainer(3)
    with pytest.warns(SettingsChanged, match=r"folds was 2, is 3 now\. The checkpoint's holds"):
        again.fit(Net(), loader(), resume="auto")
    assert len(again.loop.scores) == 2
