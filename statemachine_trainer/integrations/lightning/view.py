"""What a LightningModule and Lightning's callbacks take for Lightning's trainer."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.optim import Optimizer

from statemachine_trainer.data import length_of, limit_batches
from statemachine_trainer.integrations.lightning.hooks import Results, known_metrics
from statemachine_trainer.integrations.lightning.library import Library, NotAvailable
from statemachine_trainer.integrations.lightning.strategy import StrategyView, write_checkpoint
from statemachine_trainer.machine.loop import Loop

if TYPE_CHECKING:
    from statemachine_trainer.integrations.lightning.adapter import LightningGuest
    from statemachine_trainer.integrations.lightning.hooks import Hooks
    from statemachine_trainer.loops.context import Context

_STAGES: Final = {
    "fit": "FITTING",
    "validate": "VALIDATING",
    "test": "TESTING",
    "predict": "PREDICTING",
}
_HINTS: Final = {
    "fit": "call `trainer.fit` of the trainer you have made",
    "fit_loop": "the loops are `trainer.owner.loop`, and `trainer.owner.graph()` shows them",
    "lightning_module_state_dict": "use `module.state_dict()`",
    "profiler": "use torch.profiler",
    "tuner": "set the learning rate or batch size yourself",
    "checkpoint_callback": "use `statemachine_trainer.Trainer(checkpoints=...)`",
}


class TrainerView:
    """Answers what a module reads of `self.trainer`, from the state of our trainer.

    `owner` is our trainer itself, with all that it can do.

    Args:
        guest: The adapter of the module.
        module: The LightningModule.
        library: Where it comes from.
    """

    hooks: Hooks

    fast_dev_run = False
    barebones = False
    world_size = 1
    global_rank = 0
    local_rank = 0
    node_rank = 0
    num_devices = 1
    num_nodes = 1
    is_global_zero = True
    logger = None
    log_dir = None
    progress_bar_callback = None
    checkpoint_callback = None
    early_stopping_callback = None
    overfit_batches = 0
    log_every_n_steps = 1
    ckpt_path = None
    received_sigterm = False
    enable_validation = True

    def __init__(self, guest: LightningGuest, module: Any, library: Library) -> None:
        self.guest = guest
        self.module = module
        self.library = library
        self.strategy = StrategyView(self)
        self.stage = "fit"
        self.loggers: list[Any] = []
        self.default_root_dir = str(Path.cwd())
        self._contexts: dict[str, Context] = {}
        self._within = ""
        self._train: Any = None

    def __getattr__(self, name: str) -> Any:
        hint = _HINTS.get(name, "`trainer.owner` is the trainer that runs")
        raise NotAvailable(
            f"`trainer.{name}` of Lightning does not exist here: {hint}. See docs/migration.md."
        )

    # -- where the run stands --------------------------------------------------------------------

    def begin(self, context: Context, stage: str, train: Any = None) -> None:
        """Take up the context of a run."""
        self._contexts[stage] = context
        self.stage, self._within = stage, stage
        if stage == "fit":
            self._train = train

    def enter_stage(self, path: str) -> None:
        """Note from the path of a state what the trainer is doing."""
        root = path.partition(".")[0]
        self.stage = root if root in _STAGES else self.stage
        self._within = path

    @property
    def context(self) -> Context:
        """The context of the present stage."""
        return self._contexts[self.stage]

    @property
    def owner(self) -> Any:
        """The trainer that runs."""
        return self.context.trainer

    @property
    def has_fitted(self) -> bool:
        """Whether a fit has begun."""
        return "fit" in self._contexts

    @property
    def _fitting(self) -> Context:
        return self._contexts.get("fit") or self.context

    @property
    def state(self) -> Any:
        """`state.fn` and `state.stage`, as callbacks compare them."""
        functions = self.library.get("trainer.states:TrainerFn")
        return SimpleNamespace(fn=functions[_STAGES[self.stage]], stage=self._running_stage)

    @property
    def _running_stage(self) -> Any:
        stages = self.library.get("trainer.states:RunningStage")
        if self.sanity_checking:
            return stages.SANITY_CHECKING
        if self.validating:
            return stages.VALIDATING
        names = {"fit": "TRAINING", "test": "TESTING", "predict": "PREDICTING"}
        return stages[names[self.stage]]

    @property
    def sanity_checking(self) -> bool:
        return "sanity" in self._within.split(".")

    @property
    def validating(self) -> bool:
        return self.stage == "validate" or "validation" in self._within.split(".")

    @property
    def testing(self) -> bool:
        return self.stage == "test"

    @property
    def predicting(self) -> bool:
        return self.stage == "predict"

    @property
    def training(self) -> bool:
        return self.stage == "fit" and not self.validating and not self.sanity_checking

    @property
    def evaluating(self) -> bool:
        return self.stage in ("validate", "test")

    # -- counters and limits ---------------------------------------------------------------------

    @property
    def current_epoch(self) -> int:
        return self._fitting.counts.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps of all optimizers, as Lightning counts them."""
        return sum(slot.steps for slot in self._fitting.slots)

    @property
    def max_epochs(self) -> int:
        most = self._fitting.trainer.loop.limits().max_epochs
        return -1 if most is None else int(most)

    @property
    def min_epochs(self) -> int:
        return self._fitting.limits.min_epochs

    @property
    def max_steps(self) -> int:
        most = self._fitting.trainer.loop.limits().max_steps
        return -1 if most is None else int(most)

    @property
    def min_steps(self) -> int:
        return self._fitting.limits.min_steps

    @property
    def num_training_batches(self) -> float:
        """Batches in a training epoch; infinity where nobody knows."""
        loader = self.train_dataloader
        epoch = self._loop("limit_batches", "reload_every")
        limit = getattr(epoch, "limit_batches", None)
        known = limit_batches(limit, length_of(loader), "train")
        return math.inf if known is None else known

    @property
    def num_val_batches(self) -> list[float]:
        return [_length(feed.loader) for _, feed in self.context.validation]

    @property
    def num_sanity_val_batches(self) -> list[float]:
        most = self._fitting.trainer.loop.sanity_batches
        return [n if most == -1 else min(n, most) for n in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[float]:
        return self.num_val_batches

    @property
    def num_predict_batches(self) -> list[float]:
        return self.num_val_batches

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch in flight is the last of the epoch, where its length is known."""
        return self._fitting.batch_idx + 1 == self.num_training_batches

    @property
    def estimated_stepping_batches(self) -> float:
        """Optimizer steps of the whole fit, as far as its limits and the data tell."""
        if self.max_epochs == -1 or math.isinf(self.num_training_batches):
            return math.inf if self.max_steps == -1 else self.max_steps
        per_epoch = math.ceil(self.num_training_batches / self.accumulate_grad_batches)
        steps = per_epoch * max(self.max_epochs, 1)
        return steps if self.max_steps == -1 else min(steps, self.max_steps)

    @property
    def should_stop(self) -> bool:
        """Whether the fit was asked to stop; setting it asks for that, or takes it back."""
        posted = "stop" in self.owner.driver.posted
        return posted or self.context.stopping

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            self.owner.stop()
        else:
            self.owner.driver.withdraw("stop")

    # -- settings --------------------------------------------------------------------------------

    @property
    def accumulate_grad_batches(self) -> int:
        loop = self._loop("accumulate")
        value = getattr(loop, "accumulate", 1)
        if isinstance(value, int):
            return value
        epoch = self.current_epoch
        return int(value[max((start for start in value if start <= epoch), default=min(value))])

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, value: int) -> None:
        loop: Any = self._loop("accumulate")
        loop.accumulate = value

    @property
    def gradient_clip_val(self) -> float | None:
        loop = self._loop("clip_norm", "clip_value")
        norm, value = getattr(loop, "clip_norm", None), getattr(loop, "clip_value", None)
        return value if norm is None else norm

    @property
    def gradient_clip_algorithm(self) -> Any:
        loop = self._loop("clip_norm", "clip_value")
        by_value = getattr(loop, "clip_norm", None) is None
        return (
            None
            if self.gradient_clip_val is None
            else self.clip_algorithm("value" if by_value else "norm")
        )

    def clip_algorithm(self, name: str | None) -> Any:
        """Return the member of Lightning's enumeration."""
        return None if name is None else self.library.get("utilities:GradClipAlgorithmType")(name)

    @property
    def val_check_interval(self) -> float:
        """Fraction of an epoch, or a number of batches."""
        every = self._interval
        if every is not None and every.unit == "epoch":
            return float(every.n) if every.is_fraction else 1.0
        return 1.0 if every is None else every.n

    @property
    def check_val_every_n_epoch(self) -> int:
        loop = self._loop("validate_epochs")
        return int(getattr(loop, "validate_epochs", 1))

    @property
    def _interval(self) -> Any:
        return getattr(self._loop("validate_every"), "validate_every", None)

    @property
    def precision(self) -> str:
        return self.context.precision.name

    # -- parts -----------------------------------------------------------------------------------

    @property
    def lightning_module(self) -> Any:
        return self.module

    @property
    def model(self) -> Any:
        return self.module

    @property
    def datamodule(self) -> Any:
        return self.hooks.datamodule

    @property
    def callbacks(self) -> list[Any]:
        return self.hooks.callbacks

    @property
    def optimizers(self) -> list[Optimizer]:
        return self._fitting.optimizers

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        """Schedulers with their settings, as Lightning keeps them."""
        make = self.library.get("utilities.types:LRSchedulerConfig")
        return [
            make(
                getattr(one.scheduler, "scheduler", one.scheduler),
                name=one.name,
                interval=one.interval,
                frequency=one.frequency,
                reduce_on_plateau=one.monitor is not None,
                monitor=one.monitor,
                strict=one.strict,
            )
            for slot in self._fitting.slots
            for one in slot.schedulers
        ]

    @property
    def precision_plugin(self) -> StrategyView:
        return self.strategy

    @property
    def train_dataloader(self) -> Any:
        """The training loader, made now if it was given as a function."""
        feed = self._fitting.train
        return self._train.loader() if feed is None else feed.loader

    @property
    def val_dataloaders(self) -> Any:
        loaders = [feed.loader for _, feed in self.context.validation]
        return loaders[0] if len(loaders) == 1 else loaders or None

    @property
    def test_dataloaders(self) -> Any:
        return self.val_dataloaders

    @property
    def predict_dataloaders(self) -> Any:
        return self.val_dataloaders

    # -- metrics ---------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """What was logged, as tensors; within a pass the values so far."""
        return {name: torch.tensor(value) for name, value in known_metrics(self.context).items()}

    @property
    def logged_metrics(self) -> dict[str, torch.Tensor]:
        return self.callback_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        context = self.context
        return {
            **context.train_metrics.newest("prog_bar"),
            **context.validation_metrics.newest("prog_bar"),
        }

    @property
    def _results(self) -> Results | None:
        return None if self.stage == "predict" else Results(self.context)

    @property
    def _logger_connector(self) -> Any:
        return _Connector()

    @property
    def _accelerator_connector(self) -> Any:
        return SimpleNamespace(is_distributed=False)

    # -- writing ---------------------------------------------------------------------------------

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = False, storage_options: Any = None
    ) -> None:
        """Write a checkpoint that Lightning can read (`load_from_checkpoint`).

        For going on exactly where a run was stopped use `statemachine_trainer.Trainer(checkpoints=...)`.
        """
        write_checkpoint(self, Path(filepath), weights_only=bool(weights_only))

    def print(self, *args: Any, **kwargs: Any) -> None:
        print(*args, **kwargs)

    def _loop(self, *settings: str) -> Loop | None:
        """Find the loop of the fit that has these settings."""
        root: Loop = self._fitting.trainer.loop
        for _, loop in root.walk():
            if all(hasattr(loop, name) for name in settings):
                return loop
        return None


class _Connector:
    """The little that `LightningModule.log` asks of Lightning's logger connector."""

    _current_fx: str | None = None

    def should_reset_tensors(self, fx: str) -> bool:
        """Tell that nothing is to be reset: a pass begins with an empty table."""
        return False


def _length(loader: Any) -> float:
    known = length_of(loader)
    return math.inf if known is None else known
