"""Small models, batches and recorders for the tests of the inner loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from statemachine_trainer.trainer import Trainer

Batch = tuple[Tensor, Tensor]


def make_batches(count: int, size: int = 4, seed: int = 0) -> list[Batch]:
    """Batches of a regression with two inputs."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 2, generator=generator), torch.randn(size, 1, generator=generator))
        for _ in range(count)
    ]


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


def mse(net: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return torch.mean((net(inputs) - targets).square())


class Regression(nn.Module):
    """A net, and what `configure_optimizers` is to return for its parameters."""

    def __init__(self, configure: Callable[[Any], Any] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.net = make_net(seed)
        self._configure = configure or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        return mse(self.net, batch)

    def configure_optimizers(self) -> Any:
        return self._configure(self.net.parameters())


class Pair(nn.Module):
    """Two nets with an optimizer each; both losses touch both nets."""

    def __init__(self, configure: Callable[[Any, Any], Any], seed: int = 0) -> None:
        super().__init__()
        self.one, self.two = make_net(seed), make_net(seed + 1)
        self._configure = configure
        self.ran: list[tuple[int, int]] = []

    def training_step(self, batch: Batch, batch_idx: int, optimizer_idx: int) -> Any:
        self.ran.append((batch_idx, optimizer_idx))
        return pair_loss(self.one, self.two, batch, optimizer_idx)

    def configure_optimizers(self) -> Any:
        sgd = torch.optim.SGD
        one = sgd(self.one.parameters(), lr=0.1, momentum=0.5)
        two = sgd(self.two.parameters(), lr=0.05, momentum=0.5)
        return self._configure(one, two)


def pair_loss(one: nn.Module, two: nn.Module, batch: Batch, optimizer_idx: int) -> Tensor:
    """Each net is trained towards the targets, and towards what the other one says."""
    inputs, targets = batch
    first, second = (one, two) if optimizer_idx == 0 else (two, one)
    said = first(inputs)
    return torch.mean((said - targets).square()) + torch.mean((said - second(inputs)).abs())


def make_trainer(**settings: Any) -> Trainer:
    settings.setdefault("max_epochs", 1)
    return Trainer(device="cpu", progress=False, **settings)


def unsized(batches: Iterable[Batch]) -> Any:
    """The same batches from an iterable that does not know how many there are."""
    return Unsized(list(batches))


class Unsized:
    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_weights(model: nn.Module, *expected: nn.Module) -> None:
    """Bit for bit."""
    ours = list(model.parameters())
    plain = [parameter for net in expected for parameter in net.parameters()]
    assert len(ours) == len(plain)
    for number, (mine, other) in enumerate(zip(ours, plain, strict=True)):
        assert torch.equal(mine, other), f"parameter {number}: {mine} is not {other}"


class Signals:
    """Records the signals of a trainer as short names."""

    def __init__(self, trainer: Trainer, *names: str, without: Iterable[str] = ()) -> None:
        self.fired: list[str] = []
        self._without = tuple(without)
        for name in names:
            trainer.on(name, self._note)

    def _note(self, trainer: Trainer, moment: Any) -> None:
        name = moment.path.rpartition(".")[2]
        if name not in self._without:
            self.fired.append(name if moment.kind == "enter" else f"{name}:{moment.kind}")
