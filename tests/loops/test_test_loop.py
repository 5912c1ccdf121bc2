"""The test loop: the same shape as validation, with states of its own names."""

from __future__ import annotations

from statemachine_trainer.loops import TestLoop
from statemachine_trainer.machine import Driver
from tests.loops.outer_kit import Model, make_trainer, numbered


def test_the_states_of_a_test_have_names_of_their_own() -> None:
    trainer = make_trainer()
    entered: list[str] = []
    trainer.on("test.*", lambda moment: entered.append(moment.path.removeprefix("test.")))
    trainer.test(Model(), numbered(1))
    assert entered == ["test_start", "test_fetch", "test_step", "test_fetch", "test_end"]


def test_a_test_does_not_run_validation_hooks_and_the_other_way_round() -> None:
    trainer = make_trainer()
    fired: list[str] = []
    for name in ("test_end", "validation_end"):
        trainer.on(f"*.{name}", lambda moment: fired.append(moment.path))
    trainer.test(Model(), numbered(1))
    trainer.validate(Model(), numbered(1))
    assert fired == ["test.test_end", "validate.validation_end"]


def test_the_model_is_tested_in_evaluation_mode() -> None:
    class Watching(Model):
        def test_step(self, batch: object, batch_idx: int) -> None:
            modes.append(self.training)

    modes: list[bool] = []
    make_trainer().test(Watching(), numbered(2))
    assert modes == [False, False]


def test_the_loop_stands_by_itself_in_a_machine() -> None:
    assert Driver(TestLoop(), name="test").machine is not None
