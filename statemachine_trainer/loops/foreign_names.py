"""What other trainers call things, for error messages that name ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from statemachine_trainer.loops.loop_errors import UnknownArgument
from statemachine_trainer.machine.errors import suggest

SETTINGS: Final = {
    "accumulate_grad_batches": "accumulate",
    "gradient_clip_val": "clip_norm",
    "gradient_clip_algorithm": "clip_norm, or clip_value for clipping by value",
    "val_check_interval": "validate_every",
    "check_val_every_n_epoch": "validate_epochs",
    "num_sanity_val_steps": "sanity_batches",
    "truncated_bptt_steps": "split_steps",
    "limit_val_batches": "limit_validation_batches",
    "reload_dataloaders_every_n_epochs": "reload_every",
    "accelerator": "device",
    "enable_progress_bar": "progress",
    "enable_checkpointing": "checkpoints",
    "default_root_dir": "checkpoints, or run",
    "resume_from_checkpoint": "resume, an argument of fit",
    "logger": "callbacks: a tracker is one, such as callbacks=[TensorBoard('runs/mine')] from "
    "statemachine_trainer.integrations.trackers; run='runs/mine' keeps a journal without any",
    "profiler": "trainer.profile()",
    "fast_dev_run": "limit_train_batches=n, limit_validation_batches=n, max_steps=n",
    "overfit_batches": "limit_train_batches=n with a loader that does not shuffle",
    "detect_anomaly": "torch.autograd.set_detect_anomaly(True)",
    "num_train_epochs": "max_epochs",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip_norm",
}
"""Settings of a trainer."""

_ARGUMENTS: Final = {
    "train_dataloaders": "train",
    "train_dataloader": "train",
    "train_loader": "train",
    "val_dataloaders": "validation",
    "val_dataloader": "validation",
    "val_loader": "validation",
    "dataloaders": "data",
    "datamodule": "train and validation, as in fit(model, train=datamodule.train_dataloader(), "
    "validation=datamodule.val_dataloader()); a LightningModule takes it whole: "
    "lightning.module(lit, datamodule=datamodule)",
    "ckpt_path": "resume",
    "criterion": "loss",
    "optimizers": "optimizer",
    "epochs": "max_epochs, a setting of the Trainer",
    "max_epochs": "max_epochs, a setting of the Trainer",
}
"""Arguments of `fit` and of the evaluations."""

HOOKS: Final = {
    "on_train_start": "fit_start",
    "on_train_end": "fit_end",
    "on_train_epoch_start": "epoch_start",
    "on_train_epoch_end": "epoch_end",
    "on_train_batch_start": "batch_start",
    "on_train_batch_end": "batch_end",
    "on_before_backward": "backward",
    "on_after_backward": "backward:exit",
    "on_before_optimizer_step": "optimizer_step",
    "on_sanity_check_start": "sanity_start",
    "on_sanity_check_end": "sanity_end",
    "on_validation_epoch_start": "validation_start",
    "on_validation_epoch_end": "validation_end",
    "on_validation_batch_start": "validation_step",
    "on_validation_batch_end": "validation_step:exit",
    "on_test_epoch_start": "test_start",
    "on_test_epoch_end": "test_end",
    "on_test_batch_start": "test_step",
    "on_test_batch_end": "test_step:exit",
    "on_predict_batch_start": "predict_step",
    "on_predict_batch_end": "predict_step:exit",
}
"""Hooks of Lightning, and the signals of ours that fire at that moment."""


UNCALLED: Final = {
    "training_step_end": "the end of training_step",
    "validation_step_end": "the end of validation_step",
    "test_step_end": "the end of test_step",
    "validation_epoch_end": "log() in validation_step, and on_validation_end",
    "test_epoch_end": "log() in test_step, and on_test_end",
    "configure_callbacks": "Trainer(callbacks=...)",
    "configure_gradient_clipping": "Trainer(clip_norm=...), or a loop of your own",
    "optimizer_zero_grad": "a loop of your own",
    "lr_scheduler_step": "a scheduler with a step() of its own",
    "transfer_batch_to_device": "transfer_batch(batch, device)",
}
"""Methods that Lightning calls of a model, without `on_` in their names, and what is in their place."""


def check_arguments(function: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Refuse arguments that a function of the trainer does not have.

    Args:
        function: Its name.
        unknown: The arguments that nobody took.
        known: Those that it has.

    Raises:
        UnknownArgument: There is one.
    """
    for name in unknown:
        ours = _ARGUMENTS.get(name)
        advice = f"It is called {ours}." if ours else suggest(name, known)
        raise UnknownArgument(f"{function}() has no argument {name!r}. {advice}")


def advice_on_hooks(name: object) -> str:
    """Say what Lightning's hooks are called here; "" if they are none of Lightning's.

    Args:
        name: Of a signal; or an object with methods that are called like hooks.
    """
    if isinstance(name, str):
        signal = HOOKS.get(name) or HOOKS.get(f"on_{name}")
        if signal is None:
            return ""
        return f"Lightning's hook {name!r} is the signal {signal!r} here; see docs/migration.md."
    pairs = [f"{one} is {_method(HOOKS[one])}" for one in dir(type(name)) if one in HOOKS]
    if not pairs:
        return ""
    return (
        f"Lightning's hooks have the names of states here: {', '.join(pairs)}; see "
        "docs/migration.md. With a LightningModule its callbacks work as they are: "
        "lightning.module(lit, callbacks=[...])."
    )


def _method(signal: str) -> str:
    """Return the name of the method that hears a signal."""
    state, _, left = signal.partition(":")
    return f"on_exit_{state}" if left else f"on_{state}"
