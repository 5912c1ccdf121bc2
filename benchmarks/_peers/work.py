"""What every peer trains, and the bare twin beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from _twins import BareLoop, Clock, Turn, TurnTaking
from _twins import Batch as Batch
from _twins import Classifier as Classifier
from torch.utils.data import DataLoader, Dataset, TensorDataset

Collate = Callable[[list[Batch]], Any]

WIDTHS = {"tiny": (32, 64, 10), "5 ms": (*[256] * 8, 10)}
BATCH_SIZES = {"tiny": 32, "5 ms": 128}


def first(items: list[Any]) -> Any:
    """Collate function for a data set of whole batches."""
    return items[0]


class Listed(Dataset[Batch]):
    """Whole batches as a map-style data set, for those who insist on a `DataLoader`."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self.batches):
            raise IndexError(index)
        return self.batches[index]


def loader_of(dataset: Dataset[Batch], collate: Collate | None = None) -> DataLoader[Any]:
    """A `DataLoader` that hands out whole batches of a data set of whole batches."""
    return DataLoader(dataset, batch_size=1, collate_fn=collate or first)


class Data(Protocol):
    """One pass over batches, in the form that a peer asks for. Ask for one form only."""

    @property
    def count(self) -> int:
        """Batches in the pass."""

    def batches(self) -> Iterable[Batch]:
        """As a plain iterable."""

    def loader(self, collate: Collate | None = None) -> DataLoader[Any]:
        """As a `DataLoader`, for those who insist on one."""


class Batched:
    """A list of batches that is no list: some trainers take a list for several loaders.

    Iterating makes no Python call for a batch.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


class Plain:
    """Some batches, and no twin: for what is counted."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    @property
    def count(self) -> int:
        return len(self._batches)

    def batches(self) -> Iterable[Batch]:
        return Batched(self._batches)

    def loader(self, collate: Collate | None = None) -> DataLoader[Any]:
        return loader_of(Listed(self._batches), collate)


class TurnDataset(Dataset[Batch]):
    """As `TurnTaking`, for a `DataLoader`: the twin trains when a block's first batch is read."""

    def __init__(
        self,
        batches: Sequence[Batch],
        twin: Callable[[], object],
        turns: int,
        warm_up: int,
        clock: Clock,
    ) -> None:
        self.batches = batches
        self._clock = clock
        self.taken: list[Turn] = []
        self._twin = twin
        self._blocks = warm_up + turns
        self._warm_up = warm_up
        self._block = 0
        self._began = 0.0

    def __len__(self) -> int:
        return self._blocks * len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        block, within = divmod(index, len(self.batches))
        if block >= self._blocks:
            raise IndexError(index)
        if within == 0:
            self.take_turn(block)
        return self.batches[within]

    def take_turn(self, block: int) -> None:
        """End a block and begin another, with the twin's between them."""
        middle = self._clock()
        if block > 0:
            self._twin()
            end = self._clock()
            if block > self._warm_up:
                self.taken.append(Turn(middle - self._began, end - middle))
        self._began = self._clock()

    def end(self) -> None:
        """End the last block; the training has returned."""
        self.take_turn(self._blocks)


class Turns:
    """Batches for the loop under test, with a twin that trains between two blocks.

    The twin reads them in the same form: against a `DataLoader` stands a `DataLoader`.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        twin: Classifier,
        turns: int,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._batches = batches
        self._clock = clock
        self._bare = BareLoop(twin)
        self._turns = turns
        self._warm_up = 5
        self._iterable: TurnTaking | None = None
        self._dataset: TurnDataset | None = None

    @property
    def count(self) -> int:
        return (self._warm_up + self._turns) * len(self._batches)

    def batches(self) -> Iterable[Batch]:
        self._iterable = TurnTaking(
            self._batches,
            self._bare.train,
            turns=self._turns,
            warm_up=self._warm_up,
            clock=self._clock,
        )
        return self._iterable

    def loader(self, collate: Collate | None = None) -> DataLoader[Any]:
        theirs = loader_of(Listed(self._batches))
        self._dataset = TurnDataset(
            self._batches,
            lambda: self._bare.train(theirs),
            self._turns,
            self._warm_up,
            self._clock,
        )
        return loader_of(self._dataset, collate)

    @property
    def taken(self) -> Sequence[Turn]:
        """The times of the blocks, once the training has returned."""
        if self._dataset is not None:
            self._dataset.end()
        reader = self._dataset or self._iterable
        taken = () if reader is None else reader.taken
        if len(taken) != self._turns:
            raise RuntimeError(f"{len(taken)} of {self._turns} turns were read to their end.")
        return taken


def make_batches(size: str, count: int) -> list[Batch]:
    """Random batches for a model of a size."""
    features, classes, samples = WIDTHS[size][0], WIDTHS[size][-1], BATCH_SIZES[size]
    return [
        (torch.randn(samples, features), torch.randint(classes, (samples,))) for _ in range(count)
    ]


@dataclass
class Training:
    """A training as people run it: epochs, validation, workers, a log, checkpoints.

    Attributes:
        folder: Where the log and the checkpoints go.
        epochs: Passes over the training data, each followed by a validation.
        every: Steps between two lines of the log, and between two checkpoints.
        workers: Of the training loader.
        train_set: Samples of the training, read in order, so that everybody trains on the same.
        validation_set: Samples of the validation.
    """

    folder: Path
    epochs: int = 3
    every: int = 100
    workers: int = 2
    batch_size: int = BATCH_SIZES["5 ms"]
    train_set: TensorDataset = field(default_factory=lambda: _samples(100, 1))
    validation_set: TensorDataset = field(default_factory=lambda: _samples(10, 2))

    def train_loader(self) -> DataLoader[Any]:
        """The loader of the training data."""
        return DataLoader(self.train_set, self.batch_size, num_workers=self.workers)

    def validation_loader(self) -> DataLoader[Any]:
        """The loader of the validation data."""
        return DataLoader(self.validation_set, self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * len(self.train_set) // self.batch_size

    def write_line(self, step: int, loss: float) -> None:
        """Write a line of the log, for those who have no logger of their own."""
        with (self.folder / "log.csv").open("a") as file:
            file.write(f"{step},{loss}\n")


def _samples(batches: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    count, widths = batches * BATCH_SIZES["5 ms"], WIDTHS["5 ms"]
    inputs = torch.randn(count, widths[0], generator=generator)
    return TensorDataset(inputs, torch.randint(widths[-1], (count,), generator=generator))


def median_ratio(turns: Iterable[Turn]) -> float:
    """The median of the ratios."""
    return statistics.median(turn.tested / turn.bare for turn in turns)
