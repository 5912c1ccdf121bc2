"""`fit` called again: it goes on with the data where it stood, begins anew, or says that it can not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer.loops.loop_errors import NothingToDo, SettingError
from statemachine_trainer.machine.errors import AlreadyRunning
from tests.loops.outer_kit import Model, Trace, Unsized, after, make_trainer, numbered


@pytest.mark.parametrize("made", [list, Unsized])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7])
def test_a_fit_that_ended_on_a_limit_goes_on_with_the_next_batch(made: Any, limit: int) -> None:
    trainer, model = make_trainer(max_steps=limit), Model()
    data = made(numbered(3))
    trainer.fit(model, data)
    trainer.loop.max_steps = 9
    trainer.fit(model, data)
    assert model.trained == [0, 1, 2] * 3


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_fit_that_was_stopped_goes_on_with_the_next_batch(stop_after: int) -> None:
    trainer, model = make_trainer(max_epochs=9, max_steps=9), Model()
    after(trainer, stop_after, lambda trainer: trainer.stop())
    trainer.fit(model, numbered(3))
    assert len(model.trained) == stop_after
    trainer.fit()
    assert model.trained == [0, 1, 2] * 3


def test_a_fit_that_goes_on_trains_as_one_that_was_never_stopped() -> None:
    whole, parts = Model(), Model()
    make_trainer(max_steps=7).fit(whole, numbered(3))
    trainer = make_trainer(max_steps=2)
    trainer.fit(parts, numbered(3))
    for most in (3, 6, 7):
        trainer.loop.max_steps = most
        trainer.fit()
    assert torch.equal(whole.layer.weight, parts.layer.weight)


def test_no_epoch_without_a_batch_arises_where_a_fit_ended_with_the_data() -> None:
    trainer, model = make_trainer(max_steps=3), Model()
    trace = Trace(trainer)
    trainer.fit(model, numbered(3), numbered(1))
    trainer.loop.max_steps = 6
    trainer.fit()
    assert trace.text == "bbbV|bbbV|"


def test_a_pass_limited_by_a_number_of_batches_is_not_prolonged() -> None:
    trainer, model = make_trainer(max_steps=2, limit_train_batches=3), Model()
    trainer.fit(model, numbered(5))
    trainer.loop.max_steps = 6
    trainer.fit()
    assert model.trained == [0, 1, 2, 0, 1, 2]


def test_a_pass_whose_limit_was_lowered_below_where_it_stands_is_over() -> None:
    trainer, model = make_trainer(max_steps=4, limit_train_batches=5), Model()
    trace = Trace(trainer)
    trainer.fit(model, numbered(6))
    trainer.loop.max_steps, trainer.loop.epoch.limit_batches = 6, 3
    trainer.fit()
    assert (model.trained, trace.text) == ([0, 1, 2, 3, 0, 1], "bbbb|bb|")


def test_the_rest_of_the_data_is_an_epoch_of_its_own() -> None:
    trainer = make_trainer(max_steps=2)
    trace = Trace(trainer)
    trainer.fit(Model(), numbered(3), numbered(1))
    trainer.loop.max_steps = 6
    trainer.fit()
    assert trace.text == "bbV|bV|bbbV|"
    assert trainer.epoch == 3


def test_more_epochs_go_on_with_counters_and_optimizers() -> None:
    class Momentum(Model):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    whole, parts = Momentum(), Momentum()
    make_trainer(max_epochs=2).fit(whole, numbered(2))
    trainer = make_trainer(max_epochs=1)
    trainer.fit(parts, numbered(2))
    trainer.loop.max_epochs = 2
    trainer.fit()
    assert (trainer.epoch, trainer.steps) == (2, 4)
    assert torch.equal(whole.layer.weight, parts.layer.weight)


@pytest.mark.parametrize(
    "setting", [{"max_epochs": 1}, {"max_steps": 2}, {"max_batches": 2}], ids=str
)
def test_trap_36_a_second_fit_that_would_do_nothing_says_so(setting: dict[str, int]) -> None:
    trainer, model = make_trainer(**setting), Model()
    data = numbered(2)
    trainer.fit(model, data)
    for arguments in ((), (model, data), (model,)):
        with pytest.raises(NothingToDo, match=rf"{next(iter(setting))}.*restart=True"):
            trainer.fit(*arguments)
    assert len(model.trained) == 2


def test_a_refused_fit_leaves_the_data_where_they_stood() -> None:
    trainer, model = make_trainer(max_steps=2), Model()
    trainer.fit(model, numbered(3))
    with pytest.raises(NothingToDo):
        trainer.fit(model, numbered(3, start=7))
    trainer.loop.max_steps = 3
    trainer.fit()
    assert model.trained == [0, 1, 2]


def test_restart_begins_anew() -> None:
    trainer, model = make_trainer(max_steps=2), Model()
    data = numbered(3)
    trainer.fit(model, data)
    trainer.fit(model, data, restart=True)
    assert model.trained == [0, 1, 0, 1]
    assert (trainer.steps, trainer.epoch) == (2, 1)


def test_restart_in_the_middle_of_a_paused_fit_begins_anew() -> None:
    trainer, model = make_trainer(), Model()
    data = numbered(3)
    trainer.fit(model, data, until="optimizer_step")
    trainer.fit(model, data, restart=True)
    assert model.trained == [0, 0, 1, 2]


def test_a_paused_fit_goes_on_without_arguments_and_refuses_other_data() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(3), until="batch_end")
    with pytest.raises(NothingToDo, match=r"paused in state 'fit.epoch.batch.batch_end'"):
        trainer.fit(model, numbered(3))
    trainer.fit(model)
    assert model.trained == [0, 1, 2]


def test_other_data_begin_a_new_pass() -> None:
    trainer, model = make_trainer(max_steps=2), Model()
    trainer.fit(model, numbered(3))
    trainer.loop.max_steps = 4
    trainer.fit(model, numbered(3, start=7))
    assert model.trained == [0, 1, 7, 8]


def test_the_very_same_loader_goes_on_where_it_stood() -> None:
    trainer, model = make_trainer(max_steps=2), Model()
    data = numbered(3)
    trainer.fit(model, data, numbered(1))
    trainer.loop.max_steps = 4
    trainer.fit(model, data, numbered(2))
    assert model.trained == [0, 1, 2, 0]
    assert model.validated == [0, 0, 1, 0, 1]


@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.UnbatchedData")
def test_the_very_same_data_set_goes_on_where_it_stood() -> None:
    trainer, model = make_trainer(max_steps=2), Model()

    class First(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0], batch_idx)

    model = First()
    data = TensorDataset(torch.arange(3.0).unsqueeze(1))
    trainer.fit(model, data)
    trainer.loop.max_steps = 4
    trainer.fit(model, data)
    assert model.trained == [0, 1, 2, 0]


def test_a_shuffled_loader_gives_each_sample_once_a_pass_over_two_fits() -> None:
    class First(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0], batch_idx)

    trainer, model = make_trainer(max_steps=3), First()
    loader = DataLoader(TensorDataset(torch.arange(8.0).unsqueeze(1)), shuffle=True)
    trainer.fit(model, loader)
    trainer.loop.max_steps = 8
    trainer.fit()
    assert sorted(model.trained) == list(range(8))


def test_another_model_is_another_fit() -> None:
    trainer, first, second = make_trainer(), Model(), Model()
    data = numbered(2)
    trainer.fit(first, data)
    trainer.fit(second, data)
    assert second.trained == [0, 1]
    assert trainer.steps == 2


def test_a_fit_that_raised_goes_on_when_it_is_mended() -> None:
    class Fragile(Model):
        broken = True

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            if self.broken and batch_idx == 1:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(), Fragile()
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.fit(model, numbered(3))
    model.broken = False
    trainer.fit(model)
    assert model.trained == [0, 1, 2]


def test_a_manual_model_and_an_automatic_one_may_follow_each_other() -> None:
    class ByHand(Model):
        automatic_optimization = False

        def training_step(  # type: ignore[override]
            self, batch: Any, batch_idx: int, optimizers: Any
        ) -> Any:
            optimizers[0].zero_grad()
            super().training_step(batch, batch_idx).backward()
            optimizers[0].step()

    trainer = make_trainer()
    own = trainer.loop["optimizer"]
    for model in (ByHand(), Model(), ByHand()):
        before = model.layer.weight.clone()
        trainer.fit(model, numbered(3))
        assert not torch.equal(before, model.layer.weight)
        assert trainer.steps == 3
    trainer.fit(Model(), numbered(1))
    assert trainer.loop["optimizer"] is own


def test_a_fit_without_model_or_data_says_what_is_missing() -> None:
    with pytest.raises(NothingToDo, match="needs a model"):
        make_trainer().fit()
    with pytest.raises(Exception, match="needs training data"):
        make_trainer().fit(Model())


def test_a_plain_model_goes_on_too() -> None:
    model = nn.Linear(1, 1)
    trainer = make_trainer(max_epochs=1)
    data = [(batch, batch) for batch in numbered(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.mse_loss
    trainer.fit(model, data, loss=loss, optimizer=optimizer)
    trainer.loop.max_epochs = 2
    trainer.fit(model, data, loss=loss, optimizer=optimizer)
    assert trainer.steps == 4


def test_another_optimizer_is_refused_where_a_fit_goes_on_and_another_loss_is_used() -> None:
    model = nn.Linear(1, 1)
    trainer = make_trainer(max_epochs=1)
    data = [(batch, batch) for batch in numbered(2)]
    used: list[str] = []

    def loss(name: str) -> Any:
        def value(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            used.append(name)
            return (output - target).square().mean()

        return value

    trainer.fit(model, data, loss=loss("first"), optimizer=torch.optim.SGD(model.parameters()))
    trainer.loop.max_epochs = 2
    with pytest.raises(SettingError, match="restart=True"):
        trainer.fit(model, data, optimizer=torch.optim.SGD(model.parameters(), lr=9.0))
    trainer.fit(model, data, loss=loss("second"))
    assert used == ["first", "first", "second", "second"]


def test_a_receiver_cannot_begin_another_fit_within_a_fit() -> None:
    trainer, model = make_trainer(), Model()
    hook = trainer.on("batch_end", lambda trainer: trainer.fit(Model(), numbered(1)))
    with pytest.raises(AlreadyRunning):
        trainer.fit(model, numbered(3))
    assert trainer.model is model
    hook.cancel()
    trainer.run()
    assert model.trained == [0, 1, 2]
