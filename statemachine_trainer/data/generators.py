"""The random number generators that a loader, its samplers and its data set hold for themselves."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from statemachine_trainer.snapshot.rng import restore_rng, rng_state

Generator = torch.Generator | random.Random | np.random.Generator | np.random.RandomState

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


def record(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The state of every generator that the parts may draw from: the global ones and their own."""
    return {"rng": rng_state(), "own": own_states(parts)}


def restore(parts: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Put every generator where `record` found it."""
    restore_rng(recorded["rng"])
    restore_own(parts, recorded["own"])


def own_states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The states of the generators that are attributes of the parts: ``sampler.generator``."""
    return {name: _get(generator) for name, generator in _generators(parts).items()}


def restore_own(parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Put the parts' own generators where `own_states` found them; one that is gone is left out."""
    generators = _generators(parts)
    for name, state in states.items():
        if name in generators:
            _set(generators[name], state)


def _generators(parts: Mapping[str, Any]) -> dict[str, Generator]:
    return {
        f"{path}.{name}": value
        for path, part in parts.items()
        for name, value in getattr(part, "__dict__", {}).items()
        if isinstance(value, Generator)
    }


def _get(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return [version, torch.tensor(words, dtype=torch.int64), gauss]
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return dict(generator.bit_generator.state)


def _set(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words.tolist()), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
