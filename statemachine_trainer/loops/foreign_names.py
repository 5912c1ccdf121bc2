"""Names that other trainers use, and their equivalents here, for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from statemachine_trainer.loops.loop_errors import UnknownArgument
from statemachine_trainer.machine.keywords import advice_on

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
    "reload_dataloaders_every_epoch": "reload_every",
    "accelerator": "device",
    "devices": "device, of one device; with several, torchrun starts a process for each",
    "gpus": "device, such as device='cuda'",
    "enable_progress_bar": "progress",
    "progress_bar_refresh_rate": "progress, which takes Progress(per_second=...)",
    "enable_checkpointing": "checkpoints",
    "checkpoint_callback": "checkpoints",
    "default_root_dir": "checkpoints, or run",
    "weights_save_path": "checkpoints",
    "resume_from_checkpoint": "resume, an argument of fit",
    "logger": "callbacks: a tracker is one, such as callbacks=[TensorBoard('runs/mine')] from "
    "statemachine_trainer.integrations.trackers; run='runs/mine' keeps a journal without any",
    "log_every_n_steps": "log_every, a setting of the folder of the run: run=RunFolder('runs/mine', "
    "log_every=50); trackers have every=",
    "flush_logs_every_n_steps": "log_every, a setting of RunFolder",
    "profiler": "trainer.profile()",
    "terminate_on_nan": "nonfinite_loss='raise'",
    "amp_backend": "precision",
    "amp_level": "precision",
    "num_train_epochs": "max_epochs",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip_norm",
}
"""Settings of other trainers that exist here, and their names."""

_TORCHRUN: Final = (
    "A model that several processes train is wrapped by DistributedDataParallel, or cut up by fully_shard, and "
    "started by torchrun: parallel.ddp(model), parallel.fsdp(model); see docs/ranks.md"
)
_LOADER: Final = (
    "It is one of the loader: DataLoader(data, batch_size=32, shuffle=True, num_workers=2)"
)
_OPTIMIZER: Final = (
    "It is one of the optimizer, in configure_optimizers or given to fit: "
    "optimizer=torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)"
)
NOT_HERE: Final = {
    "batch_size": _LOADER,
    "num_workers": _LOADER,
    "shuffle": _LOADER,
    "lr": _OPTIMIZER,
    "learning_rate": _OPTIMIZER,
    "weight_decay": _OPTIMIZER,
    "strategy": _TORCHRUN,
    "num_nodes": _TORCHRUN,
    "num_processes": _TORCHRUN,
    "distributed_backend": _TORCHRUN,
    "tpu_cores": "TPUs are not supported. Say device='cpu' or device='cuda'",
    "ipus": "IPUs are not supported. Say device='cpu' or device='cuda'",
    "auto_select_gpus": "Name the device: device='cuda:1'",
    "plugins": "There are none. Put a loop of your own in a place of the tree, or subscribe to signals",
    "sync_batchnorm": "Convert the model before it is wrapped: "
    "torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)",
    "use_distributed_sampler": "Samplers are never replaced. Give the loader a DistributedSampler",
    "replace_sampler_ddp": "Samplers are never replaced. Give the loader a DistributedSampler",
    "prepare_data_per_node": "Prepare the data in the script, before fit",
    "inference_mode": "Evaluations run under torch.no_grad(). Within a step "
    "`with torch.enable_grad():` switches gradients on",
    "barebones": "Say progress=False, and leave out checkpoints and run: what is not asked for costs nothing",
    "enable_model_summary": "Give a callback: callbacks=[ModelSummary()] prints one",
    "weights_summary": "Give a callback: callbacks=[ModelSummary()] prints one",
    "enable_autolog_hparams": "Nothing is logged by itself. Trackers log the settings that they are given",
    "model_registry": "There is none. Checkpoints are folders, and load_weights reads one",
    "track_grad_norm": "Give a callback: callbacks=[Monitor(gradient_norm=True)] logs it at each optimizer_step",
    "log_gpu_memory": "Give a callback: callbacks=[Monitor(memory=True)]",
    "auto_scale_batch_size": "find_batch_size(model, loader) finds the batch_size of the loader; "
    "accumulate=n makes larger batches of small ones",
    "auto_lr_find": "find_learning_rate(model, loader) suggests one before the fit",
    "stochastic_weight_avg": "Give a callback: callbacks=[SWA(start=10)], or EMA(0.999)",
    "multiple_trainloader_mode": "Give a dict of loaders: fit(model, {'a': one, 'b': other}); Together, InTurns "
    "and Mixture say how they are read",
    "move_metrics_to_cpu": "Metrics are read when somebody looks, not before",
    "process_position": "Bars are placed by rich",
}
"""Settings of other trainers that do not exist here, and what to do instead."""

_ARGUMENTS: Final = {
    "train_dataloaders": "train",
    "train_dataloader": "train",
    "train_loader": "train",
    "val_dataloaders": "validation",
    "val_dataloader": "validation",
    "val_loader": "validation",
    "dataloaders": "data",
    "test_dataloaders": "data",
    "datamodule": "train and validation, as in fit(model, train=datamodule.train_dataloader(), "
    "validation=datamodule.val_dataloader()); a LightningModule takes it whole: "
    "lightning.module(lit, datamodule=datamodule)",
    "ckpt_path": "resume",
    "criterion": "loss",
    "lr_scheduler": "scheduler",
    "optimizers": "optimizer",
    "epochs": "max_epochs, a setting of the Trainer",
    "max_epochs": "max_epochs, a setting of the Trainer",
}
"""Arguments of `fit`, and of evaluations unless the next list has an entry for them."""

_WEIGHTS: Final = (
    "It is called checkpoint, such as checkpoint='best'; the model has its own weights again afterwards. "
    "load_weights(model, 'runs/name') loads them for good"
)
_OF_EVALUATIONS: Final = {
    "ckpt_path": _WEIGHTS,
    "resume": _WEIGHTS,
    "datamodule": "Give its loader as data, such as data=datamodule.test_dataloader(); a LightningModule "
    "takes it whole: lightning.module(lit, datamodule=datamodule)",
    "verbose": "Nothing is printed; the metrics are returned",
    "return_predictions": "The predictions are returned; to='folder' writes them there instead",
    "weights_only": "Checkpoints are read without pickle",
}
"""Arguments of evaluations in other trainers, and what to do here."""

_OF_LOG: Final = {
    "reduce_fx": "It is called reduce, such as reduce='max'",
    "sync_dist": "Leave it out: the values of all ranks are brought together",
    "logger": "Leave it out: a tracker gets what is logged",
    "add_dataloader_idx": "Leave it out: with several loaders each name gets the number of its loader",
    "rank_zero_only": "Leave it out: the values of all ranks are brought together",
}
"""Arguments of `log` in Lightning, and what to do here."""

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
"""Hooks of Lightning, and our signals that fire at the same moment."""


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
"""Other methods that Lightning calls on a model, and what to use instead."""


_BEST: Final = (
    "What is kept is a rule: Checkpoints(folder, retention=Retention(best=Best('val_loss', k=1)))"
)
_EVERY: Final = "It is called every, such as every='2 epochs' or every='500 steps'"
CHECKPOINTS: Final = {
    **dict.fromkeys(("monitor", "metric", "best", "mode", "save_top_k", "save_best_only"), _BEST),
    **dict.fromkeys(
        ("save_last", "last", "keep", "save_total_limit"),
        "The newest are kept anyway; how many says Checkpoints(folder, retention=Retention(last=3))",
    ),
    **dict.fromkeys(
        ("dirpath", "filepath", "path", "save_dir"), "It is called folder, and comes first"
    ),
    **dict.fromkeys(
        ("every_n_epochs", "every_n_train_steps", "train_time_interval", "save_freq", "period"),
        _EVERY,
    ),
    "filename": "A checkpoint is a folder, which is called by its number and step",
    "save_weights_only": "Leave it out: load_weights(model, folder) reads the weights alone",
    "save_on_train_epoch_end": _EVERY,
    "verbose": "Leave it out: checkpoints are written without a word",
}
"""Settings of the checkpoints of other trainers, and what to do here."""

EARLY_STOPPING: Final = {
    "metric": "It is called monitor, and comes first",
    "strict": "Leave it out: a metric that was not logged is an error",
    "verbose": "Leave it out: its attribute reason says why it has ended the fit",
    "restore_best_weights": "fit(..., restore_best=True) does so, with the best of Checkpoints(...)",
    "stopping_threshold": "trainer.stop() in a receiver ends the fit at a value of your own",
    "divergence_threshold": "trainer.stop() in a receiver ends the fit at a value of your own",
    "check_on_train_epoch_end": "It is called check: 'epoch_end' or 'validation_end'",
}
"""Settings of early stopping in other libraries, and what to do here."""

_PARAMETER: Final = (
    "a step that has a parameter trainer gets it: training_step(self, batch, batch_idx, trainer)"
)
OF_MODEL: Final = {
    "trainer": f"Here {_PARAMETER}",
    "current_epoch": f"Here it is trainer.epoch; {_PARAMETER}",
    "global_step": f"Here it is trainer.steps; {_PARAMETER}",
    "device": "A plain module has none: use that of the batch, such as x.device",
    "optimizers": "Here a step that has a parameter optimizers gets them: training_step(self, batch, batch_idx, "
    "optimizers)",
    "manual_backward": f"Here it is trainer.backward(loss); {_PARAMETER}",
    "hparams": "Keep settings as attributes in __init__: the run records them",
    "save_hyperparameters": "Leave it out: the run records the arguments that __init__ keeps under their names",
    "logger": "Log by self.log; a tracker in Trainer(callbacks=[...]) gets it",
    "print": "Use print",
}
"""Attributes that Lightning gives a model, and what to do here."""

_HERE: Final = "Here it is trainer."
OF_TRAINER: Final = {
    "current_epoch": f"{_HERE}epoch",
    "epochs": f"{_HERE}epoch",
    "global_step": f"{_HERE}steps",
    "step_count": f"{_HERE}steps",
    "callback_metrics": f"{_HERE}metrics",
    "logged_metrics": f"{_HERE}metrics",
    "progress_bar_metrics": f"{_HERE}metrics",
    "should_stop": "A fit ends early by trainer.stop()",
    "train": "Here it is trainer.fit(model, loader)",
    "evaluate": "Here it is trainer.validate(model, loader), or trainer.test(model, loader)",
    "save_checkpoint": "Trainer(checkpoints='runs/name') writes them by itself, and trainer.checkpoint() at once",
    "load_checkpoint": "fit(..., resume='runs/name') goes on from one; load_weights(model, 'runs/name') reads weights",
    "save_model": "Trainer(checkpoints='runs/name') writes checkpoints; torch.save(model.state_dict(), path) weights",
    "checkpoint_callback": f"{_HERE}checkpoints",
    "default_root_dir": f"{_HERE}run_folder",
    "log_dir": f"{_HERE}run_folder",
    "logger": "A tracker is a callback: Trainer(callbacks=[...]); Trainer(run='runs/name') keeps a journal",
    "loggers": "A tracker is a callback: Trainer(callbacks=[...]); Trainer(run='runs/name') keeps a journal",
    "log": "log is a function: from statemachine_trainer import log",
    "optimizers": f"{_HERE}context.optimizers",
    "lightning_module": f"{_HERE}model",
    "estimated_stepping_batches": f"{_HERE}total_steps",
    "callbacks": "trainer.describe() lists who listens; trainer.on(callback) adds one, trainer.off(callback) ends it",
    "device": f"{_HERE}context.device",
}
"""Attributes of other trainers, and what to do here."""


def check_arguments(function: str, unknown: Mapping[str, object], known: Iterable[str]) -> None:
    """Refuse unknown arguments of a function of the trainer.

    Args:
        function: Name of the function.
        unknown: The unknown arguments, with their values.
        known: The arguments that the function has.

    Raises:
        UnknownArgument: There is an unknown argument.
    """
    known = list(known)
    for name in unknown:
        ours, instead = _ARGUMENTS.get(name), _OF_EVALUATIONS.get(name)
        if function == "log" and name in _OF_LOG:
            advice = f"{_OF_LOG[name]}."
        elif function == "audit" and name in ("resume", "restart", "fresh", "until"):
            advice = "Leave it out: an audit starts nothing, and looks at no checkpoint."
        elif instead and ("train" not in known or ours is None):
            advice = f"{instead}."
        else:
            own = (
                ours is not None and ours.partition(",")[0] == name
            )  # not under another name, but elsewhere
            called = f"Trainer({name}=...) has it." if own else f"It is called {ours}."
            advice = called if ours else advice_on(name, unknown[name], known)
        raise UnknownArgument(f"{function}() has no argument {name!r}. {advice}")


def advice_on_hooks(name: object) -> str:
    """Return advice on hooks of Lightning; "" if the name is not that of one.

    Args:
        name: Name of a signal, or an object with methods named like hooks.
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
    """Return the name of the callback method for a signal."""
    state, _, left = signal.partition(":")
    return f"on_exit_{state}" if left else f"on_{state}"
