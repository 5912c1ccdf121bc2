"""A signal that comes while a state waits for something from outside ends the run, whatever can be written."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from statemachine_trainer import Loop, transient
from statemachine_trainer.callbacks.stop import Stop
from statemachine_trainer.machine.driver import Driver

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of Unix")


class Waiting(Loop):
    """A loop that waits, each time at a boundary at which nothing can be written down."""

    initial = "wait"
    outcomes = ("over",)
    transitions = [["stop", "wait", "last"]]
    times: int = 0

    @transient
    def wait(self) -> Literal["stop"] | None:
        self.times += 1
        if self.times == 1:
            signal.raise_signal(signal.SIGTERM)
        return None

    def last(self) -> Literal["over"]:
        return "over"


@contextmanager
def running(stop: Stop) -> Iterator[None]:
    with stop.listening(on_signals=True):
        yield
        stop.finish(written_at_end=True)


def test_a_run_that_waits_where_nothing_can_be_written_ends_all_the_same_and_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = Driver(Waiting())
    driver.start()
    stop = Stop(lambda: driver, lambda: pytest.fail("nothing can be written here"))
    with caplog.at_level(logging.WARNING), running(stop):
        driver.run()
    assert (stop.came, driver.path, driver.resting) == (signal.SIGTERM, "loop.wait", True)
    assert "'loop.wait' waits for something from outside" in caplog.text
