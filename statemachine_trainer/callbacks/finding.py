"""Finding the checkpoint from which a run goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

from statemachine_trainer.files import is_address, path_given
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import (
    Loaded,
    NotACheckpoint,
    Store,
)
from statemachine_trainer.snapshot.mirror import Mirror
from statemachine_trainer.snapshot.ranked import find_together, tree_of_rank
from statemachine_trainer.snapshot.store import load_checkpoint


class NoCheckpoint(NotACheckpoint):
    """A run was to be resumed and there is no checkpoint to go on from."""


def find_checkpoint(
    store: Store | None, resume: str | Path, mirror: Mirror | None = None
) -> Loaded | None:
    """Find a checkpoint: "auto", a folder of checkpoints, or a checkpoint; or an address of either.

    Those that the mirror of the store has, or what is at the address, and the store has not, are fetched first.

    Raises:
        NoCheckpoint: There is none at the place that was named, or "auto" without a store.
        SettingError: It names no place.
        SnapshotMismatch: It was written by another number of ranks; or the store has another run than the address.
    """
    ranks = Ranks.here()
    find = partial(_find, store, resume, mirror)
    loaded = find() if ranks is None else find_together(ranks, find)
    return None if loaded is None else replace(loaded, tree=tree_of_rank(loaded.tree, ranks))


def _find(store: Store | None, resume: str | Path, mirror: Mirror | None) -> Loaded | None:
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
        if mirror is not None:
            mirror.fetch(store.root)
        return store.newest()
    if isinstance(resume, str) and is_address(resume):
        from statemachine_trainer.snapshot.remote import find_at  # hardly ever needed

        try:
            return find_at(resume, store, mirror)
        except NotACheckpoint as error:
            raise NoCheckpoint(str(error)) from None
    if mirror is not None and store is not None:
        place = path_given(resume)
        if store.root in (place, place.parent):
            store.wait()
            mirror.fetch(store.root)
    try:
        return load_checkpoint(resume)
    except NotACheckpoint as error:
        raise NoCheckpoint(str(error)) from None
