"""Builds the default tree of loops from named settings, each passed to the loop that it controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from torch import nn

from statemachine_trainer.loops import foreign_names
from statemachine_trainer.loops.batch import BatchLoop
from statemachine_trainer.loops.epoch import EpochLoop
from statemachine_trainer.loops.evaluation import PredictionLoop, TestLoop, ValidationLoop
from statemachine_trainer.loops.fit import FitLoop
from statemachine_trainer.loops.loop_errors import SettingError, UnknownArgument
from statemachine_trainer.loops.optimizer import OptimizerLoop
from statemachine_trainer.machine.errors import LoopDefinitionError
from statemachine_trainer.machine.keywords import refuse_keyword, settings_of
from statemachine_trainer.machine.loop import Loop

_LOOPS: Final[dict[str, dict[str, str]]] = {
    "fit": {
        name: name
        for name in (
            "max_epochs", "min_epochs", "max_steps", "min_steps", "max_batches", "max_time",
            "count_steps_of", "sanity_batches",
        )
    },
    "epoch": {
        "validate_every": "validate_every",
        "validate_epochs": "validate_epochs",
        "limit_train_batches": "limit_batches",
        "reload_every": "reload_every",
        "gather_outputs": "gather_outputs",
    },
    "batch": {name: name for name in ("split_steps", "time_dim", "carry_hiddens")},
    "optimizer": {
        name: name for name in ("accumulate", "clip_norm", "clip_value", "nonfinite_loss", "on_oom")
    },
    "validation": {"limit_validation_batches": "limit_batches"},
    "test": {"limit_test_batches": "limit_batches"},
    "predict": {"limit_predict_batches": "limit_batches"},
}  # fmt: skip


def known_settings() -> list[str]:
    """Return the names of all settings of the default tree."""
    return [name for settings in _LOOPS.values() for name in settings]


def loops_of_trainer(
    loop: Loop | None, settings: Mapping[str, Any], trainer: type
) -> dict[str, Loop]:
    """Return the loops of `Trainer(loop, **settings)` by name: "fit", "validate", "test", "predict".

    Args:
        loop: The loop of "fit"; None for the default tree.
        settings: Settings of the default tree and of the evaluations.
        trainer: The class of the trainer, for the message about an unknown name.

    Raises:
        UnknownArgument: A setting is unknown. The message offers the nearest names, the class that has
            such a setting, or our name for a setting of another trainer.
        SettingError: A setting of the default tree was given with a loop, or a model in place of the loop.
        LoopDefinitionError: The loop works on batches that nobody would fetch.
    """
    _check_loop(loop)
    _check_names(settings, trainer)
    own = {**_LOOPS["test"], **_LOOPS["predict"]}
    if loop is not None and (extra := sorted(set(settings) - set(own))):
        raise SettingError(
            f"{extra[0]!r} is a setting of the default tree, but a loop of your own was given. Set it "
            f"on the loop that it controls, such as {_at_home(extra[0])}."
        )
    root = _default_tree(settings) if loop is None else loop
    return {"fit": root, **_evaluation_loops(settings)}


def refuse_unnamed(loop: object, unnamed: tuple[object, ...]) -> NoReturn:
    """Refuse what a trainer is given by place: settings without a name, or model and data.

    Raises:
        SettingError: Always.
    """
    _check_loop(loop)
    kind = type(unnamed[0]).__name__
    raise SettingError(
        f"A trainer takes its loop without a name and nothing else, and was given a {kind} too. Name settings, such "
        "as Trainer(max_epochs=3); model and data are given to fit: trainer.fit(model, loader)."
    )


def _check_loop(loop: object) -> None:
    """Refuse what is no loop of a whole fit."""
    kind = type(loop).__name__
    if isinstance(loop, nn.Module):
        raise SettingError(
            f"Trainer({kind}): a trainer is made without the model. Give it to fit: "
            "Trainer(max_epochs=3).fit(model, loader)."
        )
    if isinstance(loop, BatchLoop | OptimizerLoop):
        place = "batch" if isinstance(loop, BatchLoop) else "optimizer"
        raise LoopDefinitionError(
            f"Trainer({kind}): that loop works on a batch, and nothing would fetch one. Put it into its place: "
            f"trainer = Trainer(max_epochs=3); trainer.loop.replace({place}={kind}(...))."
        )


def _default_tree(settings: Mapping[str, Any]) -> FitLoop:
    """Build the default tree of loops, each with its own settings."""
    fit = FitLoop(**_of("fit", settings))
    # Filled, not given: these are default loops, so a loop swapped in later may declare others.
    epoch = fit.fill("epoch", **_of("epoch", settings))
    batch = epoch.fill("batch", **_of("batch", settings))
    batch.fill("optimizer", **_of("optimizer", settings))
    epoch.fill("validation", **_of("validation", settings))
    return fit


def _evaluation_loops(
    settings: Mapping[str, Any],
) -> dict[str, ValidationLoop | TestLoop | PredictionLoop]:
    """Build the loops of `validate`, `test` and `predict`."""
    return {
        "validate": ValidationLoop(**_of("validation", settings)),
        "test": TestLoop(**_of("test", settings)),
        "predict": PredictionLoop(**_of("predict", settings)),
    }


def _check_names(settings: Mapping[str, Any], trainer: type) -> None:
    """Refuse unknown settings."""
    for name, value in settings.items():
        if name in foreign_names.SETTINGS:
            raise UnknownArgument(
                f"There is no setting {name!r} here; it is called {foreign_names.SETTINGS[name]}."
            )
        if name in foreign_names.NOT_HERE:
            raise UnknownArgument(
                f"There is no setting {name!r} here. {foreign_names.NOT_HERE[name]}. See docs/migration.md."
            )
        if isinstance(value, Loop) or (isinstance(value, type) and issubclass(value, Loop)):
            kind = value.__name__ if isinstance(value, type) else type(value).__name__
            paths = [path for path, _ in FitLoop().walk() if path]
            raise UnknownArgument(
                f"Trainer has no setting {name!r}, and takes a loop of a whole fit alone. Put {kind} into its place: "
                f"trainer.loop.replace({name}={kind}(...)). Places: {', '.join(paths)}."
            )
        if name not in known_settings():
            refuse_keyword(trainer, name, value, settings_of(trainer), UnknownArgument)


def _of(loop: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {own: settings[name] for name, own in _LOOPS[loop].items() if name in settings}


def _at_home(setting: str) -> str:
    """Return how a setting of the default tree is given to the loop that it controls."""
    kinds = {
        "fit": FitLoop, "epoch": EpochLoop, "batch": BatchLoop, "optimizer": OptimizerLoop,
        "validation": ValidationLoop,
    }  # fmt: skip
    loop, own = next((loop, names[setting]) for loop, names in _LOOPS.items() if setting in names)
    return f"{kinds[loop].__name__}({own}=...)"


def where_set(setting: str) -> str:
    """Return where a setting of the default tree lies once the trainer is made."""
    loop, own = next((loop, names[setting]) for loop, names in _LOOPS.items() if setting in names)
    if loop in ("test", "predict"):
        return f"Trainer({setting}=...), trainer.loops[{loop!r}].{own}"
    return f"trainer.loop.{own}" if loop == "fit" else f"trainer.loop[{loop!r}].{own}"
