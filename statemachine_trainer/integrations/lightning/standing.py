"""Where a run of a LightningModule stands: its stage, its contexts and the settings of its loops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from statemachine_trainer.data import length_of, limit_batches
from statemachine_trainer.integrations.lightning.library import Library
from statemachine_trainer.integrations.lightning.ranks import LightningDdp
from statemachine_trainer.loops.context import Context
from statemachine_trainer.machine.loop import Loop

STAGES: Final = {
    "fit": "FITTING",
    "validate": "VALIDATING",
    "test": "TESTING",
    "predict": "PREDICTING",
}


class Standing:
    """Knows which stage runs, and finds its context and its loops.

    Args:
        module: The LightningModule.
        library: Where it comes from.

    Attributes:
        stage: "fit", "validate", "test" or "predict".
        skip_backward: Whether batches are seen without a backward pass, as a callback has asked.
        accumulate: Set by a callback in the place of the loop's setting; None if none did.
        batch_in_flight: Whether a training batch is worked on.
        validates: Whether the fit has validation data, as far as is known before they are made.
        keeps_modes: Whether the module has left parts of itself in training mode for the present evaluation.
        evaluates_together: Whether the present evaluation by itself is one of all ranks, each of which reads
            its own samples.
        averaging: What averages the gradients of a fit over the ranks; None if nothing does.
        evaluated: Batches of the evaluation that were begun, of all loaders.
        evaluated_in_all: Batches that were evaluated, by "validation", "test" or "predict", and of each loader by
            "validation/0" and so on.
    """

    def __init__(self, module: Any, library: Library) -> None:
        self.module = module
        self.library = library
        self.stage = "fit"
        self.skip_backward = False
        self.accumulate: int | None = None
        self._contexts: dict[str, Context] = {}
        self._within = ""
        self._train: Any = None
        self._stepped_before: int | None = None
        self.batch_in_flight = False
        self.validates = False
        self.evaluates_together = self.keeps_modes = False
        self.averaging: LightningDdp | None = None
        self.evaluated = 0
        self.evaluated_in_all: dict[str, int] = {}

    # -- stages ----------------------------------------------------------------------------------

    def begin(self, context: Context, stage: str) -> None:
        """Take up the context of a run."""
        self._contexts[stage] = context
        self.stage, self._within = stage, stage
        self.evaluates_together = self.keeps_modes = False
        if stage == "fit":
            self._train = self.averaging = None
            self.skip_backward, self.accumulate = False, None

    def take_training_source(self, source: Any) -> None:
        """Take the source of the training data, whose `loader()` may be asked for before the fit has it."""
        self._train = source

    def enter_stage(self, path: str) -> None:
        """Note from the path of a state what the trainer is doing."""
        root = path.partition(".")[0]
        self.stage = root if root in STAGES else self.stage
        self._within = path

    def leave_evaluation(self) -> None:
        """Note that an evaluation is over, so that what comes next is none of it."""
        self._within = self.stage

    @property
    def context(self) -> Context:
        """The context of the present stage."""
        return self._contexts[self.stage]

    @property
    def owner(self) -> Any:
        """The trainer that runs."""
        return self.context.trainer

    @property
    def has_begun(self) -> bool:
        """Whether anything was started."""
        return bool(self._contexts)

    @property
    def has_fitted(self) -> bool:
        """Whether a fit has begun."""
        return "fit" in self._contexts

    @property
    def fitting(self) -> Context:
        """The context of the fit, if there was one; else that of the present stage."""
        return self._contexts.get("fit") or self.context

    @property
    def function(self) -> Any:
        """The member of Lightning's `TrainerFn` for the stage."""
        return self.library.get("trainer.states:TrainerFn")[STAGES[self.stage]]

    @property
    def running_stage(self) -> Any:
        """The member of Lightning's `RunningStage` for what the trainer is doing."""
        stages = self.library.get("trainer.states:RunningStage")
        if self.sanity_checking:
            return stages.SANITY_CHECKING
        if self.validating:
            return stages.VALIDATING
        names = {"fit": "TRAINING", "test": "TESTING", "predict": "PREDICTING"}
        return stages[names[self.stage]]

    @property
    def sanity_checking(self) -> bool:
        """Whether a few validation batches are tried before the first epoch."""
        return "sanity" in self._within.split(".")

    @property
    def validating(self) -> bool:
        """Whether a validation runs, within a fit or by itself; the sanity check is none."""
        return self.stage == "validate" or "validation" in self._within.split(".")

    # -- data ------------------------------------------------------------------------------------

    @property
    def train_dataloader(self) -> Any:
        """The training loader, made now if it was given as a function; None if there is none yet."""
        feed = self.fitting.train
        if feed is not None:
            return feed.loader
        return None if self._train is None else self._train.loader()

    @property
    def training_batches(self) -> float:
        """Batches in a training epoch; infinity where nobody knows."""
        loader = self.train_dataloader
        if loader is None:
            return math.inf
        known = limit_batches(
            self.setting("limit_batches", beside="reload_every"), length_of(loader)
        )
        return math.inf if known is None else known

    # -- loops and their settings ----------------------------------------------------------------

    def loop_with(self, *settings: str) -> Loop | None:
        """Find the loop of the fit that has these settings."""
        root: Loop = self.fitting.trainer.loop
        for _, loop in root.walk():
            if all(hasattr(loop, name) for name in settings):
                return loop
        return None

    def setting(self, name: str, default: Any = None, *, beside: str | None = None) -> Any:
        """Return a setting of the loop of the fit that has it, and beside it another one."""
        loop = self.loop_with(name, *((beside,) if beside else ()))
        return getattr(loop, name, default)

    def set_accumulate(self, value: int | None) -> None:
        """Set the backward passes per step, in the place of the loop's setting; None leaves that."""
        self.accumulate = value
        loop: Any = self.loop_with("accumulate")
        if value is not None and loop is not None:
            loop.accumulate = value

    @property
    def accumulate_grad_batches(self) -> int:
        """Backward passes per step in the present epoch."""
        value = self.setting("accumulate", 1)
        if not isinstance(value, Mapping):
            return int(value)
        epoch = self.fitting.counts.epoch
        return int(value[max((start for start in value if start <= epoch), default=min(value))])

    @property
    def automatic(self) -> bool:
        """Whether the trainer steps the optimizers."""
        return bool(self.module.automatic_optimization)

    # -- counting as Lightning does --------------------------------------------------------------

    def begin_batch(self) -> None:
        """Note that a training batch is in flight, so its step does not count yet."""
        self._stepped_before = None
        self._stepped_before = self.batches_stepped
        self.batch_in_flight = True

    def batch_is_through(self) -> None:
        """Note that the training batch is counted, and its hooks are called."""
        self.batch_in_flight = False

    def end_batch(self) -> None:
        """Note that the training batch is done."""
        self._stepped_before, self.batch_in_flight = None, False

    def begin_evaluation(self) -> None:
        """Count the batches of an evaluation from zero."""
        self.evaluated = 0

    def end_evaluated_batch(self, kind: str) -> None:
        """Count a batch that was evaluated; those of the sanity check leave no trace."""
        if not self.sanity_checking:
            number = self.context.dataloader_idx
            for name in (kind, f"{kind}/{number}"):
                self.evaluated_in_all[name] = self.evaluated_in_all.get(name, 0) + 1

    def evaluated_of_loader(self, kind: str) -> int:
        """Batches that were evaluated of the present loader, in all evaluations of a kind."""
        return self.evaluated_in_all.get(f"{kind}/{self.context.dataloader_idx}", 0)

    @property
    def batches_stepped(self) -> int:
        """Batches after which an optimizer has stepped, which is what Lightning's loggers take for steps.

        The batch in flight is not counted, nor that before a validation within an epoch.
        """
        if self._stepped_before is not None:
            return self._stepped_before
        context = self.fitting
        steps = max((slot.steps for slot in context.slots), default=0)
        found = steps if self.automatic else context.counts.batch
        within_fit = self.stage == "fit" and self.validating
        return max(found - 1, 0) if within_fit and self.may_step else found

    @property
    def batches_done(self) -> tuple[int, int]:
        """Training batches that were worked on, over the run and in the epoch."""
        counts = self.fitting.counts
        return counts.batch, counts.batch_in_epoch

    @property
    def evaluation_in_flight(self) -> bool:
        """Whether the step of an evaluation is called."""
        return self._within.rpartition(".")[2].endswith("_step")

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether all batches of the present epoch have been worked on."""
        done = self.batches_done[1]
        return bool(done) and done == self.fitting.counts.batches_per_epoch

    @property
    def speaks(self) -> bool:
        """Whether the ranks, if there are several, are all here: an evaluation by itself may be that of one."""
        return self.stage == "fit" or self.evaluates_together

    @property
    def several_loaders(self) -> bool:
        """Whether steps and hooks of the evaluation get the number of a loader."""
        return len(self.context.validation) > 1

    @property
    def may_step(self) -> bool:
        """Whether the batch that is ending is the last of its accumulation window."""
        return not self.automatic or not self.fitting.open_windows
