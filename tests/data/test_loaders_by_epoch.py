"""A function may make the loader of an epoch: it hears the number of the epoch, also when a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer import (
    FitLoop,
    KFoldLoop,
    Mixture,
    Phase,
    PhasesLoop,
    Together,
    Trainer,
    log,
)
from statemachine_trainer.data import BadSource, as_loader
from statemachine_trainer.testing import assert_resumable
from tests.data.test_loaders_made_anew import Net as Plain
from tests.data.test_loaders_made_anew import loader


class Net(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log("score", self.layer(batch[0]).mean())

    test_step = validation_step


class Noting:
    """Makes a loader that grows with the epoch, and notes for which epochs."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, epoch: int) -> DataLoader[Any]:
        self.heard.append(epoch)
        return loader(4 + 2 * epoch)


def start(make: Any, validation: Any = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(max_epochs=3, progress=False, device="cpu", sanity_batches=0, **settings)
    trainer.start(Net(), make, validation)
    return trainer


def test_it_is_called_once_for_each_epoch_and_no_setting_is_needed() -> None:
    make, validation = Noting(), Noting()
    trainer = start(make, validation)
    trainer.run()
    assert make.heard == validation.heard == [0, 1, 2]
    assert trainer.context.counts.batch == 2 + 3 + 4


def test_one_that_does_not_take_it_is_called_once() -> None:
    calls = []

    def plain() -> Any:
        calls.append(1)
        return loader(4)

    make = Noting()
    start(make, plain).run()
    assert (len(calls), make.heard) == (1, [0, 1, 2])


def test_with_reload_every_it_is_called_as_often_as_that_says() -> None:
    make = Noting()
    start(make, reload_every=2).run()
    assert make.heard == [0, 2]


@pytest.mark.parametrize("until", ["batch_end", "epoch_end", "next_epoch"])
def test_a_run_that_goes_on_asks_for_no_other_epoch(until: str, tmp_path: Path) -> None:
    first = Trainer(max_epochs=3, progress=False, device="cpu", checkpoints=tmp_path)
    first.start(Net(), Noting())
    first.run(until=lambda trainer: trainer.context.counts.batch == 3)
    first.run(until=until)
    first.checkpoint()
    standing = first.context.train.epoch
    later = Trainer(max_epochs=3, progress=False, device="cpu")
    make = Noting()
    later.fit(Net(), make, resume=tmp_path)
    assert standing == 1
    assert make.heard == [1, 2]


def test_a_fit_that_is_called_again_goes_on_with_the_next_epoch() -> None:
    make = Noting()
    trainer = start(make)
    trainer.run()
    trainer.loop.max_epochs = 4
    trainer.fit(trainer.model, make)
    assert make.heard == [0, 1, 2, 3]


def by_epoch() -> Trainer:
    return start(lambda epoch: loader(4 + 2 * epoch), lambda epoch: loader(2 + 2 * epoch))


def several_by_epoch() -> Trainer:
    return start(lambda epoch: Mixture([loader(4), loader(2 + 2 * epoch)], [1, epoch + 1]))


def every_other_epoch() -> Trainer:
    return start(lambda epoch: loader(4 + 2 * epoch), reload_every=2)


class OfSeveral(Net):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        parts = batch.values() if isinstance(batch, dict) else [batch]
        return torch.stack([super(OfSeveral, self).training_step(b, 0) for b in parts]).sum()


@pytest.mark.parametrize("make", [by_epoch, several_by_epoch, every_other_epoch])
def test_every_boundary_resumes_to_the_same_bits(make: Callable[[], Trainer]) -> None:
    assert_resumable(make, examples=12, seed=2, fresh_process=False)


def test_one_of_several_loaders_may_be_made_by_epoch() -> None:
    def make() -> Trainer:
        torch.manual_seed(0)
        trainer = Trainer(max_epochs=3, progress=False, device="cpu")
        trainer.start(OfSeveral(), {"a": lambda epoch: loader(4 + 2 * epoch), "b": loader(2)})
        return trainer

    assert_resumable(make, examples=8, seed=2, fresh_process=False)


@pytest.mark.parametrize(
    "do, message",
    [
        (lambda: as_loader(lambda data: loader(2), epoch=0), "needs data. It is called without"),
        (lambda: Together([Noting(), loader(2)]), r"lambda epoch: Together\(...\)"),
        (
            lambda: Trainer(KFoldLoop(2, fit=FitLoop(max_epochs=1)), progress=False).fit(
                Net(), Noting()
            ),
            "takes the epoch, and here it would be called once",
        ),
        (
            lambda: Trainer(
                PhasesLoop(
                    Phase("one", FitLoop(max_epochs=1)),
                    Phase("two", FitLoop(max_epochs=1), train=Noting()),
                ),
                progress=False,
            ).fit(Net(), loader(2)),
            "takes the epoch, and here it would be called once",
        ),
    ],
)
def test_where_it_means_nothing_it_is_refused(do: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadSource, match=message):
        do()
