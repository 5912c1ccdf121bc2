"""Backward passes that no wrapper sees: the bits of the same training by hand, with torch alone."""

from __future__ import annotations

import pytest

from tests.ranks.launching import Found, both, found_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found_by("apart.py", tmp_path_factory.mktemp("apart"), longest=180.0)


@pytest.mark.parametrize(
    "scene",
    ["optimizing_by_hand", "yielding_losses", "backpropagating_through_pieces_of_time"],
)
def test_steps_of_their_own_end_with_the_bits_of_wrappers_within_the_model(
    found: Found, scene: str
) -> None:
    """Also where they go on from a checkpoint."""
    ours, by_hand = both(found, scene)
    assert ours["weights"] == by_hand["weights"]
    assert ours["steps"] == by_hand["steps"]


@pytest.mark.parametrize(
    "scene",
    [
        "a_compiled_step",
        "a_compiled_step_that_leaves_batches_out",
        "a_step_that_cannot_be_compiled_at_one_rank",
    ],
)
def test_a_compiled_step_ends_with_the_bits_of_the_wrapper(found: Found, scene: str) -> None:
    ours, plain = both(found, scene)
    assert ours["weights"] == plain["weights"]
    assert ours["steps"] == plain["steps"]


def test_compiled_steps_may_add_up(found: Found) -> None:
    assert both(found, "a_compiled_step_in_windows") == [4]


def test_a_compiled_step_in_a_wrapper_that_does_more_than_to_average_is_refused(
    found: Found,
) -> None:
    text = both(found, "a_compiled_step_in_a_wrapper_with_a_hook")
    assert text.startswith("UnsupportedWrapper: CompiledStep compiles the step")
    assert text.endswith("use OptimizerLoop in its place.")


def test_yielded_losses_may_add_up(found: Found) -> None:
    assert both(found, "yielding_losses_in_windows") == [4, 4]


def test_a_part_that_one_rank_does_not_use_counts_as_zero_there(found: Found) -> None:
    """And the ranks keep the same weights, which each scene looks at."""
    assert both(found, "parts_that_one_rank_uses") == [8]


def test_a_wrapper_that_does_more_than_to_average_is_refused(found: Found) -> None:
    text = both(found, "a_wrapper_with_a_hook")
    assert text.startswith("UnsupportedWrapper: PairByHand optimizes by hand")
    assert "a communication hook, which would have no effect" in text
