"""A run that goes on with other receivers or callbacks is told of those that may change the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.audit.test_what_a_script_made import Net, fit, rows

OWNER = "receivers and callbacks that may change the training"


class Shakes:
    def on_batch_end(self) -> None:
        self.drawn = random.random()


class AlsoShakes(Shakes):
    pass


class SetsTheRate:
    def on_batch_start(self, trainer: Any) -> None:
        for group in trainer.context.slots[0].optimizer.param_groups:
            group["lr"] = 0.1


class ActsByAHelper:
    def on_epoch_end(self, trainer: Any) -> None:
        shrink(trainer)


class KeepsRates:
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.calls = 0

    def on_batch_end(self, trainer: Any) -> None:
        self.calls += 1
        self.rates.append(trainer.context.slots[0].optimizer.param_groups[0]["lr"])


def shrink(trainer: Any) -> None:
    with torch.no_grad():
        trainer.context.model.layer.weight.mul_(0.5)


def draw(trainer: Any) -> None:
    torch.rand(1)


def sets(trainer: Any, name: str = "scale") -> None:
    trainer.context.model._scale = 1.0


def posts(trainer: Any) -> None:
    if trainer.context.counts.batch == 10**9:
        trainer.post("validate")


def looks(trainer: Any) -> None:
    print(f"{trainer.context.counts.step}", end="")


def looks_at_nothing(trainer: Any, names: tuple[str, ...] = ()) -> None:
    print(*(names or ()), sep="", end="")


def stops(trainer: Any) -> None:
    if trainer.context.counts.batch == 10**9:
        trainer.stop()


ACTING: dict[str, tuple[Callable[[], Any], str]] = {
    "draws": (Shakes, "on 'batch_end' was not there, is Shakes.on_batch_end now"),
    "sets a rate": (SetsTheRate, "on 'batch_start' was not there, is SetsTheRate.on_batch_start"),
    "by a helper": (ActsByAHelper, "on 'epoch_end' was not there, is ActsByAHelper.on_epoch_end"),
    "a function": (lambda: draw, ".draw now"),
    "a partial": (lambda: partial(sets, name="x"), ".sets now"),
    "an event": (lambda: posts, ".posts now"),
}
LOOKING: dict[str, Callable[[], Any]] = {
    "keeps rates": KeepsRates,
    "prints": lambda: looks,
    "with an empty tuple in its code": lambda: looks_at_nothing,
    "only stops": lambda: stops,
}


def run(folder: Path, things: Sequence[Any], until: int | None = None) -> list[str]:
    """Train with receivers of `batch_end` and callbacks; return what was told."""
    functions = [one for one in things if callable(one)]
    callbacks = tuple(one for one in things if not callable(one))
    receivers: dict[str, Any] = {"receiver": functions[0]} if functions else {}
    return fit(folder, Net(), rows(), until=until, callbacks=callbacks, **receivers)


@pytest.mark.parametrize("kind", ACTING)
def test_a_new_one_that_may_act_is_told(kind: str, tmp_path: Path) -> None:
    make, told_so = ACTING[kind]
    assert run(tmp_path, [], until=2) == []
    (told,) = run(tmp_path, [make()])
    assert told.startswith(OWNER)
    assert told_so in told


@pytest.mark.parametrize("kind", ["draws", "a function"])
def test_one_that_is_no_longer_there_is_told(kind: str, tmp_path: Path) -> None:
    make, _ = ACTING[kind]
    assert run(tmp_path, [make()], until=2) == []
    (told,) = run(tmp_path, [])
    assert "is not there now. The script's are called from here on" in told


def test_another_order_is_told(tmp_path: Path) -> None:
    assert run(tmp_path, [Shakes(), AlsoShakes()], until=2) == []
    (told,) = run(tmp_path, [AlsoShakes(), Shakes()])
    assert "was Shakes.on_batch_end, AlsoShakes.on_batch_end, is AlsoShakes" in told


@pytest.mark.parametrize("kind", [*ACTING])
def test_the_same_are_not_told(kind: str, tmp_path: Path) -> None:
    make, _ = ACTING[kind]
    assert run(tmp_path, [make()], until=2) == []
    assert run(tmp_path, [make()]) == []


@pytest.mark.parametrize("kind", LOOKING)
def test_one_that_only_looks_comes_and_goes(kind: str, tmp_path: Path) -> None:
    make = LOOKING[kind]
    assert run(tmp_path, [], until=2) == []
    assert run(tmp_path, [make()], until=4) == []
    assert run(tmp_path, []) == []
