"""Checks of a loop tree before anything runs: a mistake is an error here, not hours into a run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable

from statemachine_trainer.machine.declaration import (
    Action,
    Answers,
    Guard,
    Transition,
    is_transient,
    read_answers,
    read_errors,
    read_transitions,
)
from statemachine_trainer.machine.errors import (
    ImpossibleEvent,
    LoopDefinitionError,
    LoopUsedTwice,
    MalformedTransition,
    NoWayOut,
    ReservedName,
    UncallableState,
    UnhandledEvent,
    UnknownState,
    UnreachableState,
    suggest,
)
from statemachine_trainer.machine.lint import (
    check_answers,
    check_called_states,
    check_class,
    check_fields,
    check_hooks,
    check_left_out,
    check_scopes,
    check_state,
)
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.plan import END, POSTED_EVENTS, LoopPlan, methods_of, states_of
from statemachine_trainer.machine.signals import ENTER, EXIT

_OF_THE_LIBRARY = ("state", "to_state")
_IF_POSTED = "If it is posted from outside, list it in `posted`."


def plan_tree(root: Loop, name: str) -> LoopPlan:
    """Read and check a whole tree of loops.

    Raises:
        LoopDefinitionError: The tree cannot run. The message names loop, state and event, and how
            to fix it.
    """
    if not isinstance(root, Loop):
        kind = root.__name__ if isinstance(root, type) else type(root).__name__
        given = f"the class {kind}: write `{kind}()`" if isinstance(root, type) else f"a {kind}"
        raise LoopDefinitionError(f"A machine is built from a loop, and was given {given}.")
    if not name.isidentifier() or name in (END, *_OF_THE_LIBRARY):
        kept = ", ".join(map(repr, (END, *_OF_THE_LIBRARY)))
        raise ReservedName(
            f"The root cannot be called {name!r}: use an identifier other than {kept}."
        )
    plan = _plan(
        root, name, {}, interrupted=bool({*POSTED_EVENTS, *root.posted} & {*root.outcomes})
    )
    _check_error_names(plan)
    if unsaid := sorted(set(plan.origins) - set(root.outcomes)):
        event = unsaid[0]
        raise UnhandledEvent(
            f"State {plan.origins[event]!r} may answer {event!r}, and no loop around it has a "
            "transition that takes it whatever the conditions say. Add one, or say that the run "
            f"ends with it: `outcomes = ({', '.join(map(repr, unsaid))},)` in {plan.kind}."
        )
    return plan


def _check_error_names(root: LoopPlan) -> None:
    """Refuse two types of errors of one name, and an event called like one: they would be mistaken."""
    types: dict[str, type[Exception]] = {}
    for plan in root.walk():
        for one in plan.transitions:
            if one.error is not None and types.setdefault(one.event, one.error) is not one.error:
                raise ReservedName(
                    f"Loop {plan.path!r} ({plan.kind}) has an error edge for "
                    f"{_full_name(one.error)}, and the tree has one for "
                    f"{_full_name(types[one.event])}. Signals and pictures name an edge by its type: "
                    "give one of the two another name."
                )
    for plan in root.walk():
        events = {t.event for t in plan.transitions if t.error is None}
        given = {event for answers in plan.answers.values() for event in answers.events}
        used = events | given | {*plan.loop.posted, *plan.loop.outcomes}
        if both := sorted(used & types.keys()):
            raise ReservedName(
                f"{both[0]!r} in loop {plan.path!r} ({plan.kind}) is an event and the name of a type "
                "of errors that the tree has an edge for. Give the event another name."
            )


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _plan(loop: Loop, path: str, seen: dict[int, str], *, interrupted: bool) -> LoopPlan:
    """Read and check one loop and those inside it.

    Args:
        loop: The loop.
        path: Its path.
        seen: Paths of the loops met before, by identity.
        interrupted: Whether an event from outside can make the machine leave this loop.
    """
    kind = type(loop).__name__
    if id(loop) in seen:
        raise LoopUsedTwice(
            f"The same {kind} stands at {seen[id(loop)]!r} and at {path!r}; its state could not be "
            "told apart. Make two instances."
        )
    seen[id(loop)] = path
    _check_declarations(loop, path)
    check_class(type(loop), path)
    check_fields(loop, path)
    check_scopes(loop, path)
    states = states_of(loop, path)
    check_called_states(type(loop), path, states)
    plan = LoopPlan(path, loop, states, read_transitions(type(loop), loop.transitions, states))
    plan.transitions += read_errors(type(loop), loop.errors, states)
    _check_names(plan)
    inside = loop.loops_inside()
    for state in states:
        here = f"{path}{SEPARATOR}{state}"
        if state in inside:
            left = interrupted or _is_interrupted(plan, state)
            plan.inside[state] = _plan(inside[state], here, seen, interrupted=left)
        else:
            plan.answers[state] = _read_state(loop, state, here)
    named = {str(guard.test) for t in plan.transitions for guard in t.guards}
    named |= {str(action.work) for t in plan.transitions for action in t.actions}
    check_left_out(type(loop), path, states, named)
    check_hooks(type(loop), path, states, [t.event for t in plan.transitions])
    _narrow_wildcards(plan)
    for check in (
        _check_guards,
        _check_actions,
        _check_entries,
        _check_events,
        _check_errors,
        _check_reachable,
    ):
        check(plan)
    if not interrupted:
        _check_way_out(plan)
    return plan


def _read_state(loop: Loop, state: str, path: str) -> Answers:
    """Read the events that a state method may answer with, and check the method itself."""
    cls, method = type(loop), getattr(loop, state)
    _check_call(method, f"State {path!r} ({cls.__name__}.{state})")
    answers = read_answers(cls, state, path)
    check_state(method, loop, path)
    if not answers.may_rest:
        check_answers(method, state, cls, path, answers.events)
    return answers


def _is_interrupted(plan: LoopPlan, state: str) -> bool:
    """Return whether a posted event has a transition out of this state of the loop."""
    posted = plan.posted_events()
    return any(
        t.source == state and t.event in posted and t.dest not in (None, state)
        for t in plan.transitions
    )


def _narrow_wildcards(plan: LoopPlan) -> None:
    """Of the transitions from "*", keep only those from states that can answer with the event."""
    kept = [t for t in plan.transitions if not t.implied or _can_occur(plan, t)]
    events = {t.event for t in kept}
    for one in plan.transitions:
        if one.event not in events:
            given = {event for state in plan.states for event in plan.given_by(state)}
            raise ImpossibleEvent(
                f"Loop {plan.path!r} ({plan.kind}) has a transition on {one.event!r} from '*', but "
                f"no state of it gives that event. {suggest(one.event, given)} {_IF_POSTED}"
            )
    plan.transitions = kept


def _can_occur(plan: LoopPlan, one: Transition) -> bool:
    if one.error is not None:  # any state may raise
        return True
    inside = plan.inside.get(one.source)
    if inside is not None and one.event in inside.loop.outcomes:
        return True  # `outcomes` is its contract, whatever loops are in its places now.
    return one.event in plan.given_by(one.source) or one.event in plan.posted_events()


def _check_declarations(loop: Loop, path: str) -> None:
    cls = type(loop)
    for name in ("outcomes", "posted"):
        value = getattr(loop, name)
        if isinstance(value, str) or not all(isinstance(event, str) for event in value):
            raise LoopDefinitionError(
                f"`{name}` of loop {path!r} ({cls.__name__}) is {value!r}; it is a tuple of "
                f"events: `{name} = ({value!r},)`."
            )
    for name in ("most_errors", "most_posted"):
        most = getattr(loop, name)
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise LoopDefinitionError(
                f"`{name}` of loop {path!r} ({cls.__name__}) is {most!r}: use a whole number from 1."
            )
    if dataclasses.is_dataclass(cls):
        raise LoopDefinitionError(
            f"Loop {path!r} ({cls.__name__}) is a dataclass: its settings would be fields, reset "
            "at each entry. Write an `__init__` that keeps the settings as plain attributes."
        )


def _check_call(function: Callable[..., object], what: str) -> None:
    """Refuse a function that needs arguments, or that does not answer with a plain return."""
    if _takes_only_self(function):
        return
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UncallableState(
            f"{what} is a coroutine or generator function; the machine needs an answer from a "
            "plain call."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none, and methods without `self`
        if inspect.ismethod(function):
            raise UncallableState(f"{what} takes no `self`. Write `def name(self)`.") from None
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UncallableState(
            f"{what} is called without arguments, and that does not work: {error}. What it needs "
            "belongs on the loop or in its `context`."
        ) from None


def _takes_only_self(function: Callable[..., object]) -> bool:
    """Whether it is a plain method without further arguments, as most are; says it without a signature."""
    if not inspect.ismethod(function) or not inspect.isfunction(function.__func__):
        return False
    code = function.__func__.__code__
    odd = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return (
        code.co_argcount == 1
        and not code.co_kwonlyargcount
        and not code.co_flags & odd
        and not vars(function.__func__)  # what wraps another may be asked for the signature of that
    )


def _check_names(plan: LoopPlan) -> None:
    loop = plan.loop
    events = [one.event for one in plan.transitions]
    for name in [*plan.states, *events, *loop.outcomes, *loop.posted, *loop.entries]:
        if not name.isidentifier():
            raise ReservedName(
                f"{name!r} in loop {plan.path!r} ({plan.kind}) is no identifier; paths need one."
            )
    for name in [*events, *loop.outcomes]:
        if name in (ENTER, EXIT, *_OF_THE_LIBRARY):
            whose = (
                "of a signal" if name in (ENTER, EXIT) else "that the library `transitions` keeps"
            )
            raise ReservedName(
                f"The event {name!r} in loop {plan.path!r} ({plan.kind}) is the name {whose}. Call it "
                "something else."
            )


def _check_guards(plan: LoopPlan) -> None:
    for one in plan.transitions:
        for guard in one.guards:
            what = f"The condition {str(guard)!r} of {one.event!r} from {one.source!r}"
            where = f"loop {plan.path!r} ({plan.kind})"
            test = (
                getattr(plan.loop, guard.test, None) if isinstance(guard.test, str) else guard.test
            )
            if not callable(test):
                raise UnknownState(f"{what} is no method of {where}. {_near_method(plan, guard)}")
            _check_call(test, f"{what} in {where}")


def _check_actions(plan: LoopPlan) -> None:
    """Refuse actions that cannot be called, or that keep what is not saved."""
    where = f"loop {plan.path!r} ({plan.kind})"
    for one in plan.transitions:
        for action in one.actions:
            what = f"The action {str(action)!r} of {one.event!r} from {one.source!r}"
            name = action.work
            work = getattr(plan.loop, name, None) if isinstance(name, str) else name
            if not callable(work):
                raise UnknownState(f"{what} is no method of {where}. {_near_method(plan, action)}")
            if name in plan.states:
                raise MalformedTransition(
                    f"{what} in {where} is a state. A state does its work when the machine stands at it; "
                    "put what both need into a method of its own."
                )
            _check_call(work, f"{what} in {where}")
            if isinstance(name, str):
                check_state(work, plan.loop, f"{plan.path}{SEPARATOR}{name}")


def _near_method(plan: LoopPlan, what: Guard | Action) -> str:
    """Return what the unknown name of a condition or an action may stand for, or how to write it."""
    name = what.test if isinstance(what, Guard) else what.work
    named = [str(one.test) for t in plan.transitions for one in t.guards]
    named += [str(one.work) for t in plan.transitions for one in t.actions]
    known = [one for one in named if callable(getattr(type(plan.loop), one, None))]
    known += [one for one in methods_of(type(plan.loop), users=True) if one not in plan.states]
    answer = "bool" if isinstance(what, Guard) else "None"
    return suggest(str(name), known, cutoff=0.5) or (
        f"Write it, `def {name}(self) -> {answer}: ...`, or give the function itself."
    )


def _check_entries(plan: LoopPlan) -> None:
    for event, state in plan.loop.entries.items():
        if state not in plan.states:
            raise UnknownState(
                f"The entry point {event!r} of loop {plan.path!r} ({plan.kind}) leads to "
                f"{state!r}, which is no state of it. {suggest(state, plan.states)}"
            )


def _check_events(plan: LoopPlan) -> None:
    """Check that each event is handled or leaves the loop, and that each handled event can occur."""
    _check_order(plan)
    for state in plan.states:
        for event, origin in plan.given_by(state).items():
            if not plan.handles(state, event):
                plan.origins.setdefault(event, origin)
    for one in plan.transitions:
        if not _can_occur(plan, one):
            raise ImpossibleEvent(_why_not(plan, one))
    allowed = plan.loop.outcomes
    if allowed and (surprise := sorted(set(plan.origins) - set(allowed))):
        raise UnhandledEvent(
            f"State {plan.origins[surprise[0]]!r} may answer {surprise[0]!r}, which loop "
            f"{plan.path!r} ({plan.kind}) neither handles in every case nor lists in its "
            f"`outcomes` ({', '.join(allowed)}). Add a transition without a condition "
            f'(`["{surprise[0]}", source, dest]`), or the outcome.'
        )


def _check_errors(plan: LoopPlan) -> None:
    """Refuse an error edge to a transient state: what lives before that has been put back."""
    for one in plan.transitions:
        if one.error is None or one.source not in plan.states:
            continue
        edge = f"The edge for {one.event} from {one.source!r} in loop {plan.path!r} ({plan.kind})"
        if one.dest is None:
            if lost := _transient_states(plan, one.source):
                raise MalformedTransition(
                    f"{edge} has no dest (None), so that the state that raised works again. "
                    f"{lost[0]!r} cannot: it is transient, and what lives before it is gone when an exception is "
                    f"raised. {_where_else(plan, one.source)}"
                )
        elif one.dest not in plan.inside and (lost := _transient_states(plan, one.dest)):
            raise MalformedTransition(
                f"{edge} leads to {lost[0]!r}, which is transient: what lives before that state is gone when an "
                "exception is raised. Lead to a state before it, at which a checkpoint can be taken."
            )


def _where_else(plan: LoopPlan, source: str) -> str:
    """Say where an error edge may lead that cannot go back to the state that raised."""
    dests = [
        repr(one)
        for one in plan.states
        if one != source and (one in plan.inside or not _transient_states(plan, one))
    ]
    inside = plan.inside.get(source)
    if inside is None:
        return f"Name a dest, a state before it: {' or '.join(dests)}."
    again = [
        repr(one)
        for one in inside.states
        if one in inside.answers and not _transient_states(inside, one)
    ]
    inner = (
        f"; or write the edge to None in {inside.kind}, from {' or '.join(again)}" if again else ""
    )
    return f"Name a dest: '=' begins {source!r} anew, or {' or '.join(dests)}{inner}."


def _transient_states(plan: LoopPlan, state: str) -> list[str]:
    """Return the paths of the transient states at and inside a state."""
    inside = plan.inside.get(state)
    if inside is not None:
        return [path for one in inside.states for path in _transient_states(inside, one)]
    transient = is_transient(getattr(plan.loop, state))
    return [f"{plan.path}{SEPARATOR}{state}"] if transient else []


def _why_not(plan: LoopPlan, one: Transition) -> str:
    """Explain why the source of a transition cannot give its event, and how to change that."""
    given = plan.given_by(one.source)
    inside = plan.inside.get(one.source)
    if inside is None:
        return (
            f"Loop {plan.path!r} ({plan.kind}) has a transition on {one.event!r} from "
            f"{one.source!r}, but it never answers with that event. {suggest(one.event, given)} {_IF_POSTED}"
        )
    place = _place_of_kind(type(plan.loop), type(inside.loop))
    if place and place != one.source:
        return (
            f"{inside.kind} stands as {one.source!r} in {plan.kind} (loop {plan.path!r}), and is a loop for {place!r}: "
            f"it never answers {one.event!r}. Put it there: `replace(**{{{place!r}: {inside.kind}(...)}})`."
        )
    ends = f"may end with {' or '.join(map(repr, given))}" if given else "never ends"
    return (
        f"{inside.kind} {ends}, and {plan.kind} (loop {plan.path!r}), in which it stands as "
        f"{one.source!r}, expects {one.event!r}: none of the states inside {inside.kind} gives "
        f"that event. Let one of them answer {one.event!r}, with no transition on it in that loop. {_IF_POSTED}"
    )


def _place_of_kind(outer: type[Loop], kind: type[Loop]) -> str:
    """Return the path of the place below a class of loops for which a loop of a kind is made; "" if there is none."""
    for name in outer.places():
        declared = outer.declared(name)
        if not (isinstance(declared, type) and issubclass(declared, Loop)):
            continue
        if issubclass(kind, declared):
            return name
        if inner := _place_of_kind(declared, kind):
            return f"{name}{SEPARATOR}{inner}"
    return ""


def _check_order(plan: LoopPlan) -> None:
    """Refuse a second transition on one event from one state if the first is always taken."""
    taken: dict[tuple[str, str], Transition] = {}
    for one in plan.transitions:
        first = taken.get((one.source, one.event))
        if first is not None and not one.implied:
            raise MalformedTransition(
                f"Loop {plan.path!r} ({plan.kind}) has a second transition on {one.event!r} from "
                f"{one.source!r}, to {one.dest!r}, that is never taken: the first, to "
                f"{first.dest!r}, has no condition. Give the first a condition, or use two events."
            )
        if not one.guards:
            taken.setdefault((one.source, one.event), one)


def _steps(plan: LoopPlan, *, errors: bool) -> dict[str, set[str]]:
    steps: dict[str, set[str]] = {state: set() for state in plan.states}
    for one in plan.transitions:
        if one.dest is not None and (errors or one.error is None):
            steps[one.source].add(one.dest)
    return steps


def _reach(start: Iterable[str], steps: Callable[[str], Iterable[str]]) -> set[str]:
    reached, todo = set(start), list(start)
    while todo:
        new = set(steps(todo.pop())) - reached
        reached |= new
        todo += new
    return reached


def _check_reachable(plan: LoopPlan) -> None:
    steps = _steps(plan, errors=True)
    reached = _reach([plan.states[0], *plan.loop.entries.values()], steps.__getitem__)
    for state in plan.states:
        if state not in reached:
            raise UnreachableState(
                f"No transition of loop {plan.path!r} ({plan.kind}) leads from {plan.states[0]!r} "
                f"to {state!r}. Add one, or remove the state."
            )


def _check_way_out(plan: LoopPlan) -> None:
    exits = {s for s in plan.states if any(not plan.handles(s, e) for e in plan.given_by(s))}
    back: dict[str, set[str]] = {state: set() for state in plan.states}
    for source, dests in _steps(plan, errors=False).items():  # an error is no way to end a loop
        for dest in dests:
            back[dest].add(source)
    can_leave = _reach(exits, back.__getitem__)
    for state in plan.states:
        if state not in can_leave:
            raise NoWayOut(
                f"From state {state!r} the end of loop {plan.path!r} ({plan.kind}) cannot be "
                "reached: every event leads back. Let one state answer with an event that the loop "
                "has no transition for."
            )
