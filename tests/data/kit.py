"""Data that draws, counts its readings, and can be compared to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from statemachine_trainer.data import END, Feed
from statemachine_trainer.snapshot.rng import rng_state


class Noisy(Dataset[torch.Tensor]):
    """Each item is its index and a draw from each global generator; readings are counted."""

    def __init__(self, n: int, log: Path | None = None) -> None:
        self.n = n
        self.log = log
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads.append(int(index))
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{index}\n")
        draws = [float(torch.rand(())), random.random(), float(np.random.rand())]
        return torch.tensor([float(index), *draws], dtype=torch.float64)


class Quiet(Dataset[int]):
    """Each item is its index."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


class Restless(Sampler[int]):
    """A sampler that nobody knows: draws every index from another global generator, one by one."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Any:
        for _ in range(self.n):
            drawn = int(torch.randint(self.n, ())) + random.randrange(self.n)
            yield (drawn + int(np.random.randint(self.n))) % self.n


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def model_draws() -> None:
    """What a training step does to the generators between two batches."""
    torch.rand(3)
    random.random()
    np.random.rand()


def bits(value: Any) -> Any:
    """A value that is equal if and only if the batch is the same to the bit."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, (list, tuple)):
        return [bits(one) for one in value]
    if isinstance(value, dict):
        return {key: bits(one) for key, one in value.items()}
    return value


def rng_bits() -> Any:
    return bits(rng_state())


def plain_passes(loader: Iterable[Any], epochs: int, stop: int | None = None) -> list[list[Any]]:
    """What a plain loop over the loader gives, with draws of a model in between."""
    passes = []
    for epoch in range(epochs):
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        batches = []
        for batch in loader:
            batches.append(bits(batch))
            model_draws()
            if len(batches) == stop:
                break
        passes.append(batches)
    return passes


def rest_of_pass(feed: Feed, stop: int | None = None) -> list[Any]:
    batches = []
    while feed.position != stop and (batch := feed.next_batch()) is not END:
        batches.append(bits(batch))
        model_draws()
    return batches


def feed_passes(feed: Feed, epochs: int, stop: int | None = None) -> list[list[Any]]:
    passes = []
    for epoch in range(epochs):
        feed.begin(epoch)
        passes.append(rest_of_pass(feed, stop))
    return passes


def indices(batches: Iterable[Any]) -> list[int]:
    """The indices in batches of `Noisy`."""
    found: list[int] = []
    for _, shape, raw in batches:
        rows = np.frombuffer(raw, dtype=np.float64).reshape(shape)
        found += [int(index) for index in np.atleast_2d(rows)[:, 0]]
    return found
