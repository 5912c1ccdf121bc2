"""The fit loop: from its start to its end, through the model's modes."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import nn

from statemachine_trainer.loops import EpochLoop, FitLoop
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.log import log
from tests.loops.outer_kit import Model, make_trainer, numbered


def test_the_states_of_a_fit_follow_one_another() -> None:
    trainer = make_trainer(max_epochs=2, sanity_batches=1)
    entered: list[str] = []
    trainer.on("fit.*", lambda moment: entered.append(moment.path.removeprefix("fit.")))
    trainer.fit(Model(), numbered(1), numbered(1))
    assert [name for name in entered if "." not in name] == [
        "fit_start", "sanity", "next_epoch", "epoch", "next_epoch", "epoch", "next_epoch", "fit_end",
    ]  # fmt: skip


def test_a_fit_without_validation_data_makes_no_sanity_check() -> None:
    trainer = make_trainer(sanity_batches=2)
    entered: list[str] = []
    trainer.on("sanity", lambda: entered.append("sanity"))
    trainer.fit(Model(), numbered(1))
    assert entered == []


def test_fit_returns_the_metrics_known_at_the_end() -> None:
    class Logging(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            log("number", batch.mean())
            return super().training_step(batch, batch_idx)

    trainer = make_trainer()
    assert trainer.fit(Logging(), numbered(3), numbered(5)) == {"number": 1.0, "value": 2.0}


class Modes(nn.Module):
    """Has a frozen part, and notes the modes in which its steps run."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Dropout(), nn.Linear(1, 1)
        self.seen: dict[str, set[tuple[bool, bool, bool]]] = {}

    def note(self, step: str) -> None:
        modes = (self.training, self.frozen.training, self.head.training)
        self.seen.setdefault(step, set()).add(modes)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.note("training")
        return self.head(batch).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.note("validation")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode() -> None:
    model = Modes().eval()
    make_trainer().fit(model, numbered(2), numbered(1))
    assert model.seen == {"training": {(True, True, True)}, "validation": {(False, False, False)}}


def test_a_part_in_evaluation_mode_stays_in_it_through_training_and_validation() -> None:
    model = Modes()
    model.frozen.eval()
    make_trainer(max_epochs=2, validate_every=1, sanity_batches=1).fit(
        model, numbered(2), numbered(1)
    )
    assert model.seen == {"training": {(True, False, True)}, "validation": {(False, False, False)}}
    assert (model.training, model.frozen.training) == (True, False)


def test_a_loop_of_ones_own_may_take_the_place_of_any_loop() -> None:
    class Quiet(EpochLoop):
        def epoch_end(self) -> Literal["epoch_done"]:
            quiet.append(self.context.counts.epoch)
            return super().epoch_end()

    quiet: list[int] = []
    trainer = make_trainer(max_epochs=2)
    trainer.loop.replace(epoch=Quiet)
    trainer.fit(Model(), numbered(2))
    assert quiet == [0, 1]


def test_steps_are_counted_of_the_first_optimizer_or_of_all_by_name() -> None:
    with pytest.raises(SettingError, match="'first' or 'all'"):
        FitLoop(count_steps_of="last")  # type: ignore[arg-type]


def test_a_seed_makes_two_fits_equal() -> None:
    class Noisy(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.layer(torch.randn(2, 1)).mean()

    first, second = Noisy(), Noisy()
    for model in (first, second):
        make_trainer(seed=3).fit(model, numbered(3))
    assert torch.equal(first.layer.weight, second.layer.weight)


def test_gradients_can_be_computed_where_the_caller_has_switched_them_off() -> None:
    model = Model()
    with torch.no_grad():
        make_trainer().fit(model, numbered(2))
    assert model.trained == [0, 1]


def test_the_gradient_mode_and_the_model_are_as_before_after_a_fit() -> None:
    model = Model()
    before = set(vars(model))
    make_trainer().fit(model, numbered(2), numbered(1))
    assert torch.is_grad_enabled()
    assert set(vars(model)) == before
