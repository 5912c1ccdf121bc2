"""The agreement of the ranks, simulated: never two of them at different edges, and none waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ranks.simulated import Parted, World, simulate

HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(["stop", "validate", "checkpoint", "pause", "signal", "kill"]),
        st.floats(0, 1.2, allow_nan=False),
    ),
    max_size=4,
)


def assert_agreed(world: World) -> None:
    """Where no rank is gone, all did the same; else each that is left saw that."""
    left = [one for one in world.ranks if one.number not in world.gone]
    assert len({len(one.log) for one in left}) <= 1
    assert all(one.killed or one.lost for one in world.ranks if one.number in world.gone)


@settings(max_examples=50)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 2**32), HAPPENINGS)
def test_ranks_make_the_same_transitions_whatever_happens_to_any_of_them(
    size: int, batches: int, seed: int, happenings: list[tuple[str, float]]
) -> None:
    assert_agreed(simulate(size, batches, seed, happenings))


def test_what_is_posted_at_one_rank_is_taken_by_all_before_the_data_end() -> None:
    world = simulate(8, 40, 1, [("validate", 0.1), ("checkpoint", 0.2), ("stop", 0.4)])
    (log,) = {tuple(one.log) for one in world.ranks}
    assert log.count("checkpoint") == 1
    assert log[-1] == "loop.ending"
    assert 0 < log.count("loop.batch.forward") < 40
    assert {one.driver.outcome for one in world.ranks} == {"ended"}


def test_a_signal_to_one_rank_stops_all_at_one_boundary() -> None:
    world = simulate(8, 40, 2, [("signal", 0.3)])
    (log,) = {tuple(one.log) for one in world.ranks}
    assert log[-1] == "signal"
    assert {one.driver.path for one in world.ranks} == {"loop.fetch"}


def test_a_pause_at_one_rank_pauses_all_at_one_boundary_and_they_go_on() -> None:
    world = simulate(8, 20, 7, [("pause", 0.2), ("pause", 0.4)])
    (log,) = {tuple(one.log) for one in world.ranks}
    assert 0 < log.count("paused") <= 2
    assert log.count("loop.batch.forward") == 20
    assert {one.driver.outcome for one in world.ranks} == {"ended"}


def test_ranks_that_have_lost_one_see_it_and_none_goes_on_alone() -> None:
    world = simulate(8, 40, 3, [("kill", 0.3)])
    assert sum(one.lost for one in world.ranks) == 7
    assert {one.driver.outcome for one in world.ranks} == {None}


def test_the_simulation_sees_ranks_that_take_events_by_themselves() -> None:
    with pytest.raises(Parted):
        simulate(4, 10, 4, [("stop", 0.3)], alone=True)


@pytest.mark.slow
@pytest.mark.timeout(400)  # for a machine that is busy
def test_a_thousand_ranks_agree() -> None:
    happenings = [("validate", 2.0), ("checkpoint", 6.0), ("signal", 14.0)]
    world = simulate(1024, 4, 5, happenings)
    assert_agreed(world)
    (log,) = {tuple(one.log) for one in world.ranks}
    assert log.count("checkpoint") == 1
    assert log[-1] == "signal"


@pytest.mark.slow
def test_a_hundred_ranks_that_have_lost_one_see_it() -> None:
    lost = simulate(128, 6, 6, [("validate", 0.1), ("kill", 0.3)])
    assert_agreed(lost)
    assert len(lost.gone) == 128
