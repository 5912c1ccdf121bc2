"""The outputs of the training steps of an epoch: gathered only when somebody asks for them."""

from __future__ import annotations

from typing import Any

import torch

from statemachine_trainer.loops.metrics.log import log
from tests.loops.outer_kit import Model, make_trainer, numbered


class Returning(Model):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "number": batch.mean()}


class Ending(Returning):
    """Wants the outputs of its steps at the end of an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[list[float]] = []

    def training_epoch_end(self, outputs: list[Any]) -> None:
        self.ends.append([float(one["number"]) for one in outputs])
        log("total", sum(self.ends[-1]))


def test_nothing_is_gathered_unless_somebody_asks() -> None:
    trainer = make_trainer()
    gathered: list[Any] = []
    trainer.on("epoch_end", lambda trainer: gathered.append(trainer.context.outputs))
    trainer.fit(Returning(), numbered(3))
    assert gathered == [None]


def test_a_model_with_training_epoch_end_gets_those_of_each_epoch() -> None:
    model = Ending()
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, numbered(3))
    assert model.ends == [[0.0, 1.0, 2.0]] * 2
    assert trainer.metrics == {"total": 3.0}


def test_training_epoch_end_comes_after_the_last_validation_and_once() -> None:
    class Ordered(Ending):
        def training_epoch_end(self, outputs: list[Any]) -> None:
            order.append("outputs")

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            order.append("validation")

    order: list[str] = []
    make_trainer().fit(Ordered(), numbered(1), numbered(1))
    assert order == ["validation", "outputs"]


def test_a_setting_gathers_them_for_receivers_cut_off_from_the_graph() -> None:
    trainer = make_trainer(gather_outputs=True)
    found: list[Any] = []
    trainer.on("epoch_end", lambda trainer: found.extend(trainer.context.outputs))
    trainer.fit(Returning(), numbered(3))
    assert [float(one["number"]) for one in found] == [0.0, 1.0, 2.0]
    assert not any(one["loss"].requires_grad for one in found)


def test_they_are_let_go_of_with_the_epoch() -> None:
    trainer = make_trainer(gather_outputs=True)
    trainer.fit(Returning(), numbered(3))
    assert trainer.context.outputs is None
