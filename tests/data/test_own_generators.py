"""Generators that data keep for themselves go on exactly, wherever they lie."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.data import END, Feed, NotExact
from statemachine_trainer.data.seeding import Order, SeededFetch, as_it_is
from statemachine_trainer.snapshot import decode, encode
from statemachine_trainer.snapshot.held import own_states, restore_own
from tests.data.own_generators import LOADERS, PLACES, Holder, Lazy, Noisy

EPOCHS = 2


def read(feed: Feed, epoch: int, until: int | None = None) -> list[list[float]]:
    """Read on in a pass: to its end, or so many batches."""
    batches: list[list[float]] = []
    while (until is None or len(batches) < until) and (batch := feed.next_batch()) is not END:
        batches.append(batch.reshape(-1).tolist())
    return batches


def whole(make: Callable[[], Any], **settings: Any) -> list[list[float]]:
    """Read all passes without a stop."""
    torch.manual_seed(0)
    feed, batches = Feed(make(), **settings), []
    for epoch in range(EPOCHS):
        feed.begin(epoch)
        batches += read(feed, epoch)
    feed.shutdown()
    return batches


def stopped(make: Callable[[], Any], epoch: int, position: int, **settings: Any) -> list[Any]:
    """Read up to a stop, write the state down, and go on in fresh objects."""
    torch.manual_seed(0)
    feed, batches = Feed(make(), **settings), []
    for number in range(epoch + 1):
        feed.begin(number)
        batches += read(feed, number, position if number == epoch else None)
    document, tensors = encode({"data": feed.state_dict(), "torch": torch.get_rng_state()})
    state: Any = decode(document, {name: one.clone() for name, one in tensors.items()})
    feed.shutdown()
    torch.manual_seed(99)
    random.seed(99)
    later = Feed(make(), **settings)
    later.load_state_dict(state["data"])
    torch.set_rng_state(state["torch"])
    batches += read(later, epoch)
    for number in range(epoch + 1, EPOCHS):
        later.begin(number)
        batches += read(later, number)
    later.shutdown()
    return batches


def loader_of(place: str, **settings: Any) -> Callable[[], Any]:
    return lambda: DataLoader(Noisy(PLACES[place]()), batch_size=2, **settings)


@pytest.mark.parametrize("place", PLACES)
def test_a_generator_in_this_place_goes_on_where_it_stood(place: str) -> None:
    make = loader_of(place)
    expected = whole(make)
    for epoch, position in [(0, 0), (0, 1), (0, 3), (1, 2)]:
        assert stopped(make, epoch, position) == expected, (epoch, position)


@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning")
@pytest.mark.parametrize("name", LOADERS)
def test_a_generator_in_this_part_of_a_loader_goes_on_where_it_stood(name: str) -> None:
    make = LOADERS[name]
    expected = whole(make)
    for epoch, position in [(0, 0), (0, 1), (1, 1)]:
        assert stopped(make, epoch, position) == expected, (epoch, position)


def test_what_is_shared_is_written_once_and_shared_again() -> None:
    state = Feed(loader_of("shared")()).state_dict()["reader"]["own"]
    assert [*state] == ["dataset.draw.transforms[0].generator"]


def test_one_that_appeared_on_the_way_is_made_where_it_was() -> None:
    loader = loader_of("appears later")()
    feed = Feed(loader)
    feed.begin(0)
    feed.next_batch()
    later = loader_of("appears later")()
    Feed(later).load_state_dict(feed.state_dict())
    assert later.dataset.draw.generator.random() == loader.dataset.draw.generator.random()


def test_those_behind_keys_that_are_no_names_are_put_back_each_and_nobody_is_warned() -> None:
    def make() -> Any:
        return Holder({(0, 1): random.Random(1), (1, 0): random.Random(2)})

    drawn = make()
    for generator in drawn.generator.values():
        generator.random()
    there = make()
    assert restore_own({"data": there}, own_states({"data": drawn})) == []
    for key, generator in drawn.generator.items():
        assert there.generator[key].random() == generator.random()


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng])
def test_one_object_of_which_the_run_made_several_becomes_several_again(make: Any) -> None:
    shared = make(0)
    drawn, there = Holder([shared] * 3), Holder([make(0)] * 3)
    drawn.generator[1], drawn.generator[2] = make(1), make(2)
    assert restore_own({"data": there}, own_states({"data": drawn})) == []
    for one, other in zip(drawn.generator, there.generator, strict=True):
        assert [one.random(), one.random()] == [other.random(), other.random()]


def test_one_in_a_dict_that_serves_as_that_of_its_object_is_put_back_whatever_its_key() -> None:
    class Table(dict[Any, Any]):
        def __init__(self, **inside: object) -> None:
            super().__init__(**inside)
            self.__dict__ = self

    drawn, there = Table(name=1), Table(name=1)
    drawn[5] = random.Random(0)
    restore_own({"data": there}, own_states({"data": drawn}))
    assert there[5].random() == drawn[5].random()


def test_one_without_a_place_is_told() -> None:
    class Hidden:
        """Makes an object around its generator on the way."""

        inside: Any = None

        def __call__(self) -> float:
            self.inside = self.inside or Holder(random.Random(1))
            return float(self.inside())

    def make() -> Feed:
        return Feed(DataLoader(Noisy(Hidden()), batch_size=2))

    feed = make()
    feed.begin(0)
    feed.next_batch()
    with pytest.warns(NotExact, match=r"dataset\.draw\.inside\.generator"):
        make().load_state_dict(feed.state_dict())


def test_states_of_earlier_versions_are_read() -> None:
    """They name attributes of the loader's parts, and hold bare states."""
    rng = np.random.default_rng(0)
    rng.random(3)
    old = {"loader.generator": torch.Generator().manual_seed(5).get_state()}

    class Plain(Noisy):
        rng = None

        def __init__(self) -> None:
            super().__init__(lambda: 0.0)
            self.rng = np.random.default_rng(0)

    loader: Any = DataLoader(Plain(), batch_size=2, generator=torch.Generator())
    feed = Feed(loader)
    state = feed.state_dict()
    state["reader"]["own"] = old | {"dataset.rng": dict(rng.bit_generator.state)}
    feed.load_state_dict(state)
    assert loader.dataset.rng.random() == rng.random()
    assert loader.generator.initial_seed() == 5


@pytest.mark.parametrize("place", ["attribute", "nested transforms", "closure", "appears later"])
def test_workers_seed_it_for_each_sample(place: str) -> None:
    """So that the number of workers, and a stop, do not matter."""

    def with_workers(workers: int) -> Callable[[], Any]:
        return loader_of(
            place, num_workers=workers, multiprocessing_context="fork" if workers else None
        )

    expected = whole(with_workers(0), seed_samples=True)
    assert whole(with_workers(2), seed_samples=True) == expected
    assert stopped(with_workers(2), 1, 1, seed_samples=True) == expected
    assert len({tuple(one) for one in expected}) == len(expected)


def test_one_that_a_collate_function_makes_is_seeded_from_its_first_batch_on() -> None:
    """Each worker, and each process that goes on, has a first batch of its own."""

    def with_workers(workers: int) -> Callable[[], Any]:
        def make() -> Any:
            lazy = Lazy()
            context = "fork" if workers else None
            return DataLoader(
                Noisy(lambda: 0.0),
                batch_size=2,
                num_workers=workers,
                multiprocessing_context=context,
                collate_fn=lambda samples: torch.stack(samples) + lazy(),
            )

        return make

    expected = whole(with_workers(0), seed_samples=True)
    assert whole(with_workers(2), seed_samples=True) == expected
    for workers in (0, 2):
        for position in (0, 1):
            assert stopped(with_workers(workers), 1, position, seed_samples=True) == expected


def test_reading_with_seeded_samples_leaves_the_generators_of_this_process_alone() -> None:
    holder = Holder(random.Random(0))
    feed = Feed(DataLoader(Noisy(holder), batch_size=2), seed_samples=True)
    feed.begin(0)
    feed.next_batch()
    assert holder.generator.random() == random.Random(0).random()


def test_a_generator_that_appears_after_many_reads_is_told() -> None:
    class Late(Noisy):
        reads = 0

        def __getitem__(self, index: int) -> torch.Tensor:
            self.reads += 1
            if self.reads == 12:
                self.second = random.Random(3)
            return super().__getitem__(index)

    fetch = SeededFetch(Late(Lazy()), as_it_is, batched=False, seed=0)
    for number in range(15):
        fetch[Order(0, number % 6, [0])]
    with pytest.warns(NotExact, match=r"appeared .* dataset\.second"):
        fetch[Order(1, 0, [0])]


def test_a_sample_in_which_a_generator_appeared_is_read_once_more() -> None:
    lazy, reads = Lazy(), []

    class Counting(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            reads.append(index)
            return super().__getitem__(index)

    feed = Feed(DataLoader(Counting(lazy), batch_size=2), seed_samples=True)
    feed.begin(0)
    read(feed, 0)
    assert reads == [0, 0, 1, 2, 3, 4, 5]
