"""One rank does something else than the other in one batch: all end with the same error, or go on alike."""

from __future__ import annotations

import pytest

from tests.ranks.launching import Found, both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by("parting.py", tmp_path_factory.mktemp("parting"), longest=180.0)


def told(rank: int, batch: int, epoch: int = 1) -> list[str]:
    where = f"rank {rank} for batch {batch} of epoch {epoch}"
    said = f"RanksPart: The training step returned None at {where}, and a loss at another rank"
    return [said, said]


def test_ranks_are_told_which_of_them_has_returned_none(found: Found) -> None:
    assert both(found, "none_at_one_rank") == [
        told(0, 1),
        told(1, 3),
        told(0, 4),
        told(1, 4, epoch=2),
    ]


def test_ranks_are_told_within_a_window_of_accumulation(found: Found) -> None:
    assert both(found, "none_within_a_window") == [
        told(1, 3),
        told(1, 4),
        told(1, 3, epoch=2),
        told(1, 4, epoch=2),
    ]


def test_ranks_are_told_where_gradients_lie_in_buckets(found: Found) -> None:
    assert both(found, "none_where_gradients_lie_in_buckets") == told(0, 3)


def test_a_batch_that_all_ranks_leave_out_is_as_if_it_were_not_there(found: Found) -> None:
    alone, agreed = both(found, "none_at_both")
    assert alone == agreed
    assert alone["steps"] == 3


def test_no_checkpoint_is_written_of_ranks_that_have_parted(found: Found) -> None:
    said, written = both(found, "checkpoints_before_none")
    assert said == told(1, 4)
    assert written[-1].endswith("-step-00000003")


def test_ranks_that_go_backward_by_hand_more_or_less_often_are_told(found: Found) -> None:
    for batch, often, first, second in both(found, "by_hand"):
        assert first == second
        assert first.startswith("RanksPart: The ranks make different numbers of backward passes")
        this, following = batch + 1, batch + 2
        places = [f"is in number 2 of batch {this}"]
        if often == 0:  # it meets the other one in the next batch, or before it
            places = [
                f"is in number 1 of batch {following}",
                f"has no more of them before batch {following}",
            ]
        assert any(f"rank 1 {place}" in first for place in places)


def test_ranks_are_told_where_one_yields_no_loss(found: Found) -> None:
    first, second = both(found, "yields_nothing")
    assert first == second
    assert first.startswith("RanksPart: The ranks make different numbers of backward passes")


def test_ranks_are_told_where_one_has_no_loss_for_a_compiled_step(found: Found) -> None:
    steps, (first, second) = both(found, "none_beside_a_compiled_step")
    assert steps == 4
    assert first == second
    assert first.endswith(
        "rank 0 is in number 1 of batch 3, rank 1 has no more of them before batch 4"
    )


def test_a_metric_that_ranks_reduce_otherwise_is_an_error_at_all(found: Found) -> None:
    first, second = both(found, "a_metric_that_is_reduced_otherwise")
    assert first == second
    assert first == (
        "RanksDiffer: 'seen' is logged with reduce='mean' at rank 0, and with reduce='max' at rank 1"
    )


def test_where_a_rank_cannot_take_part_without_a_loss_all_leave_the_batch_out(found: Found) -> None:
    assert both(found, "all_leave_out") == {
        "fully_shard": 6,
        "wrapped inside": 6,
        "sam": 6,
        "lbfgs": 6,
        "split": 6,
    }


def test_no_rank_keeps_the_output_of_a_batch_that_all_leave_out(found: Found) -> None:
    assert both(found, "outputs_where_all_leave_out") == [[3], [3]]
