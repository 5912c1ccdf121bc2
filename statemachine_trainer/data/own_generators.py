"""The objects that a loader is made of, and the generators of random numbers that they hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from statemachine_trainer.data.data_errors import NotExact
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.snapshot.found import Place
from statemachine_trainer.snapshot.held import own_states, restore_own, states_at
from statemachine_trainer.snapshot.rng import restore_rng, rng_state

_DEPTH = 8  # of data sets around data sets; a longer chain is a cycle


def parts_of(loader: Any) -> dict[str, Any]:
    """The objects that a loader is made of, by where they are found, each object once.

    A loader is any object; its parts are those that a `DataLoader` has: its samplers, and its data
    set with the data sets inside that.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = {
        "sampler": getattr(loader, "sampler", None),
        "batch_sampler": batch_sampler,
        "batch_sampler.sampler": getattr(batch_sampler, "sampler", None),
    }
    dataset, path = getattr(loader, "dataset", None), "dataset"
    for _ in range(_DEPTH):
        found[path] = dataset
        dataset, path = getattr(dataset, "dataset", None), f"{path}.dataset"
    found["loader"] = loader
    once: dict[int, tuple[str, Any]] = {}
    for name, part in found.items():
        if part is not None:
            once.setdefault(id(part), (name, part))
    return dict(once.values())


def set_epoch(parts: Iterable[Any], epoch: int) -> None:
    """Tell the number of the epoch to every part that wants to know it."""
    for part in parts:
        tell = getattr(part, "set_epoch", None)
        if callable(tell):
            tell(epoch)


def has_state(part: Any) -> bool:
    """Whether an object can write down where it stands and be put there again."""
    return callable(getattr(part, "state_dict", None)) and callable(
        getattr(part, "load_state_dict", None)
    )


def record(parts: Mapping[str, Any], places: Mapping[str, Place] | None = None) -> dict[str, Any]:
    """The state of every generator that the parts may draw from: the global ones and their own.

    `places` are those of their own, where they were looked for a moment ago.
    """
    own = own_states(parts) if places is None else states_at(places)
    return {"rng": rng_state(), "own": own}


def restore(parts: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Put every generator where `record` found it."""
    restore_rng(recorded["rng"])
    restore_own(parts, recorded["own"])


def bring_back(parts: Mapping[str, Any], states: Mapping[str, Any], name: str) -> None:
    """Put the parts' own generators where a checkpoint found them.

    Args:
        parts: What `parts_of` returned.
        states: What `own_states` returned.
        name: Of the loader, for the warning.

    Warns:
        NotExact: There is no place for one of them.
    """
    missing = restore_own(parts, states)
    if missing:
        warnings.warn(
            not_there(missing, f"the data of {name!r}"), NotExact, stacklevel=level_of_caller()
        )


def not_there(missing: list[str], owner: str) -> str:
    """Say that generators of a checkpoint have no place here, and what to do."""
    return (
        f"The checkpoint holds generators of {owner} that are not there when the run goes on: "
        f"{', '.join(missing)}. What they draw differs from an uninterrupted run. Make them when "
        "their owner is made, not on the way."
    )
