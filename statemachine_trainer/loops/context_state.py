"""The state of a run at a boundary: all that a resumed run needs to give the same bits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from statemachine_trainer.data import NotExact
from statemachine_trainer.data.own_generators import not_there
from statemachine_trainer.loops.base import in_training
from statemachine_trainer.loops.context import Context, saved_as
from statemachine_trainer.loops.metrics.objects import load_torchmetrics_state, torchmetrics_state
from statemachine_trainer.loops.scheduler_state import load_scheduler_state, scheduler_state
from statemachine_trainer.loops.slots import OptimizerSlot
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.machine.fields import copied
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel import map_leaves
from statemachine_trainer.parallel.device import back_on_accelerator, on_accelerator
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.held import Held, own_states, restore_own
from statemachine_trainer.snapshot.modules import load_module_state, module_state
from statemachine_trainer.snapshot.rng import devices_in_use, restore_rng, rng_state
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch

_PLAIN: Final = saved_as("plain")
_TENSORS: Final = saved_as("tensors")

_SCHEDULED: Final = (
    "lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "base_momentum", "max_momentum",
)  # fmt: skip
"""Settings that schedulers write into the parameter groups of an optimizer."""

_handed: ContextVar[list[Any]] = ContextVar("statemachine_trainer_handed_state")


@contextmanager
def handing_state(tree: Any) -> Iterator[None]:
    """Within the block, make the first fit continue from a state, as `resume=` would.

    For callers that get the trainer from a function that starts the fit itself.
    """
    token = _handed.set([tree])
    try:
        yield
    finally:
        _handed.reset(token)


def is_handed_state() -> bool:
    """Return whether a handed state waits for the next fit."""
    return bool(_handed.get([]))


def take_handed_state() -> Any:
    """Return the state handed to the fit that is being started; None if there is none."""
    waiting = _handed.get([])
    return waiting.pop() if waiting else None


def context_state(context: Context, generators: Held, *, gradients: bool = False) -> dict[str, Any]:
    """Return the state of the context of a run, as a plain tree.

    Tensors are not copied: write or copy them before the run continues.

    It includes gradients if the run, or a receiver, may read them again: within a batch after its
    backward pass, in an open accumulation window, and always if the training step optimizes by
    hand. Between batches it does not, because the next backward pass begins with `zero_grad`.

    Args:
        context: The context.
        generators: The states of the generators that only the model reaches.
        gradients: Whether to include gradients in any case, because something reads them before that pass.

    Raises:
        Unwritable: A scheduler cannot say where it stands.
    """
    context.read_clock()
    names = PlainNames(context.model)  # one walk over the modules for all
    tables = {"train": context.train_metrics, "validation": context.validation_metrics}
    in_flight = {name: getattr(context, name) for name in _TENSORS}
    on_cpu = context.device.type == "cpu"  # then nothing is asked of each tensor
    logging = next((name for name, table in tables.items() if table is context.log_table), None)
    return {
        "model": module_state(names, grads=gradients or context.has_gradients),
        "generators": dict(generators),
        "torchmetrics": torchmetrics_state(names),
        "optimizers": list(_slot_states(context, names)),
        "precision": context.precision.state_dict(),
        "manual": context.manual,
        "counts": context.counts.state_dict(),
        "plain": {name: copied(getattr(context, name)) for name in _PLAIN},
        "in_flight": {
            name: None if value is None else map_leaves(_cut_off, value)
            for name, value in in_flight.items()
        },
        "on_device": {
            name: [] if on_cpu else on_accelerator(value) for name, value in in_flight.items()
        },
        "metrics": {name: table.state_dict() for name, table in tables.items()},
        "logging": logging,
        "metrics_over": context.train_metrics.over,
        "train": None if context.train is None else context.train.state_dict(),
        "validation": [feed.state_dict() for _, feed in context.validation],
        "others": {
            name: [feed.state_dict() for _, feed in feeds] for name, feeds in context.others.items()
        },
        "rng": rng_state(devices_in_use()),
    }


def lasting_state(context: Context) -> dict[str, Any]:
    """Return the parts of `context_state` that exist for the whole run.

    Raises:
        Unwritable: A scheduler cannot say where it stands.
    """
    names = PlainNames(context.model)
    return {
        "model": module_state(names, grads=False),
        "torchmetrics": torchmetrics_state(names),
        "optimizers": list(_slot_states(context, names)),
        "precision": context.precision.state_dict(),
    }


def training_state(context: Context) -> dict[str, Any]:
    """Return what training changes in the context, at the boundary before a batch, as a plain tree.

    That is the state without the data, the batch in flight, and the count of batches and seconds.
    Tensors are not copied.

    Raises:
        Unwritable: A scheduler cannot say where it stands.
    """
    counts = context.counts
    return {
        **lasting_state(context),
        "model": module_state(context.model, grads=context.open_windows or context.manual),
        "generators": own_states({"model": context.model}),
        "steps": [counts.step, counts.step_in_epoch],
        "finished": context.finished,
        "metrics": context.train_metrics.state_dict(),
        "outputs": len(context.outputs or ()),
        "rng": rng_state(devices_in_use()),
    }


def load_training_state(context: Context, state: Mapping[str, Any]) -> None:
    """Restore what `training_state` returned, in the same fit. The run takes over its tensors."""
    load_module_state(context.model, state["model"])
    load_torchmetrics_state(context.model, state["torchmetrics"])
    _load_slots(context, state["optimizers"], ())
    context.precision.load_state_dict(state["precision"])
    context.counts.step, context.counts.step_in_epoch = state["steps"]
    context.finished = state["finished"]
    context.train_metrics.load_state_dict(state["metrics"])
    del (context.outputs or [])[state["outputs"] :]
    _restore_generators(context.model, state["generators"])
    restore_rng(state["rng"])


def remake_optimizers(
    context: Context, root: Loop, state: Mapping[str, Any], fresh: Collection[str] = ()
) -> None:
    """Make the optimizers and schedulers that phases of the saved run had made, before loading them.

    Args:
        context: The freshly assembled context, with the optimizers that the model configures.
        root: The tree of loops with these phases.
        state: A state from `context_state`.
        fresh: Parts that will not be loaded from it.
    """
    saved, loops = state["optimizers"], dict(root.walk())
    if saved and saved[0]["made_by"] is not None:
        path, phase = saved[0]["made_by"]
        # The state lists the parameters that were not frozen then.
        names = {n for one in saved for group in one["parameters"] for n in group}
        with _trainable(context.model, names):
            context.slots = in_training(loops[path]).make_optimizers(phase)
    for slot, one in zip(context.slots, saved, strict=False):
        if one["scheduled_by"] is not None:
            path, phase = one["scheduled_by"]
            if "optimizer" not in fresh:
                _set_first_rates(slot.optimizer, one["optimizer"])
            in_training(loops[path]).schedule(slot, phase)
    context.use_optimizers()


def _set_first_rates(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Set the learning rates to those at which the schedulers of a saved optimizer began.

    Training may have changed them since the script made the optimizer, and schedulers read them.
    """
    for group, was in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        if "initial_lr" in was:
            group["lr"] = copy.deepcopy(was["initial_lr"])  # schedulers write into tensors


@contextmanager
def _trainable(model: nn.Module, names: Set[str]) -> Iterator[None]:
    """Within the block, only the parameters of these names require gradients."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for name, parameter in PlainNames(model).parameters():
        parameter.requires_grad_(name in names and parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def load_context_state(
    context: Context, state: Mapping[str, Any], fresh: Collection[str] = ()
) -> None:
    """Load a saved state into a freshly assembled context; random number generators come last.

    The run takes over the tensors of the tree, so a tree can be loaded only once.

    Args:
        context: The context.
        state: A state from `context_state`.
        fresh: Parts that stay as they were assembled: "optimizer", "schedulers".

    Raises:
        SnapshotMismatch: Model, optimizers or loaders differ from those of the checkpoint.
        DataChanged: The data differs.
    """
    _check_loaders(context, state)
    load_module_state(context.model, state["model"])
    load_torchmetrics_state(context.model, state["torchmetrics"])
    _load_slots(context, state["optimizers"], fresh)
    context.precision.load_state_dict(state["precision"])
    context.counts.load_state_dict(state["counts"])
    # Fields that the state lacks were added by later versions; they keep their first values.
    for name in (one for one in _PLAIN if one in state["plain"]):
        setattr(context, name, copied(state["plain"][name]))
    if "measured" not in state["plain"]:  # an earlier version saved only the last validation
        at = context.validated_at or context.moment
        context.measured = dict.fromkeys(context.results, (context.counts.epoch, *at))
    for name in (one for one in _TENSORS if one in state["in_flight"]):
        value = copied(state["in_flight"][name])
        setattr(context, name, back_on_accelerator(value, state["on_device"][name], context.device))
    tables = {"train": context.train_metrics, "validation": context.validation_metrics}
    for name, table in tables.items():
        table.load_state_dict(state["metrics"][name])
    context.train_metrics.over = state.get("metrics_over")  # None in states of an earlier version
    context.log_table = tables.get(state["logging"])
    if state["train"] is not None:
        context.train.load_state_dict(state["train"])
    for (_, feed), saved in zip(context.validation, state["validation"], strict=True):
        feed.load_state_dict(saved)
    for name, states in state["others"].items():
        for (_, feed), saved in zip(context.others[name], states, strict=True):
            feed.load_state_dict(saved)
    context.start_clock()
    _restore_generators(context.model, state["generators"])
    restore_rng(state["rng"])


def _restore_generators(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Restore the random number generators that the model reaches.

    Earlier versions named them by the path of their module alone: ``body.rng``, and ``.rng`` at the
    top.
    """
    states = {
        path if isinstance(one, dict) and "kind" in one else f"model.{path.removeprefix('.')}": one
        for path, one in saved.items()
    }
    if missing := restore_own({"model": model}, states):
        warnings.warn(not_there(missing, "the model"), NotExact, stacklevel=level_of_caller())


def _cut_off(leaf: object) -> object:
    """Detach a tensor from its autograd graph.

    A tensor without a graph stays the same object, so that a batch and its splits are written once.
    """
    if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
        return leaf.detach()
    return leaf


def _check_loaders(context: Context, state: Mapping[str, Any]) -> None:
    was, now = len(state["validation"]), len(context.validation)
    if was != now:
        raise SnapshotMismatch(
            f"The checkpoint has {was} validation loaders, this run {now}. Give the same data."
        )


# -- optimizers and schedulers --------------------------------------------------------------------


def _slot_states(context: Context, plain: PlainNames) -> Iterator[dict[str, Any]]:
    names = {id(p): name for name, p in plain.parameters()}
    for index, slot in enumerate(context.slots):
        where = f"context.optimizers[{index}].schedulers"
        yield {
            **_outline(slot, names),
            "optimizer": slot.optimizer.state_dict(),
            "steps": slot.steps,
            "window": slot.window,
            "size": slot.size,
            "groups_made": len(slot.configured),
            "made_by": slot.made_by,
            "scheduled_by": slot.scheduled_by,
            "seen": [one.seen for one in slot.schedulers],
            "schedulers": [
                scheduler_state(one, f"{where}[{number}]")
                for number, one in enumerate(slot.schedulers)
            ],
        }


def _outline(slot: OptimizerSlot, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the kind of an optimizer, and the parameters that it updates, in its order.

    The state of an optimizer identifies its parameters only by number.
    """
    return {
        "kind": type(slot.optimizer).__name__,
        "parameters": [
            [names.get(id(p)) or f"one of shape {tuple(p.shape)}" for p in group["params"]]
            for group in slot.optimizer.param_groups
        ],
        "kinds": [type(one.scheduler).__name__ for one in slot.schedulers],
    }


def _load_slots(context: Context, saved: Sequence[dict[str, Any]], fresh: Collection[str]) -> None:
    if "optimizer" not in fresh:
        _have_groups_added_in_run(context, saved)
    _check_slots(context, saved, fresh)
    for slot, state in zip(context.slots, saved, strict="optimizer" not in fresh):
        given = [dict(group) for group in slot.optimizer.param_groups]
        if "optimizer" not in fresh:
            _load_optimizer(slot.optimizer, state["optimizer"])
        slot.steps, slot.window = state["steps"], state["window"]
        slot.size = state.get("size", 0)
        # Schedulers warn if they are stepped before their optimizer, and ask this attribute.
        slot.optimizer._opt_called = bool(slot.steps)  # type: ignore[attr-defined]
        if "schedulers" in fresh:
            for group, was in zip(slot.optimizer.param_groups, given, strict=True):
                group.update({key: was[key] for key in _SCHEDULED if key in was})
            continue
        for one, scheduler in zip(slot.schedulers, state["schedulers"], strict=True):
            load_scheduler_state(one, scheduler)
            if "optimizer" in fresh:
                _set_rates(slot.optimizer, one.scheduler)
        for one, seen in zip(slot.schedulers, state.get("seen", ()), strict=False):
            one.seen = seen


def _have_groups_added_in_run(context: Context, saved: Sequence[dict[str, Any]]) -> None:
    """Give the optimizers the groups of parameters that were added to them in the run, and no others.

    Only where the script makes as many groups as it did then: else it is another optimizer, which is refused.
    """
    by_name = dict(PlainNames(context.model).parameters())
    for slot, state in zip(context.slots, saved, strict=False):
        optimizer, names, made = slot.optimizer, state["parameters"], len(slot.configured)
        if state.get("groups_made") != made:
            continue
        for group in optimizer.param_groups[max(made, len(names)) :]:
            for parameter in group["params"]:
                optimizer.state.pop(parameter, None)
        del optimizer.param_groups[max(made, len(names)) :]
        for group in names[len(optimizer.param_groups) :]:
            if {*group} <= by_name.keys():
                optimizer.add_param_group({"params": [by_name[name] for name in group]})


def _check_slots(context: Context, saved: Sequence[dict[str, Any]], fresh: Collection[str]) -> None:
    """Refuse optimizers and schedulers that differ from those whose state is loaded."""
    if "optimizer" in fresh and "schedulers" in fresh:
        return
    names = {id(p): name for name, p in PlainNames(context.model).parameters()}
    parts = ["kinds"] if "optimizer" in fresh else ["kind", "parameters"]
    if "schedulers" not in fresh and "kinds" not in parts:
        parts.append("kinds")
    whole = ("kind", "parameters", "kinds")
    ours = [_outline(slot, names) for slot in context.slots]
    theirs = [{name: one[name] for name in whole} for one in saved]
    if [[one[p] for p in parts] for one in ours] != [[one[p] for p in parts] for one in theirs]:
        raise SnapshotMismatch(
            f"The checkpoint is of other optimizers: {_difference(theirs, ours)}. Return the same "
            "ones from configure_optimizers, over the same parameters in the same order. Or take the "
            'weights and the data alone: fit(..., fresh=("optimizer", "schedulers")).'
        )


def _set_rates(optimizer: Optimizer, scheduler: Any) -> None:
    """Set the learning rates of a fresh optimizer to those of a restored scheduler."""
    rates = getattr(scheduler, "_last_lr", None) or ()
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate


def _load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state without torch's cast to the type of the parameter, which loses bits."""
    optimizer.load_state_dict(dict(state))
    _check_settings_of_groups(optimizer, state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in state["state"].get(number, {}).items():
            loaded = optimizer.state[parameter].get(key)
            if isinstance(loaded, torch.Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(loaded.device)


def _check_settings_of_groups(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Refuse the state of an optimizer of the same name whose groups have other settings.

    What later versions of torch have added, they fill in themselves.

    Raises:
        SnapshotMismatch: A group lacks a setting now, which the optimizer would look for in its next step.
    """
    for number, group in enumerate(optimizer.param_groups):
        # Torch puts this one among the defaults of each optimizer as it loads, also of LBFGS, which has it not.
        needed = optimizer.defaults.keys() - {"differentiable"}
        if missing := sorted(needed - group.keys()):
            saved = sorted({*state["param_groups"][number]} - {"params"})
            raise SnapshotMismatch(
                f"The checkpoint is of another {type(optimizer).__name__}: group {number} of its parameters has "
                f"{', '.join(map(repr, saved)) or 'no settings'}, and not {', '.join(map(repr, missing))}, which this "
                "one needs. Use the class that it was written with, or begin with a new optimizer: "
                'fit(..., fresh=("optimizer", "schedulers")).'
            )


def _difference(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """Describe the first difference of two lists of optimizers."""
    if len(theirs) != len(ours):
        kinds = [[one["kind"] for one in many] for many in (theirs, ours)]
        return f"there were {len(theirs)} ({kinds[0]}), here are {len(ours)} ({kinds[1]})"
    for index, (was, now) in enumerate(zip(theirs, ours, strict=True)):
        if was["kind"] != now["kind"]:
            return f"number {index} was {was['kind']}, here it is {now['kind']}"
        if was["kinds"] != now["kinds"]:
            return f"number {index} had the schedulers {was['kinds']}, here {now['kinds']}"
        if was["parameters"] != now["parameters"]:
            return f"{was['kind']} {_other_parameters(was['parameters'], now['parameters'])}"
    return "the same"


def _other_parameters(was: list[list[str]], now: list[list[str]]) -> str:
    if len(was) != len(now):
        return f"had {len(was)} groups of parameters, here {len(now)}"
    for group, (before, here) in enumerate(zip(was, now, strict=True)):
        if len(before) != len(here):
            return f"had {len(before)} parameters in group {group}, here {len(here)}"
        for place, (one, other) in enumerate(zip(before, here, strict=True)):
            if one != other:
                return f"had {one!r} as parameter {place} of group {group}, here {other!r}"
    return "is the same"
