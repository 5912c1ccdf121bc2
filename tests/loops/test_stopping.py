"""`stop`, `end_epoch`, what holds them back, and what never steers a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statemachine_trainer.machine.errors import StrayStopIteration
from tests.loops.outer_kit import Model, Trace, after, make_trainer, numbered


def stop(trainer: Any) -> None:
    trainer.stop()


def test_stop_ends_the_epoch_with_its_validation_and_then_the_fit() -> None:
    trainer, model = make_trainer(max_epochs=5), Model()
    trace = Trace(trainer)
    after(trainer, 3, stop)
    trainer.fit(model, numbered(10), numbered(1))
    assert trace.text == "bbbV|"
    assert trainer.driver.outcome == "fit_done"


def test_what_runs_after_a_stop_is_what_the_graph_says() -> None:
    trainer = make_trainer(max_epochs=5)
    after(trainer, 1, stop)
    entered: list[str] = []
    trainer.on("*", lambda moment: entered.append(moment.path), when=lambda: trainer.steps == 1)
    trainer.fit(Model(), numbered(10))
    tail = entered[entered.index("fit.epoch.fetch") :]
    assert tail == [
        "fit.epoch.fetch",
        "fit.epoch.stopping",
        "fit.epoch.drain",
        "fit.epoch.epoch_end",
        "fit.next_epoch",
        "fit.fit_end",
    ]
    assert "stop (posted) [may_stop] -> stopping" in str(trainer.graph())


@pytest.mark.parametrize("state", ["batch_start", "forward", "backward", "batch_end", "fetch"])
def test_stop_may_be_posted_anywhere_in_a_batch_and_is_taken_when_it_is_done(state: str) -> None:
    trainer, model = make_trainer(), Model()
    trainer.on(state, stop, when=lambda trainer: trainer.steps == 2, once=True)
    trainer.fit(model, numbered(10))
    done = 2 if state in ("batch_end", "fetch") else 3
    assert len(model.trained) == done
    assert trainer.context.counts.batch == done


def test_stop_posted_in_a_validation_ends_the_fit_without_validating_that_moment_again() -> None:
    trainer = make_trainer(validate_every=2)
    trace = Trace(trainer)
    trainer.on("validation_end", stop, once=True)
    trainer.fit(Model(), numbered(10), numbered(1))
    assert trace.text == "bbV|"


def test_stop_posted_in_the_last_validation_of_an_epoch_ends_the_fit_with_that_epoch() -> None:
    trainer = make_trainer(max_epochs=3)
    trace = Trace(trainer)
    trainer.on("validation_end", stop, once=True)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bbV|"


def test_stop_posted_at_the_end_of_an_epoch_leaves_out_the_next() -> None:
    trainer = make_trainer(max_epochs=3)
    trace = Trace(trainer)
    trainer.on("epoch_end", stop, once=True)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bbV|"


def test_stop_steps_the_window_that_is_open() -> None:
    trainer = make_trainer(accumulate=4)
    after(trainer, 2, stop)
    trainer.fit(Model(), numbered(10))
    assert (trainer.steps, trainer.context.open_windows) == (1, False)


def test_min_epochs_holds_stop_back() -> None:
    trainer, model = make_trainer(max_epochs=5, min_epochs=2), Model()
    after(trainer, 1, stop)
    trainer.fit(model, numbered(3))
    assert (trainer.epoch, len(model.trained)) == (2, 6)


def test_min_steps_holds_stop_back_to_the_very_step() -> None:
    trainer, model = make_trainer(max_epochs=5, min_steps=4), Model()
    after(trainer, 1, stop)
    trainer.fit(model, numbered(3))
    assert (trainer.steps, len(model.trained)) == (4, 4)


def test_both_minima_hold_stop_back() -> None:
    trainer = make_trainer(max_epochs=9, min_epochs=2, min_steps=7)
    after(trainer, 1, stop)
    trainer.fit(Model(), numbered(3))
    assert trainer.steps == 7


def test_a_minimum_holds_no_limit_back() -> None:
    trainer = make_trainer(max_steps=2, min_steps=5, min_epochs=3)
    trainer.fit(Model(), numbered(3))
    assert trainer.steps == 2


def test_a_stop_that_is_held_back_validates_once_and_not_at_each_batch() -> None:
    trainer = make_trainer(max_epochs=3, min_epochs=2)
    trace = Trace(trainer)
    after(trainer, 1, stop)
    trainer.fit(Model(), numbered(3), numbered(1))
    assert trace.text == "bbbV|bbbV|"


def test_a_stop_that_no_minimum_let_through_is_forgotten_by_the_next_fit() -> None:
    trainer, model = make_trainer(max_epochs=1, min_epochs=5), Model()
    after(trainer, 1, stop)
    trainer.fit(model, numbered(2))
    trainer.loop.max_epochs, trainer.loop.min_epochs = 2, 0
    trainer.fit(model)
    assert len(model.trained) == 4


# -- the end of an epoch -------------------------------------------------------------------------


def test_end_epoch_gives_up_the_rest_of_the_pass_and_validates() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    trace = Trace(trainer)
    after(trainer, 2, lambda trainer: trainer.post("end_epoch"))
    trainer.fit(model, numbered(4), numbered(1))
    assert trace.text == "bbV|bbbbV|"
    assert model.trained == [0, 1, 0, 1, 2, 3]


def test_end_epoch_before_the_first_batch_makes_an_empty_epoch_without_validation() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    trace = Trace(trainer)
    trainer.on("epoch_start", lambda trainer: trainer.post("end_epoch"), once=True)
    trainer.fit(model, numbered(2), numbered(1))
    assert trace.text == "|bbV|"


# -- what never steers a loop --------------------------------------------------------------------


class Stopper(Model):
    """Raises StopIteration in one of its steps, until it is mended."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        if self.where == "training_step" and batch_idx == 1:
            next(iter(()))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        if self.where == "validation_step" and batch_idx == 1:
            raise StopIteration
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    "where, path",
    [
        ("training_step", "fit.epoch.batch.optimizer.forward"),
        ("validation_step", "fit.epoch.validation.validation_step"),
    ],
)
def test_trap_26_a_stop_iteration_in_a_step_surfaces_with_its_path(where: str, path: str) -> None:
    trainer, model = make_trainer(), Stopper(where)
    with pytest.raises(StrayStopIteration, match=path):
        trainer.fit(model, numbered(3), numbered(3))
    assert trainer.path == path
    model.where = "nowhere"
    trainer.run()
    assert model.trained == [0, 1, 2]
    assert model.validated == [0, 1, 2]


def test_trap_26_a_stop_iteration_in_a_receiver_surfaces_and_ends_nothing() -> None:
    trainer, model = make_trainer(), Model()

    def receiver() -> None:
        raise StopIteration

    subscription = trainer.on("batch_end", receiver)
    with pytest.raises(StrayStopIteration):
        trainer.fit(model, numbered(3))
    subscription.cancel()
    trainer.run()
    assert model.trained == [0, 1, 2]


def test_trap_26_a_stop_iteration_does_not_end_an_iteration_over_moments() -> None:
    trainer, model = make_trainer(), Stopper("training_step")
    with pytest.raises(StrayStopIteration):
        list(trainer.moments(model, numbered(3)))
    model.where = "nowhere"
    list(trainer.moments())
    assert model.trained == [0, 1, 2]
