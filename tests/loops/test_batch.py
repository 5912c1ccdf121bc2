"""The batch loop: one batch, counted and let go of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from statemachine_trainer.loops import BatchLoop, OptimizerLoop
from statemachine_trainer.loops.batch import SplitError
from statemachine_trainer.loops.loop_errors import SettingError
from tests.loops.inner_kit import Batch, Regression, Signals, make_batches, make_trainer


def test_a_batch_is_one_split_unless_asked_otherwise() -> None:
    batches = make_batches(2)
    seen: list[Any] = []

    class Model(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            seen.append(batch)
            return super().training_step(batch, batch_idx)

    make_trainer().fit(Model(), batches)
    assert all(ours is given for ours, given in zip(seen, batches, strict=True))


def test_its_states_in_order() -> None:
    trainer = make_trainer()
    signals = Signals(trainer, "fit.epoch.batch.*:enter")
    trainer.fit(Regression(), make_batches(1))
    assert signals.fired == [
        "batch_start",
        "batch_split",
        "optimizer",
        "forward",
        "backward",
        "optimizer_step",
        "batch_split",
        "batch_end",
    ]


def test_the_batch_is_counted_when_its_end_is_entered_and_still_at_hand() -> None:
    batches = make_batches(3)
    seen: list[Any] = []
    trainer = make_trainer(max_epochs=2)

    @trainer.on("batch_end")
    def look() -> None:
        context = trainer.context
        counts = context.counts
        assert context.batch is batches[context.batch_idx]
        assert context.loss is not None
        seen.append((context.batch_idx, counts.batch, counts.batch_in_epoch, counts.step))

    trainer.fit(Regression(), batches)
    assert seen == [
        (0, 1, 1, 1),
        (1, 2, 2, 2),
        (2, 3, 3, 3),
        (0, 4, 1, 4),
        (1, 5, 2, 5),
        (2, 6, 3, 6),
    ]


def test_nothing_of_the_batch_is_kept_beyond_it() -> None:
    trainer = make_trainer()
    left: list[Any] = []

    @trainer.on("batch_end:exit")
    def look() -> None:
        context = trainer.context
        left.append((context.batch, context.split, context.output, context.loss, context.splits))

    trainer.fit(Regression(), make_batches(2))
    assert left == [(None, None, None, None, [])] * 2


def test_a_batch_that_can_not_be_split_is_an_error_and_stays_at_hand() -> None:
    trainer = make_trainer(split_steps=2, time_dim=2)
    batches = make_batches(1)
    with pytest.raises(SplitError, match="nothing to split") as caught:
        trainer.fit(Regression(), batches)
    assert "batch_start" in caught.value.__notes__[0]
    assert trainer.context.batch is batches[0]
    trainer.loop["batch"].split_steps = None
    trainer.run()
    assert trainer.steps == 1


@pytest.mark.parametrize(
    "settings",
    [{"time_dim": -1}, {"time_dim": True}, {"time_dim": None}, {"split_steps": "2"}],
    ids=str,
)
def test_settings_out_of_their_range_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=name):
        BatchLoop(**settings)


def test_its_optimizer_loop_can_be_swapped() -> None:
    class Halved(OptimizerLoop):
        def forward(self) -> Any:
            event = super().forward()
            if self.context.loss is not None:
                self.context.loss = self.context.loss / 2
            return event

    Halved.forward.__annotations__.update(OptimizerLoop.forward.__annotations__)
    batches = make_batches(3)
    model = Regression(lambda parameters: torch.optim.SGD(parameters, lr=0.2))
    trainer = make_trainer()
    trainer.loop.replace(optimizer=Halved())
    trainer.fit(model, batches)
    expected = Regression(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    make_trainer().fit(expected, batches)
    for ours, plain in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, plain)


def test_samples_are_counted_where_something_goes_by_samples() -> None:
    class Model(Regression):
        def validation_step(self, batch: Batch) -> None: ...

    trainer = make_trainer(validate_every="10 samples", sanity_batches=0)
    signals = Signals(trainer, "fit.epoch.batch.batch_end", "validation_start")
    trainer.fit(Model(), make_batches(5, size=4), make_batches(1))
    b, v = "batch_end", "validation_start"
    assert signals.fired == [b, b, b, v, b, b, v]


def test_modules_are_in_training_mode() -> None:
    modes: list[bool] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def training_step(self, batch: Batch) -> Any:
            modes.append(self.net.training)
            return self.net(batch[0]).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    make_trainer().fit(Model().eval(), make_batches(1))
    assert modes == [True]
