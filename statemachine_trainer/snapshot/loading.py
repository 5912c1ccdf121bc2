"""Reading a checkpoint by its place, and the weights in it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from statemachine_trainer.files import path_given
from statemachine_trainer.parallel.cut_up import is_cut_up
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.checkpoint import Loaded
from statemachine_trainer.snapshot.checkpoint_folder import MANIFEST
from statemachine_trainer.snapshot.frozen import with_frozen
from statemachine_trainer.snapshot.marks import is_mark
from statemachine_trainer.snapshot.modules import load_module_weights, tied_names
from statemachine_trainer.snapshot.snapshot_errors import NotACheckpoint, SnapshotMismatch
from statemachine_trainer.snapshot.store import Store


def load_checkpoint(
    place: str | Path,
    *,
    misfit: Callable[[Loaded], str | None] | None = None,
    mmap: bool = False,
) -> Loaded:
    """Read a checkpoint from its own folder, or the newest whole one from the folder of a run.

    Args:
        place: The folder.
        misfit: As for `Store.newest`; a checkpoint that is named itself is refused.
        mmap: As for `Store.load`.

    Raises:
        NotACheckpoint: There is none.
        Damaged: There are, and none is whole; or the one that was named is not.
        FormatTooNew: A later version of this package wrote it.
        SnapshotMismatch: It cannot be used.
    """
    path = path_given(place)
    if path.is_dir() and not (path / MANIFEST).exists():
        newest = Store(path).newest(misfit=misfit, mmap=mmap)
        if newest is None:
            raise NotACheckpoint(
                f"There is no checkpoint in {str(path)!r}. Name the folder of a run that wrote some, as "
                "Trainer(checkpoints=...) does, or of one checkpoint in it."
            )
        return newest
    loaded = Store(path.parent).load(path, mmap=mmap)
    why = None if misfit is None else misfit(loaded)
    if why is not None:
        loaded.close()
        raise SnapshotMismatch(f"{path.name} cannot be gone on from: {why}")
    return loaded


def load_weights(model: nn.Module, checkpoint: str | Path, *, average: bool = False) -> None:
    """Load the weights of a checkpoint into a model, and nothing else.

    The model keeps its device, its mode (training or evaluation) and what of it needs gradients.

    Args:
        model: A model with the parameters and buffers of the one that was saved.
        checkpoint: Folder of a checkpoint, or of a run (the newest whole one is taken).
        average: Load the average of the weights that a callback keeps, instead of those of the model.

    Raises:
        NotACheckpoint: There is none.
        SnapshotMismatch: The parameters differ, or frozen ones that the checkpoint leaves out; the message lists
            them. The model is unchanged.
        Damaged: The checkpoint is not what was written.
    """
    loaded = load_checkpoint(checkpoint)
    loaded = replace(loaded, tree=with_frozen(loaded.tree, model))
    try:
        weights = loaded.tree["context"]["model"]["weights"]  # type: ignore[index]
    except (KeyError, TypeError):
        weights = None
    if not isinstance(weights, Mapping):
        raise SnapshotMismatch(f"The checkpoint {str(loaded.path)!r} holds no weights of a model.")
    put_in = _put_in_for(loaded, average=average)
    # A callback keeps a tied weight under its first name.
    for first, *others in tied_names(weights):
        put_in |= {name: put_in[first] for name in others if first in put_in}
    weights = {**weights, **put_in}
    own = PlainNames(model).state_dict()
    if any(map(is_mark, weights.values())) or any(is_cut_up(one) for one in own.values()):
        from statemachine_trainer.snapshot.shards import (  # most runs have one process
            as_kept,
            with_parts,
        )

        weights = as_kept(with_parts(weights, loaded.path, model), own)
    load_module_weights(model, weights)


def _put_in_for(loaded: Loaded, *, average: bool) -> dict[str, torch.Tensor]:
    """Return the weights that differ from those of the model in a checkpoint: the average, or the raw ones.

    A checkpoint that was written in the course of a validation has the average in the model.

    Raises:
        SnapshotMismatch: An average is wanted, and there is none.
    """
    callbacks = loaded.tree.get("callbacks", []) if isinstance(loaded.tree, Mapping) else []
    states = [one["state"] for one in callbacks]
    kept = [one for one in states if isinstance(one, Mapping) and {"average", "raw"} <= one.keys()]
    if not average:
        return next((dict(one["raw"]) for one in kept if one["raw"] is not None), {})
    if not kept or not kept[0]["average"]:
        raise SnapshotMismatch(
            f"The checkpoint {str(loaded.path)!r} holds no average of weights. EMA and SWA keep one: "
            "Trainer(callbacks=[EMA()])."
        )
    return dict(kept[0]["average"])
