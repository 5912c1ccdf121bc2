"""A checkpoint found by its path, and only its weights, for a model in other surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from statemachine_trainer.snapshot.errors import NotACheckpoint, SnapshotMismatch
from statemachine_trainer.snapshot.folder import MANIFEST
from statemachine_trainer.snapshot.modules import check_weights
from statemachine_trainer.snapshot.store import Loaded, Store


def load_checkpoint(place: str | Path) -> Loaded:
    """Read a checkpoint from its own folder, or the newest whole one from the folder of a run.

    Raises:
        NotACheckpoint: There is none.
        Damaged: There are, and none is whole; or the one that was named is not.
        FormatTooNew: A later version of this package wrote it.
    """
    path = Path(place)
    if path.is_dir() and not (path / MANIFEST).exists():
        newest = Store(path).newest()
        if newest is None:
            raise NotACheckpoint(f"There is no checkpoint in {str(path)!r}.")
        return newest
    return Store(path.parent).load(path)


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load the weights of a checkpoint into a model, and nothing else.

    The model keeps its device, its mode (training or evaluation) and what of it needs gradients.

    Args:
        model: A model with the parameters and buffers of the one that was saved.
        checkpoint: Folder of a checkpoint, or of a run (the newest whole one is taken).

    Raises:
        NotACheckpoint: There is none.
        SnapshotMismatch: The parameters differ; the message lists them. The model is unchanged.
        Damaged: The checkpoint is not what was written.
    """
    loaded = load_checkpoint(checkpoint)
    try:
        weights = loaded.tree["context"]["model"]["weights"]  # type: ignore[index]
    except (KeyError, TypeError):
        weights = None
    if not isinstance(weights, Mapping):
        raise SnapshotMismatch(f"The checkpoint {str(loaded.path)!r} holds no weights of a model.")
    check_weights(model, weights)
    model.load_state_dict(weights)
