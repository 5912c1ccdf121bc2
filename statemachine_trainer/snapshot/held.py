"""The generators of random numbers that objects hold for themselves, written down and put back by path."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any

from statemachine_trainer.snapshot.found import Place, Step
from statemachine_trainer.snapshot.generators import (
    Generator,
    identity_of,
    kind_of,
    make,
    put,
    seed,
    state_of,
)
from statemachine_trainer.snapshot.search import Search

if TYPE_CHECKING:
    from statemachine_trainer.snapshot.repeated_search import SearchResult

Held = dict[str, Any]
"""What `own_states` returns: by path, the kind of a generator, its state, and where it lies."""


def own_states(roots: Mapping[str, object]) -> Held:
    """Return the states of the generators that can be reached from some objects, each once."""
    return states_found(Search(roots))


def states_found(search: Search | SearchResult) -> Held:
    """Return the states of the generators that a search has found, as `own_states` does."""
    return states_at(search.places)


def states_at(places: Mapping[str, Place]) -> Held:
    """Return the states of generators that were found at these places, as `own_states` does."""
    return {path: _entry(place) for path, place in places.items()}


def lies_within(entry: Mapping[str, Any], root: str) -> bool:
    """Whether a generator that was found lies, in all its places, in what is reached from one root."""
    holders = [step.holder for step in _steps(entry)]
    return all(
        one == root or one.startswith((f"{root}.", f"{root}[", f"{root}(")) for one in holders
    )


def restore_own(roots: Mapping[str, object], states: Mapping[str, Any]) -> list[str]:
    """Put the generators where `own_states` found them.

    One that is not there yet is made where it was, if its place is free: in a run that was not
    interrupted it appeared on the way. Those that were one object become one object again, and those
    that were several become several.

    Args:
        roots: The same objects as for `own_states`, by the same names.
        states: What it returned, or what earlier versions wrote: the bare state by path.

    Returns:
        The paths of those for which there is no place.
    """
    if not states:
        return []
    entries = {path: _as_entry(path, state) for path, state in states.items()}
    wanted = {step.holder for one in entries.values() for step in _steps(one)}
    search = Search(roots, holders=wanted)
    present = {
        step: place.generator
        for place in search.places.values()
        for step in (place.step, *place.also)
    }
    by_path = {path: place.generator for path, place in search.places.items()}
    missing = []
    taken: set[int] = set()  # those that are one object here and may have been several there
    for path, entry in entries.items():
        steps = _steps(entry)
        here = by_path.get(path) or next((present[s] for s in steps if s in present), None)
        if here is not None and identity_of(here) in taken:
            here = None
        generator = _brought(here, entry)
        if generator is None:
            missing.append(path)
            continue
        taken.add(identity_of(generator))
        for step in steps:
            other = present.get(step)
            same = other is not None and identity_of(other) == identity_of(generator)
            if not same and not _set(search.holders.get(step.holder), step, generator):
                missing.append(path if step is steps[0] else f"{step.holder}.{step.key}")
    return missing


def reseed(places: Mapping[str, Place], content: bytes) -> None:
    """Seed each generator with bytes and its path, so that no two draw the same."""
    for path, place in places.items():
        seed(place.generator, content + path.encode())


def keep(places: Mapping[str, Place]) -> list[tuple[Generator, Any]]:
    """Return generators with their states, for `put_back`."""
    return [(one.generator, state_of(one.generator)) for one in places.values()]


def put_back(kept: list[tuple[Generator, Any]]) -> None:
    """Put generators where `keep` found them."""
    for generator, state in kept:
        put(generator, state)


def _entry(place: Place) -> dict[str, Any]:
    entry = {
        "kind": kind_of(place.generator),
        "state": state_of(place.generator),
        "at": [*place.step],
    }
    if place.also:
        entry["also"] = [[*step] for step in place.also]
    return entry


def _as_entry(path: str, state: Any) -> dict[str, Any]:
    """Take a bare state, as earlier versions wrote it under the path of an attribute."""
    if isinstance(state, dict) and "kind" in state:
        return state
    holder, _, name = path.rpartition(".")
    return {"kind": None, "state": state, "at": [holder, "attribute", name]}


def _steps(entry: Mapping[str, Any]) -> list[Step]:
    return [Step(*entry["at"]), *(Step(*one) for one in entry.get("also", ()))]


def _brought(generator: Generator | None, entry: Mapping[str, Any]) -> Generator | None:
    """Return a generator in the state of an entry: the one that is there, or a new one."""
    kind, state = entry["kind"], entry["state"]
    if generator is not None and (kind is None or kind == kind_of(generator)):
        put(generator, state)
        return generator
    return None if kind is None else make(kind, state)


def _set(holder: object, step: Step, generator: Generator) -> bool:
    """Put a generator in its place, unless something else is there."""
    ways = (_as_attribute, _as_item, _in_closure)
    return any(put_it(holder, step, generator) for put_it in ways)


def _as_attribute(holder: object, step: Step, generator: Generator) -> bool:
    if holder is None or step.how != "attribute" or not isinstance(step.key, str):
        return False
    try:
        here = object.__getattribute__(holder, step.key)
    except AttributeError:
        here = None
    if not _is_free(here):
        return False
    write = type.__setattr__ if isinstance(holder, type) else object.__setattr__
    try:
        write(holder, step.key, generator)
    except (AttributeError, TypeError):
        return False
    return True


def _as_item(holder: object, step: Step, generator: Generator) -> bool:
    if step.how != "item":
        return False
    if isinstance(holder, dict) and _is_free(dict.get(holder, step.key)):
        dict.__setitem__(holder, step.key, generator)
        return True
    if isinstance(holder, list | deque) and step.key < len(holder) and _is_free(holder[step.key]):
        holder[step.key] = generator
        return True
    if isinstance(holder, list) and step.key == len(holder):
        holder.append(generator)
        return True
    return False


def _in_closure(holder: object, step: Step, generator: Generator) -> bool:
    if step.how != "closure" or not isinstance(holder, FunctionType):
        return False
    for name, cell in _cells(holder):
        if name == step.key and _is_free(_content(cell)):
            cell.cell_contents = generator
            return True
    return False


def _cells(function: FunctionType) -> Iterator[tuple[str, CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _content(cell: CellType) -> object:
    try:
        content: object = cell.cell_contents
    except ValueError:  # nothing in it yet
        return None
    return content


def _is_free(here: object) -> bool:
    return here is None or isinstance(here, Generator)
