"""Checkpoints in Lightning's own format, for those who read them with Lightning."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from statemachine_trainer.integrations._lightning_trainer import TrainerView


def write_checkpoint(view: TrainerView, path: Path, *, weights_only: bool) -> None:
    """Write what `LightningModule.load_from_checkpoint` reads.

    The file holds pickled objects: hyper-parameters may be of any class.

    Args:
        view: What the module takes for Lightning's trainer.
        path: Of the file; its folder is made if need be.
        weights_only: Leave out optimizers, schedulers and callbacks.
    """
    module, hooks = view.module, view.hooks
    checkpoint: dict[str, Any] = {
        "epoch": view.current_epoch,
        "global_step": view.global_step,
        "pytorch-lightning_version": view.library.version,
        "state_dict": module.state_dict(),
        "loops": {},
    }
    if not weights_only:
        states = {one.state_key: one.state_dict() for one in hooks.callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if state}
        checkpoint["optimizer_states"] = [one.state_dict() for one in view.optimizers]
        configs = view.lr_scheduler_configs
        checkpoint["lr_schedulers"] = [one.scheduler.state_dict() for one in configs]
    if getattr(module, "hparams", None):
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_NAME] = getattr(module, "_hparams_name", "kwargs")
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = dict(module.hparams)
    for callback in hooks.callbacks:
        callback.on_save_checkpoint(view, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    _write(checkpoint, path)


def _write(tree: dict[str, Any], path: Path) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(tree, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
