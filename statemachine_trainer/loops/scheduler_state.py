"""The state of a learning rate scheduler as plain data, also of one that holds other schedulers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from torch.optim import Optimizer

from statemachine_trainer.loops.slots import Scheduler
from statemachine_trainer.snapshot.generators import GENERATORS, kind_of, make, put, state_of
from statemachine_trainer.snapshot.snapshot_errors import SnapshotMismatch, Unwritable

_OBJECT: Final = "$object"
_STATE: Final = "$state"


def scheduler_state(one: Scheduler, where: str) -> Any:
    """Return the state of a scheduler.

    Objects in it that have their own state are saved by that state: a warm-up, for example, holds
    the scheduler that follows it. A generator of random numbers, as the function of a `LambdaLR`
    may hold one, is saved as well. Optimizers are not saved here.

    Args:
        one: The scheduler.
        where: Its address, for the error.

    Raises:
        Unwritable: It cannot say where it stands.
    """
    if not _has_state(one.scheduler):
        raise Unwritable(
            where,
            f"the scheduler {type(one.scheduler).__name__} cannot say where it stands",
            "give it `state_dict` and `load_state_dict`",
        )
    return _plain(one.scheduler.state_dict())


def load_scheduler_state(one: Scheduler, saved: Any) -> None:
    """Restore a state of a scheduler from `scheduler_state`.

    Raises:
        SnapshotMismatch: It holds a different object than the saved one did.
    """
    one.scheduler.load_state_dict(_like(one.scheduler.state_dict(), saved))


def _has_state(value: object) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _plain(tree: Any) -> Any:
    """Make plain dicts of what is more than that, as the milestones of a `MultiStepLR` are."""
    if isinstance(tree, Mapping):
        return {key: _plain(one) for key, one in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_plain(one) for one in tree)
    if isinstance(tree, Optimizer):  # it is saved by itself
        return {_OBJECT: type(tree).__qualname__}
    if isinstance(tree, GENERATORS):
        return {_OBJECT: kind_of(tree), _STATE: state_of(tree)}
    if _has_state(tree):
        return {_OBJECT: type(tree).__qualname__, _STATE: _plain(tree.state_dict())}
    return tree


def _like(fresh: Any, saved: Any) -> Any:
    """Make a copy of a saved tree, its dicts and objects those that they are in a fresh one."""
    if isinstance(saved, Mapping) and _OBJECT in saved:
        return _object(fresh, saved)
    if isinstance(saved, Mapping):
        inside = fresh if isinstance(fresh, Mapping) else {}
        made = {key: _like(inside.get(key), one) for key, one in saved.items()}
        return Counter(made) if isinstance(fresh, Counter) else made
    if type(saved) in (list, tuple):
        others = fresh if type(fresh) is type(saved) and len(fresh) == len(saved) else saved
        return type(saved)(_like(one, other) for one, other in zip(others, saved, strict=True))
    return saved


def _object(fresh: Any, saved: Mapping[str, Any]) -> Any:
    is_generator = isinstance(fresh, GENERATORS)
    kind = kind_of(fresh) if is_generator else type(fresh).__qualname__
    if fresh is None and _STATE in saved:  # a generator that appeared on the way
        return make(saved[_OBJECT], saved[_STATE])
    if kind != saved[_OBJECT]:
        raise SnapshotMismatch(
            f"A scheduler held a {saved[_OBJECT]} when it was saved, and holds a {kind} here. Make "
            "the same schedulers in configure_optimizers."
        )
    if is_generator:
        put(fresh, saved[_STATE])
    elif _STATE in saved:
        fresh.load_state_dict(_like(fresh.state_dict(), saved[_STATE]))
    return fresh
