"""A loop serves one machine: the one that had it first refuses to go on with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from statemachine_trainer import FitLoop, Trainer
from statemachine_trainer.loops import BatchLoop, EpochLoop, OptimizerLoop
from statemachine_trainer.machine import Driver
from statemachine_trainer.machine.errors import LoopUsedTwice
from tests.loops.outer_kit import Model, make_trainer, numbered
from tests.machine.kit import Batch, Epoch, Fit, Step, fit_driver


def test_a_root_in_two_machines_serves_the_last_of_them() -> None:
    root = Fit()
    first, second = fit_driver(root), fit_driver(root)
    assert second.run() == "fit_done"
    asked: list[Any] = [first.run, first.start, first.step, first.moments]
    asked.append(lambda: first.load_state_dict(second.state_dict()))
    for ask in asked:
        with pytest.raises(
            LoopUsedTwice, match=r"its Fit at 'fit' has been put into another.*deepcopy"
        ):
            ask()


def test_so_it_is_with_a_loop_inside() -> None:
    step = Step()
    first = fit_driver(Fit(epoch=Epoch(batch=Batch(optimizer=step))))
    second = fit_driver(Fit(epoch=Epoch(batch=Batch(optimizer=step))))
    assert second.run() == "fit_done"
    with pytest.raises(LoopUsedTwice, match=r"Step at 'fit\.epoch\.batch\.optimizer'"):
        first.run()
    first.root.replace(optimizer=Step())
    assert first.run() == "fit_done"


def test_a_root_that_stands_inside_another_tree_is_no_root_any_more() -> None:
    inner = Epoch()
    inner.outcomes = ("epoch_done",)  # type: ignore[misc]
    alone = Driver(inner, name="epoch")
    alone.start()
    fit_driver(Fit(epoch=inner))
    with pytest.raises(LoopUsedTwice):
        alone.run()


def test_of_two_trainers_with_one_loop_the_first_says_so() -> None:
    step = OptimizerLoop()

    def trainer() -> Trainer:
        root = FitLoop(max_epochs=1, epoch=EpochLoop(batch=BatchLoop(optimizer=step)))
        return Trainer(root, progress=False, device="cpu")

    first, second = trainer(), trainer()
    second.fit(Model(), numbered(2))
    with pytest.raises(LoopUsedTwice, match=r"OptimizerLoop at 'fit\.epoch\.batch\.optimizer'"):
        first.fit(Model(), numbered(2))


def test_a_copy_is_a_loop_of_its_own() -> None:
    root = FitLoop(max_epochs=1, sanity_batches=0)
    trainers = [Trainer(copy.deepcopy(root), progress=False, device="cpu") for _ in range(2)]
    for trainer in [*trainers, make_trainer()]:
        trainer.fit(Model(), numbered(2))
        assert trainer.steps == 2
