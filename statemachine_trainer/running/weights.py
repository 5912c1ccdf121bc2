"""The weights of a checkpoint in a model: for one evaluation, or at the end of a fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from statemachine_trainer.callbacks.checkpoints import Checkpoints
from statemachine_trainer.callbacks.finding import NoCheckpoint
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.loops.metrics.fingerprint import fingerprint_of_weights
from statemachine_trainer.observe.best import load_weights
from statemachine_trainer.snapshot import Best
from statemachine_trainer.snapshot.modules import load_module_weights, module_state

Checkpoint = str | Path | Best
"""A checkpoint whose weights are wanted: "best", "newest", a folder, or a rule such as `Best("val_loss")`."""


def load_checkpoint_weights(
    model: nn.Module, checkpoint: Checkpoint, checkpoints: Checkpoints | None
) -> None:
    """Load the weights of a checkpoint that an argument names.

    Args:
        model: Into this model.
        checkpoint: What was given.
        checkpoints: Those of the trainer; None if it writes none.

    Raises:
        SettingError: It names none.
        NotACheckpoint, NoBestCheckpoint: It is not there.
    """
    if checkpoint in ("last", "latest"):
        raise SettingError(f"checkpoint={checkpoint!r}: it is called 'newest' here.")
    if isinstance(checkpoint, Best) or checkpoint in ("best", "newest"):
        if checkpoints is None:
            raise NoCheckpoint(
                f"checkpoint={checkpoint!r} needs a place to look: Trainer(checkpoints='runs/name'). Or name the "
                "folder of a run, or of one of its checkpoints."
            )
        checkpoints.store.wait()
        if checkpoint == "newest":
            load_weights(model, checkpoints.store.root)
            return
        rule = checkpoint if isinstance(checkpoint, Best) else the_rule(checkpoints)
        load_weights(model, checkpoints.store.root, best=rule.metric, mode=rule.mode)
    elif isinstance(checkpoint, str | PathLike):
        load_weights(model, checkpoint)
    else:
        raise SettingError(
            f"checkpoint={checkpoint!r} names none: use 'best', 'newest', Best('val_loss'), or the folder of a "
            "run or of a checkpoint."
        )


def the_rule(checkpoints: Checkpoints | None) -> Best:
    """Return the one rule by which a trainer keeps its best checkpoint.

    Raises:
        SettingError: There is none, or several, so that "best" does not say which.
    """
    rules = () if checkpoints is None else checkpoints.best_rules
    if len(rules) == 1:
        return rules[0]
    if not rules:
        raise SettingError(
            "This trainer does not know what is best. Say it, so that the best weights are kept: Trainer("
            "checkpoints=Checkpoints('runs/name', retention=Retention(best=Best('val_loss'))))."
        )
    names = ", ".join(repr(rule.metric) for rule in rules)
    raise SettingError(
        f"This trainer keeps the best by {names}, so 'best' does not say which. Name it: "
        f"checkpoint=Best({rules[0].metric!r}), or load_weights(model, 'runs/name', best={rules[0].metric!r})."
    )


@contextmanager
def weights_of(
    model: nn.Module, checkpoint: Checkpoint | None, checkpoints: Checkpoints | None
) -> Iterator[None]:
    """Put the weights of a checkpoint into a model for the block; afterwards its own are back, to the bit."""
    if checkpoint is None:
        yield
        return
    own = _copy_of_weights(model)
    try:
        load_checkpoint_weights(model, checkpoint, checkpoints)
        yield
    finally:
        load_module_weights(model, own)


class BestInModel:
    """The best weights, in the model of a fit that has ended; and its last ones, put aside on the CPU.

    Args:
        model: The model of the fit.
        rule: What is best.
        checkpoints: Those of the fit.
    """

    def __init__(self, model: nn.Module, rule: Best, checkpoints: Checkpoints) -> None:
        self._model = model
        self._last = _copy_of_weights(model, torch.device("cpu"))
        load_checkpoint_weights(model, rule, checkpoints)
        self._best = fingerprint_of_weights(model)

    def put_back(self) -> None:
        """Let the model have the last weights again, unless somebody gave it others meanwhile."""
        if self._has_best():
            load_module_weights(self._model, self._last)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the model have the last weights within the block."""
        best = _copy_of_weights(self._model)
        self.put_back()
        try:
            yield
        finally:
            load_module_weights(self._model, best)

    def put_last_into(self, tree: Mapping[str, Any]) -> None:
        """Let a state of the fit hold the last weights, which its optimizers and counters belong to."""
        if self._has_best():
            tree["context"]["model"]["weights"] = self._last

    def _has_best(self) -> bool:
        return fingerprint_of_weights(self._model) == self._best


def _copy_of_weights(model: nn.Module, device: torch.device | None = None) -> dict[str, Any]:
    weights = module_state(model, grads=False)["weights"]
    copied = type(weights)(
        (name, one.detach().to(device or one.device, copy=True) if _is_tensor(one) else one)
        for name, one in weights.items()
    )
    if hasattr(weights, "_metadata"):  # the versions of the modules, by which some of them load
        copied._metadata = weights._metadata
    found: dict[str, Any] = copied
    return found


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
