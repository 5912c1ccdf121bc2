"""A model that `fully_shard` has cut up over real ranks: the training of the whole model in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks.launching import Found, alone, found_by

pytestmark = pytest.mark.slow

PROGRAM = "sharding.py"

TOLERANCE = 1e-6
"""Gradients of parts, averaged, are those of the whole up to the order of additions."""


def came_of(folder: Path, size: int) -> Found:
    return found_by(PROGRAM, folder, size, size=size)


def reference(folder: Path, size: int) -> dict[str, Any]:
    assert alone(PROGRAM, folder, size) == 0
    found: dict[str, Any] = json.loads((folder / "found-0.json").read_text())
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return came_of(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return reference(tmp_path_factory.mktemp("one"), 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return came_of(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="module")
def one_of_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return reference(tmp_path_factory.mktemp("one_of_four"), 4)


def assert_same_training(found: Found, alone: dict[str, Any], name: str) -> None:
    """All ranks ended with the same, which is what one process came to."""
    expected = alone[name]
    for rank in found:
        training = rank[name]
        assert training == found[0][name]
        assert training["weights"].keys() == expected["weights"].keys()
        for part, value in expected["weights"].items():
            ours, its = torch.tensor(training["weights"][part]), torch.tensor(value)
            assert torch.allclose(ours, its, rtol=0, atol=TOLERANCE), part
        assert training["metrics"] == pytest.approx(expected["metrics"], abs=TOLERANCE)
        assert training["steps"] == expected["steps"]


@pytest.mark.parametrize(
    "name",
    [
        "a_plain_model",
        "a_model_of_blocks_by_the_helper",
        "steps_of_its_own",
        "steps_that_call_parts_only",
        "accumulation_with_open_windows_and_clipping",
        "clipping_by_value",
        "optimizing_by_hand",
        "two_optimizers",
        "an_average_that_is_evaluated",
        "an_average_of_epochs_that_is_evaluated",
        "early_stopping",
        "a_receiver_that_calls_the_model_within_a_window",
    ],
)
def test_two_ranks_train_a_model_in_parts_as_one_process_trains_it_whole(
    two: Found, one: dict[str, Any], name: str
) -> None:
    assert_same_training(two, one, name)


def test_an_overflow_in_the_part_of_one_rank_skips_the_step_of_all(
    two: Found, one: dict[str, Any]
) -> None:
    name = "half_precision_that_overflows_at_one_rank"
    batches = two[0]["steps_of_its_own"]["steps"]
    assert [rank[name] for rank in two] == [one[name]] * 2
    assert one[name] < batches


def test_the_helper_cuts_up_the_blocks_and_the_whole(two: Found, one: dict[str, Any]) -> None:
    name = "a_model_of_blocks_by_the_helper"
    assert two[0][name]["kinds"] == ["FSDPSequential", "FSDPLinear", "ReLU", "FSDPLinear"]
    assert one[name]["kinds"] == ["Sequential", "Linear", "ReLU", "Linear"]


def test_weights_of_a_checkpoint_in_parts_fit_a_whole_model_and_other_parts(
    two: Found, one: dict[str, Any]
) -> None:
    name = "weights_that_go_in_and_out"
    for rank in two:
        assert rank[name]["same"] == [True, True]
        for part, value in one[name]["whole"].items():
            ours = torch.tensor(rank[name]["whole"][part])
            assert torch.allclose(ours, torch.tensor(value), rtol=0, atol=TOLERANCE), part


def test_what_rank_0_writes_for_all_does_not_grow_with_the_model(two: Found) -> None:
    (narrow, parts, files), (wide, wide_parts, _) = two[0]["sizes_of_files"]
    assert abs(wide - narrow) < 100
    assert wide_parts > 50 * parts
    assert files == 2


def test_what_several_ranks_hold_is_written_once(two: Found, four: Found) -> None:
    (_, parts, _), _ = two[0]["sizes_of_files"]
    (_, repeated, files), _ = four[0]["sizes_of_files"]
    assert repeated < 1.3 * parts
    assert files <= 4


def test_early_stopping_ends_all_ranks_at_once(two: Found) -> None:
    assert [rank["early_stopping"]["epochs"] for rank in two] == [2, 2]


@pytest.mark.parametrize(
    "name",
    [
        "steps_that_call_parts_only",
        "accumulation_with_open_windows_and_clipping",
        "an_average_that_is_evaluated",
    ],
)
def test_parts_may_be_repeated_along_another_axis(
    four: Found, one_of_four: dict[str, Any], name: str
) -> None:
    assert_same_training(four, one_of_four, name)


@pytest.mark.parametrize(
    "name, message",
    [
        ("a_disk_that_fails_at_one_rank", "The checkpoints before it are untouched"),
        ("sharpness", "the loop 'epoch.batch.optimizer' climbs along gradients"),
        ("losses_that_are_yielded", "optimize by hand (automatic_optimization = False)"),
        ("evaluations_of_different_lengths", "numbers of validation batches differ: 2 at rank 0"),
        ("the_same_data_at_all_ranks", "SameBatches: All 2 ranks read the same batch"),
    ],
)
def test_what_cannot_be_done_in_parts_is_an_error_that_says_what_can(
    two: Found, name: str, message: str
) -> None:
    for rank in two:
        assert message in str(rank[name])


def test_a_mesh_on_which_gradients_would_go_astray_is_refused(four: Found) -> None:
    for rank in four:
        assert "over 2 of the 4 ranks of this run" in str(rank["a_mesh_of_some_ranks"])


def test_parameters_that_nothing_averages_are_told(two: Found) -> None:
    assert [rank["a_part_that_nothing_averages"] for rank in two] == [["WeightsDiffer"]] * 2
