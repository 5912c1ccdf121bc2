"""The state of a tree of loops as plain data, and the check that it fits another tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from statemachine_trainer.machine.errors import StateMismatch
from statemachine_trainer.machine.fields import UNSET
from statemachine_trainer.machine.loop import Loop
from statemachine_trainer.machine.program import Program


def state_of_loops(loops: Iterable[tuple[str, Loop]]) -> dict[str, dict[str, Any]]:
    """Return the class and the fields of every loop, by path."""
    return {path: {"loop": _saved_as(loop), "fields": loop.state_dict()} for path, loop in loops}


def _saved_as(loop: Loop) -> str:
    """Return the name of a loop's class, or of the one in whose place it may continue."""
    cls = type(loop)
    return str(vars(cls).get("_saved_as", cls.__qualname__))


def check_state(state: Mapping[str, Any], root: Loop, name: str, program: Program) -> None:
    """Refuse a state that was saved from a different tree.

    Raises:
        StateMismatch: The message lists all differences.
    """
    differences = list(_differences(state, dict(root.walk(name)), program))
    if differences:
        raise StateMismatch(
            f"The saved state is of another loop tree: {'; '.join(differences)}. Build the same "
            "loops, or load the weights alone. A loop that the run itself put in has to be put in "
            "again before the run goes on."
        )


def _differences(
    state: Mapping[str, Any], loops: Mapping[str, Loop], program: Program
) -> Iterator[str]:
    saved = state["loops"]
    for path in saved:
        if path not in loops:
            yield f"loop {path!r} is only in the saved state"
    for path, loop in loops.items():
        if path in saved:
            yield from _differences_of_loop(path, saved[path], loop)
        else:
            yield f"loop {path!r} is only in this tree"
    if state["path"] is not None and state["path"] not in program.nodes:
        yield f"there is no state {state['path']!r} to go on from"
    for event in state["posted"]:
        if event not in program.postable:
            yield f"no loop takes the posted event {event!r}"


def _differences_of_loop(path: str, saved: Mapping[str, Any], loop: Loop) -> Iterator[str]:
    kind, values = _saved_as(loop), saved["fields"]
    if saved["loop"] != kind:
        yield f"loop {path!r} was a {saved['loop']} and is a {kind}"
    for name in values:
        if name not in loop._fields:
            yield f"field {name!r} of loop {path!r} is unknown here"
    for name, field in loop._fields.items():
        begins = field.saved and (field.default is not UNSET or field.factory is not None)
        if begins and name not in values:
            yield f"field {name!r} of loop {path!r} is not in the saved state"
