"""Active learning: what is asked for, who labels it, when it ends, and that it can be resumed."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from statemachine_trainer.loops import ActiveLearningLoop, FitLoop, LabelFolder
from statemachine_trainer.loops.loop_errors import MissingMetric, SettingError
from statemachine_trainer.loops.recipes.acquisition import (
    SameDraws,
    bald,
    choose,
    entropy,
    margin,
)
from statemachine_trainer.loops.recipes.labelling import BadLabels, check_labels
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.trainer import Trainer
from tests.loops.fold_kit import Net, digits, loader, samples


def learning(*, epochs: int = 2, **settings: Any) -> ActiveLearningLoop:
    settings = {"first": 6, "query": 4, "budget": 14, **settings}
    return ActiveLearningLoop(fit=FitLoop(max_epochs=epochs, sanity_batches=0), **settings)


def trainer_of(loop: ActiveLearningLoop, **settings: Any) -> Trainer:
    return Trainer(loop, progress=False, **settings)


class Unlabelled(Dataset[torch.Tensor]):
    """What a person would be asked about: inputs alone."""

    def __init__(self, size: int) -> None:
        self.inputs, self.answers = samples(size).tensors

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inputs[index]


# -- rounds --------------------------------------------------------------------------------------


def test_the_budget_is_spent_and_not_exceeded() -> None:
    trainer = trainer_of(learning(budget=12))
    trainer.fit(Net(), loader(30))
    loop = trainer.loop
    assert [one["labels"] for one in loop.history] == [6, 10, 12]
    assert len(set(loop.indices)) == 12
    hidden = samples(30).tensors[1]
    assert loop.labels == hidden[loop.indices].tolist()


def test_the_rounds_are_not_exceeded() -> None:
    trainer = trainer_of(learning(rounds=2, budget=None))
    trainer.fit(Net(), loader(30))
    assert [one["labels"] for one in trainer.loop.history] == [6, 10]


def test_without_a_budget_the_whole_pool_is_labelled() -> None:
    trainer = trainer_of(learning(budget=None))
    trainer.fit(Net(), loader(12))
    assert sorted(trainer.loop.indices) == list(range(12))


def test_a_target_ends_it_early() -> None:
    trainer = trainer_of(learning(target=lambda metrics: metrics["val_acc"] >= 0))
    trainer.fit(Net(), loader(30), loader(8, seed=1))
    assert len(trainer.loop.history) == 1
    with pytest.raises(MissingMetric, match="val_acc"):
        trainer_of(learning(target=("val_ac", 0.9))).fit(Net(), loader(30), loader(8, seed=1))


@pytest.mark.parametrize("fresh", [True, False])
def test_each_fit_begins_with_the_first_weights_unless_told_otherwise(fresh: bool) -> None:
    trainer, seen = trainer_of(learning(fresh_weights=fresh)), []
    trainer.on("fit_start", lambda t: seen.append(t.model[0].weight.sum().item()))
    trainer.on("fit_start", lambda t: seen.append(t.steps))
    trainer.fit(Net(), loader(30))
    assert (len(set(seen[0::2])) == 1) is fresh
    assert seen[1::2] == [0, 0, 0]


def test_only_labelled_samples_are_trained_on_and_only_the_others_are_scored() -> None:
    trainer = trainer_of(learning())

    @trainer.on("scoring")
    def look(trainer: Trainer) -> None:
        train: Any = trainer.context.train.loader
        assert len(train.dataset) == len(trainer.loop.indices)
        assert not set(trainer.loop.pool) & set(trainer.loop.indices)
        assert len(trainer.loop.pool) + len(trainer.loop.indices) == 30

    trainer.fit(Net(), loader(30))


def test_the_same_samples_are_never_asked_for_twice() -> None:
    asked: list[int] = []

    def ask(indices: Sequence[int], _dataset: Any) -> list[int]:
        asked.extend(indices)
        return [0] * len(indices)

    trainer_of(learning(labeller=ask, budget=None)).fit(Net(), loader(30))
    assert sorted(asked) == list(range(30))


def test_labels_known_at_the_beginning_are_not_asked_for() -> None:
    trainer = trainer_of(learning(first={3: 0, 5: 1, 8: 2, 9: 0}, budget=4))
    trainer.fit(Net(), loader(30))
    assert trainer.loop.indices == [3, 5, 8, 9]
    assert trainer.loop.labels == [0, 1, 2, 0]


# -- acquisition ---------------------------------------------------------------------------------


def test_entropy_and_margin_prefer_what_the_model_is_unsure_of() -> None:
    sure, torn, unsure = [0.98, 0.01, 0.01], [0.5, 0.49, 0.01], [0.34, 0.33, 0.33]
    pool = torch.tensor([sure, torn, unsure])
    assert entropy(pool).argsort().tolist() == [0, 1, 2]
    assert margin(pool).argmax() in (1, 2)
    assert choose("entropy", pool, 2) == [2, 1]


def test_bald_prefers_disagreement_over_noise() -> None:
    noise = torch.full((2, 4), 0.5)
    disagreement = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    scores = bald(torch.stack([noise, disagreement]))
    assert scores.tolist() == pytest.approx([0.0, 0.6931472], abs=1e-6)
    with pytest.raises(SettingError, match="mc_samples=20"):
        bald(torch.ones(3, 2))


def test_bald_sees_several_predictions_with_dropout() -> None:
    shapes = []

    def look(probabilities: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(probabilities.shape))
        assert probabilities.std(dim=2).max() > 0
        assert probabilities.sum(dim=1).allclose(torch.ones(()))
        return bald(probabilities)

    trainer_of(learning(acquisition=look, mc_samples=5, budget=10)).fit(Net(), loader(30))
    assert shapes == [(24, 3, 5)]


def test_a_heuristic_that_ranks_by_itself_is_accepted() -> None:
    class Last:
        """As a heuristic of BaaL: ranks and scores of an array."""

        def get_ranks(self, predictions: np.ndarray[Any, Any]) -> Any:
            return np.arange(len(predictions))[::-1], None

    trainer = trainer_of(learning(acquisition=Last(), first=range(6), budget=10))
    trainer.fit(Net(), loader(30))
    assert trainer.loop.indices[6:] == [29, 28, 27, 26]


def test_a_wrong_acquisition_is_refused() -> None:
    with pytest.raises(SettingError, match="entropy"):
        learning(acquisition="entropie")
    with pytest.raises(SettingError, match="one score for each sample"):
        trainer_of(learning(acquisition=lambda p: p)).fit(Net(), loader(30))
    with pytest.raises(SettingError, match="none of them twice"):
        trainer_of(learning(first=[1, 1])).fit(Net(), loader(30))


# -- people --------------------------------------------------------------------------------------


def answer(folder: Path, wrong: int = 0) -> None:
    """Do what a person does: answer the newest question."""
    question = max(folder.glob("question-*.json"))
    indices = json.loads(question.read_text())["indices"]
    labels = {str(i + wrong): int(Unlabelled(30).answers[i]) for i in indices}
    (folder / question.name.replace("question", "answer")).write_text(json.dumps(labels))


def rounds_by_hand(folder: Path, fit: Any) -> Trainer:
    """Answer until it is over; `fit` is called once more after each answer."""
    for _ in range(5):
        trainer: Trainer = fit()
        if trainer.path is None:
            return trainer
        assert trainer.path == "fit.labelling"
        assert trainer.driver.resting
        answer(folder)
    raise AssertionError("it does not end")


def test_the_machine_rests_until_a_person_has_answered(tmp_path: Path) -> None:
    trainer = trainer_of(learning(labeller=tmp_path))
    model, pool = Net(), DataLoader(Unlabelled(30), batch_size=4, shuffle=True)
    trainer.fit(model, pool)
    assert trainer.run() is None
    assert trainer.path == "fit.labelling"

    def fit() -> Trainer:
        trainer.fit(model)
        return trainer

    assert rounds_by_hand(tmp_path, fit).driver.outcome == "fit_done"
    assert [one["labels"] for one in trainer.loop.history] == [6, 10, 14]


def test_the_process_may_end_while_a_person_labels(tmp_path: Path) -> None:
    first = Net().state_dict()

    def start(name: str, **settings: Any) -> Trainer:
        """Begin, or go on, as a new process does."""
        torch.manual_seed(2)
        model, pool = Net(), DataLoader(Unlabelled(30), batch_size=4, shuffle=True)
        model.load_state_dict(first)
        trainer = trainer_of(learning(labeller=str(tmp_path / name)), **settings)
        trainer.fit(model, pool, resume="auto" if settings else None)
        return trainer

    whole = start("whole")
    while whole.path is not None:
        answer(tmp_path / "whole")
        whole.run()

    ended = rounds_by_hand(tmp_path / "ended", lambda: start("ended", checkpoints=tmp_path / "run"))
    assert ended.loop.indices == whole.loop.indices
    assert ended.loop.history == whole.loop.history


def test_answers_to_another_question_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of(learning(labeller=LabelFolder(tmp_path)))
    trainer.fit(Net(), loader(30))
    answer(tmp_path, wrong=100)
    with pytest.raises(BadLabels, match="was not asked for"):
        trainer.run()
    answer(tmp_path)
    trainer.run()
    assert len(trainer.loop.indices) == 10 - 4


def test_a_labeller_that_returns_too_few_labels_is_an_error() -> None:
    with pytest.raises(BadLabels, match="1 labels for 6 samples"):
        trainer_of(learning(labeller=lambda _indices, _data: [0])).fit(Net(), loader(30))


# -- resuming ------------------------------------------------------------------------------------


def make_trainer() -> Trainer:
    loop = learning(epochs=1, acquisition="bald", mc_samples=3, first=4, query=3, budget=10)
    trainer = Trainer(loop, progress=False)
    trainer.start(Net(), loader(14), loader(4, shuffle=False, seed=2))
    return trainer


def test_active_learning_is_resumed_to_the_same_bits() -> None:
    assert_resumable(make_trainer, examples=5, stops_per_run=2, seed=0)


@pytest.mark.slow
def test_active_learning_is_resumed_to_the_same_bits_at_every_boundary() -> None:
    report = assert_resumable(make_trainer, exhaustive=True)
    assert len(report.tried) == report.possible > 50


# -- worth it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_asking_for_what_is_useful_beats_chance_on_the_digits() -> None:
    inputs, labels = digits()
    found: dict[str, list[float]] = {"random": [], "bald": []}
    for name, accuracies in found.items():
        for seed in range(5):
            torch.manual_seed(seed)
            pool = TensorDataset(inputs[:1000], labels[:1000])
            validation = DataLoader(TensorDataset(inputs[1000:], labels[1000:]), batch_size=797)
            loop = learning(epochs=40, acquisition=name, first=20, query=20, budget=120, seed=seed)
            loop["fit.epoch"].validate_epochs = 40  # type: ignore[attr-defined]
            trainer = trainer_of(loop)
            metrics = trainer.fit(
                Net(64, 64, 10), DataLoader(pool, batch_size=16, shuffle=True), validation
            )
            accuracies.append(metrics["val_acc"])
    gain = statistics.fmean(found["bald"]) - statistics.fmean(found["random"])
    assert gain > 0, found


# -- what people and functions answer --------------------------------------------------------------


def rests_with(folder: Path, **settings: Any) -> tuple[Trainer, list[int]]:
    """A run that waits for its first answer, and the samples that it asks about."""
    torch.manual_seed(0)
    loop = learning(labeller=str(folder), **settings)
    trainer = trainer_of(loop)
    trainer.fit(Net(), loader(30))
    return trainer, [*loop.asked]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda i, text: text.replace("}", f', "{i}": 0}}'), r"has two labels for \d+: 1 and 0"),
        (
            lambda i, text: text.replace(f'"{i}": 1', f'"{i}": true'),
            r"is True: write .* from 0 to 2",
        ),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": null'), "is None: it has none"),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": NaN'), "finite number"),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": 7'), "tells 3 classes apart, 0 to 2"),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": -1'), "tells 3 classes apart"),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": "cat"'), "the number of the class"),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": 1.0'), "the number of the class"),
        (lambda i, text: text.replace(f'"{i}": 1', f'"{i}": {{}}'), "is an object"),
        (lambda i, text: text.replace(f'"{i}": 1', '"first": 1'), "its key 'first' is no index"),
        (lambda i, text: f"[{i}]", "it holds a list"),
        (lambda i, text: "[" * 100_000, "cannot be read"),
    ],
)
def test_a_wrong_answer_is_named_by_file_and_key_and_correcting_the_file_goes_on(
    tmp_path: Path, spoil: Any, said: str
) -> None:
    trainer, asked = rests_with(tmp_path, budget=6)
    good = json.dumps(dict.fromkeys(map(str, asked), 1))
    answer = tmp_path / "answer-000000.json"
    answer.write_text(spoil(asked[2], good))
    with pytest.raises(BadLabels, match=said) as caught:
        trainer.run()
    assert "answer-000000.json" in str(caught.value)
    assert trainer.loop.labels == []
    answer.write_text(good)
    assert trainer.run() == "fit_done"
    assert trainer.loop.labels == [1] * 6


@pytest.mark.parametrize(
    "classes, said", [(None, "class."), (2, "0 or 1."), (1, "0 or 1."), (5, "from 0 to 4.")]
)
def test_what_to_write_for_true_follows_from_the_classes_of_the_model(
    classes: int | None, said: str
) -> None:
    with pytest.raises(BadLabels) as told:
        check_labels([True], ["7"], classes=classes)
    assert str(told.value).endswith(said)


def test_a_run_that_waits_says_for_what_and_which_labels_an_answer_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer, asked = rests_with(tmp_path, budget=6)
        assert "waits for the labels of 6 samples" in caplog.text
        assert f"write {tmp_path / 'answer-000000.json'}" in caplog.text
        caplog.clear()
        answer = tmp_path / "answer-000000.json"
        answer.write_text(json.dumps(dict.fromkeys(map(str, asked[:4]), 1)))
        assert trainer.run() is None
    missing = f"has 4 of 6 labels and is not read before it has all: {asked[4]}, {asked[5]} are"
    assert missing in caplog.text
    answer.write_text(json.dumps(dict.fromkeys(map(str, asked), 1)))
    assert trainer.run() == "fit_done"


def test_a_labeller_without_an_answer_yet_is_told(caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(learning(labeller=lambda indices, data: None))
    with caplog.at_level(logging.WARNING):
        trainer.fit(Net(), loader(30))
    assert "the labeller returned None. Call fit or run again" in caplog.text


def test_a_label_that_is_corrected_later_holds_from_there_on(tmp_path: Path) -> None:
    answers, saved = tmp_path / "answers", tmp_path / "run"

    def script() -> Trainer:
        torch.manual_seed(0)
        trainer = trainer_of(learning(labeller=str(answers)), checkpoints=saved)
        trainer.fit(Net(), loader(30), resume="auto")
        return trainer

    asked = script().loop.asked
    answer = answers / "answer-000000.json"
    answer.write_text(json.dumps(dict.fromkeys(map(str, asked), 1)))
    assert script().loop.labels == [1] * 6
    answer.write_text(json.dumps(dict.fromkeys(map(str, asked), 2)))
    assert script().loop.labels == [2] * 6


def test_a_labeller_may_answer_by_index() -> None:
    hidden = samples(30).tensors[1].tolist()
    loop = learning(labeller=lambda indices, data: {i: hidden[i] for i in reversed(indices)})
    trainer_of(loop).fit(Net(), loader(30))
    assert loop.labels == [hidden[i] for i in loop.indices]


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda i: dict.fromkeys(i[1:], 0), "is missing"),
        (lambda i: dict.fromkeys([*i, 99], 0), "99 was not asked for"),
        (lambda i: "0" * len(i), "returned a str"),
        (lambda i: {0, 1}, "returned a set"),
        (lambda i: 3, "returned a int"),
        (lambda i: [3] * len(i), "tells 3 classes apart"),
        (lambda i: [True] * len(i), "write the number of the class"),
        (lambda i: [None] * len(i), "it has none"),
    ],
)
def test_what_a_labeller_returns_is_checked(answer: Any, said: str) -> None:
    trainer = trainer_of(learning(labeller=lambda indices, data: answer(indices)))
    with pytest.raises(BadLabels, match=said):
        trainer.fit(Net(), loader(30))


def test_a_labeller_may_return_a_tensor_and_an_iterator() -> None:
    hidden = samples(30).tensors[1]
    for labeller in (lambda i, d: hidden[i], lambda i, d: (int(hidden[one]) for one in i)):
        loop = learning(labeller=labeller, budget=6)
        trainer_of(loop).fit(Net(), loader(30))
        assert loop.labels == hidden[loop.indices].tolist()


@pytest.mark.parametrize("first", [-3, 0, True, 1.5, "10", [0, True], [0.5], {"a": 1}])
def test_what_is_labelled_first_is_checked(first: Any) -> None:
    with pytest.raises(SettingError, match="first"):
        learning(first=first)


def test_more_first_labels_than_the_budget_allows_are_refused() -> None:
    with pytest.raises(SettingError, match="allows fewer labels"):
        trainer_of(learning(first=[*range(20)])).fit(Net(), loader(30))


@pytest.mark.parametrize("target", ["accuracy", ("accuracy",), ("accuracy", "high"), 0.9])
def test_a_target_that_says_nothing_is_refused(target: Any) -> None:
    with pytest.raises(SettingError, match="target"):
        learning(target=target)


def test_scores_that_are_no_numbers_are_refused() -> None:
    flat = torch.full((3, 2), 0.5)
    with pytest.raises(SettingError, match="NaN to 3 of 3"):
        choose(lambda p: torch.full((3,), float("nan")), flat, 1)
    with pytest.raises(SettingError, match="own probabilities are NaN"):
        choose("entropy", flat * float("nan"), 1)
    with pytest.raises(SettingError, match="returned a dict"):
        choose(lambda p: {"score": 1}, flat, 1)


class Ranked:
    def __init__(self, ranks: list[int]) -> None:
        self.ranks = ranks

    def get_ranks(self, predictions: Any) -> list[int]:
        return self.ranks


@pytest.mark.parametrize("ranks", [[0, 0], [5, 1], [0], [-1, 0]])
def test_ranks_that_are_no_places_of_the_pool_are_refused(ranks: list[int]) -> None:
    with pytest.raises(SettingError, match="each sample once"):
        choose(Ranked(ranks), torch.full((3, 2), 0.5), 2)


# -- dropout -------------------------------------------------------------------------------------


class Drops(torch.nn.Module):
    """Drops in a way that is chosen by name; its normalisation must not move."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.last = torch.nn.Linear(4, 3)
        self.norm = torch.nn.BatchNorm1d(4)
        self.rnn = torch.nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)
        self.attention = torch.nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.transformer = torch.nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shown = torch.nn.functional.dropout(inputs, 0.5 * (self.how == "function"), self.training)
        steps = self.norm(shown)[:, None].expand(-1, 3, -1)
        if self.how == "rnn":
            steps = self.rnn(steps)[0]
        elif self.how == "attention":
            steps = self.attention(steps, steps, steps)[0]
        elif self.how == "transformer":
            steps = self.transformer(steps)
        outputs: torch.Tensor = self.last(steps[:, -1])
        return outputs

    def training_step(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("how", ["function", "rnn", "attention", "transformer"])
def test_every_kind_of_dropout_is_on_while_a_pool_is_scored_by_several_draws(how: str) -> None:
    torch.manual_seed(0)
    loop = learning(acquisition="bald", mc_samples=4, rounds=2)
    model = Drops(how)
    trainer = trainer_of(loop)
    trainer.start(model, loader(30))
    trainer.run(until="pool_end")
    before = model.norm.running_mean.clone()  # type: ignore[union-attr]
    draws = torch.cat(loop.scoring.found)  # type: ignore[attr-defined]
    assert (draws - draws[..., :1]).abs().max() > 1e-3
    assert not model.rnn.training
    trainer.run(until="query")
    assert torch.equal(model.norm.running_mean, before)  # type: ignore[arg-type]
    assert model.training


def test_draws_that_are_all_the_same_are_told() -> None:
    with pytest.raises(SettingError, match=r"no dropout of Drops was on.*rounding error"):
        trainer_of(learning(acquisition="bald", mc_samples=3)).fit(Drops("none"), loader(30))
    with pytest.warns(SameDraws, match="mc_samples=1"):
        trainer_of(learning(acquisition="entropy", mc_samples=3)).fit(Drops("none"), loader(30))


def test_bald_of_one_prediction_is_refused_at_once() -> None:
    with pytest.raises(SettingError, match="mc_samples=1"):
        learning(acquisition="bald", mc_samples=1)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"first": 7, "budget": 6}, "budget=6 allows fewer"),
        ({"first": 50, "budget": None}, "the pool of 30 samples allows fewer"),
    ],
)
def test_more_first_labels_than_there_can_be_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        trainer_of(learning(**settings)).fit(Net(), loader(30))


def test_a_labeller_that_is_nearly_hidden_is_no_folder() -> None:
    with pytest.raises(SettingError, match=r"did you mean 'hidden'\?.*'\./hiden'"):
        ActiveLearningLoop(labeller="hiden")
