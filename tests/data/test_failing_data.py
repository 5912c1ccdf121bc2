"""Data that raises: the error surfaces, nothing is lost, and the end is never faked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from statemachine_trainer.data import (
    END,
    EmptyLoader,
    Feed,
    NoPass,
    OrderKept,
    PassBroken,
    StrayStopIteration,
)
from tests.data.kit import Noisy, Quiet, bits, indices, rest_of_pass, seed_all


class Breaking(Noisy):
    """Raises at one index for as long as the file ``broken`` is there."""

    def __init__(self, n: int, at: int, broken: Path, error: Exception) -> None:
        super().__init__(n)
        self.at = at
        self.broken = broken
        self.error = error
        broken.touch()

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.at and self.broken.exists():
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seeded", [None, True])
def test_a_batch_that_raised_is_given_again_once_mended(
    tmp_path: Path, workers: int, seeded: bool | None
) -> None:
    dataset = Breaking(8, 5, tmp_path / "broken", ValueError("a torn file"))
    feed = Feed(DataLoader(dataset, batch_size=2, num_workers=workers), seed_samples=seeded)
    feed.begin(0)
    given = [bits(feed.next_batch()), bits(feed.next_batch())]
    for _ in range(2):
        with pytest.raises(ValueError, match="a torn file"):
            feed.next_batch()
        assert feed.position == 2
    (tmp_path / "broken").unlink()
    assert indices(given + rest_of_pass(feed)) == [*range(8)]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_state_taken_after_an_error_goes_on_with_the_batch_that_raised(
    tmp_path: Path, shuffled: bool
) -> None:
    seed_all(2)
    dataset = Breaking(8, 5, tmp_path / "broken", ValueError("a torn file"))
    feed = Feed(DataLoader(dataset, batch_size=2, shuffle=shuffled))
    feed.begin(0)
    given: list[Any] = []
    with pytest.raises(ValueError, match="a torn file"):
        given.extend(bits(batch) for batch in iter(feed.next_batch, END))
    later = Feed(DataLoader(Noisy(8), batch_size=2, shuffle=shuffled))
    later.load_state_dict(feed.state_dict())
    assert sorted(indices(given + rest_of_pass(later))) == [*range(8)]


@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seeded", [False, True])
def test_trap_26_a_stop_iteration_in_a_data_set_is_not_the_end_of_the_data(
    tmp_path: Path, at: int, workers: int, seeded: bool
) -> None:
    dataset = Breaking(6, at, tmp_path / "broken", StopIteration("stray"))
    loader = DataLoader(dataset, batch_size=2, num_workers=workers)
    feed = Feed(loader, seed_samples=seeded, name="train")
    feed.begin(0)
    for _ in range(at // 2):
        feed.next_batch()
    with pytest.raises(StrayStopIteration, match=f"while batch {at // 2 + 1} of 'train'"):
        feed.next_batch()
    (tmp_path / "broken").unlink()
    assert len(rest_of_pass(feed)) == 3 - at // 2


def test_a_stop_iteration_while_collating_a_stream_is_not_the_end_of_the_data() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[int]:
            yield from range(6)

    def collate(samples: list[int]) -> list[int]:
        return [next(iter([])) if sample == 3 else sample for sample in samples]

    feed = Feed(DataLoader(Stream(), batch_size=2, collate_fn=collate))
    feed.begin(0)
    assert feed.next_batch() == [0, 1]
    with pytest.raises(StrayStopIteration):
        feed.next_batch()


def test_a_generator_that_raised_does_not_end_the_pass_quietly() -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise ValueError("a torn stream")

    feed = Feed(batches(), name="clicks")
    feed.begin(0)
    feed.next_batch()
    with pytest.raises(ValueError, match="a torn stream"):
        feed.next_batch()
    with pytest.raises(PassBroken, match="'clicks' raised an error after batch 1"):
        feed.next_batch()


def test_a_list_of_batches_that_raises_goes_on_once_mended() -> None:
    class Files:
        broken = True

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            if index == 1 and self.broken:
                raise OSError("not there yet")
            return index

    files = Files()
    feed = Feed(files)  # type: ignore[arg-type]
    feed.begin(0)
    assert feed.next_batch() == 0
    with pytest.raises(OSError, match="not there yet"):
        feed.next_batch()
    files.broken = False
    assert [feed.next_batch(), feed.next_batch(), feed.next_batch()] == [1, 2, END]


def test_a_sampler_that_raises_does_not_end_the_pass_quietly() -> None:
    class Unlucky:
        def __iter__(self) -> Iterator[int]:
            yield 0
            raise ValueError("no more luck")

    feed = Feed(DataLoader(Quiet(4), sampler=Unlucky()))
    feed.begin(0)
    feed.next_batch()
    with pytest.raises(ValueError, match="no more luck"):
        feed.next_batch()
    with pytest.raises(PassBroken, match="no more luck"):
        feed.next_batch()


def test_the_end_is_said_again_and_again_until_the_next_pass() -> None:
    feed = Feed([1])
    feed.begin(0)
    assert [feed.next_batch() for _ in range(3)] == [1, END, END]
    assert feed.phase == "ended"
    feed.begin(1)
    assert [feed.next_batch(), feed.next_batch()] == [1, END]
    assert repr(END) == "END"


def test_asking_for_a_batch_outside_a_pass_is_an_error() -> None:
    feed = Feed([1, 2], name="valid")
    with pytest.raises(NoPass, match=r"'valid' has begun. Call begin\(epoch\)"):
        feed.next_batch()
    feed.begin(0)
    feed.next_batch()
    feed.close()
    with pytest.raises(NoPass):
        feed.next_batch()


def test_an_empty_loader_is_refused_before_it_is_read_if_it_can_be_known() -> None:
    dropping = DataLoader(Quiet(3), batch_size=4, drop_last=True)
    with pytest.raises(EmptyLoader, match=r"'train' has no batch\. drop_last=True leaves"):
        Feed(dropping).begin(0)
    with pytest.raises(EmptyLoader, match="'valid' has no batch"):
        Feed([], name="valid").begin(0)
    unknown = Feed(iter([]))
    unknown.begin(0)
    with pytest.raises(EmptyLoader):
        unknown.next_batch()


def test_batches_out_of_order_are_read_in_order_with_a_warning() -> None:
    with pytest.warns(OrderKept, match="Remove in_order=False"):
        feed = Feed(DataLoader(Quiet(4), num_workers=2, in_order=False))
    feed.begin(0)
    assert [int(batch) for batch in iter(feed.next_batch, END)] == [0, 1, 2, 3]
