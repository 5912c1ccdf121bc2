"""Other ranks go on with an epoch that some have begun: each sample is read once, whatever their numbers."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from statemachine_trainer.data import DataChanged, Feed
from statemachine_trainer.data.reader import END

Batches = list[list[int]]


def loader(items: int, ranks: int, rank: int, size: int, **more: Any) -> DataLoader[int]:
    data = list(range(items))
    sampler: DistributedSampler[int] = DistributedSampler(data, ranks, rank, **more)  # type: ignore[arg-type]
    return DataLoader(data, size, sampler=sampler)  # type: ignore[arg-type]


def read(feed: Feed, most: int) -> Batches:
    """Up to so many batches."""
    found: Batches = []
    while len(found) < most and (batch := feed.next_batch()) is not END:
        found.append(batch.tolist())
    return found


def of_others(state: dict[str, Any]) -> dict[str, Any]:
    """The state of one rank, for ranks of another number."""
    return {**state, "reader": {**state["reader"], "of_other_ranks": True, "pass": None}}


def beginning(
    items: int, ranks: int, size: int, epoch: int, most: int
) -> tuple[list[Batches], dict[str, Any]]:
    """What each rank reads first of an epoch, and the state in which rank 0 is then."""
    feeds = [Feed(loader(items, ranks, rank, size)) for rank in range(ranks)]
    for feed in feeds:
        feed.begin(epoch)
    found = [read(feed, most) for feed in feeds]
    return found, feeds[0].state_dict()


def rest(
    state: dict[str, Any], items: int, ranks: int, size: int, most: int
) -> tuple[list[Batches], dict[str, Any]]:
    """What other ranks read next, and the state in which their rank 0 is then."""
    feeds = [Feed(loader(items, ranks, rank, size)) for rank in range(ranks)]
    for feed in feeds:
        feed.load_state_dict(of_others(state))
    found = [read(feed, most) for feed in feeds]
    return found, feeds[0].state_dict()


def flat(ranks: list[Batches]) -> list[int]:
    return [*chain.from_iterable(chain.from_iterable(ranks))]


ALL = 10**6
few = st.integers(1, 5)


@given(items=st.integers(1, 60), numbers=st.lists(few, min_size=2, max_size=4), data=st.data())
def test_each_sample_is_read_once_but_for_those_that_fill_up_the_last_batches(
    items: int, numbers: list[int], data: st.DataObject
) -> None:
    parts = []
    state: dict[str, Any] | None = None
    for index, ranks in enumerate(numbers):
        size = data.draw(few, label="size of a batch")
        last = index == len(numbers) - 1
        most = ALL if last else data.draw(st.integers(0, 4), label="batches")
        if state is None:
            found, state = beginning(items, ranks, size, 3, most)
        else:
            found, state = rest(state, items, ranks, size, most)
        assert len({len(one) for one in found}) == 1, "each rank makes as many steps"
        parts.append(flat(found))
        if state["phase"] != "running":
            break
    else:
        counted = Counter(chain.from_iterable(parts))
        assert set(counted) == set(range(items))
        assert sum(counted.values()) - items < 2 * max(numbers) * len(numbers)


@given(
    batches=st.integers(0, 5),
    before=st.sampled_from([1, 2, 3, 4, 6]),
    after=st.sampled_from([1, 2, 3, 4, 6]),
)
def test_each_step_has_the_same_samples_if_all_ranks_together_read_as_many(
    batches: int, before: int, after: int
) -> None:
    whole, _ = beginning(72, 1, 12, 1, ALL)
    first, state = beginning(72, before, 12 // before, 1, batches)
    second, _ = rest(state, 72, after, 12 // after, ALL)
    for step, expected in enumerate(whole[0]):
        part, place = (first, step) if step < batches else (second, step - batches)
        assert sorted(chain.from_iterable(one[place] for one in part)) == sorted(expected)


def test_the_place_of_others_is_kept_over_a_stop() -> None:
    _, state = beginning(50, 2, 5, 0, 2)
    whole, _ = rest(state, 50, 3, 4, ALL)
    _, later = rest(state, 50, 3, 4, 1)
    feed = Feed(loader(50, 3, 0, 4))
    feed.load_state_dict(later)
    assert feed.length == 2 + len(whole[0])
    assert read(feed, ALL) == whole[0][1:]
    feed.begin(1)
    assert feed.length == 5


def test_samples_in_their_order_are_those_of_a_single_rank() -> None:
    feed = Feed(DataLoader(list(range(20)), 4))  # type: ignore[arg-type]
    feed.begin(0)
    read(feed, 2)
    found = []
    for rank in range(2):
        other = Feed(loader(20, 2, rank, 2, shuffle=False))
        other.load_state_dict(of_others(feed.state_dict()))
        found.append(read(other, ALL))
    assert sorted(flat(found)) == list(range(8, 20))


@pytest.mark.parametrize("seed", [None, 1], ids=["another sampler", "another seed"])
def test_another_order_is_refused_with_the_way_out(seed: int | None) -> None:
    _, state = beginning(20, 2, 2, 0, 2)
    other = loader(20, 1, 0, 4, seed=seed or 0)
    if seed is None:
        data: Any = list(range(20))
        other = DataLoader(data, 4, sampler=RandomSampler(data))
    with pytest.raises(DataChanged, match=r"of other ranks.*DistributedSampler\(dataset, num_rep"):
        Feed(other).load_state_dict(of_others(state))


@pytest.mark.parametrize("ranks", [1, 4])
def test_as_many_processes_that_deal_in_another_way_are_refused_with_the_way_out(
    ranks: int,
) -> None:
    """As those are whose mesh is another one, also where each reads as much as before."""
    _, state = beginning(20, 2, 2, 0, 2)
    with pytest.raises(
        DataChanged, match=f"num_replicas=2 when .* num_replicas={ranks}, .*another number of proc"
    ):
        Feed(loader(20, ranks, 0, 2)).load_state_dict(state)
