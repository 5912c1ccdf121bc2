"""Random training set-ups, stopped at random boundaries, several times in one run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.strategies import Setup, setups

pytestmark = [
    pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning"),
    pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.loop_errors.LikelyMistake"),
]

relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@settings(relaxed, max_examples=8)
@given(setups(), st.integers(0, 1000))
def test_any_set_up_is_resumed_to_the_same_bits_wherever_it_is_stopped(
    setup: Setup, seed: int
) -> None:
    assert_resumable(setup.make_trainer, examples=2, stops_per_run=3, seed=seed)


@pytest.mark.slow
@settings(relaxed, max_examples=300)
@given(setups(workers=True), st.integers(0, 1000))
def test_many_set_ups_are_resumed_to_the_same_bits_wherever_they_are_stopped(
    setup: Setup, seed: int
) -> None:
    assert_resumable(setup.make_trainer, examples=4, stops_per_run=3, seed=seed)


@pytest.mark.slow
@settings(relaxed, max_examples=8)
@given(setups(), st.integers(0, 1000))
def test_any_set_up_goes_on_in_a_fresh_process(setup: Setup, seed: int) -> None:
    assert_resumable(setup.make_trainer, examples=1, stops_per_run=2, seed=seed, fresh_process=True)
