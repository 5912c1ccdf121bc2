"""Events posted in any sequence, at any boundary of a fit, have the effect of each of them."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from statemachine_trainer import Trainer
from statemachine_trainer.loops.mistakes import NeverTaken
from tests.loops.outer_kit import Model, Trace, make_trainer, numbered

EVENTS = ("stop", "validate", "end_epoch", "checkpoint", "pause")
EPOCHS, BATCHES = 2, 2


def posting(*events: str) -> Callable[[Any], None]:
    """Return a receiver that posts these events, one after the other."""

    def post(trainer: Any) -> None:
        for event in events:
            trainer.post(event)

    return post


class Fit:
    """A fit that notes what happens, and at one of its boundaries is asked for several things."""

    def __init__(self, at: int, asked: Sequence[str], **settings: Any) -> None:
        self.trainer: Trainer = make_trainer(max_epochs=EPOCHS, **settings)
        self.trace = Trace(self.trainer)
        self.validations = self.written = self.pauses = 0
        self.trainer.on("epoch.validation", self._validating)
        self.trainer.start(Model(), numbered(BATCHES), numbered(1))
        for _ in range(at):
            if self.trainer.step() is None:
                break
        self.path = self.trainer.path
        self.before, self.validations = self.trace.text, 0
        self.begun = self.trainer.context.counts.batch_in_epoch
        for event in asked:
            self._ask(event)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            while self.trainer.driver.outcome is None:
                self.trainer.run()
                self.pauses += self.trainer.driver.outcome is None
        self.told = [one.category for one in told]
        self.after = self.trace.text[len(self.before) :]

    def _validating(self) -> None:
        self.validations += 1

    def _ask(self, event: str) -> None:
        driver = self.trainer.driver
        if event == "checkpoint":
            driver.at_boundary(self._write)
        elif event == "pause":
            driver.pause()
        else:
            self.trainer.post(event)

    def _write(self) -> None:
        self.written += 1


@functools.cache
def boundaries() -> range:
    trainer = make_trainer(max_epochs=EPOCHS)
    return range(len([*trainer.moments(Model(), numbered(BATCHES), numbered(1))]))


def check(at: int, asked: Sequence[str]) -> None:
    fit = Fit(at, asked)
    where = (at, fit.path, asked, fit.before, fit.after)
    name = str(fit.path).rpartition(".")[2]
    assert fit.written == asked.count("checkpoint"), where
    assert fit.pauses == min(asked.count("pause"), 1), where
    _check_validation(fit, asked, where)
    rest, whole = fit.after.partition("|")[0], fit.after.split("|")[1:-1]
    in_epoch = ".epoch." in str(fit.path)
    ended = name == "epoch_end"  # it has been noted as the end of its epoch before it works
    if "stop" in asked:
        _check_stop(fit, in_epoch=in_epoch and not ended, where=where)
        return
    # No epoch but the one in which `end_epoch` came is cut short, and none is made an empty one.
    assert all(epoch.count("b") == BATCHES for epoch in whole), where
    if not in_epoch or ended:
        return
    done = fit.before.rpartition("|")[2].count("b")
    if "end_epoch" in asked:
        assert rest.count("b") <= 1, where
        assert name != "fetch" or rest.count("b") == 0, where
    else:
        assert done + rest.count("b") == BATCHES, where


def _check_stop(fit: Fit, *, in_epoch: bool, where: object) -> None:
    """What is in flight is finished, and the epoch ended; nothing else begins."""
    assert fit.after.count("b") <= 1, where
    assert fit.after.count("|") == in_epoch, where
    assert fit.trainer.driver.outcome == "fit_done", where


def _check_validation(fit: Fit, asked: Sequence[str], where: object) -> None:
    if "validate" not in asked:
        assert NeverTaken not in fit.told, where
    elif NeverTaken in fit.told:
        assert fit.after in ("", "|"), where  # the last epoch had ended
    else:
        assert fit.validations, where


PAIRS: list[tuple[str, ...]] = [*itertools.permutations(EVENTS[:3], 2)]


@pytest.mark.parametrize("asked", PAIRS, ids="-".join)
def test_each_of_two_events_has_its_effect(asked: tuple[str, ...]) -> None:
    for at in boundaries()[PAIRS.index(asked) :: len(PAIRS)]:  # at each boundary one of the pairs
        check(at, asked)


@pytest.mark.slow
@pytest.mark.parametrize("event", EVENTS)
def test_each_event_alone_and_twice_has_its_effect_at_every_boundary(event: str) -> None:
    for at in boundaries():
        check(at, [event])
        if event != "checkpoint":
            once, twice = Fit(at, [event]), Fit(at, [event, event])
            assert once.after == twice.after, (at, once.path)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [*itertools.permutations(EVENTS, 2)], ids="-".join)
def test_each_of_two_events_has_its_effect_at_every_boundary(asked: tuple[str, ...]) -> None:
    for at in boundaries():
        check(at, asked)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [*itertools.permutations(EVENTS, 3)], ids="-".join)
def test_each_of_three_events_has_its_effect_at_every_boundary(asked: tuple[str, ...]) -> None:
    for at in boundaries():
        check(at, asked)


def test_stop_and_then_validate_validates_and_stops() -> None:
    for asked in (["stop", "validate"], ["validate", "stop"]):
        trainer = make_trainer(max_epochs=3)
        trace = Trace(trainer)
        trainer.on("batch_end", posting(*asked), once=True)
        trainer.fit(Model(), numbered(4), numbered(1))
        assert trace.text == "bV|"


def test_end_epoch_and_then_validate_validates_and_goes_on_with_the_next_epoch() -> None:
    trainer = make_trainer(max_epochs=2, validate_epochs=2)
    trace = Trace(trainer)
    trainer.on("batch_end", posting("end_epoch", "validate"), once=True)
    trainer.fit(Model(), numbered(3), numbered(1))
    assert trace.text == "bV|bbbV|"


@pytest.mark.parametrize(
    "signal", ["fetch:exhausted", "drain", "epoch_end", "epoch_end:exit", "epoch:exit"]
)
def test_end_epoch_posted_when_an_epoch_ends_anyway_leaves_the_next_whole(signal: str) -> None:
    trainer = make_trainer(max_epochs=2)
    trace = Trace(trainer)
    trainer.on(signal, lambda trainer: trainer.post("end_epoch"), once=True)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bbV|bbV|"


def test_a_window_that_is_flushed_takes_what_is_posted_meanwhile() -> None:
    trainer = make_trainer(max_epochs=2, accumulate=4)
    trace = Trace(trainer)
    trainer.on("drain:flush", posting("end_epoch", "validate"), once=True)
    trainer.fit(Model(), numbered(2), numbered(1))
    assert trace.text == "bbV|bbV|"
    assert trainer.steps == 2
