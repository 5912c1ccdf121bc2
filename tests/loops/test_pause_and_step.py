"""Start, run up to a place, step, iterate, pause: the notebook owns the pace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statemachine_trainer.machine.errors import (
    AlreadyRunning,
    NotStarted,
    UnknownEvent,
    UnknownSignal,
)
from tests.loops.outer_kit import Model, make_trainer, numbered


def test_start_stands_before_the_first_state_and_runs_nothing() -> None:
    trainer, model = make_trainer(), Model()
    trainer.start(model, numbered(2))
    assert (trainer.path, model.trained) == ("fit.fit_start", [])


def test_a_step_makes_one_transition() -> None:
    trainer = make_trainer()
    trainer.start(Model(), numbered(1))
    moments = [trainer.step() for _ in range(3)]
    assert [m.event for m in moments if m] == ["fit_started", "epoch_due", "epoch_started"]
    assert trainer.path == "fit.epoch.fetch"


def test_stepping_to_the_end_trains_as_a_fit_does() -> None:
    fitted, stepped = Model(), Model()
    make_trainer(max_epochs=2).fit(fitted, numbered(3), numbered(1))
    trainer = make_trainer(max_epochs=2)
    trainer.start(stepped, numbered(3), numbered(1))
    while trainer.path is not None:
        trainer.step()
    assert torch.equal(fitted.layer.weight, stepped.layer.weight)
    assert trainer.driver.outcome == "fit_done"


def test_run_until_a_state_stands_before_its_work() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(2), numbered(2), until="validation")
    assert (trainer.path, model.validated) == ("fit.epoch.validation.validation_start", [])
    assert trainer.run() == "fit_done"
    assert model.validated == [0, 1]


def test_run_until_a_condition_holds() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(5), until=lambda trainer: trainer.steps == 3)
    assert len(model.trained) == 3
    trainer.run()
    assert model.trained == [0, 1, 2, 3, 4]


def test_run_until_a_name_that_nothing_has_is_refused_and_the_fit_stands() -> None:
    trainer, model = make_trainer(), Model()
    with pytest.raises(UnknownSignal, match="validation"):
        trainer.fit(model, numbered(2), until="validaton")
    trainer.run()
    assert model.trained == [0, 1]


def test_iterating_over_moments_the_fit_stands_still_between_two() -> None:
    trainer, model = make_trainer(), Model()
    lengths = []
    for moment in trainer.moments(model, numbered(2)):
        if moment.event == "batch_complete":
            lengths.append(len(model.trained))
            assert trainer.path == "fit.epoch.batch.batch_end"
    assert lengths == [1, 2]


def test_an_iteration_that_is_broken_off_goes_on_later() -> None:
    trainer, model = make_trainer(), Model()
    for moment in trainer.moments(model, numbered(3), until="batch_end"):
        last = moment
    assert last.event == "batch_complete"
    for _ in trainer.moments():
        pass
    assert model.trained == [0, 1, 2]


@pytest.mark.parametrize(
    "state", ["forward", "backward", "optimizer_step", "fetch", "validation_step"]
)
def test_a_pause_anywhere_changes_nothing(state: str) -> None:
    whole, paused = Model(), Model()
    make_trainer(accumulate=2).fit(whole, numbered(5), numbered(2))
    trainer = make_trainer(accumulate=2)
    trainer.on(state, lambda trainer: trainer.pause())
    trainer.start(paused, numbered(5), numbered(2))
    pauses = 0
    while trainer.run() is None:
        pauses += 1
    assert pauses > 1
    assert torch.equal(whole.layer.weight, paused.layer.weight)
    assert whole.validated == paused.validated


def test_metrics_can_be_read_in_a_pause() -> None:
    trainer = make_trainer()
    trainer.fit(Model(), numbered(1), numbered(3), until="validation_end")
    assert trainer.metrics == {"value": 1.0}


def test_events_posted_in_a_pause_are_taken_when_it_goes_on() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(5), numbered(1), until="batch_end")
    trainer.post("validate")
    trainer.run(until="validation_end")
    assert len(model.trained) == 1
    trainer.stop()
    trainer.run()
    assert model.trained == [0]


def test_an_event_that_nobody_takes_is_refused_with_the_nearest_names() -> None:
    trainer = make_trainer()
    trainer.start(Model(), numbered(1))
    with pytest.raises(UnknownEvent, match="validate"):
        trainer.post("valdate")


def test_what_is_posted_before_the_start_would_be_forgotten_and_is_refused() -> None:
    trainer, model = make_trainer(max_epochs=2), Model()
    for post in (trainer.stop, lambda: trainer.post("validate")):
        with pytest.raises(NotStarted, match=r"before the start.*start\(model"):
            post()
    trainer.start(model, numbered(2))
    assert trainer.driver.posted == []
    trainer.stop()
    trainer.run()
    assert model.trained == []
    trainer.stop()  # another thread may say so a moment too late


def test_a_receiver_may_not_run_the_machine_that_calls_it() -> None:
    trainer, model = make_trainer(), Model()
    subscription = trainer.on("batch_end", lambda trainer: trainer.run())
    with pytest.raises(AlreadyRunning):
        trainer.fit(model, numbered(3))
    subscription.cancel()
    trainer.run()
    assert model.trained == [0, 1, 2]


def test_nothing_can_be_run_before_it_was_started() -> None:
    for call in ("run", "step"):
        with pytest.raises(NotStarted, match="start"):
            getattr(make_trainer(), call)()


def test_nothing_is_left_to_run_after_the_end() -> None:
    trainer = make_trainer()
    trainer.fit(Model(), numbered(1))
    with pytest.raises(NotStarted, match="fit_done"):
        trainer.run()


def test_a_keyboard_interrupt_leaves_a_fit_that_goes_on() -> None:
    class Interrupted(Model):
        interrupt = True

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            if self.interrupt and batch_idx == 1:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    trainer, model = make_trainer(), Interrupted()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(model, numbered(3))
    model.interrupt = False
    trainer.run()
    assert model.trained == [0, 1, 2]
