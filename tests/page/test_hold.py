"""Holding a run before a state."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import pytest

from statemachine_trainer import Trainer
from statemachine_trainer.control.buttons import Buttons
from statemachine_trainer.control.control_errors import NotNow
from statemachine_trainer.control.hold import Hold
from tests.observe.recorded import Net, batches, trainer
from tests.page.runs import DEADLINE, Run, until


def works(of: Trainer) -> dict[str, object]:
    """What is called in each state."""
    return {path: node.work for path, node in of.driver.program.nodes.items()}


def test_nothing_is_on_the_way_of_a_run_that_nobody_holds() -> None:
    run = Run()  # not recorded: a black box is on the way, too
    run.begin()
    before = works(run.trainer)
    hold = Hold.of(run.trainer.driver)
    hold.hold()
    until(lambda: hold.held, "that it is held")
    assert works(run.trainer) != before
    hold.go_on()
    until(lambda: works(run.trainer) == before, "that nothing is left of it")
    run.end()


def test_a_driver_has_one_hold_whoever_asks(run: Run) -> None:
    assert Hold.of(run.trainer.driver) is Hold.of(run.trainer.driver)
    assert Hold.of(Trainer(max_epochs=1).driver) is not Hold.of(run.trainer.driver)


def test_a_checkpoint_is_written_while_the_run_is_held(run: Run) -> None:
    run.begin()
    hold = Hold.of(run.trainer.driver)
    hold.hold()
    until(lambda: hold.held, "that it is held")
    assert run.trainer.checkpoints is not None
    before = run.trainer.checkpoints.last
    run.trainer.checkpoint()
    checkpoints = run.trainer.checkpoints
    until(lambda: checkpoints.last != before, "a checkpoint")
    until(lambda: hold.held, "that it is held again")
    hold.go_on()


def test_ctrl_c_ends_a_hold_with_the_run(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path, max_epochs=1)
    hold = Hold.of(mine.driver)
    mine.on("batch_end", hold.hold, once=True)

    def interrupt() -> None:
        until(lambda: hold.held, "that it is held")
        _thread.interrupt_main()

    pressing = threading.Thread(target=interrupt)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        mine.fit(Net(), batches())
    pressing.join(DEADLINE)
    assert not hold.asked_for
    mine.run()
    assert mine.driver.outcome is not None


def test_a_run_that_ends_while_a_hold_is_asked_for_leaves_none_to_the_next(tmp_path: Path) -> None:
    mine = trainer(run=tmp_path, max_epochs=1)
    hold = Hold.of(mine.driver)
    asking = mine.on("fit:exit", hold.hold)
    mine.fit(Net(), batches())
    asking.cancel()
    mine.fit(Net(), batches(), restart=True)  # else it would stand still for ever
    assert mine.driver.outcome is not None


STEP = "fit.epoch.batch.optimizer.optimizer_step"
BACKWARD = "fit.epoch.batch.optimizer.backward"  # a transient boundary lies before it


def test_a_break_holds_the_run_each_time_it_comes_there_until_it_is_cleared() -> None:
    run = Run()  # not recorded: a black box is on the way, too
    run.begin()
    before = works(run.trainer)
    hold = Hold.of(run.trainer.driver)
    hold.break_at(BACKWARD)
    until(lambda: hold.held == BACKWARD, "that it is held there")
    first = run.batch
    hold.go_on()
    until(lambda: run.batch > first, "that it goes on")
    until(lambda: hold.held == BACKWARD, "that it is held there again")
    assert hold.stops == [BACKWARD]
    hold.clear(BACKWARD)
    batch = run.batch
    hold.go_on()
    until(lambda: run.batch > batch + 3, "that it is held no more")
    until(lambda: works(run.trainer) == before, "that nothing is left of it")
    run.end()


def test_a_run_that_is_told_to_run_to_a_state_is_held_there_once(run: Run) -> None:
    run.begin()
    hold = Hold.of(run.trainer.driver)
    hold.hold()
    until(lambda: hold.held, "that it is held")
    hold.run_to(STEP)
    until(lambda: hold.until is None and hold.held == STEP, "that it is held there")
    batch = run.batch
    hold.go_on()
    until(lambda: run.batch > batch + 3, "that it is held no more")


def test_when_nobody_is_left_who_could_let_it_go_a_run_is_held_nowhere(run: Run) -> None:
    run.begin()
    hold = Hold.of(run.trainer.driver)
    hold.break_at(BACKWARD)
    until(lambda: hold.held == BACKWARD, "that it is held there")
    hold.run_to(STEP)
    hold.let_go()
    batch = run.batch
    until(lambda: run.batch > batch + 3, "that it goes on")
    assert (hold.stops, hold.until) == ([], None)


def test_breaks_are_buttons_with_the_path_of_a_state(run: Run) -> None:
    run.begin()
    hold = Hold.of(run.trainer.driver)
    buttons = Buttons(run.trainer, run.trainer.driver, hold)
    with pytest.raises(NotNow, match=r"There is no state 'fit\.epoch\.fetsh'.*fit\.epoch\.fetch"):
        buttons.press("break fit.epoch.fetsh")
    assert buttons.press(f"break {STEP}") == f"The run is held whenever it comes to {STEP}."
    until(lambda: hold.held == STEP, "that it is held there")
    assert buttons.look()["breaks"] == [STEP]
    buttons.press(f"clear {STEP}")
    assert buttons.press(f"until {BACKWARD}") == f"The run goes on, and is held before {BACKWARD}."
    until(lambda: hold.held == BACKWARD, "that it is held there")
    assert buttons.look()["breaks"] == []
    run.end()
    with pytest.raises(NotNow, match=r"The run has ended\."):
        buttons.press(f"break {STEP}")
