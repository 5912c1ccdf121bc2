"""The epoch loop: its states in order, what it counts, what happens where it fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statemachine_trainer.loops import EpochLoop
from statemachine_trainer.loops.loop_errors import MissingMetric, SettingError
from statemachine_trainer.loops.metrics.log import log
from tests.loops.outer_kit import Model, Trace, make_trainer, numbered


def test_the_states_of_an_epoch_follow_one_another() -> None:
    trainer = make_trainer()
    entered: list[str] = []
    trainer.on("fit.epoch.*", lambda moment: entered.append(moment.path.removeprefix("fit.epoch.")))
    trainer.fit(Model(), numbered(2), numbered(1))
    outer = [name for name in entered if "." not in name]
    assert outer == [
        "epoch_start", "fetch", "batch", "fetch", "batch", "fetch",
        "drain", "validation", "fetch", "drain", "epoch_end",
    ]  # fmt: skip


def test_trap_33_the_end_of_an_epoch_sees_the_validation_of_the_same_step() -> None:
    trainer = make_trainer(max_epochs=2)
    seen: list[tuple[int, float]] = []
    trainer.on("epoch_end", lambda t: seen.append((t.steps, t.metrics["steps"])))

    class Counting(Model):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            log("steps", trainer.steps)

    trainer.fit(Counting(), numbered(2), numbered(1))
    assert seen == [(2, 2.0), (4, 4.0)]


def test_trap_33_validation_ends_before_the_epoch_does() -> None:
    trainer = make_trainer(max_epochs=2)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(1), numbered(1))
    assert trace.text == "bV|bV|"


def test_a_receiver_of_the_end_of_a_batch_sees_it_counted() -> None:
    trainer = make_trainer()
    seen: list[tuple[int, int, int]] = []

    def note(trainer: Any) -> None:
        counts = trainer.context.counts
        seen.append((counts.batch, counts.batch_in_epoch, counts.step))

    trainer.on("batch_end", note)
    trainer.loop.max_epochs = 2
    trainer.fit(Model(), numbered(2))
    assert seen == [(1, 1, 1), (2, 2, 2), (3, 1, 3), (4, 2, 4)]


def test_the_number_of_a_batch_is_counted_within_the_epoch() -> None:
    class Numbers(Model):
        def __init__(self) -> None:
            super().__init__()
            self.numbers: list[int] = []

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            self.numbers.append(batch_idx)
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(max_epochs=2), Numbers()
    trainer.fit(model, numbered(3))
    assert model.numbers == [0, 1, 2, 0, 1, 2]


def test_the_length_of_an_epoch_is_known_while_it_runs() -> None:
    trainer = make_trainer()
    lengths: list[int | None] = []
    trainer.on("fetch", lambda t: lengths.append(t.context.counts.batches_per_epoch), once=True)
    trainer.fit(Model(), numbered(3))
    assert lengths == [3]


class Scheduled(Model):
    """Two optimizers, each with a scheduler by epochs; the second monitors a metric."""

    def training_step(  # type: ignore[override]
        self, batch: torch.Tensor, batch_idx: int, optimizer_idx: int
    ) -> Any:
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        one = torch.optim.SGD([self.layer.weight], lr=1.0)
        two = torch.optim.SGD([self.layer.bias], lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(two)
        return [
            {"optimizer": one, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(one, 0.5)},
            {"optimizer": two, "lr_scheduler": {"scheduler": plateau, "monitor": "value"}},
        ]


def test_a_metric_that_was_not_logged_stops_at_the_end_of_the_epoch_and_steps_nothing_twice() -> (
    None
):
    trainer, model = make_trainer(), Scheduled()
    with pytest.raises(MissingMetric, match="value"):
        trainer.fit(model, numbered(2))
    assert trainer.path == "fit.epoch.epoch_end"
    trainer.context.train_metrics.log("value", 1.0)
    trainer.run()
    assert [slot.optimizer.param_groups[0]["lr"] for slot in trainer.context.slots] == [0.5, 1.0]


def test_the_metrics_of_an_epoch_are_known_after_it_and_empty_in_the_next() -> None:
    class Logging(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            log("seen", float(batch[0, 0]) + 10 * trainer.epoch)
            return super().training_step(batch, batch_idx)

    trainer = make_trainer(max_epochs=2)
    ends: list[float] = []
    trainer.on("epoch_end", lambda trainer: ends.append(trainer.metrics["seen"]))
    trainer.fit(Logging(), numbered(3))
    assert ends == [1.0, 11.0]
    assert trainer.metrics == {"seen": 11.0}


@pytest.mark.parametrize(
    "setting", [{"validate_epochs": 0}, {"reload_every": -1}, {"validate_epochs": 1.5}]
)
def test_a_setting_out_of_its_range_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(setting))):
        EpochLoop(**setting)
