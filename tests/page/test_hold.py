"""Holding a run before a state."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import pytest

from statemachine_trainer import Trainer
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
