"""What a trainer and its `fit` are given: refused at once where it means nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.loops.errors import SettingError
from statemachine_trainer.loops.model import Loss, MakeOptimizer
from statemachine_trainer.loops.settings import (
    check_names,
    default_tree,
    evaluation_loops,
    only_of_evaluation,
)
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.observe.recorder import Recorder, RunFolder
from statemachine_trainer.running.drivers import Drivers


@dataclass(frozen=True)
class Given:
    """What `fit` is given to train, and with what; None stands for what the fit has already.

    Attributes:
        model: The model.
        train: The training data.
        validation: The validation data, of one or several loaders.
        loss: For a plain model.
        optimizer: For a model that configures none.
    """

    model: nn.Module | None = None
    train: Any = None
    validation: Any = None
    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None

    @property
    def model_alone(self) -> bool:
        """Whether nothing else was given: all the rest stays as it is."""
        others = (self.train, self.validation, self.loss, self.optimizer)
        return all(one is None for one in others)


def loops_given(loop: Loop | None, settings: Mapping[str, Any]) -> dict[str, Loop]:
    """Return the loops that `Trainer(loop, **settings)` means, by name.

    Raises:
        SettingError: A setting that nobody knows, or one of the default tree with a loop of one's own.
    """
    check_names(settings)
    if loop is not None and (extra := set(settings) - set(only_of_evaluation(settings))):
        raise SettingError(
            f"{sorted(extra)[0]!r} is a setting of the default tree, but a loop of your own was given. Set it "
            "on the loop that it controls."
        )
    root = loop if loop is not None else default_tree(settings)
    return {"fit": root, **evaluation_loops(settings)}


def recorder_given(
    run: RunFolder | str | Path | bool | None,
    checkpoints: Checkpoints | None,
    drivers: Drivers,
    settings: Mapping[str, Any],
) -> Recorder | None:
    """Make the recorder that `Trainer(run=..., checkpoints=...)` means; None if nothing is kept.

    Raises:
        SettingError: The folder is not that of the checkpoints, or there is none.
    """
    if not (run is None or isinstance(run, RunFolder | str | os.PathLike | bool)):
        raise SettingError(
            f"run={run!r}: give a folder, such as 'runs/name', or RunFolder(...), True or False."
        )
    folder = RunFolder.of(run, None if checkpoints is None else checkpoints.store.root)
    if folder is None:
        return None
    recorder = Recorder(folder, [*drivers.values()], settings)
    if checkpoints is not None:
        checkpoints.on_written = recorder.checkpoint_written
    return recorder


def check_seed(seed: object) -> None:
    """Refuse what is no seed.

    Raises:
        SettingError: It is neither a whole number nor None.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise SettingError(f"seed={seed!r}: use a whole number, or None to leave the seeds alone.")


def check_loss(loss: object) -> None:
    """Refuse a class of losses: called with a batch it would make a loss, and no number.

    Raises:
        SettingError: It is one.
    """
    if isinstance(loss, type):
        raise SettingError(f"loss={loss.__name__} is a class. Make one: {loss.__name__}().")
