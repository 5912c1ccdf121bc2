"""A class of one's own that hands out the iterator of a loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from statemachine_trainer.data import END, Feed
from statemachine_trainer.data.data_errors import StrayStopIteration
from tests.data.kit import Noisy
from tests.data.resume_kit import assert_resumes


class Wrapped:
    """Iterates as the loader inside does."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class Stopping(Dataset[torch.Tensor]):
    """Raises `StopIteration` at its third sample."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            raise StopIteration
        return torch.ones(1)


@pytest.mark.filterwarnings("ignore::statemachine_trainer.data.data_errors.ReplayWarning")
def test_it_is_read_to_its_end_and_goes_on_at_each_place() -> None:
    assert_resumes(lambda: Feed(Wrapped(DataLoader(Noisy(7), batch_size=2, shuffle=True))))


def test_a_sample_that_raises_stop_iteration_does_not_pass_for_the_end() -> None:
    feed = Feed(Wrapped(DataLoader(Stopping(), batch_size=2)))
    feed.begin(0)
    assert feed.next_batch() is not END
    with pytest.raises(StrayStopIteration):
        feed.next_batch()
