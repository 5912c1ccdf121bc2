"""Finding the checkpoint from which a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from statemachine_trainer.files import is_address, path_given
from statemachine_trainer.loops.loop_errors import SettingError
from statemachine_trainer.parallel.ranks import Ranks
from statemachine_trainer.snapshot import (
    Loaded,
    NotACheckpoint,
    Store,
)
from statemachine_trainer.snapshot.mirror import Mirror
from statemachine_trainer.snapshot.ranked import (
    OTHERS,
    find_together,
    ranks_of,
    read_parts_together,
    tree_of_rank,
)

if TYPE_CHECKING:
    from statemachine_trainer.loops.context import Context


class NoCheckpoint(NotACheckpoint):
    """A run was to be resumed and there is no checkpoint to go on from."""


class EarlierRun(NotACheckpoint):
    """A run begins anew in a folder that holds the checkpoints of another one."""


def find_checkpoint(
    store: Store | None, resume: str | Path, mirror: Mirror | None = None
) -> Loaded | None:
    """Find a checkpoint: "auto", a folder of checkpoints, or a checkpoint; or an address of either.

    Those that the mirror of the store has, or what is at the address, and the store has not, are fetched first.

    Raises:
        NoCheckpoint: There is none at the place that was named, or "auto" without a store.
        SettingError: It names no place.
        SnapshotMismatch: It was written by another number of ranks, at a moment at which that may not change; or the
            store has another run than the address.
    """
    ranks = Ranks.here()
    size, rank = (1, 0) if ranks is None else (ranks.size, ranks.rank)
    find = partial(_find, store, resume, mirror, partial(_misfit, size), mmap=ranks is None)
    loaded = find() if ranks is None else find_together(ranks, find)
    if loaded is None:
        return None
    if ranks_of(loaded.tree) == size:
        return replace(loaded, tree=tree_of_rank(loaded.tree, rank))
    from statemachine_trainer.callbacks.other_ranks import for_other_ranks  # most runs keep theirs

    with loaded.taken_over():
        pass  # no weights stay in the file: the state for other ranks may be put together in any way
    return replace(loaded, tree=for_other_ranks(loaded.tree, rank))


def _misfit(size: int, loaded: Loaded) -> str | None:
    """Return why a number of ranks cannot go on from a checkpoint; None if they can."""
    before = ranks_of(loaded.tree)
    if before == size:
        return None
    from statemachine_trainer.callbacks.other_ranks import number_of, why_not

    why = why_not(loaded.tree)
    if why is None:
        return None
    return (
        f"it is of a run with {number_of(before)}, and this one has {size}. Their number cannot change there: "
        f"{why}. Start as many (torchrun --nproc-per-node {before}), go on from one at the end of an epoch, or begin "
        "anew with the weights alone: load_weights(model, checkpoint)."
    )


def _find(
    store: Store | None,
    resume: str | Path,
    mirror: Mirror | None,
    misfit: Callable[[Loaded], str | None],
    *,
    mmap: bool,
) -> Loaded | None:
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
        return store.newest(misfit=misfit, mmap=mmap)
    if isinstance(resume, str) and is_address(resume):
        from statemachine_trainer.snapshot.remote import find_at  # hardly ever needed

        try:
            return find_at(resume, store, mirror, misfit)
        except NotACheckpoint as error:
            raise NoCheckpoint(str(error)) from None
    if mirror is not None and store is not None:
        place = path_given(resume)
        if store.root in (place, place.parent):
            store.wait()
            mirror.fetch(store.root)
    try:
        from statemachine_trainer.snapshot.loading import load_checkpoint  # most fits begin

        return load_checkpoint(resume, misfit=misfit, mmap=mmap)
    except NotACheckpoint as error:
        advice = (
            'The newest one of this trainer is resume="auto".'
            if _means_auto(resume)
            else 'For a first start leave resume out; resume="auto" begins anew where there is no checkpoint yet.'
        )
        raise NoCheckpoint(f"{error} {advice}") from None


def _means_auto(resume: str | PathLike[str]) -> bool:
    """Whether a word means the newest checkpoint in other trainers, or is nearly ours."""
    word = str(resume).lower()
    return word in ("last", "latest", "newest", "true") or sorted(word) == sorted("auto")


def state_of_rank(loaded: Loaded, context: Context) -> Any:
    """Return the state with which this rank goes on from a checkpoint. A collective, where tensors are cut up.

    Args:
        loaded: What `find_checkpoint` returned.
        context: The context of the fit, which was just assembled.

    Raises:
        AnotherRankFailed: Another rank could not read its parts.
    """
    state = read_parts_together(loaded, context.model)
    ranks = Ranks.here()
    if ranks is None or not is_of_others(state):
        return state
    from statemachine_trainer.callbacks.other_ranks import derive_generators

    data_ranks = context.steps.sync.data_ranks
    return derive_generators(state, ranks.rank if data_ranks is None else data_ranks[ranks.rank])


def tell_of_others(loaded: Loaded, context: Context) -> None:
    """Warn once of what is not as before, where another number of ranks goes on."""
    if is_of_others(loaded.tree):
        from statemachine_trainer.callbacks.other_ranks import tell

        tell(loaded, context, Ranks.here())


def facts_of_others(loaded: Loaded) -> dict[str, int]:
    """Return the numbers of ranks before and now, for the record of the run; nothing if they are the same."""
    if not is_of_others(loaded.tree):
        return {}
    tree, ranks = cast("dict[str, Any]", loaded.tree), Ranks.here()
    return {"ranks_before": tree[OTHERS]["ranks"], "ranks": 1 if ranks is None else ranks.size}


def is_of_others(state: Any) -> bool:
    """Return whether a state was made for another number of ranks than have written it."""
    return isinstance(state, Mapping) and OTHERS in state
