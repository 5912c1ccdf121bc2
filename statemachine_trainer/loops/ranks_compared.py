"""Compares the ranks at the start of a run: what must be equal, and what must differ.

Ranks with different loops, models or numbers of batches would wait for each other for ever. Ranks
with the same data would repeat the work of one.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from typing import Any, Final, cast

import torch
from torch import nn

from statemachine_trainer.loops.base import training_loops
from statemachine_trainer.loops.context import Context
from statemachine_trainer.loops.loop_errors import LikelyMistake, SettingError
from statemachine_trainer.machine.errors import StateMachineError, level_of_caller
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.parallel import leaves_with_paths
from statemachine_trainer.parallel.ranks import Json, Ranks
from statemachine_trainer.parallel.wrappers import PlainNames, Wrapped
from statemachine_trainer.snapshot.ranked import digest


class RanksDiffer(StateMachineError):
    """Ranks of one run were given different things that must be the same."""


class WeightsDiffer(UserWarning):
    """After a step the ranks have different weights, because gradients are not averaged."""


class SameBatches(StateMachineError):
    """All ranks of a run read the same data."""


class SameWork(LikelyMistake):
    """All ranks read the same data, and each trains its own model."""


_ADVICE: Final = {
    "the loops": "Give all of them the same settings and loops.",
    "the parameters": "Build the same model at each.",
    "the numbers of training batches": "A DistributedSampler gives all of them the same number.",
    "the validation loaders": "Give each of them validation data, all or a part of them.",
    "the folders of checkpoints": (
        "Give all of them the same; rank 0 writes there, with the state of each."
    ),
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


def check_alone(trainer: Any, context: Context) -> None:
    """Refuse models and loops with which one rank would act without the others.

    Raises:
        SettingError: The model, or a loop, does.
    """
    _check_loops(trainer.loop)
    _check_model(context)


def check_same(ranks: Ranks, trainer: Any, context: Context) -> None:
    """Refuse ranks that were given different things. A collective.

    Raises:
        RanksDiffer: They were given different things.
    """
    told = cast("list[dict[str, Json]]", ranks.from_all(_facts(trainer, context)))
    for rank, other in enumerate(told):
        for name, value in told[0].items():
            if other[name] != value:
                raise RanksDiffer(
                    f"The ranks of a run have to make the same transitions, and {name} differ: "
                    f"{_short(value)} at rank 0, {_short(other[name])} at rank {rank}. "
                    f"{_ADVICE[name]}"
                )


def _facts(trainer: Any, context: Context) -> dict[str, Json]:
    checkpoints = trainer.checkpoints
    facts: tuple[Json, ...] = (
        sorted(trainer.driver.program.nodes),
        [name for name, _ in PlainNames(context.model).parameters()],
        None if context.train is None else context.train.length,
        [name for name, _ in context.validation],
        None if checkpoints is None else str(checkpoints.store.root),
    )
    return dict(zip(_ADVICE, facts, strict=True))


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_loops(root: Loop) -> None:
    for path, loop in training_loops(root):
        why = loop.why_alone()
        if why is not None:
            raise SettingError(f"The loop {path!r} {why}")


def _check_model(context: Context) -> None:
    model = context.model
    if context.steps.foreign:
        raise SettingError(
            f"{type(model).__name__} is of another library, and such modules are not trained by "
            "several ranks here. Use that library's own trainer, or one process."
        )
    if any(type(one).__name__ == "DTensor" for one in model.parameters()):
        raise SettingError(
            f"The parameters of {type(model).__name__} are cut up among the ranks, which is not "
            "supported. Use DistributedDataParallel."
        )


# -- While it runs --------------------------------------------------------------------------------


def compare_weights(ranks: Ranks, model: nn.Module) -> None:
    """Warn if ranks have different weights. A collective."""
    weights = {name: digest(one) or "" for name, one in model.named_parameters()}
    whole = hashlib.sha256(repr(weights).encode()).hexdigest()
    if len(set(cast("list[str]", ranks.from_all(whole)))) > 1:
        warnings.warn(
            "After the first step each rank has weights of its own: their gradients are not "
            "averaged. Give fit DistributedDataParallel(model), and let loops of your own call the "
            "training step by context.steps.training, which goes through it.",
            WeightsDiffer,
            stacklevel=level_of_caller(),
        )


def compare_batches(ranks: Ranks, context: Context) -> None:
    """Refuse ranks that read the same batch: a sampler was forgotten. A collective.

    Raises:
        SameBatches: They read the same batch, and their gradients are averaged.

    Warns:
        SameWork: They read the same batch, and their gradients are not averaged.
    """
    told = ranks.from_all(_digest_of_batch(context.batch))
    if told[0] is None or any(one != told[0] for one in told):
        return
    text = (
        f"All {ranks.size} ranks read the same batch, so that they do the work of one. Give the loader "
        "`sampler=DistributedSampler(data)`, which deals the samples out; let a stream yield a part "
        "of its own at each rank (torch.distributed.get_rank())."
    )
    if any(map(_averages, (context.steps.whole, *context.model.modules()))):
        raise SameBatches(text)
    warnings.warn(text, SameWork, stacklevel=level_of_caller())


def _averages(module: nn.Module) -> bool:
    return Wrapped.of(module) is not None


def _digest_of_batch(batch: Any) -> str | None:
    """Return a digest of a batch; None if all its values are equal, so that it identifies nothing."""
    found, telling = hashlib.sha256(), False
    for path, leaf in leaves_with_paths(batch):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and leaf.numel():
            found.update(f"{path} {digest(leaf)}".encode())
            telling = telling or bool((leaf != leaf.reshape(-1)[0]).any())
        elif isinstance(leaf, str | int | float):
            found.update(f"{path} {leaf!r}".encode())
    return found.hexdigest() if telling else None
