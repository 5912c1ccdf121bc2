"""A GAN on the digits in three ways: several optimizers, optimization by hand, a yielding step."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from statemachine_trainer import Trainer, YieldingLoop, log
from statemachine_trainer.testing import assert_resumable

# -- what the three have in common ---------------------------------------------------------------


class Gan(nn.Module):
    """The generator draws digits of 8x8; the discriminator tells them from those of people."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid()
        )
        self.discriminator = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))

    def fakes(self, count: int) -> Tensor:
        made: Tensor = self.generator(torch.randn(count, 16))
        return made

    def telling_loss(self, real: Tensor) -> Tensor:
        """The discriminator's: how badly it tells the two apart."""
        told = self.discriminator(torch.cat([real, self.fakes(len(real)).detach()]))
        truth = (torch.arange(len(told)) < len(real)).float().unsqueeze(1)
        loss = F.binary_cross_entropy_with_logits(told, truth)
        log("telling", loss)
        return loss

    def fooling_loss(self, count: int) -> Tensor:
        """The generator's: how badly it fools the discriminator."""
        told = self.discriminator(self.fakes(count))
        loss = F.binary_cross_entropy_with_logits(told, torch.ones_like(told))
        log("fooling", loss)
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        nets = self.discriminator, self.generator
        return [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in nets]


# -- the three steps -----------------------------------------------------------------------------


class SeveralOptimizers(Gan):
    """The step is called once for each optimizer."""

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:
        if optimizer_idx == 0:
            return self.telling_loss(batch[0])
        return self.fooling_loss(len(batch[0]))


class ByHand(Gan):
    """The step steps the optimizers."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int, optimizers: Any, trainer: Any) -> None:
        telling, fooling = optimizers
        telling.zero_grad()
        trainer.backward(self.telling_loss(batch[0]))
        telling.step()
        fooling.zero_grad()
        trainer.backward(self.fooling_loss(len(batch[0])))
        fooling.step()


class Yielding(Gan):
    """The step yields the losses."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        yield self.telling_loss(batch[0])
        yield self.fooling_loss(len(batch[0]))


WAYS = (SeveralOptimizers, ByHand, Yielding)


def digits(count: int | None = None) -> DataLoader[Any]:
    pictures = torch.tensor(load_digits().data[:count], dtype=torch.float32) / 16
    return DataLoader(TensorDataset(pictures), batch_size=64, shuffle=True)


def make_trainer(way: type[Gan], count: int | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(device="cpu", progress=False, **settings)
    if way is Yielding:
        trainer.loop["epoch.batch.optimizer"] = YieldingLoop()
    trainer.start(way(), digits(count))
    return trainer


def curves(trainer: Trainer) -> list[tuple[float, float]]:
    """Train; return both losses of each epoch."""
    found: list[tuple[float, float]] = []

    @trainer.on("epoch_end:exit")
    def note(trainer: Trainer) -> None:
        found.append((trainer.metrics["telling"], trainer.metrics["fooling"]))

    trainer.run()
    return found


# -- shown ---------------------------------------------------------------------------------------


def test_the_three_give_the_same_losses_and_weights_to_the_bit() -> None:
    trainers, losses = [], []
    for way in WAYS:  # each begins with the same seed, so one after the other
        trainers.append(make_trainer(way, max_epochs=3))
        losses.append(curves(trainers[-1]))
    assert losses[0] == losses[1] == losses[2]
    assert len(set(losses[0])) == 3
    first, *others = ([*trainer.model.parameters()] for trainer in trainers)
    for other in others:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, other, strict=True))


def test_the_generator_comes_to_draw_digits() -> None:
    real = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    trainer = make_trainer(Yielding, max_epochs=20)
    before = drawn(trainer.model)
    found = curves(trainer)
    after = drawn(trainer.model)
    # How far a picture is from the nearest one of a person, and how different the pictures are.
    assert far(before, real) > 3
    assert far(after, real) < 2
    assert after.std(0).mean() > 3 * before.std(0).mean()
    assert all(0.3 < telling < 0.8 and fooling < 2 for telling, fooling in found[5:])


@pytest.mark.parametrize("way", WAYS)
def test_each_of_the_three_can_be_resumed(way: type[Gan]) -> None:
    report = assert_resumable(lambda: make_trainer(way, 100, max_epochs=1), exhaustive=True)
    assert len(report.tried) == report.boundaries - report.transient


def test_a_gan_is_twenty_lines() -> None:
    """Its losses, its optimizers and its step; without blank lines and docstrings."""
    methods = (
        Gan.telling_loss, Gan.fooling_loss, Gan.configure_optimizers, Yielding.training_step,
    )  # fmt: skip
    lines = [line for one in methods for line in inspect.getsource(one).split("\n")]
    assert len([line for line in lines if line.strip() and '"""' not in line]) <= 20


def drawn(model: nn.Module) -> Tensor:
    assert isinstance(model, Gan)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        return model.fakes(300)


def far(pictures: Tensor, real: Tensor) -> float:
    return float(torch.cdist(pictures, real).min(1).values.mean())
