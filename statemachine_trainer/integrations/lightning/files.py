"""Checkpoints in Lightning's own format: written for Lightning, and read from it."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from statemachine_trainer.integrations.lightning.calls import HookCalls
from statemachine_trainer.integrations.lightning.library import BadLightningFile
from statemachine_trainer.integrations.lightning.standing import Standing
from statemachine_trainer.machine.errors import level_of_caller


class NotInTheFileWarning(UserWarning):
    """A Lightning checkpoint does not hold all that a run goes on with."""


class LightningFiles:
    """Makes, writes and reads what Lightning calls a checkpoint.

    Args:
        standing: Where the run stands.
        calls: Calls the hooks that add to a checkpoint, or look at one.
    """

    def __init__(self, standing: Standing, calls: HookCalls) -> None:
        self._standing = standing
        self._calls = calls

    # -- making ----------------------------------------------------------------------------------

    def checkpoint(self, *, weights_only: bool = False) -> dict[str, Any]:
        """Return the checkpoint of this moment, with what hooks have made of it.

        Args:
            weights_only: Leave out optimizers, schedulers and callbacks.
        """
        checkpoint = self.plain_checkpoint(weights_only=weights_only)
        if not weights_only:
            self._calls.call_callbacks("on_save_checkpoint", checkpoint)
        self._calls.call_module("on_save_checkpoint", checkpoint)
        return checkpoint

    def plain_checkpoint(self, *, weights_only: bool = False) -> dict[str, Any]:
        """Return the checkpoint that hooks get to see when one is saved."""
        standing, module = self._standing, self._standing.module
        context = standing.fitting
        made = {
            "epoch": context.counts.epoch,
            "global_step": sum(slot.steps for slot in context.slots),
            "pytorch-lightning_version": standing.library.version,
            "state_dict": module.state_dict(),
            "loops": self._loops(),
        }
        if not weights_only:
            states = {one.state_key: one.state_dict() for one in self._calls.callbacks}
            made["callbacks"] = {key: state for key, state in states.items() if state}
            made["optimizer_states"] = [one.state_dict() for one in context.optimizers]
            made["lr_schedulers"] = [
                one.scheduler.state_dict() for slot in context.slots for one in slot.schedulers
            ]
            if context.precision.scaler is not None:
                made["MixedPrecision"] = context.precision.scaler.state_dict()
        return {**made, **self.constants()}

    def constants(self) -> dict[str, Any]:
        """Return the hyper-parameters and the state of the data module."""
        made: dict[str, Any] = {}
        data = self._calls.datamodule
        for thing in (self._standing.module, data):
            if thing is not None and getattr(thing, "hparams", None):
                if hasattr(thing, "_hparams_name"):
                    made[thing.CHECKPOINT_HYPER_PARAMS_NAME] = thing._hparams_name
                made[thing.CHECKPOINT_HYPER_PARAMS_KEY] = dict(thing.hparams)
        state = None if data is None else data.state_dict()
        return {**made, type(data).__qualname__: state} if state else made

    def _loops(self) -> dict[str, Any]:
        """Return the counters of Lightning's loops, such that it goes on from here."""
        standing = self._standing
        context = standing.fitting
        epoch = context.counts.epoch
        ended = standing.at_end_of_epoch
        batches, in_epoch = standing.batches_done
        steps = sum(slot.steps for slot in context.slots)
        by_hand = 0 if standing.automatic else steps
        automatic = steps - by_hand
        whole = {"ready": batches, "completed": batches, "started": batches, "processed": batches}
        current = {
            "ready": in_epoch, "completed": in_epoch, "started": in_epoch, "processed": in_epoch,
        }  # fmt: skip
        passes = {
            "ready": epoch + 1, "completed": epoch, "started": epoch + 1, "processed": epoch + ended,
        }  # fmt: skip
        if not in_epoch and not ended:  # between two epochs
            passes = dict.fromkeys(passes, epoch)
        nothing = _progress(0)
        return {
            "fit_loop": {
                "state_dict": {},
                "epoch_loop.state_dict": {"_batches_that_stepped": standing.batches_stepped},
                "epoch_loop.batch_progress": {
                    "total": whole, "current": current, "is_last_batch": ended,
                },
                "epoch_loop.scheduler_progress": _progress(0, brief=True),
                "epoch_loop.automatic_optimization.state_dict": {},
                "epoch_loop.automatic_optimization.optim_progress": {
                    "optimizer": {
                        "step": _progress(automatic, brief=True),
                        "zero_grad": {
                            which: {"ready": automatic, "completed": automatic, "started": automatic}
                            for which in ("total", "current")
                        },
                    }
                },
                "epoch_loop.manual_optimization.state_dict": {},
                "epoch_loop.manual_optimization.optim_step_progress": _progress(by_hand, brief=True),
                "epoch_loop.val_loop.state_dict": {},
                "epoch_loop.val_loop.batch_progress": {**nothing, "is_last_batch": False},
                "epoch_progress": {"total": passes, "current": dict(passes)},
            },
            "validate_loop": {"state_dict": {}, "batch_progress": {**nothing, "is_last_batch": False}},
            "test_loop": {"state_dict": {}, "batch_progress": {**nothing, "is_last_batch": False}},
            "predict_loop": {"state_dict": {}, "batch_progress": _progress(0)},
        }  # fmt: skip

    # -- writing ---------------------------------------------------------------------------------

    def write(self, path: Path, *, weights_only: bool, here: bool = True) -> None:
        """Write a file that `fit(ckpt_path=...)` of Lightning and `load_from_checkpoint` read.

        The file holds pickled objects: hyper-parameters may be of any class.

        Args:
            path: Of the file; its folder is made if need be.
            weights_only: Leave out optimizers, schedulers and callbacks.
            here: Whether this rank writes; the hooks of the others are called as well.
        """
        with self._schedulers_moved():
            made = self.checkpoint(weights_only=weights_only)
            if here:
                _write(made, path)

    @contextmanager
    def _schedulers_moved(self) -> Iterator[None]:
        """Within the block, have schedulers by epochs where Lightning has them at the end of an epoch.

        There they have moved by then, here they are about to.
        """
        context = self._standing.fitting
        if not self._standing.at_end_of_epoch or context.manual:
            yield
            return
        before: list[tuple[Any, Any, list[dict[str, Any]]]] = []
        for slot in context.slots:
            for one in slot.schedulers:
                due = (context.counts.epoch + 1) % one.frequency == 0
                if one.interval == "epoch" and one.monitor is None and due:
                    groups = [{k: v for k, v in g.items() if k != "params"}
                              for g in slot.optimizer.param_groups]  # fmt: skip
                    state = copy.deepcopy(one.scheduler.state_dict())
                    before.append((one.scheduler, state, copy.deepcopy(groups)))
                    one.scheduler.step()
        try:
            yield
        finally:
            for scheduler, state, groups in reversed(before):
                scheduler.load_state_dict(state)
                for group, was in zip(scheduler.optimizer.param_groups, groups, strict=True):
                    group.update(was)

    # -- reading ---------------------------------------------------------------------------------

    def go_on_from(self, path: Path) -> None:
        """Bring a fit that has not begun to where Lightning wrote a checkpoint.

        Weights, optimizers, schedulers, scaler, counters, callbacks and data module come from the file. The
        hooks see it as they do in Lightning.

        Args:
            path: Of the file.

        Raises:
            BadLightningFile: It is none of Lightning's, or of another model.

        Warns:
            NotInTheFileWarning: What the file does not hold.
        """
        checkpoint = _read(path)
        calls, standing = self._calls, self._standing
        context = standing.fitting
        calls.call_module("on_load_checkpoint", checkpoint)
        try:
            standing.module.load_state_dict(
                checkpoint["state_dict"], strict=standing.module.strict_loading
            )
        except RuntimeError as error:
            raise BadLightningFile(
                f"The weights in {str(path)!r} are those of another model than this "
                f"{type(standing.module).__name__}: {error}"
            ) from error
        data = calls.datamodule
        if data is not None and type(data).__qualname__ in checkpoint:
            data.load_state_dict(checkpoint[type(data).__qualname__])
        calls.call_callbacks("on_load_checkpoint", checkpoint)
        self._load_callbacks(checkpoint.get("callbacks", {}))
        self._load_optimizers(checkpoint, path)
        if context.precision.scaler is not None and checkpoint.get("MixedPrecision"):
            context.precision.scaler.load_state_dict(checkpoint["MixedPrecision"])
        self._load_counters(checkpoint, path)

    def _load_callbacks(self, states: Mapping[str, Any]) -> None:
        for callback in self._calls.callbacks:
            state = states.get(callback.state_key) or states.get(callback._legacy_state_key)
            if state:
                callback.load_state_dict(copy.deepcopy(state))

    def _load_optimizers(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        slots = self._standing.fitting.slots
        states = checkpoint.get("optimizer_states", [])
        if len(states) != len(slots):
            raise BadLightningFile(
                f"{str(path)!r} has the states of {len(states)} optimizers, this module configures {len(slots)}. "
                "Write the file with save_weights_only=False, or load only the weights: "
                "`type(module).load_from_checkpoint(path)`."
            )
        for slot, state in zip(slots, states, strict=True):
            slot.optimizer.load_state_dict(state)
        schedulers = [one.scheduler for slot in slots for one in slot.schedulers]
        for scheduler, state in zip(schedulers, checkpoint.get("lr_schedulers", []), strict=False):
            scheduler.load_state_dict(state)

    def _load_counters(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        context = self._standing.fitting
        fit = checkpoint.get("loops", {}).get("fit_loop")
        missing = ["the generators of random numbers", "where the data stand"]
        epoch, steps = int(checkpoint["epoch"]), int(checkpoint["global_step"])
        counts = context.counts
        if fit:
            passes = fit["epoch_progress"]["current"]
            counts.epoch = int(passes["processed"])
            counts.batch = int(fit["epoch_loop.batch_progress"]["total"]["processed"])
            if passes["ready"] > passes["processed"]:
                done = int(fit["epoch_loop.batch_progress"]["current"]["processed"])
                missing.append(
                    f"the {done} batches of epoch {counts.epoch} that were trained on: the epoch begins anew"
                )
        else:
            counts.epoch = epoch + 1
            missing.append("the counters of the loops")
        for slot in context.slots:
            slot.steps = steps // max(len(context.slots), 1)
            slot.optimizer._opt_called = bool(steps)  # type: ignore[attr-defined]
        counts.step = (
            steps if context.limits.every_optimizer else steps // max(len(context.slots), 1)
        )
        warnings.warn(
            f"{str(path)!r} is a checkpoint of Lightning, which does not hold {'; '.join(missing)}. The fit goes "
            f"on with epoch {counts.epoch}, step {steps}. Checkpoints of this trainer hold them: "
            "`Trainer(checkpoints=folder)`.",
            NotInTheFileWarning,
            stacklevel=level_of_caller(),
        )


def _progress(number: int, *, brief: bool = False) -> dict[str, Any]:
    names = ("ready", "completed") if brief else ("ready", "completed", "started", "processed")
    return {which: dict.fromkeys(names, number) for which in ("total", "current")}


def is_lightning_file(path: object) -> bool:
    """Tell whether a path names a file, where the checkpoints of this trainer are folders."""
    return isinstance(path, str | Path) and Path(path).is_file() and Path(path).suffix == ".ckpt"


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise BadLightningFile(f"{str(path)!r} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "epoch", "global_step"} <= set(
        checkpoint
    ):
        raise BadLightningFile(
            f"{str(path)!r} is no checkpoint of Lightning: it lacks 'state_dict', 'epoch' or 'global_step'. To load "
            "weights only: `module.load_state_dict(torch.load(path))`."
        )
    return checkpoint


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
