"""The states of callbacks as checkpoints have them, with what is one thing under several paths."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from statemachine_trainer.audit.report import NotHeld
from statemachine_trainer.loops.context import Context
from statemachine_trainer.machine.errors import level_of_caller
from statemachine_trainer.parallel.wrappers import PlainNames
from statemachine_trainer.snapshot.ties import are_identities, tied_again, ties_of


class TiedStates:
    """Writes the states of callbacks of users, and tells once of what no checkpoint can hold of them."""

    def __init__(self) -> None:
        self._looked_at: set[tuple[int, str]] = set()

    def written(self, callback: Any, context: Context) -> dict[str, Any]:
        """Return the state of a callback, with its kind, and its ties if there are any.

        Warns:
            NotHeld: Something in it shares memory in a way that cannot be made again, or is kept by `id`.
        """
        kind, state = type(callback), callback.state_dict()
        entry = {"kind": kind.__qualname__, "state": state}
        found = ties_of(state, lambda: _weights_of(context))
        if found.ties:
            entry["ties"] = found.ties
        told = [
            f"{one} share memory: save one of them, and make the other from it in `load_state_dict`"
            for one in found.apart
            if self._is_new(callback, one)
        ]
        told += [
            f"the keys in {path} are identities of objects (`id`), which are others in another process: use "
            "names, or the places of the objects in a list"
            for path, key in found.keyed.items()
            if self._is_new(callback, path) and are_identities([key])
        ]
        if told:
            warnings.warn(
                f"The state of the callback {kind.__qualname__} is not the same once it was saved and read. "
                + "; ".join(told),
                NotHeld,
                stacklevel=level_of_caller(),
            )
        return entry

    def _is_new(self, callback: object, what: str) -> bool:
        key = id(callback), what
        new = key not in self._looked_at
        self._looked_at.add(key)
        return new


def tie_again(entry: Mapping[str, Any], context: Context | None) -> None:
    """Tie in a state that was read what was one thing when `TiedStates.written` returned it.

    Warns:
        NotHeld: A weight lies in memory in another order than it did, such as in `channels_last`.
    """
    if context is None:
        return
    if apart := tied_again(entry["state"], entry["ties"], _weights_of(context)):
        warnings.warn(
            f"In the state of the callback {entry['kind']}, {', '.join(apart)} no longer shares memory with the "
            "weights of the model, which now has another memory format. Give the model the one it had.",
            NotHeld,
            stacklevel=level_of_caller(),
        )


def _weights_of(context: Context) -> dict[str, torch.Tensor]:
    names = PlainNames(context.model)
    return {**dict(names.parameters()), **dict(names.buffers())}
