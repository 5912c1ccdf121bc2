"""Several loaders at once, in every mode of Lightning's `CombinedLoader`, each where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import pytest

pytest.importorskip("lightning", reason="needs the extra `lightning`")

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from statemachine_trainer import Trainer
from statemachine_trainer.integrations import lightning
from statemachine_trainer.testing import assert_resumable
from tests.integrations.lightning_kit import (
    Classifier,
    assert_same_bits,
    both,
    data,
    quiet_lightning,
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


Mode = Literal["max_size_cycle", "min_size", "max_size", "sequential"]
MODES: tuple[Mode, ...] = ("max_size_cycle", "min_size", "max_size", "sequential")


class Several(Classifier):
    """Trains on whatever structure of batches comes."""

    def loss(self, batch: Any) -> Tensor:
        given = batch.values() if isinstance(batch, dict) else batch
        pairs = [one for one in given if isinstance(one, list | tuple)] or [batch]
        return torch.stack([super(Several, self).loss(one) for one in pairs]).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=True, batch_size=10)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch), batch_size=10)


def combined(mode: Mode) -> Callable[[], Any]:
    return lambda: CombinedLoader({"a": data(60), "b": data(30)}, mode)


@pytest.mark.parametrize(
    "mode", MODES[:3]
)  # Lightning refuses to train on them one after the other
def test_training_gives_the_same_bits(mode: Mode) -> None:
    theirs, ours = both(lambda notes: (Several(), []), combined(mode), max_epochs=3)
    assert_same_bits(theirs, ours)


@pytest.mark.parametrize(
    "given", [lambda: {"a": data(60), "b": data(30)}, lambda: [data(60), data(30)], lambda: {"a": [data(30), data(60)]}]
)  # fmt: skip
def test_dicts_and_lists_of_loaders_are_combined_as_in_lightning(given: Callable[[], Any]) -> None:
    class Nested(Several):
        def loss(self, batch: Any) -> Tensor:
            return super().loss(
                batch["a"] if isinstance(batch, dict) and len(batch) == 1 else batch
            )

    theirs, ours = both(lambda notes: (Nested(), []), given, max_epochs=2)
    assert_same_bits(theirs, ours)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_gives_the_same_metrics(mode: Mode) -> None:
    theirs, ours = both(lambda notes: (Several(), []), data, combined(mode), max_epochs=2)
    assert_same_bits(theirs, ours)
    assert sorted(ours.metrics) == sorted(theirs.metrics)
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_a_module_may_make_them_and_see_them() -> None:
    class Making(Several):
        def train_dataloader(self) -> Any:
            return {"a": data(60), "b": data(30)}

        def on_train_start(self) -> None:
            loaders = cast(dict[str, Any], self.trainer.train_dataloader)
            self.seen = (sorted(loaders), self.trainer.num_training_batches)

    theirs, ours = both(lambda notes: (Making(), []), max_epochs=2)
    assert_same_bits(theirs, ours)
    assert ours.module.seen == theirs.module.seen == (["a", "b"], 6)


def make(mode: Mode) -> Callable[[], Trainer]:
    def made() -> Trainer:
        torch.manual_seed(3)
        one = Trainer(max_epochs=2, device="cpu", progress=False, sanity_batches=0)
        one.start(lightning.module(Several()), combined(mode)(), combined(mode)())
        return one

    return made


@pytest.mark.parametrize("mode", MODES)
def test_the_place_of_each_is_exact(mode: Mode) -> None:
    assert_resumable(make(mode), examples=2)


def test_a_second_fit_takes_several_loaders_again_and_others() -> None:
    loaders = {"a": data(20), "b": data(20)}
    module = Several()
    model = lightning.module(module)
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.fit(model, loaders)
    for again in (loaders, {"a": data(30), "b": data(30)}, None):
        trainer.loop.max_epochs += 1
        trainer.fit(model, again)
    assert module.global_step == 2 + 2 + 3 + 3


def test_a_pass_that_was_left_at_its_last_batch_does_not_go_on_later() -> None:
    assert_resumable(make("max_size_cycle"), stops=[65])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_place_of_each_is_exact_at_every_boundary(mode: Mode) -> None:
    assert_resumable(make(mode), exhaustive=True)
