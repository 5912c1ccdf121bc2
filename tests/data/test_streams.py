"""Iterable data: by its own state if it has one, else read again with a warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from statemachine_trainer.data import (
    END,
    DataChanged,
    Feed,
    OneShotExhausted,
    ReplayWarning,
)
from tests.data.kit import bits, feed_passes, plain_passes, rest_of_pass, rng_bits, seed_all
from tests.data.resume_kit import assert_resumes, run


class Stream(IterableDataset[Any]):
    """Items with draws; a loaded position holds for the pass that is begun next."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.at = 0
        self.goes_on = False
        self.reads: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        self.at = self.at if self.goes_on else 0
        self.goes_on = False
        while self.at < self.n:
            item = self.at
            self.at += 1
            self.reads.append(item)
            yield torch.stack([torch.tensor(float(item)), torch.rand(())])

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.goes_on = True


class Wrapping(Stream):
    """As `Stream`, but its position is back at the start as soon as it has ended."""

    def __iter__(self) -> Iterator[Any]:
        while self.at < self.n:
            item = self.at
            self.at += 1
            self.reads.append(item)
            yield torch.tensor(item)
        self.at = 0


class Stateless(IterableDataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n
        self.reads: list[int] = []

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.n).tolist()
        for item in order:
            self.reads.append(item)
            yield item


class Loader:
    """A loader of somebody's own, with state."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < 5:
            self.at += 1
            yield self.at
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class StatefulIterator(Iterator[int]):
    def __init__(self) -> None:
        self.at = 0

    def __next__(self) -> int:
        if self.at == 5:
            raise StopIteration
        self.at += 1
        return self.at

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class WithStatefulIterator:
    def __iter__(self) -> StatefulIterator:
        return StatefulIterator()


@pytest.mark.parametrize("kind", [Stream, Wrapping])
@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"batch_size": None}])
def test_a_stream_with_state_resumes_anywhere(kind: Any, n: int, settings: dict[str, Any]) -> None:
    assert_resumes(lambda: Feed(DataLoader(kind(n), **settings)), epochs=3)


def test_a_stream_with_state_reads_nothing_twice() -> None:
    datasets: list[Stream] = []

    def make() -> Feed:
        datasets.append(Stream(6))
        return Feed(DataLoader(datasets[-1], batch_size=2))

    run(make, epochs=2, stops=range(12))
    assert Counter(i for d in datasets for i in d.reads) == Counter([*range(6)] * 2)


@pytest.mark.parametrize("make", [Loader, WithStatefulIterator])
def test_a_loader_or_an_iterator_with_state_resumes_anywhere(make: Any) -> None:
    assert_resumes(lambda: Feed(make()), epochs=3)


def test_a_stream_gives_what_a_plain_loop_gives() -> None:
    seed_all(1)
    plain = plain_passes(DataLoader(Stateless(7), batch_size=3, drop_last=True), epochs=2)
    after = rng_bits()
    seed_all(1)
    fed = feed_passes(Feed(DataLoader(Stateless(7), batch_size=3, drop_last=True)), epochs=2)
    assert fed == plain
    assert rng_bits() == after


def test_a_stream_without_state_is_read_again_and_says_what_that_costs() -> None:
    seed_all(1)
    expected = plain_passes(DataLoader(Stateless(8), batch_size=2), epochs=1)[0]
    seed_all(1)
    first = Feed(DataLoader(Stateless(8), batch_size=2), name="clicks")
    first.begin(0)
    given = [bits(first.next_batch()) for _ in range(2)]
    state = first.state_dict()

    seed_all(77)
    dataset = Stateless(8)
    second = Feed(DataLoader(dataset, batch_size=2), name="clicks")
    with pytest.warns(ReplayWarning, match=r"'clicks' .* 2 batches are read again"):
        second.load_state_dict(state)
    untouched = rng_bits()
    given.append(bits(second.next_batch()))
    assert rng_bits() == untouched
    assert given + rest_of_pass(second) == expected
    assert len(dataset.reads) == 8


def test_a_stream_that_became_shorter_is_noticed() -> None:
    feed = Feed(DataLoader(Stateless(8), batch_size=2))
    feed.begin(0)
    for _ in range(3):
        feed.next_batch()
    shorter = Feed(DataLoader(Stateless(4), batch_size=2))
    with pytest.warns(ReplayWarning):
        shorter.load_state_dict(feed.state_dict())
    with pytest.raises(DataChanged, match=r"3 batches .* ends after 2"):
        shorter.next_batch()


@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning")
def test_a_generator_is_read_once_and_resumed_by_reading_a_new_one() -> None:
    feed = Feed(iter([1, 2, 3, 4]))
    feed.begin(0)
    assert [feed.next_batch(), feed.next_batch()] == [1, 2]
    again = Feed(iter([1, 2, 3, 4]))
    again.load_state_dict(feed.state_dict())
    assert [again.next_batch(), again.next_batch(), again.next_batch()] == [3, 4, END]
    with pytest.raises(OneShotExhausted, match="'train' is a list_iterator"):
        again.begin(1)


@pytest.mark.parametrize("batches", [[1, 2, 3, 4], (1, 2, 3), range(5)])
def test_a_list_of_batches_resumes_anywhere(batches: Any) -> None:
    assert_resumes(lambda: Feed(batches))


def test_batches_that_can_be_had_by_number_are_not_read_to_be_skipped() -> None:
    class Shards(Sequence[Any]):
        def __init__(self) -> None:
            self.reads: list[int] = []

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: Any) -> Any:
            if index >= 5:
                raise IndexError
            self.reads.append(index)
            return torch.rand(2)

    shards: list[Shards] = []

    def make() -> Feed:
        shards.append(Shards())
        return Feed(shards[-1])

    assert_resumes(make, epochs=1)
    del shards[:]
    run(make, epochs=1, stops=[3])
    assert [shard.reads for shard in shards] == [[0, 1], [2, 3, 4]]


def test_a_loader_with_an_order_of_its_own_is_not_taken_for_a_list() -> None:
    class Backwards:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            return index

        def __iter__(self) -> Iterator[int]:
            return iter([2, 1, 0])

    assert feed_passes(Feed(Backwards()), epochs=1) == [[2, 1, 0]]


def test_a_subclass_with_a_way_of_its_own_to_iterate_is_taken_at_its_word() -> None:
    class Doubling(DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                yield batch * 2

    assert feed_passes(Feed(Doubling(range(3))), epochs=1) == [  # type: ignore[arg-type]
        [bits(torch.tensor([0])), bits(torch.tensor([2])), bits(torch.tensor([4]))]
    ]


def test_the_length_of_a_stream_is_a_hint_and_asking_for_it_has_no_effect() -> None:
    class Lying(Stateless):
        def __len__(self) -> int:
            return 2

    loader = DataLoader(Lying(6), batch_size=1)
    feed = Feed(loader)
    assert feed.length == 2
    feed.begin(0)
    assert len(rest_of_pass(feed)) == 6  # and torch does not warn: warnings are errors here
    assert Feed(iter([])).length is None
    assert Feed(DataLoader(Stateless(6))).length is None


def test_workers_over_a_stream_are_read_again_from_the_same_seeds() -> None:
    class Sharded(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for item in range(3):
                yield torch.tensor([float(item), float(torch.rand(()))])

    def make() -> Feed:
        return Feed(DataLoader(Sharded(), batch_size=1, num_workers=2))

    seed_all(3)
    feed = make()
    feed.begin(0)
    expected = rest_of_pass(feed)
    seed_all(3)
    first = make()
    first.begin(0)
    given = [bits(first.next_batch()) for _ in range(4)]
    second = make()
    with pytest.warns(ReplayWarning):
        second.load_state_dict(first.state_dict())
    seed_all(99)
    assert given + rest_of_pass(second) == expected
    first.shutdown()
