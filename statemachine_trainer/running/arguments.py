"""Checks the arguments of a trainer and of its `fit`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import isroutine
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, Literal, get_args

from torch import nn

from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.plain import NOTHING_GIVEN, PlainParts
from statemachine_trainer.loops.settings_checks import flags, is_whole, refuse
from statemachine_trainer.machine.errors import BadReceiver
from statemachine_trainer.observe.progress import Progress
from statemachine_trainer.observe.recorder import Recorder, RunFolder
from statemachine_trainer.run_record import wants_resume
from statemachine_trainer.running.drivers import Drivers
from statemachine_trainer.running.fit_state import Fresh

_OWN_ARGUMENTS: Final[Mapping[type, str]] = {
    Checkpoints: "checkpoints",
    RunFolder: "run",
    Progress: "progress",
}
"""What is given to a trainer by an argument of its own, and not as a callback."""


@dataclass(frozen=True)
class Given:
    """The arguments of `fit`. None means to keep what the fit already has.

    Attributes:
        model: The model.
        train: The training data.
        validation: The validation data, of one or several loaders.
        parts: What a plain model is given: its loss, optimizer, scheduler and metrics.
        restart: Start a new fit even if one could be continued.
        resume: Where to look for a checkpoint to continue from.
        fresh: Parts that are not loaded from that checkpoint.
        restore_best: Put the best weights into the model when the fit has ended.
    """

    model: nn.Module | None = None
    train: Any = None
    validation: Any = None
    parts: PlainParts = NOTHING_GIVEN
    restart: bool = False
    resume: str | Path | None = None
    fresh: tuple[Fresh, ...] = ()
    restore_best: bool = False

    @property
    def model_alone(self) -> bool:
        """Whether only the model was given."""
        return self.train is None and self.validation is None and self.parts == NOTHING_GIVEN


def recorder_given(
    run: RunFolder | str | Path | bool | None,
    checkpoints: Checkpoints | None,
    drivers: Drivers,
    settings: Mapping[str, Any],
    fingerprints: object = None,
) -> Recorder | None:
    """Make the recorder for `Trainer(run=..., checkpoints=...)`; None if nothing is recorded.

    Raises:
        SettingError: The folder differs from that of the checkpoints, or there is no folder.
    """
    every = None
    if fingerprints is not None and fingerprints is not False:
        # Imported here, because most runs have none.
        from statemachine_trainer.observe.fingerprints import interval_of_fingerprints

        every = interval_of_fingerprints(fingerprints)
    if not (run is None or isinstance(run, RunFolder | str | os.PathLike | bool)):
        raise SettingError(
            f"run={run!r}: give a folder, such as 'runs/name', or RunFolder(...), True or False."
        )
    folder = RunFolder.of(run, None if checkpoints is None else checkpoints.store.root)
    if folder is None and every is not None and run is None:
        raise SettingError(
            f"Trainer(fingerprints={fingerprints!r}) needs a folder for them: Trainer(run='runs/name') or "
            "checkpoints='runs/name'."
        )
    if folder is None:
        return None
    recorder = Recorder(folder, [*drivers.values()], settings, every)
    if checkpoints is not None:
        checkpoints.on_written = recorder.checkpoint_written
    return recorder


def check_seed(seed: object, seed_samples: object) -> None:
    """Refuse an invalid seed.

    Raises:
        SettingError: The seed is neither a whole number nor None.
    """
    if seed is not None and not is_whole(seed):
        refuse("Trainer", "seed", seed, "use a whole number, or None to leave the seeds alone.")
    if seed_samples is not None:
        flags("Trainer", seed_samples=seed_samples)


def progress_given(progress: object) -> Progress | Literal[False]:
    """Convert the argument of `Trainer(progress=...)`.

    Raises:
        SettingError: It is neither a `Progress` nor True or False.
    """
    if isinstance(progress, Progress):
        return progress
    if not isinstance(progress, bool):
        refuse("Trainer", "progress", progress, "use True or False, or Progress(...).")
    return Progress() if progress else False


def fresh_given(fresh: object, resume: object) -> tuple[Fresh, ...]:
    """Convert the argument of `fit(..., fresh=...)`.

    Raises:
        SettingError: It names an unknown part, or there is no checkpoint to load.
    """
    names = (fresh,) if isinstance(fresh, str) else fresh
    names = [*names] if isinstance(names, Iterable) else [names]
    if not all(isinstance(one, str) and one in get_args(Fresh) for one in names):
        raise SettingError(
            f"fresh={fresh!r}: name what the script gives instead of the checkpoint, such as "
            'fresh=("optimizer", "schedulers"). There is also "callbacks".'
        )
    if names and resume is None and not wants_resume():
        raise SettingError(
            f"fresh={fresh!r} says what not to take from a checkpoint, and none was named: "
            'fit(..., resume="auto", fresh=...).'
        )
    return tuple(dict.fromkeys(names))


def check_loss(loss: object) -> None:
    """Refuse a loss that cannot be called, or a class: calling that with a batch would make an object, not a number.

    Raises:
        SettingError: It is one.
    """
    if isinstance(loss, type):
        raise SettingError(f"loss={loss.__name__} is a class. Make one: {loss.__name__}().")
    if loss is not None and not callable(loss):
        raise SettingError(
            f"loss={loss!r} cannot be called. Give a function of outputs and targets, such as "
            "torch.nn.functional.mse_loss or torch.nn.CrossEntropyLoss()."
        )


# -- Callbacks and checkpoints --------------------------------------------------------------------


def callbacks_given(given: Any) -> list[object]:
    """Convert the argument of `Trainer(callbacks=...)` to a list; None is an empty one.

    Raises:
        SettingError: It is not a list.
        BadReceiver: One of them is a class, a name, there twice, or has an argument of its own; or it has only
            one of the methods `state_dict` and `load_state_dict`.
    """
    if given is None:
        return []
    if isinstance(given, type):
        check_made(given)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SettingError(f"callbacks={given!r} is no list. Give callbacks=[...], also for one.")
    callbacks = list(given)
    for place, one in enumerate(callbacks):
        check_made(one)
        if any(one is other for other in callbacks[:place]):
            raise BadReceiver(
                f"The same {type(one).__name__} is in `callbacks` twice, and would be told all things "
                "twice. Give it once, or make another one."
            )
        _check_state(one)
        if (own := _OWN_ARGUMENTS.get(type(one))) is not None:
            raise BadReceiver(
                f"{type(one).__name__}(...) is in `callbacks`, and has an argument of its own: "
                f"Trainer({own}={type(one).__name__}(...))."
            )
        if one is None:
            raise BadReceiver(f"callbacks[{place}] is None. Leave it out.")
        if isinstance(one, str) or isroutine(one):
            what = (
                f"The callback {one!r} is a name"
                if isinstance(one, str)
                else f"callbacks[{place}] is the function {getattr(one, '__name__', '')}"
            )
            raise BadReceiver(
                f"{what}. Callbacks are objects with on_<state> methods; a function is subscribed by "
                "trainer.on(name, function)."
            )
    return callbacks


def _check_state(callback: object) -> None:
    """Refuse a callback that has only one of `state_dict` and `load_state_dict`."""
    pair = ("state_dict", "load_state_dict")
    has = [name for name in pair if callable(getattr(callback, name, None))]
    if len(has) == 1:
        (missing,) = {*pair} - {*has}
        raise BadReceiver(
            f"{type(callback).__name__} has a method {has[0]} and no {missing}, so that its state "
            f"would be in no checkpoint. Write {missing} too, or give {has[0]} another name."
        )


def checkpoints_given(given: Any) -> Checkpoints | None:
    """Convert the argument of `Trainer(checkpoints=...)`; None and False mean no checkpoints.

    Raises:
        SettingError: It is neither a folder nor a `Checkpoints`.
    """
    if given is None or given is False:
        return None
    if isinstance(given, str | PathLike):
        return Checkpoints(fspath(given))
    if isinstance(given, Checkpoints):
        return given
    if isinstance(given, type):
        raise SettingError(
            f"checkpoints={given.__name__} is a class. Make one: checkpoints=Checkpoints('runs/name')."
        )
    raise SettingError(
        f"checkpoints={given!r} does not say where they are written. Give a folder, such as "
        "checkpoints='runs/name', or Checkpoints('runs/name', ...)."
    )


def check_made(thing: object) -> None:
    """Refuse to subscribe a class instead of an object with `on_<state>` methods.

    Raises:
        BadReceiver: It is one.
    """
    if isinstance(thing, type):
        raise BadReceiver(
            f"{thing.__name__} is a class, and nothing can be told to it. Make one: "
            f"{thing.__name__}(...)."
        )
