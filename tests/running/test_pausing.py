"""A pause is obeyed, or refused: it is never forgotten without a word."""

from __future__ import annotations

import signal
import threading

import pytest

from statemachine_trainer.machine.errors import NotStarted
from statemachine_trainer.trainer import Trainer
from tests.loops.outer_kit import Model, after, make_trainer, numbered


def test_a_pause_before_anything_was_started_is_refused_and_says_what_to_do() -> None:
    trainer, model = make_trainer(), Model()
    with pytest.raises(NotStarted, match=r"forget.*until='epoch_end'.*start\(model, loader\)"):
        trainer.pause()
    trainer.fit(model, numbered(3))
    assert (trainer.path, model.trained) == (None, [0, 1, 2])


def test_what_the_refusal_advises_works() -> None:
    trainer = make_trainer()
    trainer.fit(Model(), numbered(2), until="epoch_end")
    assert trainer.path == "fit.epoch.epoch_end"
    trainer.start(Model(), numbered(2), restart=True)
    assert trainer.path == "fit.fit_start"


def test_a_pause_of_a_fit_that_was_started_holds_for_the_next_run_alone() -> None:
    trainer, model = make_trainer(), Model()
    trainer.start(model, numbered(2))
    trainer.pause()
    assert (trainer.run(), trainer.path) == (None, "fit.fit_start")
    assert trainer.run() == "fit_done"
    assert model.trained == [0, 1]


def test_a_pause_of_a_paused_fit_holds_for_a_fit_that_goes_on() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(3), until="batch_end")
    trainer.pause()
    trainer.fit()
    assert (trainer.path, model.trained) == ("fit.epoch.batch.batch_end", [0])


@pytest.mark.parametrize("name", ["fit_start", "epoch_start", "fit_end"])
def test_a_receiver_of_any_state_may_pause(name: str) -> None:
    trainer = make_trainer()
    trainer.on(name, lambda trainer: trainer.pause(), once=True)
    trainer.fit(Model(), numbered(2))
    assert f"{trainer.path}".endswith(name)
    assert trainer.run() == "fit_done"


def test_another_thread_may_pause() -> None:
    trainer, model = make_trainer(), Model()

    def pause_elsewhere(trainer: Trainer) -> None:
        other = threading.Thread(target=trainer.pause)
        other.start()
        other.join()

    after(trainer, 2, pause_elsewhere)
    trainer.fit(model, numbered(5))
    assert model.trained == [0, 1]


def test_a_handler_of_a_signal_may_pause() -> None:
    trainer, model = make_trainer(), Model()
    after(trainer, 2, lambda: signal.raise_signal(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, lambda *_: trainer.pause())
    try:
        trainer.fit(model, numbered(5))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert model.trained == [0, 1]


def test_a_pause_a_moment_after_the_end_does_nothing() -> None:
    trainer, model = make_trainer(), Model()
    trainer.fit(model, numbered(2))
    trainer.pause()
    trainer.loop.max_epochs = 2
    trainer.fit()
    assert (trainer.path, model.trained) == (None, [0, 1, 0, 1])


def test_a_pause_after_an_evaluation_alone_does_nothing() -> None:
    trainer, model = make_trainer(), Model()
    trainer.validate(model, numbered(1))
    trainer.pause()
    trainer.fit(model, numbered(2))
    assert model.trained == [0, 1]
