"""A second start with something changed: in another working directory, or with other settings."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from statemachine_trainer import EarlyStopping, Trainer
from statemachine_trainer.audit.reachable import roots_besides_model_and_data
from statemachine_trainer.audit.settings_record import SettingsChanged
from statemachine_trainer.loops.context_state import is_handed_state
from statemachine_trainer.loops.stepping import SteppingLoop
from statemachine_trainer.snapshot.rng import isolated_rng
from statemachine_trainer.testing.recording import seed_all
from statemachine_trainer.testing.setups import Setup
from statemachine_trainer.testing.trees import differences
from statemachine_trainer.testing.watched_runs import Run
from tests.resume.kit import boundaries


def goes_on_elsewhere(make: Callable[[], Trainer], home: Path) -> Callable[[], Trainer]:
    """Return what makes a trainer in the folder `first` of another one, and at a second start in `second`."""

    def make_there() -> Trainer:
        os.chdir(home / ("second" if is_handed_state() else "first"))
        return make()

    return make_there


def check_changed(make: Callable[[], Trainer], setup: Setup, examples: int, seed: int) -> None:
    """Compare runs that go on with other settings to such in which they were set on the way.

    Args:
        make: Makes the trainer.
        setup: What it makes; `later` has the other settings.
        examples: Boundaries at which the run is stopped.
        seed: Decides which.
    """
    with isolated_rng():
        seed_all(0)
        open_to_stops = [n for n, one in enumerate(boundaries(make)) if not one.transient]
        early = open_to_stops[: len(open_to_stops) // 2]  # there the fit has not been ended yet
        for stop in random.Random(seed).sample(early, examples):
            _check_changed_at(make, setup, stop)


def _check_changed_at(make: Callable[[], Trainer], setup: Setup, stop: int) -> None:
    seed_all(0)
    expected = Run(make)
    expected.go_to(stop)
    state = expected.document().tree()
    heard = len(expected.signals)
    _set_on_the_way(expected.trainer, setup.where_it_goes_on)
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


def _set_on_the_way(trainer: Trainer, setup: Setup) -> None:
    """Set what the script says of loops and callbacks; optimizers stay as in the checkpoint."""
    for _, loop in trainer.loop.walk():
        if isinstance(loop, SteppingLoop):
            loop.accumulate = dict(setup.accumulate or [(0, 1)])
            loop.clip_norm = setup.clip_norm
    outside = roots_besides_model_and_data(trainer.board, trainer.driver, trainer.context)
    for callback in outside.values():
        if isinstance(callback, EarlyStopping) and setup.patience is not None:
            callback.patience = setup.patience
