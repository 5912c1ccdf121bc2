"""The definition of a machine: one `transitions` HierarchicalMachine made from a loop tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transitions.extensions.nesting import HierarchicalMachine, NestedState, NestedTransition

from statemachine_trainer.machine.declaration import Action, Guard, Transition
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.plan import END, LoopPlan
from statemachine_trainer.machine.verify import plan_tree


class ChartState(NestedState):
    """A state of our charts. It sets the separator here, not in the library's class that others use."""

    separator = SEPARATOR


class ChartTransition(NestedTransition):
    """A transition that leaves its source, even if an entry point leads back into it.

    The library does not leave a state on a transition to a state inside it. Here the loop is left
    and entered again, and the entry point only says where it begins.

    Attributes:
        actions: What is done between the exits and the entries.
    """

    def __init__(self, *args: Any, actions: Sequence[EdgeAction] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actions = tuple(actions)

    def _resolve_transition(self, event_data: Any) -> Any:
        tree, exits, enters = self._resolved(event_data)
        return tree, [*exits, *self.actions], enters

    def _resolved(self, event_data: Any) -> Any:
        dest: str | None = self.dest
        if dest is None or not leads_inside(self.source, dest):
            return super()._resolve_transition(event_data)
        # A transition from the loop to itself, as if the states on the way to `dest` were initial.
        names = dest.removeprefix(f"{self.source}{SEPARATOR}").split(SEPARATOR)
        state, before = event_data.machine.get_state(self.source), []
        try:
            for name in names:
                before.append((state, state.initial))
                state.initial = name
                state = state.states[name]
            self.dest = self.source
            return super()._resolve_transition(event_data)
        finally:
            self.dest = dest
            for state, initial in before:
                state.initial = initial


def leads_inside(source: str, dest: str | None) -> bool:
    """Return whether a transition leads, through an entry point, to a state inside its source."""
    return dest is not None and dest.startswith(f"{source}{SEPARATOR}")


class Chart(HierarchicalMachine):
    """The `transitions` machine of a loop tree. All features of the library work on it.

    The compiled program is made from the tables of this machine. Triggering an event through the
    library moves the machine and fires the same signals, but runs no state's work.

    Attributes:
        plan: The checked declarations of the loops.
    """

    state_cls = ChartState
    transition_cls = ChartTransition

    def __init__(self, root: Loop, name: str) -> None:
        self.plan: LoopPlan = plan_tree(root, name)
        self._position = name
        self._where: Callable[[], str | None] = lambda: None
        self._moved: Callable[[str], None] = lambda _path: None
        self._moving: Callable[[], AbstractContextManager[None]] = nullcontext
        super().__init__(
            model=self,
            states=[self._nested(self.plan, name), {"name": END, "final": True}],
            initial=name,
            auto_transitions=False,
            send_event=True,
            name=name,
        )
        plans = list(self.plan.walk())
        self._first_inside = {
            plan.path: f"{plan.path}{SEPARATOR}{plan.states[0]}" for plan in plans
        }
        for plan in plans:
            self._connect(plan)
        for outcome in root.outcomes:
            self.add_transition(outcome, name, END)

    @property
    def state(self) -> str:
        """Path of the running state; "end" after the end."""
        return self._where() or self._position

    @state.setter
    def state(self, path: str) -> None:
        self._position = path
        self._moved(path)

    def follow(
        self,
        where: Callable[[], str | None],
        moved: Callable[[str], None],
        moving: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Let a driver define which state the machine is in.

        Args:
            where: Returns the current state; None before the start.
            moved: Called when the library moves the machine.
            moving: Context manager around the library's triggers. It may refuse them.
        """
        self._where, self._moved, self._moving = where, moved, moving

    def trigger_event(self, model: Any, trigger: str, *args: Any, **kwargs: Any) -> bool:
        """Trigger an event through the library; every trigger of the machine comes through here."""
        with self._moving():
            return bool(super().trigger_event(model, trigger, *args, **kwargs))

    def leaves(self) -> list[str]:
        """Paths of the states without states inside, in the order of the tree."""
        return [path for path in self.paths() if path not in self._first_inside]

    def paths(self) -> list[str]:
        """Paths of all states but the end, loops before what is inside, in the order of the tree.

        The library knows them too, but takes long to say it.
        """
        return [*_paths_in(self.plan)]

    def initial_leaf(self, path: str) -> str:
        """Follow the initial states from `path` down to a leaf."""
        while path in self._first_inside:
            path = self._first_inside[path]
        return path

    def target_of(self, transition: Any, leaf: str) -> str:
        """Return where a transition of this machine leads: a leaf, or "end"."""
        if transition.dest is None:
            return leaf
        return END if transition.dest == END else self.initial_leaf(transition.dest)

    def get_graph(self, **options: Any) -> Any:
        """Draw the machine with the diagrams of `transitions` (Mermaid unless told otherwise)."""
        from transitions.extensions.diagrams import HierarchicalGraphMachine

        class DrawnState(HierarchicalGraphMachine.state_cls):  # type: ignore[valid-type,misc]
            separator = SEPARATOR

        class Drawing(HierarchicalGraphMachine):
            state_cls = DrawnState

        transitions = [
            {"trigger": event.name, "source": one.source, "dest": one.dest}
            for event in self.events.values()
            for found in event.transitions.values()
            for one in found
        ]
        drawing = Drawing(
            states=[self._nested(self.plan, self.plan.path), {"name": END, "final": True}],
            transitions=transitions,
            initial=self.state,
            auto_transitions=False,
            graph_engine=options.pop("graph_engine", "mermaid"),
            name=self.plan.path,
        )
        return drawing.get_graph(**options)

    def _nested(self, plan: LoopPlan, name: str) -> dict[str, Any]:
        children = [
            self._nested(plan.inside[state], state) if state in plan.inside else {"name": state}
            for state in plan.states
        ]
        return {"name": name, "initial": plan.states[0], "children": children}

    def _connect(self, plan: LoopPlan) -> None:
        for one in plan.transitions:
            guards = [_as_condition(plan.loop, guard) for guard in one.guards]
            self.add_transition(
                one.event,
                f"{plan.path}{SEPARATOR}{one.source}",
                None if one.dest is None else self._entered(plan, one.dest, one.event),
                conditions=[test for test, expected in guards if expected],
                unless=[test for test, expected in guards if not expected],
                actions=[_as_action(plan, one, action) for action in one.actions],
            )

    def _entered(self, plan: LoopPlan, dest: str, event: str) -> str:
        """Return the path that a transition on `event` to `dest` leads to, entry points followed."""
        path = f"{plan.path}{SEPARATOR}{dest}"
        inside = plan.inside.get(dest)
        if inside is not None and event in inside.loop.entries:
            return self._entered(inside, inside.loop.entries[event], event)
        return path


def _paths_in(plan: LoopPlan) -> Iterator[str]:
    yield plan.path
    for state in plan.states:
        if state in plan.inside:
            yield from _paths_in(plan.inside[state])
        else:
            yield f"{plan.path}{SEPARATOR}{state}"


class Condition:
    """A guard that both `transitions` (with event data) and the program (without arguments) can call."""

    def __init__(self, test: Callable[[], object], label: str) -> None:
        self.test = test
        self.__name__ = label

    def __call__(self, _event: Any = None) -> bool:
        return bool(self.test())


class EdgeAction:
    """An action of a transition. An error in it says of which one."""

    def __init__(self, work: Callable[[], object], label: str, edge: str) -> None:
        self.work = work
        self.edge = edge
        self.__name__ = label

    def __call__(self) -> None:
        try:
            self.work()
        except BaseException as error:
            error.add_note(f"Raised by the action {self.__name__!r} of {self.edge}.")
            raise


def _as_action(plan: LoopPlan, one: Transition, action: Action) -> EdgeAction:
    work = getattr(plan.loop, action.work) if isinstance(action.work, str) else action.work
    to = "" if one.dest is None else f" to {one.dest!r}"
    edge = f"the transition on {one.event!r} from {one.source!r}{to} of loop {plan.path!r} ({plan.kind})"
    return EdgeAction(work, str(action), edge)


def _as_condition(loop: Loop, guard: Guard) -> tuple[Condition, bool]:
    test = getattr(loop, guard.test) if isinstance(guard.test, str) else guard.test
    return Condition(test, str(guard).removeprefix("not ")), guard.expected
