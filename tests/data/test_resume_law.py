"""A run that stops and goes on in a new feed reads what an undisturbed one reads, once each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from statemachine_trainer.data import END, DataChanged, Feed, NotExact
from tests.data.kit import Noisy, Restless, indices
from tests.data.resume_kit import MakeFeed, assert_resumes, run

ORDERS = [
    "in order",
    "shuffled",
    "replaced",
    "beyond",
    "weighted",
    "subset",
    "distributed",
    "unknown",
    "batches of an unknown sampler",
    "one by one",
]


def _order(kind: str, n: int, size: int, drop_last: bool, generator: Any) -> dict[str, Any]:
    match kind:
        case "in order":
            return {"batch_size": size, "drop_last": drop_last, "generator": generator}
        case "shuffled":
            return {
                "batch_size": size,
                "drop_last": drop_last,
                "shuffle": True,
                "generator": generator,
            }
        case "one by one":
            return {"batch_size": None, "shuffle": True, "generator": generator}
        case "batches of an unknown sampler":
            return {"batch_sampler": _Pairs(Restless(n))}
    samplers: dict[str, Callable[[], Any]] = {
        "replaced": lambda: RandomSampler(
            range(n), replacement=True, num_samples=2 * n, generator=generator
        ),
        "beyond": lambda: RandomSampler(range(n), num_samples=2 * n + 1, generator=generator),
        "weighted": lambda: WeightedRandomSampler([1.0] * n, n, generator=generator),
        "subset": lambda: SubsetRandomSampler(range(0, n, 2), generator=generator),
        "distributed": lambda: DistributedSampler(Noisy(n), num_replicas=2, rank=0),
        "unknown": lambda: Restless(n),
    }
    return {"batch_size": size, "drop_last": drop_last, "sampler": samplers[kind]()}


class _Pairs:
    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler) // 2  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        pair: list[int] = []
        for index in self.sampler:
            pair.append(index)
            if len(pair) == 2:
                yield pair
                pair.clear()


@settings(max_examples=60)
@given(data=st.data())
def test_stopping_anywhere_changes_nothing_and_reads_nothing_twice(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9), label="items")
    size = data.draw(st.integers(1, 4), label="batch size")
    drop_last = data.draw(st.booleans(), label="drop last") and n // 2 >= size
    kind = data.draw(st.sampled_from(ORDERS), label="order")
    if kind == "batches of an unknown sampler" and n < 2:
        n = 2
    own = data.draw(st.booleans(), label="generator of its own")
    seeded = data.draw(st.sampled_from([None, True]), label="seed_samples")
    limit = data.draw(st.none() | st.integers(1, 3), label="limit")
    datasets: list[Noisy] = []

    def make() -> Feed:
        datasets.append(Noisy(n))
        generator = torch.Generator().manual_seed(11) if own else None
        order = _order(kind, n, size, drop_last, generator)
        return Feed(DataLoader(datasets[-1], **order), seed_samples=seeded)

    whole = run(make, epochs=2, limit=limit)
    stops = data.draw(st.sets(st.integers(0, whole.operations - 1)), label="stops")
    datasets.clear()
    stopped = run(make, epochs=2, limit=limit, stops=stops)

    assert stopped.passes == whole.passes
    assert stopped.generators == whole.generators
    read = Counter(index for dataset in datasets for index in dataset.reads)
    assert read == Counter(indices(batch for batches in whole.passes for batch in batches))


@pytest.mark.parametrize("kind", ["shuffled", "replaced", "unknown"])
def test_stopping_at_every_single_point_changes_nothing(kind: str) -> None:
    def make() -> Feed:
        return Feed(DataLoader(Noisy(7), **_order(kind, 7, 2, False, None)))

    assert_resumes(make, epochs=3)


@pytest.mark.parametrize("persistent", [False, True])
def test_stopping_at_every_point_with_workers_changes_nothing(persistent: bool) -> None:
    def make() -> Feed:
        generator = torch.Generator().manual_seed(2)
        loader = DataLoader(
            Noisy(5),
            batch_size=2,
            shuffle=True,
            num_workers=1,
            persistent_workers=persistent,
            generator=generator,
        )
        return Feed(loader)

    whole = run(make, epochs=3)
    everywhere = run(make, epochs=3, stops=range(whole.operations))
    assert everywhere.passes == whole.passes
    assert everywhere.generators == whole.generators


@settings(max_examples=6)
@given(data=st.data())
def test_stopping_anywhere_with_workers_changes_nothing(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 9), label="items")
    kind = data.draw(st.sampled_from(ORDERS), label="order")
    workers = data.draw(st.integers(1, 2), label="workers")
    persistent = data.draw(st.booleans(), label="persistent")
    own = data.draw(st.booleans(), label="generator of its own")
    limit = data.draw(st.none() | st.integers(1, 2), label="limit")

    def make() -> Feed:
        generator = torch.Generator().manual_seed(11) if own else None
        order = _order(kind, n, 2, False, generator)
        loader = DataLoader(Noisy(n), **order, num_workers=workers, persistent_workers=persistent)
        return Feed(loader)

    whole = run(make, epochs=3, limit=limit)
    stops = data.draw(st.sets(st.integers(0, whole.operations - 1), max_size=3), label="stops")
    stopped = run(make, epochs=3, stops=stops, limit=limit)
    assert stopped.passes == whole.passes
    assert stopped.generators == whole.generators


def test_generators_kept_by_samplers_and_data_sets_are_part_of_the_state() -> None:
    class Shuffling:
        def __init__(self) -> None:
            self.generator = np.random.default_rng(4)

        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Any:
            for index in range(8):
                yield (index + int(self.generator.integers(8))) % 8

    class Augmented(Noisy):
        def __init__(self) -> None:
            super().__init__(8)
            self.generator = np.random.RandomState(1)

        def __getitem__(self, index: int) -> torch.Tensor:
            return super().__getitem__(index) + float(self.generator.rand())

    assert_resumes(lambda: Feed(DataLoader(Augmented(), batch_size=3, sampler=Shuffling())))


def test_a_sampler_with_state_of_its_own_goes_on_from_it() -> None:
    class Curriculum:
        """Shifts its order by one with every pass it has begun."""

        def __init__(self) -> None:
            self.begun = 0

        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Any:
            self.begun += 1
            return iter([(index + self.begun) % 6 for index in range(6)])

        def state_dict(self) -> dict[str, int]:
            return {"begun": self.begun}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.begun = state["begun"]

    assert_resumes(lambda: Feed(DataLoader(Noisy(6), batch_size=2, sampler=Curriculum())), 3)


def test_a_sampler_that_hides_its_state_is_noticed() -> None:
    class Hiding:
        def __init__(self) -> None:
            self.begun = 0

        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Any:
            self.begun += 1
            return iter([(index + self.begun) % 6 for index in range(6)])

    make: MakeFeed = lambda: Feed(DataLoader(Noisy(6), batch_size=2, sampler=Hiding()))  # noqa: E731
    feed = make()
    for epoch in range(2):
        feed.begin(epoch)
        feed.next_batch()
    with pytest.raises(DataChanged, match="Hiding keeps state"):
        make().load_state_dict(feed.state_dict())


def test_a_data_set_with_state_goes_on_from_it() -> None:
    class Counting(Noisy):
        def __init__(self) -> None:
            super().__init__(6)
            self.given = 0

        def __getitem__(self, index: int) -> torch.Tensor:
            self.given += 1
            return super().__getitem__(index) + self.given

        def state_dict(self) -> dict[str, int]:
            return {"given": self.given}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.given = state["given"]

    assert_resumes(lambda: Feed(DataLoader(Counting(), batch_size=2, shuffle=True)))


def test_other_data_is_refused_with_what_differs() -> None:
    feed = Feed(DataLoader(Noisy(6), batch_size=2), name="train")
    feed.begin(0)
    feed.next_batch()
    state = feed.state_dict()
    with pytest.raises(DataChanged, match=r"'train'.*items was 6, is 8; batches was 3, is 4"):
        Feed(DataLoader(Noisy(8), batch_size=2)).load_state_dict(state)
    with pytest.raises(DataChanged, match="batches was 3, is 2; batch_size was 2, is 3"):
        Feed(DataLoader(Noisy(6), batch_size=3)).load_state_dict(state)
    with pytest.raises(DataChanged, match="kind of loader was map, is sequence"):
        Feed([1, 2, 3]).load_state_dict(state)


LOADERS: dict[str, Callable[[], Any]] = {
    "map": lambda: DataLoader(Noisy(6), batch_size=2, shuffle=True, generator=torch.Generator()),
    "sequence": lambda: [1, 2, 3],
    "stream": lambda: DataLoader(Counted(), batch_size=2),
}


class Counted(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


@pytest.mark.parametrize("now", LOADERS)
@pytest.mark.parametrize("before", LOADERS)
def test_a_loader_of_another_kind_goes_on_at_the_end_of_a_pass_and_is_told(
    before: str, now: str
) -> None:
    feed, other = Feed(LOADERS[before](), name="train"), Feed(LOADERS[now](), name="train")
    feed.begin(0)
    while feed.next_batch() is not END:
        pass
    feed.close()
    with nullcontext() if now == before else pytest.warns(NotExact, match=f"{before}, and {now}"):
        other.load_state_dict(feed.state_dict())
    other.begin(1)
    assert [other.next_batch() is END for _ in range(4)] == [False, False, False, True]


def test_a_number_of_batches_that_depends_on_the_epoch_is_not_taken_for_other_data() -> None:
    class Growing:
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 2 + self.epoch

        def __iter__(self) -> Any:
            return iter([[index, index] for index in range(len(self))])

    assert_resumes(lambda: Feed(DataLoader(Noisy(6), batch_sampler=Growing())), epochs=3)


def test_another_batch_size_is_no_matter_between_passes() -> None:
    feed = Feed(DataLoader(Noisy(6), batch_size=2))
    state = feed.state_dict()
    other = Feed(DataLoader(Noisy(6), batch_size=3))
    other.load_state_dict(state)
    other.begin(0)
    assert len(other.next_batch()) == 3
