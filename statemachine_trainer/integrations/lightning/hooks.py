"""Calls the hooks of a LightningModule and of Lightning's callbacks, each at its state or transition."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from statemachine_trainer.integrations.lightning.library import Library, NotSupported
from statemachine_trainer.loops.metrics.table import Metrics, batch_size_of, is_metric
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.machine.signals import Moment

if TYPE_CHECKING:
    from statemachine_trainer.integrations.lightning.view import TrainerView
    from statemachine_trainer.loops.context import Context


SIGNALS: Final = {
    "*.fit_start": "fit_started",
    "*.sanity_start": "sanity_started",
    "*.sanity_start:exit": "evaluation_started",
    "*.sanity_step": "evaluation_batch_started",
    "*.sanity_step:exit": "evaluation_batch_ended",
    "*.sanity_end": "evaluation_ending",
    "*.sanity_end:exit": "sanity_ended",
    "*.fit_start:fit_started": "train_started",
    "*.sanity:sanity_done": "train_started",
    "*.epoch_start:exit": "epoch_started",
    "*.batch_end": "batch_ended",
    "*.validation_start:exit": "evaluation_started",
    "*.validation_step": "evaluation_batch_started",
    "*.validation_step:exit": "evaluation_batch_ended",
    "*.validation_end": "evaluation_ending",
    "*.validation_end:exit": "evaluation_ended",
    "*.test_start:exit": "evaluation_started",
    "*.test_step": "evaluation_batch_started",
    "*.test_step:exit": "evaluation_batch_ended",
    "*.test_end": "evaluation_ending",
    "*.test_end:exit": "evaluation_ended",
    "*.predict_start:exit": "evaluation_started",
    "*.predict_step": "evaluation_batch_started",
    "*.predict_step:exit": "evaluation_batch_ended",
    "*.predict_end": "evaluation_ending",
    "*.predict_end:exit": "evaluation_ended",
    "*.epoch_end": "epoch_ending",
    "*.fit_end": "fit_ending",
    "*.fit_end:exit": "fit_ended",
    "fit:exit": "run_ended",
}
"""Which method of `Hooks` receives which signal."""


class Hooks:
    """Calls hooks in Lightning's order: those of the callbacks, then the module's.

    It receives the signals of the trainer; hooks within a batch are called by the optimizer loop. Its
    state is that of the callbacks, and what `on_save_checkpoint` adds.

    Args:
        module: The LightningModule.
        datamodule: A LightningDataModule, or None.
        callbacks: Lightning's callbacks.
        library: Where these come from.
        view: What they take for Lightning's trainer.

    Attributes:
        skipped: Whether `on_train_batch_start` has asked to leave out the batch in flight.
    """

    def __init__(
        self,
        module: Any,
        datamodule: Any,
        callbacks: Sequence[Any],
        library: Library,
        view: TrainerView,
    ) -> None:
        self.module = module
        self.datamodule = datamodule
        self.callbacks = list(callbacks)
        self.library = library
        self.view = view
        self.skipped = False

    # -- calling ---------------------------------------------------------------------------------

    def call(self, name: str, *args: Any) -> Any:
        """Call a hook of every callback, then the module's; return what the module's answers."""
        self.call_callbacks(name, *args)
        return self.call_module(name, *args)

    def call_module(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a hook of the module; `self.log` learns from its name what it may do."""
        return self._within(name, lambda: getattr(self.module, name)(*args, **kwargs))

    def in_turns(self, name: str, step: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Go through a step that yields, each part of it as a call of the hook of this name."""
        received = None
        try:
            while True:
                received = yield self._within(name, partial(step.send, received))
        except StopIteration as end:
            return end.value
        finally:
            step.close()

    def call_callbacks(
        self, name: str, *args: Any, only: Callable[[Any], bool] | None = None
    ) -> None:
        """Call a hook of every callback, or of some."""

        def call() -> None:
            for callback in self.callbacks:
                if only is None or only(callback):
                    getattr(callback, name)(self.view, self.module, *args)

        self._within(name, call)

    def call_data(self, name: str, *args: Any) -> Any:
        """Call a hook of the data module where it has one, else the module's."""
        if self.library.is_overridden(name, self.datamodule):
            return getattr(self.datamodule, name)(*args)
        return self.call_module(name, *args)

    def _within(self, name: str, function: Callable[[], Any]) -> Any:
        outer = self.module._current_fx_name
        self.module._current_fx_name = name
        try:
            return function()
        finally:
            self.module._current_fx_name = outer

    # -- receiving signals -----------------------------------------------------------------------

    def subscribe(self, trainer: Any) -> None:
        """Subscribe to the signals that the trainer's loops have, unless that is done already."""
        if any(
            getattr(one.receiver, "__self__", None) is self for one in trainer.board.subscriptions
        ):
            return
        for name, method in SIGNALS.items():
            try:
                trainer.board.resolve(name)
            except UnknownSignal:  # a tree without, say, a sanity check
                continue
            trainer.on(name, getattr(self, method), when=self._is_ours)

    def _is_ours(self, trainer: Any, moment: Moment) -> bool:
        self.view.enter_stage(moment.path)
        return trainer.context.model is self.view.guest

    def fit_started(self) -> None:
        self.call("on_fit_start")

    def train_started(self) -> None:
        self.call("on_train_start")

    def epoch_started(self) -> None:
        self.call("on_train_epoch_start")

    def batch_started(self) -> bool:
        """Call `on_train_batch_start`; tell whether to train on the batch."""
        context = self.view.context
        answer = self.call("on_train_batch_start", context.batch, context.batch_idx)
        self.skipped = answer == -1
        if self.skipped:
            self.view.owner.post("end_epoch")
        return not self.skipped

    def batch_ended(self) -> None:
        context = self.view.context
        if not self.skipped:
            outputs = step_output(context.output, self.module.automatic_optimization)
            self.call("on_train_batch_end", outputs, context.batch, context.batch_idx)

    def epoch_ending(self) -> None:
        # Those that watch a metric come last, so that it may be logged in the module's hook.
        def monitors(callback: Any) -> bool:
            return isinstance(callback, self._monitors)

        self.call_callbacks("on_train_epoch_end", only=lambda one: not monitors(one))
        self.call_module("on_train_epoch_end")
        self.call_callbacks("on_train_epoch_end", only=monitors)

    def fit_ending(self) -> None:
        self.call("on_train_end")

    def fit_ended(self) -> None:
        self.call("on_fit_end")

    def run_ended(self) -> None:
        self.teardown("fit")

    def sanity_started(self) -> None:
        self.call_callbacks("on_sanity_check_start")

    def sanity_ended(self) -> None:
        self.call_callbacks("on_sanity_check_end")

    @torch.no_grad()
    def evaluation_started(self, moment: Moment) -> None:
        kind = _kind(moment)
        within_fit = moment.state == "validation_start" and self.view.stage == "fit"
        if within_fit and not self.view.context.open_windows:
            self.call_module("on_validation_model_zero_grad")
        self.call_module(f"on_{kind}_model_eval")
        self.call(f"on_{kind}_start")
        self.call(f"on_{kind}_epoch_start")

    @torch.no_grad()
    def evaluation_batch_started(self, moment: Moment) -> None:
        self.call(f"on_{_kind(moment)}_batch_start", *self._evaluated())

    @torch.no_grad()
    def evaluation_batch_ended(self, moment: Moment) -> None:
        self.call(f"on_{_kind(moment)}_batch_end", self.view.context.output, *self._evaluated())

    @torch.no_grad()
    def evaluation_ending(self, moment: Moment) -> None:
        kind = _kind(moment)
        self.call(f"on_{kind}_epoch_end")
        self.call(f"on_{kind}_end")

    def evaluation_ended(self, moment: Moment) -> None:
        kind = _kind(moment)
        name = f"on_{kind}_model_train"
        if hasattr(self.module, name) and self.library.is_overridden(name, self.module):
            self.call_module(name)
        if self.view.stage != "fit":
            self.teardown(self.view.stage)

    def _evaluated(self) -> tuple[Any, ...]:
        context = self.view.context
        where = (context.dataloader_idx,) if len(context.validation) > 1 else ()
        return (context.batch, context.batch_idx, *where)

    @property
    def _monitors(self) -> tuple[type, ...]:
        return (
            self.library.get("callbacks:EarlyStopping"),
            self.library.get("callbacks:Checkpoint"),
        )

    # -- before and after ------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Call what prepares data, callbacks and module for a stage."""
        if self.datamodule is not None:
            self.datamodule.prepare_data()
        self.call_module("prepare_data")
        if self.datamodule is not None:
            self.datamodule.setup(stage)
        self.call_callbacks("setup", stage)
        self.call_module("setup", stage)
        self.call_module("configure_model")

    def teardown(self, stage: str) -> None:
        """Call what cleans up after a stage."""
        if self.datamodule is not None:
            self.datamodule.teardown(stage)
        self.call_callbacks("teardown", stage)
        self.call_module("teardown", stage)

    def take_callbacks_of_module(self) -> None:
        """Add what `configure_callbacks` returns, in the place of callbacks of the same class."""
        found = self.call_module("configure_callbacks")
        new = list(found) if isinstance(found, Sequence) else [found]
        kinds = {type(one) for one in self.callbacks} - {self.library.get("callbacks:Callback")}
        replaced = {kind for kind in kinds if any(isinstance(one, kind) for one in new)}
        kept = [one for one in self.callbacks if type(one) not in replaced]
        saving = self.library.get("callbacks:Checkpoint")
        self.callbacks = sorted([*kept, *new], key=lambda one: isinstance(one, saving))

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the callbacks, and what hooks add to a checkpoint."""
        data = self.datamodule
        return {
            "skipped": self.skipped,
            "callbacks": [
                {"key": one.state_key, "state": one.state_dict()} for one in self.callbacks
            ],
            "datamodule": None if data is None else data.state_dict(),
            "added": self._added_to_checkpoint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give callbacks, data module and hooks back what they have saved."""
        self.skipped = state["skipped"]
        saved = {one["key"]: one["state"] for one in state["callbacks"]}
        for callback in self.callbacks:
            if saved.get(callback.state_key):
                callback.load_state_dict(saved[callback.state_key])
        if state["datamodule"] and self.datamodule is not None:
            self.datamodule.load_state_dict(state["datamodule"])
        added = {**self._checkpoint(), **state["added"]}
        if self.library.is_overridden("on_load_checkpoint", self.module):
            self.module.on_load_checkpoint(added)
        for callback in self.callbacks:
            callback.on_load_checkpoint(self.view, self.module, added)

    def _checkpoint(self) -> dict[str, Any]:
        """What hooks that save and load may count on; the snapshot has all of it elsewhere."""
        view = self.view
        return {
            "epoch": view.current_epoch,
            "global_step": view.global_step,
            "pytorch-lightning_version": self.library.version,
            "state_dict": self.module.state_dict(),
        }

    def _added_to_checkpoint(self) -> dict[str, Any]:
        asked = [
            one for one in self.callbacks if self.library.is_overridden("on_save_checkpoint", one)
        ]
        of_module = self.library.is_overridden("on_save_checkpoint", self.module)
        if not asked and not of_module:
            return {}
        checkpoint = self._checkpoint()
        before = set(checkpoint)
        for callback in asked:
            callback.on_save_checkpoint(self.view, self.module, checkpoint)
        if of_module:
            self.module.on_save_checkpoint(checkpoint)
        return {key: value for key, value in checkpoint.items() if key not in before}


def step_output(output: Any, automatic: bool) -> Any:
    """Return what Lightning hands to `on_train_batch_end` for the output of a training step."""
    if isinstance(output, torch.Tensor):
        return {"loss": output.detach()}
    if output is None:
        return {}
    if isinstance(output, Mapping):
        return {
            key: value.detach() if key == "loss" and isinstance(value, torch.Tensor) else value
            for key, value in output.items()
        }
    return output


def _kind(moment: Moment) -> str:
    """What is evaluated in a state: the sanity check is a validation."""
    kind = moment.state.partition("_")[0]
    return "validation" if kind == "sanity" else kind


# -- Where `self.log` writes ----------------------------------------------------------------------


_REDUCTIONS: Final = {"mean": "mean", "avg": "mean", "sum": "sum", "min": "min", "max": "max"}


class Results:
    """Takes the place of Lightning's collection of results.

    With `on_step` and `on_epoch` both, a value is kept under three names as in Lightning: `loss`,
    `loss_step` (the newest value) and `loss_epoch` (reduced over the pass).

    Args:
        context: The context of the run.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def log(
        self,
        fx: str,
        name: str,
        value: Any,
        *,
        on_step: bool,
        on_epoch: bool,
        prog_bar: bool = False,
        reduce_fx: Any = "mean",
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        **_: Any,
    ) -> None:
        """Log one value, as `LightningModule.log` does once it has checked it."""
        context = self._context
        table = context.log_table
        if table is None:
            raise NotSupported(
                f"self.log({name!r}, ...) was called in {fx}, outside of a pass over data."
            )
        if add_dataloader_idx and context.log_suffix:
            name = f"{name}/dataloader_idx_{context.dataloader_idx}"
        reduce = _reduction(name, reduce_fx)
        forked = on_step and on_epoch
        if is_metric(value):
            _log_metric(table, name, value, on_step, on_epoch, prog_bar)
            return
        if reduce == "mean" and on_epoch and batch_size is None:
            batch_size = batch_size_of(context.split)
        if on_epoch:
            settings = {"batch_size": batch_size, "reduce": reduce, "prog_bar": prog_bar}
            for one in (name, f"{name}_epoch") if forked else (name,):
                table.log(one, value, **settings)
        if on_step:
            one = f"{name}_step" if forked else name
            table.log(one, value, reduce="last", on_step=True, prog_bar=prog_bar and not forked)

    def reset(self, **_: Any) -> None:
        """Do nothing: a pass begins with an empty table."""


def _log_metric(
    table: Metrics, name: str, metric: Any, on_step: bool, on_epoch: bool, prog_bar: bool
) -> None:
    table.log(name, metric, on_step=on_step, on_epoch=on_epoch, prog_bar=prog_bar)
    if on_step and on_epoch:
        table.log(f"{name}_epoch", metric)
        newest = getattr(metric, "_forward_cache", None)
        if newest is not None:
            table.log(f"{name}_step", newest, reduce="last", on_step=True)


def _reduction(name: str, reduce_fx: Any) -> Any:
    asked = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "?")
    if asked.lower() not in _REDUCTIONS:
        raise NotSupported(
            f"self.log({name!r}, reduce_fx={reduce_fx!r}): a value is reduced by 'mean', 'sum', 'min' or "
            "'max'. For another reduction log a torchmetrics object."
        )
    return _REDUCTIONS[asked.lower()]


def known_metrics(context: Context) -> dict[str, float]:
    """Return all metrics as Lightning's `callback_metrics` has them, those of the last step as well."""
    known = context.read_metrics()
    for table in (context.train_metrics, context.validation_metrics):
        for name, value in table.newest().items():
            known.setdefault(name, value)
    return known
