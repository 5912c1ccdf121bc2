"""Random training set-ups, stopped at random boundaries, several times in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.data.data_errors import EmptyLoader
from statemachine_trainer.testing import NotResumable, assert_resumable
from statemachine_trainer.testing.strategies import Setup, setups
from tests.resume.changed import check_changed, goes_on_elsewhere
from tests.resume.kit import stop_before

pytestmark = [
    pytest.mark.filterwarnings("ignore::statemachine_trainer.data.ReplayWarning"),
    pytest.mark.filterwarnings("ignore::statemachine_trainer.loops.loop_errors.LikelyMistake"),
]


def test_a_set_up_prints_code_that_builds_it_again() -> None:
    setup = Setup(data="stream", posts=[(2, "stop")], later={"clip_norm": 0.5})
    space: dict[str, Any] = {}
    exec(setup.describe().rpartition("assert_resumable")[0], space)
    assert space["setup"] == setup
    assert space["setup"].where_it_goes_on.clip_norm == 0.5


def test_a_stream_goes_on_exactly_after_a_pass_that_was_left_early() -> None:
    setup = Setup(data="stateful stream", posts=[(2, "end_epoch")])
    stop_before(setup.make_trainer, "epoch_end", "next_epoch", "epoch_start")


def test_a_stream_that_was_left_after_its_last_sample_is_named_as_empty() -> None:
    setup = Setup(data="stateful stream", samples=20, posts=[(4, "end_epoch")])
    with pytest.raises(EmptyLoader, match="Its data set keeps its place"):
        setup.make_trainer().run()


def test_a_layer_that_a_callback_has_set_is_told_where_the_run_goes_on() -> None:
    setup = Setup(sets=[(3, "dropout")])
    with (
        pytest.warns(SettingsChanged, match="Dropout.*p was 0.0, is 0.3 now"),
        pytest.raises(NotResumable),
    ):
        assert_resumable(setup.make_trainer, examples=3, seed=1)


relaxed = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


@pytest.fixture
def two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    return tmp_path


@settings(relaxed, max_examples=8, derandomize=True)
@given(setups(), st.integers(0, 1000))
def test_any_set_up_is_resumed_to_the_same_bits_wherever_it_is_stopped(
    setup: Setup, seed: int
) -> None:
    assert_resumable(setup.make_trainer, examples=2, stops_per_run=3, seed=seed)


@pytest.mark.slow
@settings(relaxed, max_examples=54)
@given(setups(workers=True, compiled=True), st.integers(0, 1000))
def test_many_set_ups_are_resumed_to_the_same_bits_wherever_they_are_stopped(
    setup: Setup, seed: int
) -> None:
    assert_resumable(setup.make_trainer, examples=4, stops_per_run=3, seed=seed)


@pytest.mark.slow
@settings(relaxed, max_examples=6, derandomize=True)
@given(setups(trees=True), st.integers(0, 1000))
def test_any_recipe_is_resumed_to_the_same_bits_wherever_it_is_stopped(
    setup: Setup, seed: int
) -> None:
    assert setup.tree is not None
    assert_resumable(setup.make_trainer, examples=2, stops_per_run=3, seed=seed)


@pytest.mark.slow
@settings(relaxed, max_examples=40)
@given(setups(workers=True, changed=True), st.integers(0, 1000), st.booleans())
def test_many_set_ups_go_on_with_another_setting_as_if_it_were_set_there(
    two_folders: Path, setup: Setup, seed: int, elsewhere: bool
) -> None:
    make = setup.make_trainer
    check_changed(goes_on_elsewhere(make, two_folders) if elsewhere else make, setup, 2, seed)


@pytest.mark.slow
@settings(relaxed, max_examples=8)
@given(setups(), st.integers(0, 1000))
def test_any_set_up_goes_on_in_a_fresh_process(setup: Setup, seed: int) -> None:
    assert_resumable(setup.make_trainer, examples=1, stops_per_run=2, seed=seed, fresh_process=True)
