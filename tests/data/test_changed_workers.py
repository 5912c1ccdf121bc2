"""The number of workers may change between two starts: exact, or told as not exact, and nothing else."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from statemachine_trainer.data import END, Feed, NotExact


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index + random.random())


def loader(dataset: Any, workers: int) -> DataLoader[Any]:
    context = "fork" if workers else None
    return DataLoader(
        dataset, 3, shuffle=True, num_workers=workers, multiprocessing_context=context
    )


def indices(batches: list[torch.Tensor]) -> list[list[int]]:
    return [one.int().tolist() for one in batches]


def rest(feed: Feed) -> list[torch.Tensor]:
    found = []
    while (batch := feed.next_batch()) is not END:
        found.append(batch[0] if isinstance(batch, list) else batch)
    feed.shutdown()
    return found


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("before, after", [(0, 2), (0, 1), (2, 0), (2, 1)])
def test_the_order_stays_and_only_randomness_in_workers_is_told(
    before: int, after: int, position: int
) -> None:
    data = TensorDataset(torch.arange(12.0))
    torch.manual_seed(0)
    whole = Feed(loader(data, 0))
    whole.begin(0)
    expected = indices(rest(whole))

    torch.manual_seed(0)
    feed = Feed(loader(data, before))
    feed.begin(0)
    given = [feed.next_batch()[0] for _ in range(position)]
    state = feed.state_dict()
    generator = torch.get_rng_state()
    feed.shutdown()
    later = Feed(loader(data, after))
    if before == 0:
        with pytest.warns(NotExact, match="seed_samples=True"):
            later.load_state_dict(state)
    else:
        later.load_state_dict(state)
    torch.set_rng_state(generator)
    assert indices([*given, *rest(later)]) == expected


def test_from_workers_to_none_and_back_augmentation_stays_too() -> None:
    torch.manual_seed(0)
    whole = Feed(loader(Noisy(), 2))
    whole.begin(0)
    expected = torch.cat(rest(whole))
    torch.manual_seed(0)
    feed = Feed(loader(Noisy(), 2))
    feed.begin(0)
    given = [feed.next_batch()]
    for workers in (0, 1):
        state = feed.state_dict()
        feed.shutdown()
        feed = Feed(loader(Noisy(), workers))
        feed.load_state_dict(state)
        given.append(feed.next_batch())
    assert torch.equal(torch.cat([*given, *rest(feed)]), expected)


def test_a_state_of_an_earlier_version_is_read() -> None:
    """Its checksum was that of the indices together with the epoch, where samples were seeded."""
    torch.manual_seed(0)
    feed = Feed(loader(Noisy(), 0), seed_samples=True)
    feed.begin(0)
    feed.next_batch()
    state = feed.state_dict()
    order = feed._reader._stream._last[-1]  # type: ignore[attr-defined]
    expected = torch.cat(rest(feed))
    state["reader"]["pass"]["mark"] = zlib.crc32(repr(order).encode())
    later = Feed(loader(Noisy(), 0), seed_samples=True)
    later.load_state_dict(state)
    assert torch.equal(torch.cat(rest(later)), expected)
