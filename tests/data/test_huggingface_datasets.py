"""Hugging Face data sets as they come, map-style and streamed."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from statemachine_trainer.data import Feed
from tests.data.kit import feed_passes, rest_of_pass
from tests.data.resume_kit import assert_resumes

datasets = pytest.importorskip("datasets")


def _rows(n: int) -> Any:
    return datasets.Dataset.from_dict({"x": [*range(n)]})


def _streamed(n: int) -> Any:
    return _rows(n).to_iterable_dataset(num_shards=2)


def test_rows_resume_anywhere() -> None:
    assert_resumes(
        lambda: Feed(DataLoader(_rows(7).with_format("torch"), batch_size=2, shuffle=True))
    )


@pytest.mark.parametrize("n", [6, 7])
def test_a_stream_in_a_loader_resumes_anywhere(n: int) -> None:
    assert_resumes(
        lambda: Feed(DataLoader(_streamed(n).with_format("torch"), batch_size=2)), epochs=3
    )


def test_a_stream_by_itself_resumes_anywhere() -> None:
    assert_resumes(lambda: Feed(_streamed(5)), epochs=2)


def test_a_stream_whose_shards_are_shuffled_has_another_order_each_epoch_and_resumes() -> None:
    def make() -> Feed:
        stream = _rows(12).to_iterable_dataset(num_shards=6).shuffle(seed=3, buffer_size=1)
        return Feed(DataLoader(stream.with_format("torch"), batch_size=2))

    first, second = feed_passes(make(), epochs=2)
    assert first != second
    assert_resumes(make)


def test_a_resumed_pass_is_not_begun_in_its_middle_when_its_epoch_comes_again() -> None:
    feed = Feed(DataLoader(_streamed(6), batch_size=2))
    feed.begin(0)
    whole = rest_of_pass(feed)
    feed.begin(0)
    feed.next_batch()
    later = Feed(DataLoader(_streamed(6), batch_size=2))
    later.load_state_dict(feed.state_dict())
    assert rest_of_pass(later) == whole[1:]
    later.begin(0)
    assert rest_of_pass(later) == whole
