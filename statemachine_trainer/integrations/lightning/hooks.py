"""Calls the hooks of a LightningModule and of Lightning's callbacks, each at its state or transition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.loggers import LoggerConnector
from statemachine_trainer.integrations.lightning.memory import Memory
from statemachine_trainer.integrations.lightning.ranks import are_dealt_out
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.loops.base import training_loops
from statemachine_trainer.machine.errors import UnknownSignal
from statemachine_trainer.machine.signals import Moment
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.parallel.wrappers import PlainNames

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
    """Receives the signals of the trainer, and calls the hooks that belong to them.

    Hooks within a batch are called by the optimizer loop. The state of this receiver is what hooks
    leave in a checkpoint.

    Args:
        calls: Calls the hooks.
        standing: Where the run stands.
        memory: What hooks leave in a checkpoint.
        connector: Hands what was logged on to Lightning's loggers.
        guest: The model of which the hooks are; signals about another one are none of theirs.

    Attributes:
        skipped: Whether `on_train_batch_start` has asked to leave out the batch in flight.
    """

    def __init__(
        self,
        calls: HookCalls,
        standing: Standing,
        memory: Memory,
        connector: LoggerConnector,
        guest: object,
    ) -> None:
        self.calls = calls
        self._standing = standing
        self._memory = memory
        self._connector = connector
        self._guest = guest
        self.skipped = False
        self._modes: list[tuple[Any, bool]] = []

    @property
    def callbacks(self) -> list[Any]:
        """Lightning's callbacks of the present run, those of the module among them."""
        return self.calls.callbacks

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
        self._standing.enter_stage(moment.path)
        return trainer.context.model is self._guest

    # -- training --------------------------------------------------------------------------------

    def fit_started(self) -> None:
        self._memory.begin()
        self.calls.call("on_fit_start")
        self._memory.started = "fit"
        self._connector.log_hyperparameters()

    def train_started(self) -> None:
        self._standing.enter_stage("fit")  # the sanity check is over
        self.calls.call("on_train_start")
        self._memory.note_start_of_training()

    def epoch_started(self) -> None:
        self.calls.call("on_train_epoch_start")
        self._memory.within_epoch = True
        self._memory.newest_epoch = self._standing.fitting.counts.epoch

    def batch_started(self) -> bool:
        """Call `on_train_batch_start`; tell whether to train on the batch."""
        context = self._standing.context
        self._standing.begin_batch()
        answer = self.calls.call("on_train_batch_start", context.batch, context.batch_idx)
        self.skipped = answer == -1
        if self.skipped:
            # Not by way of the other ranks, whose hooks answer the same: they would take it a batch later.
            self._standing.owner.driver.post_here("end_epoch")
        return not self.skipped

    def batch_ended(self) -> None:
        context = self._standing.context
        self._standing.batch_is_through()
        if not self.skipped:
            outputs = step_output(context.output, self._standing.automatic)
            self.calls.call("on_train_batch_end", outputs, context.batch, context.batch_idx)
            self._connector.batch_ended()
        self._standing.end_batch()

    def epoch_ending(self) -> None:
        # Those that watch a metric come last, so that it may be logged in the module's hook.
        get = self.calls.library.get
        watching = (get("callbacks:EarlyStopping"), get("callbacks:Checkpoint"))

        def monitors(callback: Any) -> bool:
            return isinstance(callback, watching)

        self.calls.call_callbacks("on_train_epoch_end", only=lambda one: not monitors(one))
        self.calls.call_module("on_train_epoch_end")
        self.calls.call_callbacks("on_train_epoch_end", only=monitors)
        self._connector.epoch_ended()
        self._memory.within_epoch = False

    def fit_ending(self) -> None:
        self.calls.call("on_train_end")
        self._memory.train_ended = True

    def fit_ended(self) -> None:
        self._connector.finish("success")
        self.calls.call("on_fit_end")
        self._memory.started, self._memory.train_ended = None, False

    def run_ended(self) -> None:
        self.calls.teardown("fit")

    def sanity_started(self) -> None:
        self.calls.call_callbacks("on_sanity_check_start")
        self._memory.evaluation = "sanity"

    def sanity_ended(self) -> None:
        self._model_train("validation")
        self.calls.call_callbacks("on_sanity_check_end")
        self._memory.evaluation = None

    # -- evaluation ------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluation_started(self, moment: Moment) -> None:
        kind = _kind(moment)
        within_fit = moment.state == "validation_start" and self._standing.stage == "fit"
        if within_fit and not self._standing.context.open_windows:
            self.calls.call_module("on_validation_model_zero_grad")
        self._standing.begin_evaluation()
        self._begin_together()
        self._model_eval(moment, kind)
        self.calls.call(f"on_{kind}_start")
        if within_fit:
            self._memory.evaluation = "validation"
        self.calls.call(f"on_{kind}_epoch_start")

    @torch.no_grad()
    def evaluation_batch_started(self, moment: Moment) -> None:
        self._standing.evaluated += 1
        self.calls.call(f"on_{_kind(moment)}_batch_start", *self._evaluated())

    @torch.no_grad()
    def evaluation_batch_ended(self, moment: Moment) -> None:
        kind, context = _kind(moment), self._standing.context
        self._standing.end_evaluated_batch(kind)
        self.calls.call(f"on_{kind}_batch_end", context.output, *self._evaluated())
        self._connector.evaluation_batch_ended(kind)

    @torch.no_grad()
    def evaluation_ending(self, moment: Moment) -> None:
        kind = _kind(moment)
        self._reduce_together()
        self.calls.call(f"on_{kind}_epoch_end")
        self._connector.evaluation_ended()
        self.calls.call(f"on_{kind}_end")
        self._note_modes(kind)

    def evaluation_ended(self, moment: Moment) -> None:
        self._model_train(_kind(moment))
        # The batch that may follow tells of no state of its own before its hooks are called.
        self._standing.leave_evaluation()
        if self._memory.evaluation == "validation":
            self._memory.evaluation = None
        if self._standing.stage != "fit":
            self._connector.finish("success")
            self.calls.teardown(self._standing.stage)

    def _begin_together(self) -> None:
        """Look whether an evaluation by itself is one of all ranks."""
        standing = self._standing
        self._connector.results.synced.clear()
        loaders = [feed.loader for _, feed in standing.context.validation]
        standing.evaluates_together = standing.stage != "fit" and are_dealt_out(loaders)

    def _reduce_together(self) -> None:
        """Reduce what was logged with `sync_dist` over the ranks; in a fit the trainer does so."""
        standing, names = self._standing, self._connector.results.synced
        ranks = Ranks.here() if standing.evaluates_together else None
        if ranks is not None:
            from statemachine_trainer.loops.agreement import reduce_over_ranks

            reduce_over_ranks(ranks, standing.context.validation_metrics, names)

    def _model_eval(self, moment: Moment, kind: str) -> None:
        """Call the hook that puts the model into evaluation mode; a module's own finds it in that of training."""
        calls, driver = self.calls, self._standing.owner.driver
        if calls.library.is_overridden(f"on_{kind}_model_eval", calls.module):
            loops: Mapping[str, Any] = dict(training_loops(driver.root, driver.name))
            modes = loops[moment.path.rpartition(".")[0]].modes
            for name, module in PlainNames(self._standing.context.model).modules():
                module.training = modes.get(name, module.training)
        self._standing.keeps_modes = calls.model_eval(kind)

    def _note_modes(self, kind: str) -> None:
        """Note the modes at the end of an evaluation: where a module puts them back, the trainer does not."""
        own = self.calls.library.is_overridden(f"on_{kind}_model_train", self.calls.module)
        modules = self.calls.module.modules() if own else ()
        self._modes = [(module, module.training) for module in modules]

    @torch.no_grad()
    def _model_train(self, kind: str) -> None:
        modes, self._modes = self._modes, []
        for module, mode in modes:
            module.training = mode
        if self.calls.library.is_overridden(f"on_{kind}_model_train", self.calls.module):
            self.calls.call_module(f"on_{kind}_model_train")

    def _evaluated(self) -> tuple[Any, ...]:
        context = self._standing.context
        where = (context.dataloader_idx,) if self._standing.several_loaders else ()
        return (context.batch, context.batch_idx, *where)

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what callbacks, data module and module keep, and what hooks add to a checkpoint."""
        return {"skipped": self.skipped, **self._memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give callbacks, data module and module back what they have kept."""
        self.skipped = state["skipped"]
        self._memory.load_state_dict(state)
        self._connector.note_resume()


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
