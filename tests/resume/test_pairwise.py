"""Every pair of values of the axes meets in a set-up that resumes exactly."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statemachine_trainer import EarlyStopping, Trainer
from statemachine_trainer.data import ReplayWarning
from statemachine_trainer.loops.context_state import is_handed_state
from statemachine_trainer.loops.stepping import SteppingLoop
from statemachine_trainer.running.reachable import roots_besides_model_and_data
from statemachine_trainer.running.settings_record import SettingsChanged
from statemachine_trainer.snapshot.rng import isolated_rng
from statemachine_trainer.testing import assert_resumable
from statemachine_trainer.testing.pairwise import AXES, CHANGES, is_possible, pairs, setup_of, table
from statemachine_trainer.testing.recording import seed_all
from statemachine_trainer.testing.setups import Setup
from statemachine_trainer.testing.trees import differences
from statemachine_trainer.testing.watched_runs import Run
from tests.resume.kit import boundaries

ROWS = table()
PLAIN = {**{axis: values[0] for axis, values in AXES.items()}, "elsewhere": True}


@pytest.fixture(autouse=True)
def two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReplayWarning)  # streams without a state
        yield


def maker(row: dict[str, Any]) -> Callable[[], Trainer]:
    """Return what makes the trainer of a row, at its second start in another folder if the row says so."""
    setup = setup_of(row)
    if not row["elsewhere"]:
        return setup.make_trainer
    home = Path.cwd().parent

    def make() -> Trainer:
        os.chdir(home / ("second" if is_handed_state() else "first"))
        return setup.make_trainer()

    return make


def check(row: dict[str, Any], examples: int) -> None:
    """Stop a row at some boundaries; go on with other settings where the row says so."""
    if row["changed"] is None:
        report = assert_resumable(maker(row), examples=examples, seed=0)
        assert report.runs >= examples
        return
    make, setup = maker(row), setup_of(row)
    with isolated_rng():
        seed_all(0)
        open_to_stops = [n for n, one in enumerate(boundaries(make)) if not one.transient]
        early = open_to_stops[: len(open_to_stops) // 2]  # there the fit has not been ended yet
        for stop in random.Random(0).sample(early, examples):
            check_changed(make, setup, stop)


def check_changed(make: Callable[[], Trainer], setup: Setup, stop: int) -> None:
    """Compare a run that goes on with other settings to one in which they were set on the way."""
    seed_all(0)
    expected = Run(make)
    expected.go_to(stop)
    state = expected.document().tree()
    heard = len(expected.signals)
    set_on_the_way(expected.trainer, setup.where_it_goes_on)
    expected.finish()

    seed_all(1)
    with pytest.warns(SettingsChanged):
        resumed = Run(make, state, stop)
    resumed.finish()
    aside = {"settings": None, "given": None, "checkpoints": None}
    ends = [{**run.state(), **aside} for run in (expected, resumed)]
    expected.close()
    resumed.close()
    assert not differences(*ends), differences(*ends)
    assert resumed.signals == expected.signals[heard:]


def set_on_the_way(trainer: Trainer, setup: Setup) -> None:
    """Set what the script says of loops and callbacks; optimizers stay as in the checkpoint."""
    for _, loop in trainer.loop.walk():
        if isinstance(loop, SteppingLoop):
            loop.accumulate = dict(setup.accumulate or [(0, 1)])
            loop.clip_norm = setup.clip_norm
    outside = roots_besides_model_and_data(trainer.board, trainer.driver, trainer.context)
    for callback in outside.values():
        if isinstance(callback, EarlyStopping) and setup.patience is not None:
            callback.patience = setup.patience


def test_the_table_holds_every_pair_that_goes_together() -> None:
    for pair in pairs():
        assert any(pair.items() <= row.items() for row in ROWS), pair
    assert all(map(is_possible, ROWS))
    assert all([*row] == [*AXES] for row in ROWS)
    assert len(ROWS) <= 90


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_rows_are_exact(number: int) -> None:
    check({**ROWS[number], "workers": (0, None)}, 1)


@pytest.mark.parametrize("changed", CHANGES)
def test_with_another_setting_a_run_goes_on_as_if_it_were_set_there(changed: str) -> None:
    check({**PLAIN, "changed": changed}, 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_row_is_exact(number: int) -> None:
    check(ROWS[number], 2)
