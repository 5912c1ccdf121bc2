"""Measures a training loop against a bare twin, on a machine that does other things too.

Timings of whole runs drift with everything else that the machine does. Here a loop and its twin, a
bare PyTorch loop with a model of its own, train in one process and take turns: a block of steps
each, on the same batches. What slows one slows the other, and the ratio within a turn is stable
where the times are not.

The loop under test is not stopped and started for this: its loader runs the twin. The trainer asks
for batch after batch in one undisturbed pass; when it asks for the first batch of the next block,
the loader takes the time, lets the twin train its block, takes the time again and goes on. Within a
block a batch costs what it costs from a list. So any trainer that takes an iterable can be measured,
and nothing of ours is on the clock: each block holds exactly its number of whole steps, the fetching
of batches included.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Batch = tuple[torch.Tensor, torch.Tensor]
Batches = Iterable[Batch]
Clock = Callable[[], float]
Train = Callable[["Classifier", Batches], object]
"""The loop under test: trains the model in one pass over the batches."""


class Classifier(nn.Module):
    """A perceptron trained by SGD on the cross entropy, with the two methods that trainers ask for.

    Args:
        widths: Features of the inputs, of each hidden layer, and number of classes.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits, of shape (batch, classes)."""
        logits: torch.Tensor = self.layers(inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        inputs, targets = batch
        return F.cross_entropy(self(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class BareLoop:
    """The loop that one writes by hand: nothing in it can be left out."""

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.optimizer = model.configure_optimizers()

    def train(self, batches: Batches) -> None:
        """Train on the batches, one after the other."""
        model, optimizer = self.model, self.optimizer
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def bare(model: Classifier, batches: Batches) -> None:
    """Train by a bare loop: in the place of a trainer it shows how well the method tells 1.0."""
    BareLoop(model).train(batches)


class Turn(NamedTuple):
    """Seconds that a block took, by the loop under test and by the bare twin."""

    tested: float
    bare: float


class TurnTaking:
    """An iterable of batches that lets the twin train between two blocks of its reader.

    Args:
        batches: The batches of one block.
        twin: Trains on a block.
        turns: Blocks that count.
        warm_up: Blocks before these that do not.
        clock: Tells the time in seconds.

    Attributes:
        taken: The times of the blocks that count.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        twin: Callable[[Sequence[Batch]], object],
        *,
        turns: int,
        warm_up: int = 5,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.taken: list[Turn] = []
        self._batches = batches
        self._twin = twin
        self._turns = turns
        self._warm_up = warm_up
        self._clock = clock

    def __iter__(self) -> Iterator[Batch]:
        """Begin the pass."""
        return chain.from_iterable(self._blocks())

    def _blocks(self) -> Iterator[Sequence[Batch]]:
        for turn in range(self._warm_up + self._turns):
            start = self._clock()
            yield self._batches
            middle = self._clock()
            self._twin(self._batches)
            end = self._clock()
            if turn >= self._warm_up:
                self.taken.append(Turn(middle - start, end - middle))


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        widths: Of the perceptron.
        batch_size: Samples in a batch.
        turns: Blocks that count.
    """

    widths: tuple[int, ...]
    batch_size: int
    turns: int


@dataclass(frozen=True)
class Comparison:
    """What came out of the turns in one process.

    Attributes:
        ratio: Median of the ratios of a block to the twin's.
        bare_us: Median of a step of the twin, in microseconds.
        extra_us: Median of what a step takes more than the twin's, in microseconds.
        same_bits: Whether both models ended with the same weights.
    """

    ratio: float
    bare_us: float
    extra_us: float
    same_bits: bool


def compare(
    train: Train,
    workload: Workload,
    *,
    steps: int = 50,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Let a loop and a bare twin train by turns.

    Args:
        train: The loop under test.
        workload: What is trained.
        steps: Steps in a block.
        seed: Of the weights and the data.
        clock: Tells the time in seconds.
    """
    torch.manual_seed(seed)
    features, classes = workload.widths[0], workload.widths[-1]
    size = workload.batch_size
    batches = [(torch.randn(size, features), torch.randint(classes, (size,))) for _ in range(steps)]
    model, twin = Classifier(workload.widths), Classifier(workload.widths)
    twin.load_state_dict(model.state_dict())
    loader = TurnTaking(batches, BareLoop(twin).train, turns=workload.turns, clock=clock)
    train(model, loader)
    if len(loader.taken) != workload.turns:
        raise RuntimeError(f"{len(loader.taken)} of {workload.turns} turns were read to their end.")
    return Comparison(
        ratio=statistics.median(turn.tested / turn.bare for turn in loader.taken),
        bare_us=statistics.median(turn.bare for turn in loader.taken) / steps * 1e6,
        extra_us=statistics.median(t.tested - t.bare for t in loader.taken) / steps * 1e6,
        same_bits=same_bits(model, twin),
    )


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two models of one kind have the same weights, to the bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)


def hold_still(core: int | None = None) -> str:
    """Pin this process to one core and torch to one thread; say in words what was done.

    Args:
        core: Its number; the last one that this process may use unless given.
    """
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return "one thread, not pinned"
    core = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {core})
    return f"one thread, pinned to core {core}"
