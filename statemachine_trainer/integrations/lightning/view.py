"""What a LightningModule and Lightning's callbacks take for Lightning's trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from torch.optim import Optimizer

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.files import LightningFiles
from statemachine_trainer.integrations.lightning.library import NotAvailable
from statemachine_trainer.integrations.lightning.lightning_loops import (
    EvaluationLoopView,
    FitLoopView,
    PredictionLoopView,
    batches_of,
    limit_of,
)
from statemachine_trainer.integrations.lightning.loggers import LoggerConnector
from statemachine_trainer.integrations.lightning.results import Results, as_tensors, known_metrics
from statemachine_trainer.integrations.lightning.scheduler_configs import SchedulerConfigs
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.integrations.lightning.strategy import StrategyView

_HINTS: Final = {
    "fit": "call `trainer.fit` of the trainer you have made",
    "validate": "call `trainer.validate` of the trainer you have made",
    "test": "call `trainer.test` of the trainer you have made",
    "predict": "call `trainer.predict` of the trainer you have made",
    "tuner": "set the learning rate or batch size yourself",
}


_OF_STRATEGY: Final = {
    "distributed_sampler_kwargs": "distributed_sampler_kwargs",
    "global_rank": "global_rank",
    "is_global_zero": "is_global_zero",
    "local_rank": "local_rank",
    "node_rank": "node_rank",
    "num_devices": "num_processes",
    "num_nodes": "num_nodes",
    "world_size": "world_size",
}
"""What the trainer asks its strategy, by the names that both have for it."""


class TrainerView:
    """Answers what a module reads of `self.trainer`, from the state of our trainer.

    `owner` is our trainer itself, with all that it can do.

    Args:
        standing: Where the run stands.
        calls: Calls hooks, and knows the callbacks.
        strategy: Backward passes and steps.
        files: Makes checkpoints in Lightning's format.
        connector: Hands metrics on to loggers.
    """

    barebones = False
    ckpt_path: str | None = None
    enable_autolog_hparams = True
    fast_dev_run = False
    interrupted = False
    overfit_batches = 0.0
    received_sigterm = False
    _detect_anomaly = False
    _model_registry = None

    def __init__(
        self,
        standing: Standing,
        calls: HookCalls,
        strategy: StrategyView,
        files: LightningFiles,
        connector: LoggerConnector,
    ) -> None:
        self._standing = standing
        self._calls = calls
        self._files = files
        self._logger_connector = connector
        self.strategy = strategy
        self.default_root_dir = str(Path.cwd())
        validation = EvaluationLoopView(standing, "validation", "validate_loop")
        self.fit_loop = FitLoopView(standing, validation)
        self.validate_loop = validation
        self.test_loop = EvaluationLoopView(standing, "test", "test_loop")
        self.predict_loop = PredictionLoopView(standing)
        self.profiler = standing.library.get("profilers:PassThroughProfiler")()
        self._added_metrics: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name in _OF_STRATEGY:
            return getattr(self.strategy, _OF_STRATEGY[name])
        hint = _HINTS.get(name, "`trainer.owner` is the trainer that runs")
        raise NotAvailable(
            f"`trainer.{name}` of Lightning does not exist here: {hint}. See docs/migration.md."
        )

    # -- where the run stands --------------------------------------------------------------------

    @property
    def owner(self) -> Any:
        """The trainer that runs."""
        return self._standing.owner

    @property
    def state(self) -> Any:
        """`state.fn`, `state.stage` and `state.status`, as callbacks compare them."""
        get = self._standing.library.get
        status = get("trainer.states:TrainerStatus").RUNNING
        stage = self._standing.running_stage
        made: Any = get("trainer.states:TrainerState")(status, self._standing.function, stage)
        return made

    @property
    def sanity_checking(self) -> bool:
        return self._standing.sanity_checking

    @property
    def validating(self) -> bool:
        return self._standing.validating

    @property
    def testing(self) -> bool:
        return self._standing.stage == "test"

    @property
    def predicting(self) -> bool:
        return self._standing.stage == "predict"

    @property
    def training(self) -> bool:
        return self._standing.stage == "fit" and not self.validating and not self.sanity_checking

    @property
    def evaluating(self) -> bool:
        """Whether a validation, sanity check or test runs."""
        return self.validating or self.sanity_checking or self.testing

    # -- counters and limits ---------------------------------------------------------------------

    @property
    def current_epoch(self) -> int:
        return self._standing.fitting.counts.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps of all optimizers, as Lightning counts them."""
        return self.fit_loop.epoch_loop.global_step

    @property
    def max_epochs(self) -> int | None:
        return self.fit_loop.max_epochs

    @property
    def min_epochs(self) -> int:
        return self.fit_loop.min_epochs

    @property
    def max_steps(self) -> int:
        return self.fit_loop.max_steps

    @property
    def min_steps(self) -> int:
        return self.fit_loop.min_steps

    @property
    def num_training_batches(self) -> float:
        """Batches in a training epoch; infinity where nobody knows."""
        return self._standing.training_batches

    @property
    def num_val_batches(self) -> list[float]:
        return batches_of(self._standing, "validation")

    @property
    def num_sanity_val_batches(self) -> list[float]:
        most = self.num_sanity_val_steps
        return [min(n, most) for n in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[float]:
        return batches_of(self._standing, "test")

    @property
    def num_predict_batches(self) -> list[float]:
        return batches_of(self._standing, "predict")

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch in flight, or the last one, is the last of the epoch, where its length is known."""
        return bool(self.fit_loop.epoch_loop.batch_progress.is_last_batch)

    @property
    def estimated_stepping_batches(self) -> float:
        """Optimizer steps of the whole fit, as far as its limits and the data tell."""
        epochs = self.max_epochs or -1
        if epochs == -1 or math.isinf(self.num_training_batches):
            return math.inf if self.max_steps == -1 else self.max_steps
        per_epoch = math.ceil(self.num_training_batches / self.accumulate_grad_batches)
        steps = per_epoch * max(epochs, 1)
        return steps if self.max_steps == -1 else min(steps, self.max_steps)

    @property
    def should_stop(self) -> bool:
        """Whether the fit was asked to stop; setting it asks for that, or takes it back."""
        posted = "stop" in self.owner.driver.posted
        return posted or self._standing.context.stopping

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            self.owner.stop()
        else:
            self.owner.driver.withdraw("stop")

    # -- settings --------------------------------------------------------------------------------

    @property
    def accumulate_grad_batches(self) -> int:
        return self._standing.accumulate_grad_batches

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        self._standing.set_accumulate(value)

    @property
    def gradient_clip_val(self) -> float | None:
        norm: float | None = self._standing.setting("clip_norm", beside="clip_value")
        value: float | None = self._standing.setting("clip_value", beside="clip_norm")
        return value if norm is None else norm

    @property
    def gradient_clip_algorithm(self) -> Any:
        if self.gradient_clip_val is None:
            return None
        norm = self._standing.setting("clip_norm", beside="clip_value")
        return self.clip_algorithm("value" if norm is None else "norm")

    def clip_algorithm(self, name: str | None) -> Any:
        """Return the member of Lightning's enumeration."""
        get = self._standing.library.get
        return None if name is None else get("utilities:GradClipAlgorithmType")(name)

    @property
    def val_check_interval(self) -> float:
        """Fraction of an epoch, or a number of batches."""
        every = self._standing.setting("validate_every")
        if every is not None and every.unit == "epoch":
            return float(every.n) if every.is_fraction else 1.0
        return 1.0 if every is None else every.n

    @property
    def val_check_batch(self) -> float:
        """Batches from one validation to the next; infinity where nobody knows."""
        every = self.val_check_interval
        if isinstance(every, int):
            return every
        batches = self.num_training_batches
        return batches if math.isinf(batches) else max(1, int(batches * every))

    @property
    def check_val_every_n_epoch(self) -> int:
        return int(self._standing.setting("validate_epochs", 1))

    @property
    def num_sanity_val_steps(self) -> float:
        most = self._standing.fitting.trainer.loop.sanity_batches
        return math.inf if most == -1 else most

    @property
    def limit_train_batches(self) -> float:
        limit = self._standing.setting("limit_batches", beside="reload_every")
        return 1.0 if limit is None else limit

    @property
    def limit_val_batches(self) -> float:
        return _limit(limit_of(self._standing, "validation"))

    @property
    def limit_test_batches(self) -> float:
        return _limit(limit_of(self._standing, "test"))

    @property
    def limit_predict_batches(self) -> float:
        return _limit(limit_of(self._standing, "predict"))

    @property
    def reload_dataloaders_every_n_epochs(self) -> int:
        return int(self._standing.setting("reload_every", 0))

    @property
    def log_every_n_steps(self) -> int:
        return self._logger_connector.every

    @property
    def enable_validation(self) -> bool:
        return self._standing.validates and self.limit_val_batches > 0

    # -- where it computes -----------------------------------------------------------------------

    @property
    def precision(self) -> str:
        return self.strategy.precision

    @property
    def precision_plugin(self) -> Any:
        return self.strategy.precision_plugin

    @property
    def scaler(self) -> Any:
        return self.strategy.scaler

    @property
    def accelerator(self) -> Any:
        return self.strategy.accelerator

    @property
    def device_ids(self) -> list[int]:
        return [self.strategy.root_device.index or 0]

    def init_module(self, empty_init: bool | None = None) -> Any:
        """Return a context in which modules are made on the device of the run."""
        return self.strategy.root_device

    # -- parts -----------------------------------------------------------------------------------

    @property
    def lightning_module(self) -> Any:
        return self._standing.module

    @property
    def model(self) -> Any:
        """The module; in a fit of several ranks the wrapper around it."""
        return self.strategy.model

    @property
    def datamodule(self) -> Any:
        return self._calls.datamodule

    @property
    def callbacks(self) -> list[Any]:
        return self._calls.callbacks

    def _callbacks_of(self, path: str) -> list[Any]:
        kind = self._standing.library.get(path)
        return [one for one in self._calls.callbacks if isinstance(one, kind)]

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        return self._callbacks_of("callbacks:Checkpoint")

    @property
    def checkpoint_callback(self) -> Any:
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        return self._callbacks_of("callbacks:EarlyStopping")

    @property
    def early_stopping_callback(self) -> Any:
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> Any:
        return next(iter(self._callbacks_of("callbacks:ProgressBar")), None)

    @property
    def optimizers(self) -> list[Optimizer]:
        return self._standing.fitting.optimizers

    @property
    def lr_scheduler_configs(self) -> SchedulerConfigs:
        """Schedulers with their settings, as Lightning keeps them; the list may be changed."""
        make = self._standing.library.get("utilities.types:LRSchedulerConfig")
        return SchedulerConfigs(self._standing.fitting.slots, make)

    @property
    def train_dataloader(self) -> Any:
        """The training loader, made now if it was given as a function; several as they were given."""
        loader = self._standing.train_dataloader
        return getattr(loader, "iterables", loader)

    @property
    def val_dataloaders(self) -> Any:
        return self._loaders(self.validate_loop)

    @property
    def test_dataloaders(self) -> Any:
        return self._loaders(self.test_loop)

    @property
    def predict_dataloaders(self) -> Any:
        return self._loaders(self.predict_loop)

    def _loaders(self, loop: EvaluationLoopView) -> Any:
        loaders = [getattr(feed.loader, "iterables", feed.loader) for _, feed in loop._feeds]
        return loaders[0] if len(loaders) == 1 else loaders or None

    @property
    def _active_loop(self) -> Any:
        inner = {
            "validate": self.validate_loop, "test": self.test_loop, "predict": self.predict_loop,
        }  # fmt: skip
        return inner.get(self._standing.stage, self.fit_loop)

    @property
    def _evaluation_loop(self) -> Any:
        return self.test_loop if self.testing else self.validate_loop

    @property
    def _data_connector(self) -> Any:
        selector = self._standing.library.get("trainer.connectors.data_connector:_DataHookSelector")
        return SimpleNamespace(_datahook_selector=selector(self.model, self.datamodule))

    @property
    def _accelerator_connector(self) -> Any:
        is_distributed = self.strategy.is_distributed
        return SimpleNamespace(
            is_distributed=is_distributed, use_distributed_sampler=is_distributed
        )

    # -- metrics and loggers ---------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """What was logged, as tensors; within a pass the values so far. What is added to it stays."""
        known = as_tensors(known_metrics(self._standing.context))
        return _Metrics({**self._added_metrics, **known}, self._added_metrics)

    @property
    def logged_metrics(self) -> dict[str, Any]:
        return as_tensors(known_metrics(self._standing.context))

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        context = self._standing.context
        return {
            **context.train_metrics.newest("prog_bar"),
            **context.validation_metrics.newest("prog_bar"),
        }

    @property
    def _results(self) -> Results | None:
        return None if self.predicting else self._logger_connector.results

    @property
    def loggers(self) -> list[Any]:
        return self._logger_connector.loggers

    @loggers.setter
    def loggers(self, loggers: list[Any] | None) -> None:
        self._logger_connector.loggers = list(loggers or [])

    @property
    def logger(self) -> Any:
        return next(iter(self.loggers), None)

    @logger.setter
    def logger(self, logger: Any) -> None:
        self.loggers = [logger] if logger else []

    @property
    def log_dir(self) -> str | None:
        """The folder of the first logger, else that of the script; of several ranks that of rank 0. A collective."""
        found: str | None = self.default_root_dir
        if self.loggers:
            found = getattr(self.logger, "log_dir", None) or self.logger.save_dir
        told: str | None = self.strategy.broadcast(found)
        return told

    # -- writing ---------------------------------------------------------------------------------

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = False, storage_options: Any = None
    ) -> None:
        """Write a checkpoint that Lightning can read (`load_from_checkpoint`, `fit(ckpt_path=...)`).

        For going on exactly where a run was stopped use `statemachine_trainer.Trainer(checkpoints=...)`.
        Of several ranks, which all call it, rank 0 writes.
        """
        self._files.write(
            Path(filepath), weights_only=bool(weights_only), here=self.strategy.is_global_zero
        )
        self.strategy.barrier()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print, at the first rank of each machine."""
        if self.strategy.local_rank == 0:
            print(*args, **kwargs)


class _Metrics(dict[str, Any]):
    """Metrics of the moment; what a callback adds is kept for the next time that they are asked for."""

    def __init__(self, known: Mapping[str, Any], added: dict[str, Any]) -> None:
        super().__init__(known)
        self._added = added

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._added[name] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value


def _limit(limit: float | None) -> float:
    return 1.0 if limit is None else limit
