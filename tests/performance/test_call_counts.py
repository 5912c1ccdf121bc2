"""What a step costs, in countable things: they are the same on every machine, unlike times.

Each is counted over a long and a short run and divided by the difference in batches, so that what
happens once a run or once an epoch drops out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from statemachine_trainer.loops import log
from statemachine_trainer.trainer import Trainer
from tests.counting import counting_calls

Batch = tuple[torch.Tensor, torch.Tensor]
Train = Callable[["Classifier", Iterable[Batch]], object]

SHORT, LONG = 10, 30

MOST_CALLS = -36
"""Python calls of a step of ours beyond those of a bare loop, with nobody listening: it makes fewer."""

MOST_CALLS_HEARD = -34
"""The same with a receiver on `batch_end`, its own call included."""


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LoggingClassifier(Classifier):
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        log("loss", loss)
        return loss


def bare(model: Classifier, batches: Iterable[Batch]) -> None:
    optimizer = model.configure_optimizers()
    for inputs, targets in batches:
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ours(model: Classifier, batches: Iterable[Batch]) -> None:
    Trainer(max_epochs=1, device="cpu", progress=False).fit(model, batches)


def ours_heard(model: Classifier, batches: Iterable[Batch]) -> None:
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    trainer.on("batch_end", lambda trainer, moment: None)
    trainer.fit(model, batches)


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls(train: Train, batches: int) -> Counter[str]:
    model, data = Classifier(), Batches(batches)
    seen: Counter[str] = Counter()
    with counting_calls(seen):
        train(model, data)
    return seen


def operations(train: Train, batches: int, kind: type[Classifier] = Classifier) -> Counter[str]:
    model, data = kind(), Batches(batches)
    mode = Operations()
    with mode:
        train(model, data)
    return mode.seen


class Batches:
    """An iterable that makes no Python call of its own for a batch.

    It holds as many batches whatever is asked for: a fit with checkpoints looks at them once, as it starts.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        held = max(count, LONG)
        self._made = [(torch.randn(8, 32), torch.randint(10, (8,))) for _ in range(held)]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._made[: self._count])


def per_step(count: Callable[[int], Counter[str]]) -> dict[str, float]:
    """What a step counts, by name."""
    count(SHORT)  # what is imported, compiled or cached at first use
    short, long = count(SHORT), count(LONG)
    names = sorted(long.keys() | short.keys())
    steps = {name: (long[name] - short[name]) / (LONG - SHORT) for name in names}
    return {name: number for name, number in steps.items() if number}


def more(train: Train) -> dict[str, float]:
    """The calls per step that are not those of the bare loop."""
    theirs = per_step(lambda n: calls(bare, n))
    found = per_step(lambda n: calls(train, n))
    names = sorted(found.keys() | theirs.keys())
    differences = {name: found.get(name, 0) - theirs.get(name, 0) for name in names}
    return {name: number for name, number in differences.items() if number}


@pytest.mark.parametrize("train, most", [(ours, MOST_CALLS), (ours_heard, MOST_CALLS_HEARD)])
def test_a_step_makes_fewer_python_calls_than_a_bare_loop(train: Train, most: int) -> None:
    added = more(train)
    listed = "\n".join(f"{number:+g} {name}" for name, number in added.items())
    assert sum(added.values()) <= most, f"{sum(added.values()):g} calls more:\n{listed}"


@pytest.mark.parametrize("train", [ours, ours_heard])
def test_a_step_dispatches_exactly_the_operations_of_a_bare_loop(train: Train) -> None:
    theirs = per_step(lambda n: operations(bare, n))
    assert sum(theirs.values()) > 10  # the backward pass and the optimizer are seen too
    assert per_step(lambda n: operations(train, n)) == theirs


def test_a_step_waits_for_the_device_only_where_it_logs() -> None:
    reads = "aten._local_scalar_dense.default"
    silent = per_step(lambda n: operations(ours, n))
    logging = per_step(lambda n: operations(ours, n, LoggingClassifier))
    assert reads not in silent
    # On the CPU, where nothing waits, logging reads the number; it does nothing besides.
    assert logging == {**silent, reads: 1}
