"""Random loop trees that hold together, for laws about all machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

from hypothesis import strategies as st

from statemachine_trainer.machine import Loop, place
from statemachine_trainer.machine.errors import LoopDefinitionError
from statemachine_trainer.machine.fields import field as loop_field
from statemachine_trainer.machine.verify import plan_tree

EVENTS = tuple(f"e{i}" for i in range(6))
POSTED = ("stop", "validate", "tick")
NAME = "root"


@dataclass(frozen=True)
class State:
    """A state to be made: it works if it gives events, else it is a loop."""

    name: str
    events: tuple[str, ...] = ()
    inside: LoopSpec | None = None


@dataclass(frozen=True)
class LoopSpec:
    """A loop class to be made, as plain data so that a failing example can be read."""

    states: tuple[State, ...]
    transitions: tuple[dict[str, Any], ...]
    entries: dict[str, str] = field(default_factory=dict)
    scopes: tuple[str | None, ...] = (None,)

    def given(self) -> set[str]:
        """Events that may leave the loop."""
        sure: set[tuple[str, str]] = set()
        for one in self.transitions:
            if not (one.get("conditions") or one.get("unless")):
                sure |= {(s, one["trigger"]) for s in self.sources(one)}
        return {e for s in self.states for e in given_by(s) if (s.name, e) not in sure}

    def sources(self, transition: dict[str, Any]) -> Sequence[str]:
        source = transition["source"]
        if source == "*":
            return [s.name for s in self.states]
        return [source] if isinstance(source, str) else source


def given_by(state: State) -> set[str]:
    return set(state.events) if state.inside is None else state.inside.given()


class Script(Protocol):
    """Says what states answer and conditions tell. The loops of a machine share it as `context`."""

    def answer(self, loop: Any, events: Sequence[str]) -> str: ...

    def tell(self, loop: Any, guard: int) -> object: ...


@st.composite
def loop_specs(draw: st.DrawFn, depth: int = 4, top: bool = True) -> LoopSpec:
    size = draw(st.integers(1 if depth > 1 else 2, 5 if top else 4))
    states = []
    for i in range(size):
        if depth > 1 and draw(st.integers(0, 4)) < 2:
            states.append(State(f"s{i}", inside=draw(loop_specs(depth - 1, top=False))))
        else:
            events = draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=3, unique=True))
            states.append(State(f"s{i}", tuple(events)))
    chain, more = draw(chains(states)), draw(extras(states))
    transitions = [*more, *chain] if draw(st.booleans()) else [*chain, *more]
    if not LoopSpec(tuple(states), tuple(transitions)).given():  # it could never be left
        transitions = chain
    entries = draw(
        st.dictionaries(
            st.sampled_from(EVENTS + POSTED), st.sampled_from([s.name for s in states]), max_size=2
        )
    )
    scopes = draw(
        st.lists(st.sampled_from([None, "run", "s0", "s1", NAME]), min_size=1, max_size=3)
    )
    return LoopSpec(tuple(states), tuple(transitions), entries, tuple(scopes))


@st.composite
def chains(draw: st.DrawFn, states: list[State]) -> list[dict[str, Any]]:
    """Transitions that lead from each state to the next, so that all is reachable and can end."""
    return [
        {
            "trigger": draw(st.sampled_from(sorted(given_by(one)))),
            "source": one.name,
            "dest": new.name,
        }
        for one, new in pairwise(states)
    ]


@st.composite
def extras(draw: st.DrawFn, states: list[State]) -> list[dict[str, Any]]:
    """Transitions of every kind: several sources, any source, internal, to itself, with conditions."""
    names = [s.name for s in states]
    made = []
    for _ in range(draw(st.integers(0, 5))):
        few = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
        source = draw(st.one_of(st.sampled_from(names), few, st.just("*")))
        given = [given_by(s) for s in states if source == "*" or s.name in source]
        events = set.union(*given) if source == "*" else set.intersection(*given)
        kinds = [sorted(events), POSTED] if events else [POSTED]
        trigger = draw(st.sampled_from(draw(st.sampled_from(kinds))))
        dest = draw(st.one_of(st.sampled_from(names), st.just("="), st.none()))
        one: dict[str, Any] = {"trigger": trigger, "source": source, "dest": dest}
        kind = draw(st.sampled_from(["plain", "conditions", "unless", "both"]))
        if kind in ("conditions", "both"):
            one["conditions"] = draw(
                st.sampled_from(["guard_0", "guard_1", ["guard_0", "guard_2"]])
            )
        if kind in ("unless", "both"):
            one["unless"] = draw(st.sampled_from(["guard_1", "guard_2"]))
        made.append(one)
    return draw(st.permutations(made))


def make_class(spec: LoopSpec) -> type[Loop]:
    """Write the class that a newcomer would write for this loop."""
    body: dict[str, Any] = {
        "initial": spec.states[0].name,
        "transitions": spec.transitions,
        "entries": spec.entries,
        "posted": ("tick",),
        "__annotations__": {},
    }
    for i, scope in enumerate(spec.scopes):
        body[f"count_{i}"] = loop_field(0, scope=scope)
        body["__annotations__"][f"count_{i}"] = int
    for state in spec.states:
        if state.inside is not None:
            body[state.name] = place(make_class(state.inside))
        else:
            body[state.name] = _work(state, len(spec.scopes))
    for i in range(3):
        body[f"guard_{i}"] = _guard(i)
    return type("RandomLoop", (Loop,), body)


def _work(state: State, fields: int) -> Callable[[Any], str]:
    def work(self: Any) -> str:
        for i in range(fields):
            setattr(self, f"count_{i}", getattr(self, f"count_{i}") + 1)
        answer: str = self.context.answer(self, state.events)
        return answer

    work.__annotations__ = {"return": Literal[state.events]}
    return work


def _guard(number: int) -> Callable[[Any], object]:
    def guard(self: Any) -> object:
        return self.context.tell(self, number)

    return guard


@st.composite
def loop_classes(draw: st.DrawFn) -> type[Loop]:
    """Root classes of trees that hold together; their outcomes end the machine."""
    spec = draw(loop_specs())
    root = make_class(spec)
    root.outcomes = tuple(sorted({*spec.given(), *draw(st.sets(st.just("stop")))}))
    return root


def holds_together(root: type[Loop]) -> bool:
    try:
        plan_tree(root(), NAME)
    except LoopDefinitionError:
        return False
    return True


trees = loop_classes().filter(holds_together)
