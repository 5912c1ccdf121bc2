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

Some things happen in one block of several, such as a checkpoint every 100 steps. A median over such
blocks lies between those with and those without, and says nothing of either. So blocks are added up
to turns of equal content before anything is compared.
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
    """Seconds that a block took, by the loop under test and by the bare twin; or several blocks."""

    tested: float
    bare: float


def together(blocks: Sequence[Turn], count: int) -> list[Turn]:
    """Add up blocks that follow one another, so many to a turn; an incomplete turn at the end is left out."""
    return [
        Turn(*map(sum, zip(*blocks[first : first + count], strict=True)))
        for first in range(0, len(blocks) - count + 1, count)
    ]


class _OutOfSight:
    """Holds what measures where a trainer does not find it, as if it lay in another process.

    A trainer may look through its loader for state, as ours does at each checkpoint. There it is to find the
    batches, which are there in any training, but not the twin and the times: that took longer than the rest of
    the checkpoint. Nobody looks into a generator, and what has a state of its own needs nobody to keep it.
    """

    def __init__(self, marks: Iterator[None]) -> None:
        self.mark = marks.__next__

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


class TurnTaking:
    """An iterable of batches that lets the twin train between two blocks of its reader.

    Args:
        batches: The batches of one block.
        twin: Trains on a block.
        turns: Blocks that count.
        warm_up: Blocks before these that do not.
        clock: Tells the time in seconds.

    Attributes:
        taken: The times of the blocks that count, once the pass is over.
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
        self.taken: tuple[Turn, ...] = ()
        self._batches = batches
        self._blocks_to_come = warm_up + turns
        self._warm_up = warm_up
        self._watch = _OutOfSight(self._marks(twin, clock))

    def __iter__(self) -> Iterator[Batch]:
        """Begin the pass."""
        return chain.from_iterable(self._blocks())

    def _blocks(self) -> Iterator[Sequence[Batch]]:
        for _ in range(self._blocks_to_come):
            self._watch.mark()
            yield self._batches
        self._watch.mark()

    def _marks(self, twin: Callable[[Sequence[Batch]], object], clock: Clock) -> Iterator[None]:
        """Begin a block at each mark, after the twin's of the one before."""
        taken: list[Turn] = []
        for _ in range(self._blocks_to_come):
            start = clock()
            yield
            middle = clock()
            twin(self._batches)
            taken.append(Turn(middle - start, clock() - middle))
        self.taken = (*taken[self._warm_up :],)
        yield


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        widths: Of the perceptron.
        batch_size: Samples in a batch.
        turns: Turns that count.
    """

    widths: tuple[int, ...]
    batch_size: int
    turns: int


@dataclass(frozen=True)
class Comparison:
    """What came out of the turns in one process.

    Attributes:
        ratio: Median of the ratios of a turn to the twin's.
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
    blocks: int = 2,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Let a loop and a bare twin train by turns.

    Args:
        train: The loop under test.
        workload: What is trained.
        steps: Steps in a block.
        blocks: Blocks that are added up to a turn.
        seed: Of the weights and the data.
        clock: Tells the time in seconds.
    """
    torch.manual_seed(seed)
    features, classes = workload.widths[0], workload.widths[-1]
    size = workload.batch_size
    batches = [(torch.randn(size, features), torch.randint(classes, (size,))) for _ in range(steps)]
    model, twin = Classifier(workload.widths), Classifier(workload.widths)
    twin.load_state_dict(model.state_dict())
    loader = TurnTaking(batches, BareLoop(twin).train, turns=workload.turns * blocks, clock=clock)
    train(model, loader)
    turns = together(loader.taken, blocks)
    if len(turns) != workload.turns:
        raise RuntimeError(f"{len(turns)} of {workload.turns} turns were read to their end.")
    return Comparison(
        ratio=statistics.median(turn.tested / turn.bare for turn in turns),
        bare_us=statistics.median(turn.bare for turn in turns) / (steps * blocks) * 1e6,
        extra_us=statistics.median(t.tested - t.bare for t in turns) / (steps * blocks) * 1e6,
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
