"""Compares the ranks at the start of a run: what must be equal, and what must differ.

Ranks with different loops, models or numbers of batches would wait for each other for ever. Ranks
with the same data would repeat the work of one.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

import torch
from torch import nn

from statemachine_trainer.intervals import Every
from statemachine_trainer.loops.base import training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.machine.errors import StateMachineError, level_of_caller
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel.cut_up import is_cut_up
from statemachine_trainer.parallel.gradient_sync import GradientSync
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.ranked import digest

if TYPE_CHECKING:
    from statemachine_trainer.parallel.layout import Layout


class RanksDiffer(StateMachineError):
    """Ranks of one run were given different things that must be the same."""


class WeightsDiffer(UserWarning):
    """After a step the ranks have different weights, because gradients are not averaged."""


class RestartsFail(UserWarning):
    """`torchrun` is to restart lost ranks, in a way in which they cannot find each other again."""


_ADVICE: Final = {
    "the loops": "Give all of them the same settings and loops.",
    "the parameters": "Build the same model at each.",
    "what averages the gradients": "Wrap the model at each of them, or at none.",
    "the numbers of training batches": "A DistributedSampler gives all of them the same number.",
    "the validation loaders": "Give each of them validation data, all or a part of them.",
    "the numbers of validation batches": (
        "Each evaluation gathers the parameters that are cut up, which all ranks do together. A "
        "DistributedSampler gives all of them the same number."
    ),
    "the folders of checkpoints": (
        "Give all of them the same; rank 0 writes there, with the state of each."
    ),
    "the settings": "Give all of them the same.",
    "the optimizers": "Give all of them the same, with the same settings.",
}
"""What must be the same on all ranks, and what to do about it."""


def check_environment(ranks: Ranks | None, trainer: Any) -> None:
    """Refuse processes that would mix up each other's files.

    Raises:
        SettingError: The environment contradicts the process group.
    """
    named = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if ranks is None:
        if named[1] not in (None, "", "1") and trainer.checkpoints is not None:
            raise SettingError(
                f"This is one of WORLD_SIZE={named[1]} processes, and no process group is up: each "
                "would write its own checkpoints into the same folder. Call "
                "torch.distributed.init_process_group() first."
            )
        return
    if named != (str(ranks.rank), str(ranks.size)):
        raise SettingError(
            f"This process is rank {ranks.rank} of {ranks.size} of its process group, and its "
            f"environment says RANK={named[0]}, WORLD_SIZE={named[1]}, by which the files of the "
            "run are told apart. Start it with torchrun, or set both as torchrun does."
        )


def warn_of_restarts(rank: int) -> None:
    """Warn if `torchrun` would restart ranks in vain.

    With the store of its rendezvous, which is the default, the ranks of the next attempt read what
    those of the one before have left there, and never meet (torch 2.13).
    """
    restarts, shared = (
        os.environ.get(name, "")
        for name in ("TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE")
    )
    if rank == 0 and restarts not in ("", "0") and shared == "True":
        warnings.warn(
            f"torchrun --max-restarts {restarts} restarts ranks that do not find each other again: they "
            "read what the ranks before have left in the store that all attempts share. Set the variable "
            "for torchrun itself: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts "
            f"{restarts} ...",
            RestartsFail,
            stacklevel=level_of_caller(),
        )


def check_alone(ranks: Ranks, trainer: Any, context: Context) -> None:
    """Refuse models and loops with which one rank would act without the others.

    Raises:
        SettingError: The model, or a loop, does.
        UnsupportedWrapper: The parameters are cut up in a way that is not supported.
    """
    layout = _check_model(ranks, context)
    _check_loops(trainer.loop, context, cut_up=bool(layout.cut_up))


def check_same(ranks: Ranks, trainer: Any, context: Context) -> None:
    """Refuse ranks that were given different things. A collective.

    Raises:
        RanksDiffer: They were given different things.
    """
    told = cast("list[dict[str, Json]]", ranks.from_all(_facts(trainer, context)))
    for rank, other in enumerate(told):
        for name, value in told[0].items():
            if other[name] != value:
                here, there = _where_they_differ(value, other[name])
                differ = "differs" if name.startswith("what") else "differ"
                raise RanksDiffer(
                    f"The ranks of a run have to make the same transitions, and {name} {differ}: "
                    f"{_short(here)} at rank 0, {_short(there)} at rank {rank}. "
                    f"{_ADVICE[name]}"
                )


def _facts(trainer: Any, context: Context) -> dict[str, Json]:
    checkpoints = trainer.checkpoints
    facts: tuple[Json, ...] = (
        sorted(trainer.driver.program.nodes),
        [name for name, _ in PlainNames(context.model).parameters()],
        context.steps.sync.by,
        None if context.train is None else context.train.length,
        [name for name, _ in context.validation],
        _evaluated_together(context),
        None if checkpoints is None else str(checkpoints.store.root),
        _settings(trainer, context),
        [_optimizer(slot.optimizer) for slot in context.slots],
    )
    return dict(zip(_ADVICE, facts, strict=True))


def _settings(trainer: Any, context: Context) -> dict[str, Json]:
    """Return the settings by which a rank does more or less than another one, as texts."""
    found: dict[str, Json] = {"precision": context.precision.name}
    for path, loop in training_loops(trainer.loop, trainer.driver.name):
        _, *asked = inspect.signature(type(loop).__init__).parameters.values()
        for one in asked:
            value = loop._setting(one)
            if _is_plain(value):
                found[f"{path}.{one.name}"] = repr(value)
    checkpoints = trainer.checkpoints
    for name in () if checkpoints is None else ("every", "at_end", "background", "parameters"):
        found[f"Checkpoints.{name}"] = repr(getattr(checkpoints, name))
    if checkpoints is not None:
        found["Checkpoints.retention"] = repr(checkpoints.store.retention)
    return found


def _optimizer(optimizer: torch.optim.Optimizer) -> list[Json]:
    groups: list[Json] = [
        {
            "parameters": len(group["params"]),
            **{name: repr(value) for name, value in group.items() if _is_plain(value)},
        }
        for group in optimizer.param_groups
    ]
    return [type(optimizer).__name__, *groups]


def _is_plain(value: object) -> bool:
    """Return whether the text of a value is the same at each rank that was given it."""
    if isinstance(value, Mapping):
        return all(_is_plain(one) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | timedelta | Every)


def _where_they_differ(one: Json, other: Json) -> tuple[Json, Json]:
    """Return the parts in which two values differ, as far as they are of the same form."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return _named(one, names), _named(other, names)
    if _are_names(one) and _are_names(other):
        return [name for name in one if name not in other], [
            name for name in other if name not in one
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
        if len(pairs) == 1:
            return _where_they_differ(*pairs[0])
    return one, other


def _are_names(value: Json) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _named(values: dict[str, Json], names: list[str]) -> Json:
    return ", ".join(f"{name}={values.get(name, 'none')}" for name in names)


def _evaluated_together(context: Context) -> Json:
    """Return the numbers of validation batches where ranks have to evaluate in step; None where they need not."""
    if not any(is_cut_up(one) for one in context.model.parameters()):
        return None
    return [feed.length for _, feed in context.validation]


def _short(value: Json) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _check_loops(root: Loop, context: Context, *, cut_up: bool) -> None:
    for path, loop in training_loops(root):
        why = loop.why_alone(context)
        if why is not None:
            raise SettingError(f"The loop {_shown(path, loop)} {why}")
        why = loop.why_whole() if cut_up else None
        if why is not None:
            raise SettingError(
                f"The parameters are cut up among the ranks, and the loop {_shown(path, loop)} {why}"
            )


def _shown(path: str, loop: Loop) -> str:
    return repr(path) if path else type(loop).__name__


def _check_model(ranks: Ranks, context: Context) -> Layout:
    model = context.model
    from statemachine_trainer.parallel.layout import Layout  # most runs have one process

    sync = context.steps.sync
    layout = Layout.of(model, sync, ranks.rank, ranks.size)
    sync.several_meshes = layout.several_meshes
    if layout.data_size < layout.size:
        sync.data_ranks = cast("list[int]", ranks.from_all(layout.data_rank))
    return layout


# -- While it runs --------------------------------------------------------------------------------


def compare_weights(ranks: Ranks, model: nn.Module, sync: GradientSync) -> None:
    """Warn if ranks have different weights. A collective."""
    weights = {
        name: digest(one) or ""
        for name, one in model.named_parameters()
        if not is_cut_up(one) and name not in sync.left_to_each_rank
    }
    whole = hashlib.sha256(repr(weights).encode()).hexdigest()
    if len(set(cast("list[str]", ranks.from_all(whole)))) > 1:
        why = (
            f"{sync.by} averages their gradients, so they have begun with different ones. Leave "
            "init_sync at True, or load the same weights at each rank; let no code write weights at one rank alone."
            if sync.by
            else "their gradients are not averaged. Give fit DistributedDataParallel(model), or call fully_shard on "
            "the model as a whole after its parts; let loops of your own call the training step by "
            "context.steps.training."
        )
        warnings.warn(
            f"After the first step each rank has weights of its own: {why}",
            WeightsDiffer,
            stacklevel=level_of_caller(),
        )
