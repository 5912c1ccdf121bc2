"""What ranks do together: the bits of the same training that was written by hand with torch alone."""

from __future__ import annotations

import pytest

from tests.ranks.launching import Found, both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by("together.py", tmp_path_factory.mktemp("together"), longest=180.0)


@pytest.mark.parametrize(
    "scene",
    [
        "a_batch_that_one_rank_cannot_use_is_left_out_by_all",
        "a_batch_is_left_out_of_a_window",
        "a_step_that_returns_none_at_one_rank",
        "all_go_back_where_one_rank_does_harm",
    ],
)
def test_a_batch_that_is_bad_at_one_rank_is_as_if_no_rank_had_it(found: Found, scene: str) -> None:
    ours, by_hand = both(found, scene)
    assert ours["weights"] == by_hand["weights"]
    assert ours["steps"] == by_hand["steps"]
    assert ours["checkpoints"] == 8  # from some of which it has gone on, to the same end


@pytest.mark.parametrize(
    "scene", ["an_optimizer_that_evaluates_the_loss_itself", "the_same_by_its_own_loop"]
)
def test_an_optimizer_that_evaluates_the_loss_decides_alike_at_all_ranks(
    found: Found, scene: str
) -> None:
    assert both(found, scene) == [8]


def test_parameters_that_the_wrapper_ignores_may_differ(found: Found) -> None:
    assert both(found, "a_parameter_that_the_wrapper_ignores") == []


def test_ranks_that_have_begun_with_other_weights_are_told_so(found: Found) -> None:
    (text,) = both(found, "ranks_that_begin_with_other_weights")
    assert text.startswith("WeightsDiffer: ")
    assert "so they have begun with different ones. Leave init_sync at True" in text


def test_with_a_scaler_ranks_leave_out_the_same_batches(found: Found) -> None:
    assert both(found, "with_the_scaler_of_fp16")["batches"] == 8


def test_one_optimizer_of_two_leaves_out_batches(found: Found) -> None:
    assert both(found, "one_of_two_optimizers_is_left_out")["steps"] == [8, 6]


def test_ranks_are_told_which_of_them_has_no_finite_loss(found: Found) -> None:
    first, second = (one["the_rank_is_told"] for one in found)
    assert first == [
        "left out batch 2 of epoch 2, as all ranks do: rank 1 has no finite loss for it."
    ]
    assert second == []


@pytest.mark.parametrize(
    "scene, said",
    [
        ("skipping_at_one_rank", "optimizer.nonfinite_loss='ignore' at rank 0"),
        ("cutting_batches_at_one_rank", "the loops differ"),
        (
            "more_epochs_at_one_rank",
            "the settings differ: fit.max_epochs=1 at rank 0, fit.max_epochs=2 at rank 1",
        ),
        ("a_wrapper_at_one_rank", "what averages the gradients differs"),
        ("another_rate_at_one_rank", "the optimizers differ: lr=0.05 at rank 0, lr=0.1 at rank 1"),
        ("checkpoints_at_other_times_at_one_rank", "the settings differ: Checkpoints.every="),
    ],
)
def test_ranks_that_would_part_are_refused_with_what_differs(
    found: Found, scene: str, said: str
) -> None:
    text = both(found, scene)
    assert text.startswith("RanksDiffer: ")
    assert said in text


def test_ranks_exchange_one_thing_more_a_batch_than_a_loop_by_hand(found: Found) -> None:
    """And another one where they agree on each loss before the backward pass."""
    told = both(found, "exchanges_of_a_batch")
    of_torch = told["bare"][0]
    assert told["bare"] == [of_torch, 0.0]
    assert told["trainer"] == [of_torch, 1.0]
    assert told["skip"] == [of_torch, 2.0]
