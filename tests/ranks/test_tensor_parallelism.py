"""Tensor parallelism: pairs of ranks hold a model together, alone and with `fully_shard` along another axis."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from tests.ranks.test_other_ranks import Parts, assert_close, came_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="processes of Unix"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    return came_of(tmp_path_factory.mktemp("tensors"), "tensors")


def test_tensor_parallelism_with_fully_shard_trains_as_one_process(found: dict[str, Parts]) -> None:
    """With clipping, whose norm is over all parts, and an average."""
    (whole,) = found["tensors, whole"][0]
    for rank in found["tensors, undisturbed"][0]:
        assert rank["metrics"] == whole["metrics"]
        for ours, theirs in zip(rank["last"], whole["last"], strict=True):
            assert_close(ours, theirs)


def test_it_goes_on_to_the_same_bits(found: dict[str, Parts]) -> None:
    undisturbed, resumed = found["tensors, undisturbed"][0], found["tensors, stopped"][1]
    for one, other in zip(undisturbed, resumed, strict=True):
        assert other["last"] == one["last"]
        assert other["metrics"] == one["metrics"]


def test_it_goes_on_with_other_meshes_and_with_one_process(found: dict[str, Parts]) -> None:
    """Pairs of ranks twice, once, one process, and pairs twice."""
    parts = found["tensors, changed"]
    assert [len(part) for part in parts] == [4, 2, 1, 4]
    for before, after in pairwise(parts):
        for rank in after:
            assert rank["first"][0] == before[0]["last"]
    read: list[int] = []
    for part in parts:
        readers = part[:: 2 if len(part) > 1 else 1]
        last = part is parts[-1]
        read += [i for one in readers for i in one["read"][: None if last else 12 // len(readers)]]
    assert sorted(read) == list(range(72))
    (whole,) = found["tensors, whole"][0]
    for ours, theirs in zip(parts[-1][0]["last"], whole["last"], strict=True):
        assert_close(ours, theirs)


def test_ranks_that_hold_a_model_together_read_and_draw_the_same(found: dict[str, Parts]) -> None:
    for rank in found["tensors, each its own data"][0]:
        assert rank["error"].startswith("RanksDiffer: Ranks 0 and 1 hold parts of the same layers")
        assert "num_replicas=2" in rank["error"]
    told_of = [one["told"] for one in found["tensors, other numbers"][0]]
    assert any("RandomNumbersDiffer: Ranks 0 and 1" in text for text in told_of[0])
