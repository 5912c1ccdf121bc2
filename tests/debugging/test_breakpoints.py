"""Breakpoints: the run returns at a boundary, and goes on as if it had not stopped."""

from __future__ import annotations

import math

import pytest

from statemachine_trainer.debugging import BadBreakpoint
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.trainer import Trainer
from tests.debugging.kit import finish, started
from tests.loops.outer_kit import Model, make_trainer, numbered


def test_a_run_returns_before_the_work_of_the_state() -> None:
    trainer, model = make_trainer(), Model()
    stop = trainer.breakpoint("backward")
    trainer.fit(model, numbered(3))
    assert trainer.path == "fit.epoch.batch.optimizer.backward"
    assert trainer.stopped_at is stop
    assert (model.trained, trainer.steps) == ([0], 0)


def test_it_is_met_each_time_until_it_is_removed() -> None:
    trainer = started()
    stop = trainer.breakpoint("batch_end")
    for number in range(1, 4):
        assert trainer.run() is None
        assert (stop.hits, trainer.steps) == (number, number)
    stop.remove()
    assert trainer.run() == "fit_done"
    assert stop.hits == 3


def test_a_run_with_breakpoints_ends_with_the_same_bits() -> None:
    undisturbed = finish(started())
    trainer = started()
    trainer.breakpoint(when=lambda trainer: True)
    assert finish(trainer) == undisturbed
    assert next(iter(trainer.breakpoints)).hits > 50


def test_it_may_be_at_an_exit_at_a_transition_or_at_a_pattern() -> None:
    trainer = started()
    by_name = {name: trainer.breakpoint(name) for name in ("epoch_end:exit", "*:exhausted")}
    trainer.run()
    assert trainer.stopped_at is by_name["*:exhausted"]
    assert trainer.path == "fit.epoch.drain"
    trainer.breakpoints.remove(by_name["*:exhausted"])
    trainer.run()
    assert trainer.stopped_at is by_name["epoch_end:exit"]
    assert (trainer.path, trainer.epoch) == ("fit.next_epoch", 1)


def test_a_condition_alone_is_asked_at_every_state() -> None:
    trainer, moments = started(), list[Moment]()

    def watch(trainer: Trainer, moment: Moment) -> bool:
        moments.append(moment)
        return trainer.steps == 2

    trainer.breakpoint(when=watch)
    trainer.run()
    assert trainer.steps == 2
    assert moments[-1].target == trainer.path


def test_a_condition_that_answers_with_nan_does_not_hold() -> None:
    trainer = started()
    stop = trainer.breakpoint(when=lambda trainer: math.nan)
    assert trainer.run() == "fit_done"
    assert stop.hits == 0


def test_a_condition_on_the_loss_is_not_met_where_there_is_none() -> None:
    trainer = started()
    assert math.isnan(trainer.loss)
    stop = trainer.breakpoint(when=lambda trainer: trainer.loss > 0)
    trainer.run()
    assert trainer.stopped_at is stop
    assert trainer.path == "fit.epoch.batch.optimizer.backward"
    assert trainer.loss == trainer.context.loss.item() > 0  # type: ignore[union-attr]


def test_a_breakpoint_for_once_is_gone_when_it_was_met() -> None:
    trainer = started()
    stop = trainer.breakpoint("batch_start", once=True)
    trainer.run()
    assert trainer.stopped_at is stop
    assert len(trainer.breakpoints) == 0
    assert trainer.run() == "fit_done"


def test_once_the_run_goes_on_it_stands_at_no_breakpoint() -> None:
    trainer = started()
    trainer.breakpoint("batch_start")
    trainer.run()
    trainer.step()
    assert trainer.stopped_at is None


def test_a_step_that_leads_to_a_breakpoint_says_so_and_the_next_run_goes_on() -> None:
    trainer = started()
    trainer.run(until="fetch")
    stop = trainer.breakpoint("batch_start")
    trainer.step()
    assert trainer.stopped_at is stop
    trainer.run()
    assert stop.hits == 2


def test_an_iteration_ends_at_a_breakpoint() -> None:
    trainer = started()
    trainer.breakpoint("fetch")
    assert [moment.target for moment in trainer.moments()][-1] == "fit.epoch.fetch"


def test_a_breakpoint_at_the_first_state_stops_before_it() -> None:
    trainer, model = make_trainer(), Model()
    trainer.breakpoint("fit_start")
    trainer.fit(model, numbered(1))
    assert trainer.path == "fit.fit_start"


def test_evaluations_run_through_breakpoints_of_the_fit() -> None:
    trainer = started()
    trainer.breakpoint("validation_step")
    metrics = trainer.validate(data=trainer.context.validation[0][1].loader)
    assert "val_loss" in metrics
    trainer.run()
    assert trainer.path == "fit.epoch.validation.validation_step"


def test_nothing_is_on_the_way_once_the_last_breakpoint_is_gone() -> None:
    trainer = started()
    before = {path: node.work for path, node in trainer.driver.program.nodes.items()}
    trainer.breakpoint("batch_start").remove()
    trainer.step()
    assert {path: node.work for path, node in trainer.driver.program.nodes.items()} == before


def test_it_survives_a_swap_of_loops() -> None:
    trainer = make_trainer()
    trainer.breakpoint("validation_start")
    trainer.loop.epoch.replace(validation=type(trainer.loop.epoch.validation)())
    trainer.fit(Model(), numbered(1), numbered(1))
    assert trainer.path == "fit.epoch.validation.validation_start"


def test_what_a_breakpoint_is_can_be_read() -> None:
    trainer = started()
    trainer.breakpoint("backward", when=lambda trainer: trainer.loss > 10)
    trainer.breakpoint("fetch", once=True)
    assert [str(one) for one in trainer.breakpoints] == ["backward if <lambda>", "fetch (once)"]
    assert "<Breakpoint 2: fetch (once), met 0 times>" in repr(trainer.breakpoints)


def test_a_breakpoint_without_a_place_or_outside_of_the_fit_is_refused() -> None:
    trainer = started()
    with pytest.raises(BadBreakpoint, match="a name, a condition or both"):
        trainer.breakpoint()
    with pytest.raises(BadBreakpoint, match="only 'fit' can be stepped"):
        trainer.breakpoint("test.test_start")
    with pytest.raises(UnknownSignal, match="backward"):
        trainer.breakpoint("backwards")
    with pytest.raises(BadBreakpoint, match=r"no breakpoint 7\. None is set"):
        trainer.breakpoints.remove(7)
