"""Callbacks of transformers (`TrainerCallback`), unmodified, in this trainer.

    from transformers import EarlyStoppingCallback, TrainingArguments
    from statemachine_trainer import Trainer
    from statemachine_trainer.integrations.huggingface import TrainerCallbacks

    args = TrainingArguments("out", metric_for_best_model="loss", load_best_model_at_end=True, eval_strategy="epoch")
    callbacks = TrainerCallbacks(EarlyStoppingCallback(early_stopping_patience=2), args=args)
    Trainer(max_epochs=10, callbacks=[callbacks]).fit(model, data, held_out, optimizer=optimizer)

Transformers has to be installed (`pip install statemachine-trainer[huggingface]`). Its trainer never runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any, Final

import torch

from statemachine_trainer.data import length_of
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.parallel.ranks import Ranks

_THEIRS: Final = "eval_"
_OURS: Final = "val_"
_WITHIN_STEP: Final = (
    "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_prediction_step",
)  # fmt: skip
"""Events at which transformers has not counted the step yet."""

_PLAIN: Final = (bool, int, float, str, torch.Tensor, type(None))


class ArgumentMissing(StateMachineError, AttributeError):
    """A callback reads an argument of training that it was not given."""


class NotATrainerCallback(StateMachineError):
    """Something else was given where a `TrainerCallback` of transformers is expected."""


class TrainerCallbacks:
    """A callback that calls those of transformers, at the moments and with the state that they expect.

    `on_train_begin`, `on_epoch_begin`, `on_step_begin`, `on_substep_end`, `on_pre_optimizer_step`,
    `on_optimizer_step`, `on_step_end`, `on_epoch_end`, `on_prediction_step`, `on_evaluate`, `on_log`, `on_save` and
    `on_train_end` are called. A step is one of the optimizer. What a callback asks for by its control is done:
    `should_training_stop`, `should_epoch_stop`, `should_save`, `should_evaluate`, `should_log`.

    Args:
        callbacks: Objects of `TrainerCallback`.
        args: The `TrainingArguments` that callbacks read. They change nothing of the training.

    Attributes:
        state: The `TrainerState` that callbacks are handed. Metrics of a validation are called `eval_...`.
        control: The `TrainerControl`.

    Raises:
        NotATrainerCallback: One of them is something else.
        ArgumentMissing: When a callback reads an argument, and there are none.
    """

    def __init__(self, *callbacks: Any, args: Any = None) -> None:
        library = import_module("transformers.trainer_callback")
        for one in callbacks:
            if not isinstance(one, library.TrainerCallback):
                kind = one.__name__ if isinstance(one, type) else type(one).__name__
                raise NotATrainerCallback(
                    f"TrainerCallbacks takes objects of transformers.TrainerCallback, and {kind} is none. Callbacks "
                    "of ours are given to the trainer beside it: Trainer(callbacks=[...])."
                )
        self.callbacks = callbacks
        self.args = _NoArguments() if args is None else args
        self.state: Any = library.TrainerState()
        self.control: Any = library.TrainerControl()
        self._saved: Any = None
        self._trainer: Any = None
        self._begun = False

    # -- training --------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any) -> None:
        """Call `on_train_begin`."""
        self._begin(trainer)

    def on_epoch_start(self, trainer: Any) -> None:
        """Call `on_epoch_begin`."""
        self._call(trainer, "on_epoch_begin")

    def on_batch_start(self, trainer: Any) -> None:
        """Call `on_step_begin`, at the first batch of a step."""
        if not trainer.context.open_windows:
            self._call(trainer, "on_step_begin")

    def on_optimizer_step(self, trainer: Any) -> None:
        """Call `on_pre_optimizer_step`."""
        self._call(trainer, "on_pre_optimizer_step")

    def on_exit_optimizer_step(self, trainer: Any) -> None:
        """Call `on_optimizer_step`: gradients are still there."""
        self._call(trainer, "on_optimizer_step")

    def on_batch_end(self, trainer: Any) -> None:
        """Call `on_step_end`, or `on_substep_end` before the last batch of a step."""
        within = bool(trainer.context.open_windows)
        self._call(trainer, "on_substep_end" if within else "on_step_end")

    def on_epoch_end(self, trainer: Any) -> None:
        """Call `on_epoch_end`, then `on_log` with the metrics of the epoch."""
        self._call(trainer, "on_epoch_end")
        self._log(trainer, _of_training(trainer))

    def on_fit_end(self, trainer: Any) -> None:
        """Call `on_train_end`."""
        self._call(trainer, "on_train_end")

    # -- validation ------------------------------------------------------------------------------

    def on_exit_validation_step(self, trainer: Any) -> None:
        """Call `on_prediction_step`."""
        self._call(trainer, "on_prediction_step")

    def on_validation_end(self, trainer: Any) -> None:
        """Call `on_log` and `on_evaluate` with the metrics of the validation, and note the best value."""
        metrics = _of_validation(trainer)
        self._log(trainer, metrics)
        self._call(trainer, "on_evaluate", metrics=metrics)
        self._note_best(metrics)

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state and control of transformers, and what callbacks keep in plain attributes."""
        return {
            "begun": self._begun,
            "state": _plain(dataclasses.asdict(self.state)),
            "control": _plain(dataclasses.asdict(self.control)),
            "callbacks": [[type(one).__name__, _plain(vars(one))] for one in self.callbacks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; `on_train_begin` is called before, as transformers does for a resumed run."""
        if state["begun"] and not self._begun and self._trainer is not None:
            self._begin(self._trainer)
        self._begun = state["begun"]
        for thing, name in ((self.state, "state"), (self.control, "control")):
            for key, value in state[name].items():
                setattr(thing, key, deepcopy(value))
        for one, (name, attributes) in zip(self.callbacks, state["callbacks"], strict=False):
            if type(one).__name__ == name:
                vars(one).update(deepcopy(attributes))

    # -- parts -----------------------------------------------------------------------------------

    def _begin(self, trainer: Any) -> None:
        state, limits = self.state, trainer.loop.limits()
        state.num_train_epochs = limits.max_epochs
        steps = limits.max_steps
        if steps is None and limits.max_epochs and length_of(trainer.context.train.loader):
            steps = trainer.total_steps
        state.max_steps = -1 if steps is None else steps
        ranks = Ranks.known() if Ranks.are_up() else None
        first = ranks is None or ranks.rank == 0
        state.is_world_process_zero = state.is_local_process_zero = first
        self._saved = getattr(trainer.checkpoints, "last", None)
        self._begun = True
        self._call(trainer, "on_train_begin")

    def _call(self, trainer: Any, event: str, **more: Any) -> None:
        """Call a method of all callbacks, and do what they have asked for."""
        self._trainer = trainer
        self._tell_of_checkpoint(trainer)
        self._call_all(trainer, event, **more)
        control = self.control
        if control.should_training_stop:
            trainer.stop()
        if control.should_epoch_stop:
            trainer.post("end_epoch")
        if control.should_evaluate:
            trainer.post("validate")
        if control.should_save:
            trainer.checkpoint()
        logs = control.should_log
        # What is asked for is asked for once; a fit that goes on may stop again.
        control.should_training_stop = control.should_epoch_stop = False
        control.should_evaluate = control.should_save = control.should_log = False
        if logs and event != "on_log":
            self._log(trainer, _of_training(trainer))

    def _call_all(self, trainer: Any, event: str, **more: Any) -> None:
        context, state = trainer.context, self.state
        if event not in _WITHIN_STEP:
            state.epoch, state.global_step = _epochs(trainer, event), context.counts.step
        schedulers = [one.scheduler for slot in context.slots for one in slot.schedulers]
        for one in self.callbacks:
            answer = getattr(one, event)(
                self.args,
                state,
                self.control,
                model=context.model,
                optimizer=next(iter(context.optimizers), None),
                lr_scheduler=next(iter(schedulers), None),
                train_dataloader=context.train.loader,
                eval_dataloader=next((feed.loader for _, feed in context.validation), None),
                **more,
            )
            self.control = self.control if answer is None else answer

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        logs = {**metrics, "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._call(trainer, "on_log", logs=logs)

    def _tell_of_checkpoint(self, trainer: Any) -> None:
        """Call `on_save` if a checkpoint was written since the last event."""
        newest = getattr(trainer.checkpoints, "last", None)
        if newest != self._saved:
            self._saved = newest
            self._call_all(trainer, "on_save")

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        """Note the best value of the metric that the arguments name, as transformers does after `on_evaluate`."""
        name = None if isinstance(self.args, _NoArguments) else self.args.metric_for_best_model
        if name is None:
            return
        name = name if name.startswith(_THEIRS) else f"{_THEIRS}{name}"
        value, best = metrics.get(name), self.state.best_metric
        if value is None:
            return
        if best is None or (value > best if self.args.greater_is_better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step


class _NoArguments:
    """Stands for `TrainingArguments` that were not given."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ArgumentMissing(
            f"A callback of transformers reads args.{name}, and there are no arguments: "
            "TrainerCallbacks(..., args=TrainingArguments(...))."
        )


def _epochs(trainer: Any, event: str) -> float:
    """Return the epochs so far, with the part of the present one that is done."""
    counts = trainer.context.counts
    if event in ("on_epoch_begin", "on_epoch_end", "on_train_end"):
        return float(counts.epoch + (event == "on_epoch_end"))
    length = counts.batches_per_epoch or length_of(trainer.context.train.loader)
    return float(counts.epoch + (counts.batch_in_epoch / length if length else 0.0))


def _of_training(trainer: Any) -> dict[str, float]:
    """Return what was logged in training, with the learning rate."""
    found = {n: float(v) for n, v in trainer.metrics.items() if not n.startswith(_OURS)}
    for optimizer in trainer.context.optimizers[:1]:
        found["learning_rate"] = float(optimizer.param_groups[0]["lr"])
    return found


def _of_validation(trainer: Any) -> dict[str, float]:
    """Return the metrics of a validation by the names that transformers has for them."""
    names = {n: f"{_THEIRS}{n.removeprefix(_OURS)}" for n in trainer.metrics if n.startswith(_OURS)}
    return {theirs: float(trainer.metrics[ours]) for ours, theirs in names.items()}


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that are plain data."""
    return {name: deepcopy(value) for name, value in attributes.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
