"""Finding the checkpoint from which a run goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import (
    Loaded,
    NotACheckpoint,
    Store,
)
from statemachine_trainer.snapshot.ranked import find_together, tree_of_rank
from statemachine_trainer.snapshot.store import load_checkpoint


class NoCheckpoint(NotACheckpoint):
    """A run was to be resumed and there is no checkpoint to go on from."""


def find_checkpoint(store: Store | None, resume: str | Path) -> Loaded | None:
    """Find a checkpoint: "auto", a folder of checkpoints, or a checkpoint.

    Raises:
        NoCheckpoint: There is none at the place that was named, or "auto" without a store.
        SettingError: It names no place.
        SnapshotMismatch: It was written by another number of ranks.
    """
    ranks = Ranks.here()
    find = partial(_find, store, resume)
    loaded = find() if ranks is None else find_together(ranks, find)
    return None if loaded is None else replace(loaded, tree=tree_of_rank(loaded.tree, ranks))


def _find(store: Store | None, resume: str | Path) -> Loaded | None:
    if not isinstance(resume, str | PathLike):
        raise SettingError(
            f"resume={resume!r} names no checkpoint: use 'auto' or a folder, or leave it out."
        )
    if resume == "auto":
        if store is None:
            raise NoCheckpoint(
                'resume="auto" needs a place to look: Trainer(checkpoints="runs/name").'
            )
        store.wait()
        return store.newest()
    try:
        return load_checkpoint(resume)
    except NotACheckpoint as error:
        raise NoCheckpoint(str(error)) from None
