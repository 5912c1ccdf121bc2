"""A feed gives what ``for batch in loader`` gives, and leaves the generators where that does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from statemachine_trainer.data import Feed
from statemachine_trainer.snapshot.rng import rng_state
from tests.data.kit import (
    Noisy,
    Quiet,
    bits,
    feed_passes,
    indices,
    plain_passes,
    rng_bits,
    seed_all,
)

Make = Callable[[], DataLoader[Any]]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _make(**settings: Any) -> Make:
    return lambda: DataLoader(
        Noisy(11), **{name: made() if callable(made) else made for name, made in settings.items()}
    )


LOADERS: dict[str, Make] = {
    "in order": _make(batch_size=4),
    "one by one": _make(batch_size=None),
    "shuffled one by one": _make(batch_size=None, shuffle=True),
    "shuffled": _make(batch_size=4, shuffle=True),
    "shuffled, the last dropped": _make(batch_size=4, shuffle=True, drop_last=True),
    "shuffled by a generator": _make(batch_size=4, shuffle=True, generator=_generator),
    "a generator for the sampler": _make(
        batch_size=3, sampler=lambda: RandomSampler(range(11), generator=_generator())
    ),
    "with replacement": _make(
        batch_size=3, sampler=lambda: RandomSampler(range(11), replacement=True, num_samples=40)
    ),
    "more than all": _make(batch_size=3, sampler=lambda: RandomSampler(range(11), num_samples=29)),
    "with replacement, by a generator": _make(
        batch_size=3,
        sampler=lambda: RandomSampler(
            range(11), replacement=True, num_samples=40, generator=_generator()
        ),
    ),
    "weighted": _make(batch_size=4, sampler=lambda: WeightedRandomSampler([1.0, 2.0] * 5, 9)),
    "weighted by a generator": _make(
        batch_size=4, sampler=lambda: WeightedRandomSampler([1.0] * 10, 9, generator=_generator())
    ),
    "a subset": _make(batch_size=2, sampler=lambda: SubsetRandomSampler([1, 3, 5, 7, 9])),
    "a list for a sampler": _make(batch_size=2, sampler=[4, 4, 1, 0]),
    "distributed": _make(
        batch_size=2, sampler=lambda: DistributedSampler(Noisy(11), num_replicas=2, rank=1)
    ),
    "a batch sampler": _make(
        batch_sampler=lambda: BatchSampler(RandomSampler(range(11)), 3, drop_last=False)
    ),
    "a list of batches of indices": _make(batch_sampler=[[0, 2], [5], [1, 1, 1]]),
    "sequential batch sampler": _make(
        batch_sampler=lambda: BatchSampler(SequentialSampler(range(11)), 4, drop_last=True)
    ),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_order_draws_and_generators_are_those_of_a_plain_loop(make: Make) -> None:
    seed_all(3)
    plain_loader = make()
    plain = plain_passes(plain_loader, epochs=3)
    after = rng_bits()

    seed_all(3)
    loader = make()
    fed = feed_passes(Feed(loader), epochs=3)

    assert fed == plain
    assert rng_bits() == after
    if loader.generator is not None:
        assert torch.equal(loader.generator.get_state(), plain_loader.generator.get_state())


@pytest.mark.parametrize("name", ["shuffled", "shuffled by a generator", "weighted"])
def test_a_pass_ended_early_leaves_the_generators_as_a_plain_loop_does(name: str) -> None:
    make = LOADERS[name]
    seed_all(3)
    plain = plain_passes(make(), epochs=3, stop=2)
    after = rng_bits()

    seed_all(3)
    assert feed_passes(Feed(make()), epochs=3, stop=2) == plain
    assert rng_bits() == after


@pytest.mark.parametrize("persistent", [False, True])
def test_order_and_draws_are_those_of_a_plain_loop_with_workers_too(persistent: bool) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(
            Noisy(11), batch_size=4, shuffle=True, num_workers=2, persistent_workers=persistent
        )

    seed_all(3)
    plain = plain_passes(make(), epochs=2)
    after = rng_bits()

    seed_all(3)
    feed = Feed(make(), seed_samples=False)
    fed = feed_passes(feed, epochs=2)
    feed.shutdown()

    assert fed == plain
    assert rng_bits() == after


def test_a_data_set_that_shares_the_samplers_generator_draws_as_in_a_plain_loop() -> None:
    class Sharing(Noisy):
        def __init__(self, generator: torch.Generator) -> None:
            super().__init__(10)
            self.generator = generator

        def __getitem__(self, index: int) -> torch.Tensor:
            return super().__getitem__(index) + torch.rand((), generator=self.generator)

    def make() -> DataLoader[Any]:
        generator = _generator()
        return DataLoader(Sharing(generator), batch_size=5, shuffle=True, generator=generator)

    seed_all(3)
    plain = plain_passes(make(), epochs=2)
    seed_all(3)
    assert feed_passes(Feed(make()), epochs=2) == plain


@pytest.mark.parametrize("says", [None, 2])
def test_an_endless_sampler_is_not_read_to_its_end(says: int | None) -> None:
    class Endless:
        def __iter__(self) -> Iterator[int]:
            yield from itertools.cycle([1, 2, 3])

    class Lying(Endless):
        def __len__(self) -> int:
            return 2

    sampler: Any = Endless() if says is None else Lying()
    feed = Feed(DataLoader(Noisy(4), batch_size=2, sampler=sampler))
    assert feed.length == (None if says is None else 1)
    feed.begin(0)
    given = [bits(feed.next_batch()) for _ in range(4)]
    assert indices(given) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_the_settings_of_the_loader_hold() -> None:
    def collate(samples: list[torch.Tensor]) -> dict[str, list[float]]:
        return {"first": [float(sample[0]) for sample in samples]}

    loader = DataLoader(Noisy(5), batch_size=2, collate_fn=collate, drop_last=True)
    feed = Feed(loader)
    feed.begin(0)
    assert feed.next_batch() == {"first": [0.0, 1.0]}
    assert feed.length == 2


def test_numpy_and_python_are_not_drawn_from_by_reading() -> None:
    seed_all(0)
    before = rng_state()
    feed = Feed(DataLoader(Quiet(3), shuffle=True))
    feed.begin(0)
    feed.next_batch()
    after = rng_state()
    assert bits(after["python"]) == bits(before["python"])
    assert bits(after["numpy"]) == bits(before["numpy"])
