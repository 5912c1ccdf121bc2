"""What `configure_optimizers` may return, and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from statemachine_trainer.loops.loop_errors import OptimizerError
from statemachine_trainer.loops.slots import read_optimizers
from tests.loops.inner_kit import Regression, make_batches, make_trainer


def make_two() -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    one, two = (nn.Linear(1, 1) for _ in range(2))
    return torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.Adam(two.parameters(), lr=0.1)


ONE, TWO = make_two()
STEP, COSINE = StepLR(ONE, 1), CosineAnnealingWarmRestarts(TWO, 2)
PLATEAU = ReduceLROnPlateau(ONE)

Shape = list[tuple[Any, int | None, list[tuple[Any, str, int, str | None]]]]


def shape(returned: Any) -> Shape:
    """Optimizers with frequency and schedulers, as they were understood."""
    return [
        (
            slot.optimizer,
            slot.frequency,
            [(s.scheduler, s.interval, s.frequency, s.monitor) for s in slot.schedulers],
        )
        for slot in read_optimizers(returned)
    ]


BY_EPOCH = (STEP, "epoch", 1, None)
FORMS: dict[str, tuple[Any, Shape]] = {
    "an optimizer": (ONE, [(ONE, None, [])]),
    "a list of optimizers": ([ONE, TWO], [(ONE, None, []), (TWO, None, [])]),
    "a tuple of optimizers": ((ONE, TWO), [(ONE, None, []), (TWO, None, [])]),
    "a list of one": ([ONE], [(ONE, None, [])]),
    "two lists": (
        ([ONE, TWO], [STEP, COSINE]),
        [(ONE, None, [BY_EPOCH]), (TWO, None, [(COSINE, "epoch", 1, None)])],
    ),
    "two lists in another order": (
        ([ONE, TWO], [COSINE, STEP]),
        [(ONE, None, [BY_EPOCH]), (TWO, None, [(COSINE, "epoch", 1, None)])],
    ),
    "two lists, no scheduler": (([ONE], []), [(ONE, None, [])]),
    "two lists, several schedulers of one optimizer": (
        ([ONE], [STEP, {"scheduler": PLATEAU, "monitor": "loss"}]),
        [(ONE, None, [BY_EPOCH, (PLATEAU, "epoch", 1, "loss")])],
    ),
    "two lists, schedulers as dicts": (
        ([ONE], [{"scheduler": STEP, "interval": "step", "frequency": 3, "name": "lr"}]),
        [(ONE, None, [(STEP, "step", 3, None)])],
    ),
    "a dict": ({"optimizer": ONE}, [(ONE, None, [])]),
    "a dict with a scheduler": (
        {"optimizer": ONE, "lr_scheduler": STEP},
        [(ONE, None, [BY_EPOCH])],
    ),
    "a dict without a scheduler": ({"optimizer": ONE, "lr_scheduler": None}, [(ONE, None, [])]),
    "a dict with a scheduler's dict": (
        {
            "optimizer": ONE,
            "lr_scheduler": {"scheduler": PLATEAU, "interval": "step", "monitor": "loss"},
        },
        [(ONE, None, [(PLATEAU, "step", 1, "loss")])],
    ),
    "a dict with a monitor": (
        {"optimizer": ONE, "lr_scheduler": PLATEAU, "monitor": "loss"},
        [(ONE, None, [(PLATEAU, "epoch", 1, "loss")])],
    ),
    "a monitor that the scheduler does not take": (
        {"optimizer": ONE, "lr_scheduler": STEP, "monitor": "loss"},
        [(ONE, None, [BY_EPOCH])],
    ),
    "dicts with frequencies": (
        [
            {"optimizer": ONE, "frequency": 1, "lr_scheduler": STEP},
            {"optimizer": TWO, "frequency": 2},
        ],
        [(ONE, 1, [BY_EPOCH]), (TWO, 2, [])],
    ),
    "a tuple of dicts": (
        ({"optimizer": ONE}, {"optimizer": TWO}),
        [(ONE, None, []), (TWO, None, [])],
    ),
    "an optimizer and a dict": (
        [ONE, {"optimizer": TWO, "lr_scheduler": COSINE}],
        [(ONE, None, []), (TWO, None, [(COSINE, "epoch", 1, None)])],
    ),
    "None": (None, []),
    "an empty list": ([], []),
}


@pytest.mark.parametrize("name", FORMS)
def test_it_may_return(name: str) -> None:
    returned, expected = FORMS[name]
    assert shape(returned) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda o: StepLR(o, 1),
        lambda o: LambdaLR(o, lambda epoch: 1.0),
        lambda o: SequentialLR(o, [StepLR(o, 1), StepLR(o, 1)], [1]),
        lambda o: ChainedScheduler([StepLR(o, 1)], optimizer=o),
    ],
    ids=["StepLR", "LambdaLR", "SequentialLR", "ChainedScheduler"],
)
def test_a_scheduler_that_takes_no_value_needs_no_monitor(make: Callable[[Any], Any]) -> None:
    optimizer, _ = make_two()
    scheduler = make(optimizer)
    expected = [(scheduler, "epoch", 1, None)]
    assert shape(([optimizer], [scheduler])) == [(optimizer, None, expected)]


def test_a_scheduler_may_say_that_it_takes_a_value() -> None:
    class Odd:
        optimizer = ONE

        def step(self, *values: float) -> None: ...

    config = {"scheduler": Odd(), "reduce_on_plateau": True, "monitor": "loss"}
    (slot,) = read_optimizers({"optimizer": ONE, "lr_scheduler": config})
    assert slot.schedulers[0].monitor == "loss"


WRONG: dict[str, tuple[Any, str]] = {
    "a number": (3, "returned int 3. It may return an optimizer"),
    "a text": ("adam", "returned str 'adam'"),
    "a class": (torch.optim.SGD, "returned the class SGD itself"),
    "an optimizer and a scheduler": ((ONE, STEP), "StepLR.* in the place of an optimizer"),
    "a scheduler": (STEP, "returned a StepLR"),
    "a list with a wrong thing": ([ONE, "two"], "str 'two' in the place of an optimizer"),
    "two lists with a wrong thing": (([ONE], ["step"]), r"'step' is no scheduler.* step\(\)"),
    "the same optimizer twice": ([ONE, ONE], "the same optimizer twice"),
    "a dict without an optimizer": ({"lr_scheduler": STEP}, r"\['lr_scheduler'\]; it needs"),
    "a dict with a misspelt key": (
        {"optimizer": ONE, "lr_schedulers": STEP},
        r"\['lr_schedulers', 'optimizer'\]; it needs 'optimizer' and may have",
    ),
    "a dict whose keys are no names": ({1: ONE}, r"\['1'\]; it needs 'optimizer'"),
    "a dict with a wrong optimizer": ({"optimizer": "adam"}, "str 'adam' in the place"),
    "a frequency for one only": (
        [{"optimizer": ONE, "frequency": 1}, {"optimizer": TWO}],
        "to every optimizer or to none",
    ),
    "a frequency of 0": ({"optimizer": ONE, "frequency": 0}, "whole number from 1, not 0"),
    "a frequency of True": ({"optimizer": ONE, "frequency": True}, "from 1, not True"),
    "a scheduler's dict without one": (
        {"optimizer": ONE, "lr_scheduler": {"interval": "step"}},
        "has no 'scheduler'",
    ),
    "a scheduler's dict with a misspelt key": (
        {"optimizer": ONE, "lr_scheduler": {"scheduler": STEP, "intervall": "step"}},
        "unknown key 'intervall'; its keys are",
    ),
    "an unknown interval": (
        {"optimizer": ONE, "lr_scheduler": {"scheduler": STEP, "interval": "batch"}},
        "'step' or 'epoch', not 'batch'",
    ),
    "a scheduler's frequency of 0": (
        {"optimizer": ONE, "lr_scheduler": {"scheduler": STEP, "frequency": 0}},
        "whole number from 1, not 0",
    ),
    "a plateau without a monitor": (
        {"optimizer": ONE, "lr_scheduler": PLATEAU},
        "ReduceLROnPlateau needs to know which metric",
    ),
    "a scheduler of another optimizer": (([ONE], [COSINE]), "did not return with it"),
    "a scheduler in the dict of another optimizer": (
        [{"optimizer": ONE}, {"optimizer": TWO, "lr_scheduler": STEP}],
        "StepLR was made for an optimizer",
    ),
    "a scheduler of no optimizer": (([], [STEP]), "did not return with it"),
    "two lists of which the second is none": (
        ([ONE], None),
        "list in the place of an optimizer",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_may_not_return(name: str) -> None:
    returned, message = WRONG[name]
    with pytest.raises(OptimizerError, match=message):
        read_optimizers(returned)


def test_a_wrong_return_value_is_an_error_before_anything_runs() -> None:
    trainer = make_trainer()
    with pytest.raises(OptimizerError, match="It may return an optimizer"):
        trainer.fit(Regression(lambda _: 3), make_batches(1))
    assert trainer.path is None


@pytest.mark.parametrize("nothing", [None, []], ids=str)
def test_automatic_optimization_needs_an_optimizer(nothing: Any) -> None:
    with pytest.raises(OptimizerError, match="returned no optimizer"):
        make_trainer().fit(Regression(lambda _: nothing), make_batches(1))


def test_a_model_without_the_method_is_told_to_write_it() -> None:
    class Model(nn.Module):
        def training_step(self, batch: Any) -> Any: ...

    with pytest.raises(
        OptimizerError, match=r"Model has no configure_optimizers.*Write the method"
    ):
        make_trainer().fit(Model(), make_batches(1))
