"""What two ranks tell each other, what they must have in common, and what each keeps for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from statemachine_trainer.snapshot import Store
from statemachine_trainer.snapshot.ranked import ranks_of, trees_of_ranks
from tests.ranks.launching import Found, both, found_by

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return found_by("scenarios.py", folder)


def test_ranks_tell_each_other_numbers_and_texts(found: Found) -> None:
    first, second = (one["ranks_tell_each_other"] for one in found)
    assert (first.pop("to_first"), second.pop("to_first")) == ([0, 2000], [])
    assert first == second
    assert first == {
        "same": True,
        "largest": [1.0, 0.0, 7.5],
        "from_first": {"rank": 0, "text": "ä"},
        "from_all": [["", None], ["x" * 10, None]],
    }


def test_a_pause_at_one_rank_pauses_all_at_one_boundary(found: Found) -> None:
    """Asked after the first batch, taken after the second."""
    assert both(found, "a_pause_at_one_rank") == [2, "fit.epoch.fetch", 6, None]


def test_logged_numbers_are_reduced_over_the_ranks(found: Found) -> None:
    metrics = both(found, "metrics_are_reduced")
    batches = 3
    assert metrics == {
        "rank": 1.5,
        "val": 1.5,
        "sum": batches * (1.0 + 2.0),
        "max": 2.0,
        "of_one": 5.0,
    }


def test_an_evaluation_by_itself_waits_for_nobody(found: Found) -> None:
    assert found[1]["an_evaluation_by_itself_is_of_one_rank"] == {"val": 2.0}


def test_ranks_may_validate_different_numbers_of_batches(found: Found) -> None:
    metrics = both(found, "ranks_validate_different_numbers_of_batches")
    assert metrics["val"] == pytest.approx((1.0 + 2 * 2.0) / 3)


def test_the_model_is_the_one_inside_the_wrapper(found: Found) -> None:
    assert both(found, "the_model_comes_out_of_its_wrapper") == {
        "is": True,
        "heard": 1,
        "names": ["net.weight", "net.bias"],
        "log": False,
        "forward": False,
    }


def test_a_model_that_nobody_wrapped_is_noticed_after_its_first_step(found: Found) -> None:
    assert both(found, "forgetting_to_wrap") == ["WeightsDiffer", "parted"]


@pytest.mark.parametrize("scene", ["wrapping", "wrapping_inside", "two_optimizers"])
def test_ranks_keep_the_same_weights_where_gradients_are_averaged(found: Found, scene: str) -> None:
    assert both(found, scene) == []


def test_gradients_are_averaged_once_a_window_and_those_of_the_last_open_one_too(
    found: Found,
) -> None:
    told = both(found, "gradients_are_averaged_once_a_window")
    assert told == {"calls": [0, 1, 1], "steps": 2, "same": True}


def test_objects_of_torchmetrics_reduce_themselves(found: Found) -> None:
    assert both(found, "metric_objects_reduce_themselves") == 1.5


def test_a_second_fit_goes_on(found: Found) -> None:
    assert both(found, "fitting_again_goes_on") == [0, 1]


def test_a_distributed_sampler_gives_each_epoch_another_order(found: Found) -> None:
    epochs = [one["each_epoch_has_an_order_of_its_own"] for one in found]
    for first, second in zip(*epochs, strict=True):
        assert not set(first) & set(second)  # each sample once
    assert epochs[0][0] != epochs[0][1]


@pytest.mark.parametrize(
    "scene, message",
    [
        ("different_numbers_of_batches", "numbers of training batches differ: 2 at rank 0, 3 at"),
        ("everybody_reads_the_same", "SameBatches: All 2 ranks read the same batch"),
        (
            "everybody_shuffles_all_for_itself",
            "SameBatches: Each of the 2 ranks reads all 24 samples of 'train'",
        ),
        ("everybody_shuffles_all_for_itself", "sampler=DistributedSampler(data)"),
        ("validation_at_one_rank", "validation loaders differ: ['validation'] at rank 0, [] at"),
        ("checkpoints_at_one_rank", "folders of checkpoints differ"),
        ("an_environment_that_says_otherwise", "RANK=5, WORLD_SIZE=2"),
        ("a_state_that_one_rank_cannot_write", "Unwritable: a[1]: "),
        ("a_disk_that_takes_nothing", "could not be written to"),
        ("a_disk_that_fails_in_the_background", "could not be written to"),
    ],
)
def test_what_would_let_a_rank_wait_for_ever_is_an_error_at_all(
    found: Found, scene: str, message: str
) -> None:
    for one in found:
        assert message in str(one[scene])


def test_ranks_that_read_the_same_are_told_also_where_nobody_averages(found: Found) -> None:
    assert both(found, "everybody_reads_the_same_and_nobody_averages") == ["SameWork"]


def test_ranks_may_shuffle_parts_of_their_own(found: Found) -> None:
    assert both(found, "everybody_shuffles_a_part_of_its_own") is None


def test_steps_that_yield_may_call_wrappers_inside_of_the_model(found: Found) -> None:
    assert both(found, "yielding_losses_inside") is None


def test_a_batch_of_one_value_says_nothing(found: Found) -> None:
    assert both(found, "everybody_reads_ones") is None


def test_all_groups_wait_as_long_as_the_user_lets_them(found: Found) -> None:
    assert both(found, "our_group_waits_as_long_as_the_users") == 77.0


def test_an_event_that_no_loop_takes_is_an_error_where_it_is_posted(found: Found) -> None:
    (text,) = both(found, "an_event_that_nobody_takes")
    assert text.startswith("UnknownEvent")


def test_a_checkpoint_has_the_state_of_each_rank_and_what_they_share_once(found: Found) -> None:
    for rank, one in enumerate(found):
        part = one["parts_of_a_checkpoint"]
        assert part["own"] == [rank + 0.5] * 3
        assert part["double"] == ["torch.float64", [rank + 0.5] * 3]
        assert part["bits"] == [True, rank == 0]
        assert part["rest"] == [rank, [1, 2], [0]]
        assert part["same"]
        assert part["metadata"] == {"rank": 0}
        assert part["keys"] == ["bits", "nested", "nothing", "own", "same", "where"]
        assert part["size"] < 1.2 * 5000 * 4


def test_one_process_reads_the_state_of_each_rank(found: Found, folder: Path) -> None:
    tree = Store(folder / "parts").load("a").tree
    assert ranks_of(tree) == 2
    states = trees_of_ranks(tree)
    assert [one["where"] for one in states] == [0, 1]
    assert torch.equal(states[0]["same"], states[1]["same"])
    for state, part in zip(states, [one["parts_of_a_checkpoint"] for one in found], strict=True):
        assert state["own"].tolist() == part["own"]
