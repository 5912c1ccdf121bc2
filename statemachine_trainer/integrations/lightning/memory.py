"""What hooks leave in a checkpoint, and how they find it again when a run is resumed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from statemachine_trainer.integrations.lightning.attributes import Attributes, modules_by_name
from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.files import LightningFiles
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.integrations.lightning.structure import (
    group_again,
    parameter_names,
    prune_again,
)
from statemachine_trainer.snapshot import encode
from statemachine_trainer.snapshot.snapshot_errors import Unwritable

_AVERAGING: Final = "callbacks:StochasticWeightAveraging"
_PROGRESS: Final = "callbacks:ProgressBar"
_BY_EPOCH: Final = (_PROGRESS, _AVERAGING)
"""Callbacks of Lightning that prepare an epoch when it begins, and keep nothing of it in their state."""


class Memory:
    """The part of a fit's state that belongs to hooks.

    A resumed fit goes through the beginning of the first one again, from the same script: `setup`,
    `on_fit_start` and `on_train_start` are called where they were called before the checkpoint. Then
    the state is loaded over what they did. In between the hooks that look at a checkpoint see it as
    they left it: keys that they added or replaced, beside those that Lightning has.

    Args:
        calls: Calls the hooks.
        standing: Where the run stands.
        files: Makes checkpoints as hooks see them.

    Attributes:
        started: Which hooks of the beginning were called: "fit", then "train"; None before and after.
        within_epoch: Whether an epoch has begun, and its hooks at the end were not called yet.
        newest_epoch: The epoch that has begun last; -1 before the first.
        evaluation: The evaluation within the fit that has begun and not ended: "sanity" or "validation".
        train_ended: Whether `on_train_end` was called, and `on_fit_end` was not called yet.
    """

    def __init__(self, calls: HookCalls, standing: Standing, files: LightningFiles) -> None:
        self._calls = calls
        self._standing = standing
        self._files = files
        self._attributes = Attributes(lambda: list(self._things()), calls.library)
        self._coming: Mapping[str, Any] | None = None
        self._file: Path | None = None
        self.started: str | None = None
        self.within_epoch = False
        self.newest_epoch = -1
        self.train_ended = False
        self.evaluation: Literal["sanity", "validation"] | None = None

    # -- the beginning of a fit ------------------------------------------------------------------

    def arrive(self) -> None:
        """Forget what was noted of an earlier run."""
        self.started, self.within_epoch = None, False
        self.newest_epoch, self.train_ended, self.evaluation = -1, False, None
        self._attributes.note()

    def go_on_from_file(self, path: Path) -> None:
        """Let the fit that is about to begin go on from a checkpoint of Lightning's."""
        self._file = path

    def begin(self) -> None:
        """Take up the checkpoint of Lightning's that the fit goes on from, if there is one."""
        path, self._file = self._file, None
        if path is not None:
            self._files.go_on_from(path)

    def note_start_of_training(self) -> None:
        """Note that the hooks of the beginning are through: what attributes change from now on is held."""
        self.started = "train"
        self._attributes.note()

    def expect(self, context_state: Mapping[str, Any]) -> None:
        """Hear of the state that is about to be loaded, of which `load_state_dict` has but a part."""
        self._coming = context_state

    def _things(self) -> Iterator[tuple[str, object]]:
        """Yield what may keep something in attributes."""
        calls = self._calls
        yield from modules_by_name(calls.module, type(calls.module).__name__)
        if calls.datamodule is not None:
            yield type(calls.datamodule).__name__, calls.datamodule
        root = calls.library.root.partition(".")[0]
        for index, one in enumerate(calls.callbacks):
            theirs = type(one).__module__.partition(".")[0] in ("lightning", root)
            if not theirs and not calls.library.is_overridden("state_dict", one):
                yield f"{type(one).__name__}[{index}]", one

    # -- writing ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states of callbacks and data module, and what hooks add, replace or change."""
        data, standing = self._calls.datamodule, self._standing
        return {
            "callbacks": [
                {"key": one.state_key, "state": one.state_dict()} for one in self._calls.callbacks
            ],
            "datamodule": None if data is None else data.state_dict(),
            **self._added_to_checkpoint(),
            "attributes": self._attributes.changed() if self.started else {},
            "started": self.started,
            "within_epoch": self.within_epoch,
            "newest_epoch": self.newest_epoch,
            "train_ended": self.train_ended,
            "evaluation": self.evaluation,
            "accumulate": standing.accumulate,
            "evaluated": dict(standing.evaluated_in_all),
            "skip_backward": standing.skip_backward,
            "groups": parameter_names(standing.module, standing.fitting.slots),
        }

    def _added_to_checkpoint(self) -> dict[str, Any]:
        """Return the keys that hooks add to a checkpoint, or whose values they replace.

        Objects, such as a loss, are not written down: the script makes them, and a resumed run takes those
        that its own hooks hand over. Of modules the state is kept.
        """
        added = self._ask_hooks()
        made = {key: _state_of(value) for key, value in added.items() if not _is_plain(value)}
        return {"added": {k: v for k, v in added.items() if k not in made}, "made": made}

    def _ask_hooks(self) -> dict[str, Any]:
        calls, is_overridden = self._calls, self._calls.library.is_overridden
        asked = [one for one in calls.callbacks if is_overridden("on_save_checkpoint", one)]
        of_module = is_overridden("on_save_checkpoint", calls.module)
        if not asked and not of_module:
            return {}
        checkpoint = self._files.plain_checkpoint()
        # A hook may change a value in place: hold a shallow copy beside it to see that.
        before = {key: (value, copy.copy(value)) for key, value in checkpoint.items()}
        calls.call_callbacks("on_save_checkpoint", checkpoint, only=lambda one: one in asked)
        if of_module:
            calls.call_module("on_save_checkpoint", checkpoint)
        added = {
            key: value
            for key, value in checkpoint.items()
            if key not in before or _is_changed(value, *before[key])
        }
        removed = [key for key in before if key not in checkpoint]
        return {**added, _REMOVED: removed} if removed else added

    # -- reading ---------------------------------------------------------------------------------

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give callbacks, data module and hooks back what they have saved.

        In the order of Lightning: the module's `on_load_checkpoint`, the callbacks', their states, then
        the hooks of the beginning. Weights and counters are loaded after this.
        """
        coming, self._coming = self._coming, None
        calls, standing = self._calls, self._standing
        if coming is not None:
            prune_again(standing.module, coming["model"]["weights"])
        if state["datamodule"] and calls.datamodule is not None:
            calls.datamodule.load_state_dict(state["datamodule"])
        self._show_checkpoint(state, coming)
        self._load_callbacks(state, anew=True)
        if coming is not None:
            self._begin_again(state, coming)
            self._average_again(state)
        standing.set_accumulate(state["accumulate"])
        standing.skip_backward = state["skip_backward"]
        standing.evaluated_in_all = dict(state["evaluated"])
        self._attributes.put_back(state["attributes"])
        group_again(standing.module, standing.fitting.slots, state["groups"])

    def _load_callbacks(self, state: Mapping[str, Any], *, anew: bool) -> None:
        """Load the states of callbacks; a second time only of those whose state is another now."""
        saved = {one["key"]: one["state"] for one in state["callbacks"]}
        for callback in self._calls.callbacks:
            was = saved.get(callback.state_key)
            if was and (anew or _is_other(callback.state_dict(), was)):
                callback.load_state_dict(copy.deepcopy(was))

    def _show_checkpoint(self, state: Mapping[str, Any], coming: Mapping[str, Any] | None) -> None:
        """Call `on_load_checkpoint` with the checkpoint as hooks saw and left it."""
        calls = self._calls
        checkpoint = self._seen_checkpoint(state, coming)
        if calls.library.is_overridden("on_load_checkpoint", calls.module):
            calls.call_module("on_load_checkpoint", checkpoint)
        calls.call_callbacks("on_load_checkpoint", checkpoint)

    def _seen_checkpoint(
        self, state: Mapping[str, Any], coming: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        checkpoint = self._files.plain_checkpoint()
        if coming is not None:
            slots = coming["optimizers"]
            checkpoint.update(
                epoch=coming["counts"]["epoch"],
                global_step=sum(one["steps"] for one in slots),
                state_dict=coming["model"]["weights"],
                optimizer_states=[one["optimizer"] for one in slots],
                lr_schedulers=[each for one in slots for each in one["schedulers"]],
                callbacks={one["key"]: one["state"] for one in state["callbacks"] if one["state"]},
            )
        added = dict(state["added"])
        for key in added.pop(_REMOVED, []):
            checkpoint.pop(key, None)
        made = self._ask_hooks() if state.get("made") else {}
        for key, inside in state.get("made", {}).items():
            if key in made:
                added[key] = made[key]
                if inside is not None and isinstance(made[key], nn.Module):
                    made[key].load_state_dict(inside)
        return {**checkpoint, **added}

    def _begin_again(self, state: Mapping[str, Any], coming: Mapping[str, Any]) -> None:
        """Call the hooks of the beginning that this process has not called, and the saved run had."""
        calls, was = self._calls, state["started"]
        if was is not None and self.started != was:
            if self.started is None:
                calls.call("on_fit_start")
            if was == "train":
                calls.call("on_train_start")
                self.note_start_of_training()
            self._load_callbacks(state, anew=False)
            if state["within_epoch"]:
                kinds = tuple(calls.library.get(path) for path in _BY_EPOCH)
                self._begin_epoch_again(coming["counts"]["epoch"], kinds)
            else:
                self._measure_batch_norm_again(state, coming["counts"]["epoch"])
        within = state.get("evaluation")
        if within is not None and within != self.evaluation:
            self._show_evaluation_again(within)
            if calls.library.is_overridden("on_validation_model_eval", calls.module):
                self._standing.keeps_modes = calls.model_eval("validation")
        self.started, self.within_epoch = was, state["within_epoch"]
        self.newest_epoch = state.get("newest_epoch", -1)
        self.train_ended = state.get("train_ended", False)
        self.evaluation = within

    def _begin_epoch_again(self, epoch: int, kinds: tuple[type, ...]) -> None:
        """Let callbacks that prepare an epoch do so again."""
        with self._at_epoch(epoch):
            self._calls.call_callbacks(
                "on_train_epoch_start", only=lambda one: isinstance(one, kinds)
            )

    @contextmanager
    def _at_epoch(self, epoch: int) -> Iterator[None]:
        """Let hooks see this epoch as the current one: counters are loaded later."""
        counts = self._standing.fitting.counts
        before, counts.epoch = counts.epoch, epoch
        try:
            yield
        finally:
            counts.epoch = before

    def _measure_batch_norm_again(self, state: Mapping[str, Any], epoch: int) -> None:
        """Set again what an average had set for its epoch of batch norm, and puts back in `on_train_end`.

        Args:
            state: The saved state.
            epoch: How many epochs were over.
        """
        kind, newest = self._calls.library.get(_AVERAGING), state.get("newest_epoch", -1)

        def measures(one: Any) -> bool:
            return isinstance(one, kind) and one._max_epochs != -1 and newest == one.swa_end + 1

        if any(measures(one) for one in self._calls.callbacks):
            self._begin_epoch_again(newest, (kind,))
            self._calls.call_callbacks("on_train_epoch_end", only=measures)
            if state["train_ended"]:
                with self._at_epoch(epoch):
                    self._calls.call_callbacks("on_train_end", only=measures)

    def _show_evaluation_again(self, within: str) -> None:
        """Let progress bars open the bar of an evaluation that has begun."""
        hook = "on_sanity_check_start" if within == "sanity" else "on_validation_start"
        kind = self._calls.library.get(_PROGRESS)
        self._calls.call_callbacks(hook, only=lambda one: isinstance(one, kind))

    def _average_again(self, state: Mapping[str, Any]) -> None:
        """Let an average that had put its own scheduler in the place of the model's do so between epochs, too."""
        kind = self._calls.library.get(_AVERAGING)
        saved = {one["key"]: one["state"] for one in state["callbacks"]}
        for one in self._calls.callbacks:
            was = saved.get(one.state_key) if isinstance(one, kind) else None
            if was and state["accumulate"] is not None:
                self._note_what_ends(one)
            if was and was["scheduler_state"] is not None and one._swa_scheduler is None:
                if not hasattr(
                    one, "_max_epochs"
                ):  # the saved fit had ended: `on_fit_start` is yet to come
                    one._max_epochs = self._calls.trainer.max_epochs
                if isinstance(one._swa_epoch_start, float):
                    one._swa_epoch_start = int(one._max_epochs * one._swa_epoch_start)
                self._begin_epoch_again(was["latest_update_epoch"], (kind,))

    def _note_what_ends(self, averaging: Any) -> None:
        """Note for an average what it puts back at the end of the fit, once its epoch of batch norm is over."""
        if not hasattr(averaging, "_accumulate_grad_batches"):
            averaging._accumulate_grad_batches = self._calls.trainer.accumulate_grad_batches
            modules = self._standing.module.modules()
            averaging.momenta = {m: m.momentum for m in modules if isinstance(m, _BatchNorm)}


_REMOVED: Final = "$removed by a hook"


def _is_changed(value: Any, was: Any, copied: Any) -> bool:
    """Whether a value of a checkpoint is another object, or was changed in place at its first level."""
    if value is not was:
        return True
    if isinstance(value, Mapping):
        return value.keys() != copied.keys() or any(value[key] is not copied[key] for key in value)
    if isinstance(value, list):
        return len(value) != len(copied) or any(
            a is not b for a, b in zip(value, copied, strict=True)
        )
    return False


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold a value."""
    try:
        encode(value)
    except Unwritable:
        return False
    return True


def _state_of(value: Any) -> Any:
    """Return the state of a module in plain data; None of anything else."""
    return dict(value.state_dict()) if isinstance(value, nn.Module) else None


def _is_other(now: Any, was: Any) -> bool:
    """Whether two states differ; what cannot be compared does."""
    try:
        return bool(now != was)
    except (RuntimeError, ValueError, TypeError):  # tensors with several elements
        return True
