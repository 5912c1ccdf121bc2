"""Randomness of a sample that follows from the sample, not from the worker that reads it.

Plain torch seeds each worker once and lets it draw on: what a sample's augmentation draws depends
on the number of workers, and on every sample that the same worker read before, so that a run that
is resumed, or has another number of workers, sees other data. Here python's, numpy's and torch's
global generators are seeded anew for every sample, from the seed, the epoch, the sample's index and
how often the pass has given that index before. Collating draws on from the last sample's state.

The generators that the data set or its collate function hold for themselves are seeded with them,
wherever they lie. One that appears while a sample is read is seeded too, and that sample is read
once more; so is a batch in whose collation one appears.

A data set that reads many samples in one call (``__getitems__``) is seeded once a batch.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from operator import index as as_int
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from statemachine_trainer.data.data_errors import NotExact
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.snapshot.found import Place
from statemachine_trainer.snapshot.held import keep, put_back, reseed
from statemachine_trainer.snapshot.rng import isolated_rng
from statemachine_trainer.snapshot.search import Search

_LOOKS = 8
"""First reads, of samples and of batches, after each of which generators are looked for.

Later after the 16th, 32nd and so on.
"""


class Order(NamedTuple):
    """What a worker is asked for: the indices of a batch, or one index where there are no batches.

    ``repeats`` says of each index how often the pass has given it before.
    """

    epoch: int
    indices: Any
    repeats: list[int]


class SeededFetch:
    """A data set of whole batches, that seeds the reading of each sample.

    Stands in for the user's data set in a loader: it is asked for an `Order` and answers with the
    collated batch. In the main process the global generators are afterwards as they were before.
    """

    def __init__(
        self, dataset: Any, collate: Callable[[Any], Any], *, batched: bool, seed: int
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.batched = batched
        self.seed = seed

        self._own: dict[str, Place] | None = None  # found in the process that reads
        self._reads = 0
        self._batches = 0

    def get_ready(self) -> None:
        """Do beforehand, in a worker, what its first read would begin with; no generator is changed.

        A worker is ready long before it is asked for its first batch, while others are started. In a forked one
        whatever is touched for the first time is copied, so that all this takes some ms only once.
        """
        self._known()
        with isolated_rng(()):
            seed_everything(bytes(32))

    def __getitem__(self, order: Order) -> Any:
        in_worker = get_worker_info() is not None
        with nullcontext() if in_worker else self._undisturbed():
            batch = self._collated(order)
            self._batches += 1
            # Else the first batch of each process would draw from what the function makes, unseeded.
            if self._has_new(self._batches):
                batch = self._collated(order)
        return batch

    def _collated(self, order: Order) -> Any:
        return self.collate(self._samples(order) if self.batched else self._sample(order))

    def _sample(self, order: Order) -> Any:
        seed = sample_seed(self.seed, order.epoch, order.indices, order.repeats[0])
        return self._read(seed, self._get, order.indices)

    def _samples(self, order: Order) -> Any:
        numbered = [*zip(map(plain_index, order.indices), order.repeats, strict=True)]
        if read_all := getattr(self.dataset, "__getitems__", None):
            return self._read(
                sample_seed(self.seed, order.epoch, numbered), read_all, order.indices
            )
        samples = []
        for index, (plain, repeat) in zip(order.indices, numbered, strict=True):
            seed = sample_seed(self.seed, order.epoch, plain, repeat)
            samples.append(self._read(seed, self._get, index))
        return samples

    def _get(self, index: Any) -> Any:
        return self.dataset[index]

    def _read(self, seed: bytes, read: Callable[[Any], Any], index: Any) -> Any:
        """Read with every generator seeded, and once more if one appeared meanwhile."""
        sample = self._read_seeded(seed, read, index)
        self._reads += 1
        if self._has_new(self._reads):
            sample = self._read_seeded(seed, read, index)
        return sample

    def _read_seeded(self, seed: bytes, read: Callable[[Any], Any], index: Any) -> Any:
        seed_everything(seed)
        reseed(self._known(), seed)
        return read(index)

    def _has_new(self, reads: int) -> bool:
        """Look whether generators appeared, after so many reads of samples or batches."""
        # Lazy generators appear at the first reads; to look each time would cost more than to read.
        if reads > _LOOKS and reads.bit_count() > 1:
            return False
        known = self._known()
        self._own = self._search()
        late = self._own.keys() - known.keys()
        if late and reads > _LOOKS:
            warnings.warn(_appeared_late(late, reads), NotExact, stacklevel=level_of_caller())
        return bool(late)

    def _known(self) -> dict[str, Place]:
        if self._own is None:
            self._own = self._search()
        return self._own

    def _search(self) -> dict[str, Place]:
        return Search({"dataset": self.dataset, "collate_fn": self.collate}).places

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Read in the main process, where others draw from the same generators."""
        kept = keep(self._known())
        try:
            with isolated_rng(()):
                yield
        finally:
            put_back(kept)


def _appeared_late(paths: Iterable[str], reads: int) -> str:
    return (
        f"Generators of random numbers appeared in the data after the first {_LOOKS} reads: "
        f"{', '.join(sorted(paths))}. They are seeded for each sample from read {reads} of this process on. "
        "What they drew for samples before that differs in a run that is resumed. Make them when "
        "their owner is made, not on the way."
    )


def sample_seed(seed: int, epoch: int, index: Any, repeat: int = 0) -> bytes:
    """32 bytes to seed one sample's randomness with.

    The same in every process and on every machine, unlike ``hash``; ``index`` is whatever a sampler
    gives.
    """
    identity = repr((seed, epoch, plain_index(index), repeat))
    return hashlib.blake2b(identity.encode(), digest_size=32).digest()


def seed_everything(seed: bytes) -> None:
    """Seed the global generators of python, numpy and torch (CPU), each with bytes of its own."""
    random.seed(seed[:8])
    np.random.seed(np.frombuffer(seed[8:24], dtype=np.uint32))
    torch.default_generator.manual_seed(int.from_bytes(seed[24:], "little", signed=True))


def plain_index(index: Any) -> Any:
    """An index as a key: numbers of all kinds as ``int``, what can not be a key as its ``repr``."""
    try:
        return as_int(index)
    except TypeError:
        pass
    try:
        hash(index)
    except TypeError:
        return repr(index)
    return index


def as_it_is(batch: Any) -> Any:
    """The collate function of a loader whose data set answers with whole batches."""
    return batch
