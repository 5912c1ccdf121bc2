"""Where memory runs out at one rank all ranks cut the batch, and come to what they would with enough of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks.launching import Found, both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by("cutting.py", tmp_path_factory.mktemp("cutting"), longest=180.0)


def numbers(weights: Any) -> list[float]:
    """The numbers in nested lists."""
    if isinstance(weights, float):
        return [weights]
    return [number for one in weights for number in numbers(one)]


def close(one: Any, other: Any) -> bool:
    return numbers(one) == pytest.approx(numbers(other), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("scene", ["while_all_fits", "while_all_fits_with_open_windows"])
def test_while_all_fits_the_bits_are_those_of_the_wrapper(found: Found, scene: str) -> None:
    plain, ready = both(found, scene)
    assert plain == ready


@pytest.mark.parametrize(
    "scene, steps, begins",
    [
        ("one_rank_is_short_in_the_forward_pass", 8, [4, 2, 2, 2, 2]),
        ("one_rank_is_short_in_the_backward_pass", 8, [4, 2, 1, 1, 1, 1]),
        ("one_rank_is_short_within_windows", 4, [4, 2, 2, 2, 2, 2, 2, 2]),
        ("larger_pieces_are_tried_again", 4, [4, 2, *[1] * 16, 2, *[1] * 16]),
    ],
)
def test_all_ranks_do_the_same_pieces_and_come_to_what_the_whole_batch_comes_to(
    found: Found, scene: str, steps: int, begins: list[int]
) -> None:
    whole, cut = both(found, scene)
    assert close(whole, cut["weights"])
    assert cut["steps"] == [steps]
    assert cut["checkpoints"] == 8  # from some of which it has gone on, to the same bits
    assert cut["sizes"][: len(begins)] == begins


def test_a_rank_with_smaller_batches_goes_along_with_the_pieces_of_the_other(found: Found) -> None:
    (whole, first), (_, second) = (one["ranks_have_batches_of_other_sizes"] for one in found)
    assert close(whole["weights"], first["weights"])
    assert first["weights"] == second["weights"]
    assert first["sizes"] == [8, 4, 2, *[1] * 24]
    assert second["sizes"] == [2, 2, 2, *[1] * 8]


def test_from_within_a_batch_all_ranks_go_on_to_the_same_bits(found: Found) -> None:
    before_the_pieces, between_them = both(found, "it_goes_on_from_within_a_batch")
    for undisturbed, resumed, sizes in (before_the_pieces, between_them):
        assert resumed == undisturbed
        assert set(sizes) == {2}
    assert len(between_them[2]) == len(before_the_pieces[2]) - 1


def test_a_sample_that_does_not_fit_at_one_rank_is_told_at_all_and_they_can_go_on(
    found: Found,
) -> None:
    first, second = (one["a_sample_does_not_fit_at_one_rank"] for one in found)
    assert first["said"].startswith("Rank 1 has run out of memory for its piece of batch 1.")
    assert "Rank 1 cannot cut its batch further" in first["said"]
    assert second["said"].startswith("1 samples do not fit")
    assert "down to one sample: 4, 2, 1. Sample 1 of batch 1" in second["said"]
    assert first["weights"] == second["weights"]
    (undisturbed, *_) = found[0]["it_goes_on_from_within_a_batch"][0]
    assert close(first["weights"], undisturbed)


@pytest.mark.parametrize(
    "scene, said",
    [
        (
            "networks_that_are_wrapped_inside",
            "SettingError: The loop 'epoch.batch.optimizer' would leave other ranks waiting",
        ),
        ("a_wrapper_with_a_hook", "UnsupportedWrapper: SplittingLoop (on_oom='split')"),
    ],
)
def test_a_model_that_exchanges_gradients_in_its_own_way_is_refused(
    found: Found, scene: str, said: str
) -> None:
    assert both(found, scene).startswith(said)


def test_ranks_agree_three_times_a_batch_more_and_four_times_a_piece(found: Found) -> None:
    """One is the meeting of each batch. The others: do all forward passes fit, have a loss, and backward passes fit?"""
    assert both(found, "exchanges_of_a_batch") == [4.0, 9.0]
