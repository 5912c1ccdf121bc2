"""A run that was stopped goes on with another number of ranks: the same samples, the same tensors."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks.launching import found_by

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="processes of Unix"),
]

Parts = list[list[dict[str, Any]]]
"""Of each part of a run, what came of it at each of its ranks."""

SAMPLES = 50
"""Divides by no number of ranks but 1 and 2."""
WALK = [1, 2, 1, 3, 1, 4, 2, 3, 2, 4, 3, 4, 1]
"""Numbers of ranks, one after the other, each with a batch of 12 samples: each follows on each other once."""


def came_of(folder: Path, scenes: str) -> dict[str, Parts]:
    """What came of a set of scenes, in one launch of four processes."""
    ranks = found_by("changing.py", folder, scenes, size=4, longest=280)
    return {
        name: [
            [one[name][part] for one in ranks if one[name][part] is not None]
            for part in range(len(ranks[0][name]))
        ]
        for name in ranks[0]
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parts]:
    return came_of(tmp_path_factory.mktemp("changing"), "ranks")


def told(part: list[dict[str, Any]], kind: str) -> list[str]:
    """What rank 0 warned of, and that no other rank did."""
    texts = [[text for text in one["told"] if text.startswith(f"{kind}: ")] for one in part]
    assert not any(texts[1:])
    return texts[0]


def test_weights_moments_and_averages_go_on_to_the_bit(found: dict[str, Parts]) -> None:
    """From each number of ranks to each other; whole at each rank, and cut up."""
    assert [len(part) for part in found["walk"]] == WALK
    for before, after in pairwise(found["walk"]):
        for rank in after:
            assert rank["first"][0] == before[0]["last"]


def test_each_sample_of_the_epoch_is_read_once(found: dict[str, Parts]) -> None:
    read: list[int] = []
    for index, part in enumerate(found["walk"]):
        assert {one["batches"] for one in part} == {index + 1}
        for one in part:
            read += one["read"][: 12 // len(part)]  # the next batch was read, and not trained on
    assert sorted(read) == list(range(12 * len(WALK)))


def test_what_was_logged_before_counts(found: dict[str, Parts]) -> None:
    (last,) = found["walk"][-1]
    assert last["metrics"]["seen"] == 12 * len(WALK)


def test_each_rank_draws_numbers_of_its_own_which_is_told(found: dict[str, Parts]) -> None:
    for before, after in pairwise(found["walk"]):
        assert len({one["first"][1] for one in after}) == len(after)
        (text,) = told(after, "RanksChanged")
        assert f"of a run with {len(before)} process" in text
        assert f"this one has {len(after)}." in text
        assert "andom numbers (dropout, augmentation)" in text
        assert "A batch of all ranks together" not in text


def test_a_run_that_changes_its_ranks_ends_as_one_that_never_does(found: dict[str, Parts]) -> None:
    """Sums of the gradients of several ranks differ in the last digits."""
    (whole,) = found["whole"][0]
    (last,) = found["walk"][-1]
    assert last["batches"] == whole["batches"]
    for ours, theirs in zip(last["last"], whole["last"], strict=True):
        assert_close(ours, theirs)


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name])
    else:
        assert torch.allclose(torch.tensor(one), torch.tensor(other), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["read ahead", "batches of a rank stay"])
def test_the_rest_of_an_epoch_is_dealt_anew(found: dict[str, Parts], name: str) -> None:
    (*_, last) = found[name]
    assert last[0]["metrics"]["seen"] == SAMPLES + -SAMPLES % len(last)


def test_a_batch_of_another_size_is_told_with_the_size_that_keeps_it(
    found: dict[str, Parts],
) -> None:
    (text,) = told(found["batches of a rank stay"][1], "RanksChanged")
    assert "was of 12 samples, and is of 24 now (6 at each)" in text
    assert "A batch size of 3 keeps it." in text
    assert "The 50 samples do not divide evenly" in text


def test_a_checkpoint_within_a_window_is_passed_over(found: dict[str, Parts]) -> None:
    (text,) = told(found["open window"][1], "PassedOver")
    assert "a window of accumulation is open" in text
    assert found["open window"][1][0]["batches"] == 5


def test_an_order_that_others_do_not_know_is_refused_within_an_epoch(
    found: dict[str, Parts],
) -> None:
    first, second = found["own order, within an epoch"][1]
    assert first["error"].startswith("SnapshotMismatch: ")
    assert "in an order that only one rank knows (RandomSampler)" in first["error"]
    assert "torchrun --nproc-per-node 1" in first["error"]
    assert "SnapshotMismatch" in second["error"]
    assert found["own order, between two epochs"][1][0]["batches"] == 5


def test_ranks_that_deal_out_another_order_are_refused(found: dict[str, Parts]) -> None:
    (one,) = found["an order that is not shared"][1]
    assert one["error"].startswith("DataChanged: ")
    assert "DistributedSampler" in one["error"]
