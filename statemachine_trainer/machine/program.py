"""The compiled program: the tables of a chart, arranged so that a transition is one look-up.

A trigger of a `HierarchicalMachine` costs tens of microseconds, because it works out at each event
what to exit, enter and call. All of that is known beforehand. The program works it out once, from
the machine's own tables, and keeps edges: the state to run next and what to call on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

from statemachine_trainer.machine.chart import Chart, Condition, leads_inside
from statemachine_trainer.machine.declaration import is_transient
from statemachine_trainer.machine.edges import Action, Edge, Emission, Node, Step, Work
from statemachine_trainer.machine.failures import Undos, undoing
from statemachine_trainer.machine.fields import RUN, UNSET, Field
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.plan import END, POSTED_EVENTS, LoopPlan
from statemachine_trainer.machine.signals import ENTER, EXIT, Moment, Signal

Probe = Callable[[str, Work], Work]
"""Takes the path of a state and its work; returns the function to call instead."""


class Program:
    """All nodes of a chart.

    Attributes:
        nodes: The leaf states by path.
        start: The edge into the initial state.
        postable: Events that may be posted.
    """

    def __init__(
        self,
        chart: Chart,
        signals: Mapping[str, Signal],
        sender: Any,
        ended: Callable[[str], None],
        reuse: Mapping[str, Node] | None = None,
        failures: dict[str, int] | None = None,
        undos: Undos | None = None,
    ) -> None:
        """Compile a chart. An older program stays in force until `install`.

        Args:
            chart: The machine.
            signals: Its signals by full name.
            sender: First argument of receivers.
            ended: Called with the outcome at the end.
            reuse: Nodes of an older program. A node in flight must stay the same object: the engine
                holds it in a local variable while a state swaps loops.
            failures: How often each state has raised in a row; see `undoing`.
            undos: What undoes states that raise; see `undoing`.
        """
        self._chart, self._signals, self._sender, self._ended = chart, signals, sender, ended
        self._resets = _resets(chart.plan)
        self._failures = {} if failures is None else failures
        self._undos = Undos() if undos is None else undos
        self._methods: dict[str, Work] = {}
        self.nodes = {path: (reuse or {}).get(path) or Node() for path in chart.leaves()}
        plans = {plan.path: plan for plan in chart.plan.walk()}
        self._loops = {path: plan.loop for path, plan in plans.items()}
        declared = [one for plan in plans.values() for one in plan.transitions]
        self._error_names = {one.event for one in declared if one.error is not None}
        self._errors = {path: self._errors_of(path, plans) for path in self.nodes}
        self._edges = {path: dict(self._edges_of(path, None)) for path in self.nodes}
        self._posted = {path: dict(self._edges_of(path, plans)) for path in self.nodes}
        self.postable = {event for edges in self._posted.values() for event in edges}
        first = chart.initial_leaf(chart.plan.path)
        self.start = Edge(
            self.nodes[first],
            Moment(chart.plan.path, ENTER, None, None, first),
            self._enter(first, 0, None, None, first),
        )

    def install(self) -> None:
        """Put this program in force, for nodes and signals."""
        plans = {plan.path: plan for plan in self._chart.plan.walk()}
        undone = self._undone(plans)
        for path, node in self.nodes.items():
            owner, _, name = path.rpartition(SEPARATOR)
            answers, edges = plans[owner].answers[name], self._edges[path]
            loop = plans[owner].loop
            node.path, node.work = path, getattr(loop, name)
            node.errors = self._errors[path]
            self._methods[path] = node.work
            if path in undone:
                self._methods[path] = undoing(path, loop, node.work, self._failures, self._undos)
            node.transient, node.may_rest = is_transient(node.work), answers.may_rest
            node.edges = {event: edges[event] for event in answers.events}
            node.posted = self._posted[path]
        for signal in self._signals.values():
            signal.forget_watchers()
        self.start.watch(None)
        for path, edge in self._all_edges():
            edge.watch(self.nodes[path])

    def _undone(self, plans: Mapping[str, LoopPlan]) -> set[str]:
        """Return the states that may be undone.

        They are those with error edges, and those that lead to a transient one of these.
        """
        undone = {path for path, levels in self._errors.items() if levels}
        todo = [path for path in undone if _is_transient(path, plans)]
        while todo:
            behind = self.nodes[todo.pop()]
            for path, edges in self._edges.items():
                if path not in undone and any(e.target is behind for e in _with_others(edges)):
                    undone.add(path)
                    if _is_transient(path, plans):
                        todo.append(path)
        return undone

    def loop_of(self, edge: Edge) -> Loop:
        """Return the loop that declares the transition of an edge."""
        source = edge.moment.path
        return self._loops[source.rpartition(SEPARATOR)[0] or source]

    def retire(self) -> None:
        """Make edges of this program look up their receivers each time: they are no longer updated.

        A receiver that swaps loops is called from an edge of the old program. The rest of that edge
        must not use a list of receivers that may be out of date.
        """
        self.start.calls = None
        for _, edge in self._all_edges():
            edge.calls = None

    def equip(self, probes: Iterable[Probe]) -> None:
        """Wrap the work of every state in probes, the first one innermost."""
        for path, node in self.nodes.items():
            work = self._methods[path]
            for probe in probes:
                work = probe(path, work)
            node.work = work

    def _all_edges(self) -> Iterator[tuple[str, Edge]]:
        """Yield every edge, alternatives included, with the path of its source."""
        tables = (self._edges, self._posted)
        found = [
            (path, one) for table in tables for path, es in table.items() for one in es.values()
        ]
        for path, levels in self._errors.items():
            found += [(path, edge) for _, edges in levels for edge in edges.values()]
        for path, first in found:
            for edge in _with_others({"": first}):
                yield path, edge

    def _errors_of(
        self, leaf: str, plans: Mapping[str, LoopPlan]
    ) -> tuple[tuple[int, dict[type, Edge]], ...]:
        """Return the error edges from a leaf by loop, the innermost first."""
        if not self._error_names:
            return ()
        levels: list[tuple[int, dict[type, Edge]]] = []
        for path in reversed(_inwards(leaf)[1:]):
            owner, _, state = path.rpartition(SEPARATOR)
            edges: dict[type, Edge] = {}
            for one in plans[owner].transitions:
                if one.error is None or one.source != state or one.error in edges:
                    continue
                edge: Edge | None = None
                for transition in reversed(self._chart.events[one.event].transitions[path]):
                    edge = self._compile(leaf, one.event, transition, edge)
                assert edge is not None
                edges[one.error] = edge
            if edges:
                levels.append((plans[owner].loop.most_errors, edges))
        return tuple(levels)

    def _edges_of(
        self, leaf: str, posted: Mapping[str, LoopPlan] | None
    ) -> Iterator[tuple[str, Edge]]:
        """Yield each event that has an edge from a leaf.

        Args:
            leaf: Path of the state.
            posted: Plans of the loops by path, to find the edges for posted events; None for those
                that an answer takes.
        """
        around = _inwards(leaf)
        for event, declared in self._chart.events.items():
            if event in self._error_names or declared.transitions.keys().isdisjoint(around):
                continue
            edge = self._edge(leaf, event, posted)
            if edge is not None:
                yield event, edge

    def _edge(self, leaf: str, event: str, posted: Mapping[str, LoopPlan] | None) -> Edge | None:
        """Chain the transitions for an event in the order in which the machine tries them, the leaf's first."""
        table = self._chart.events[event].transitions
        found: Edge | None = None
        for path in _inwards(leaf):
            if posted is not None and not _takes_posted(posted, path, event):
                continue
            for transition in reversed(table.get(path, ())):
                found = self._compile(leaf, event, transition, found)
        return found

    def _compile(self, leaf: str, event: str, transition: Any, otherwise: Edge | None) -> Edge:
        source, dest = transition.source, transition.dest
        target = self._chart.target_of(transition, leaf)
        steps: list[Step] = []
        if dest is not None:
            kept = _kept(leaf.split(SEPARATOR), dest.split(SEPARATOR))
            if leads_inside(source, dest):
                kept = source.count(SEPARATOR)  # the loop is left, and entered at its entry point
            for path in reversed(_inwards(leaf)[kept:]):
                steps.append(self._emission(path, EXIT, event, leaf, target))
                if event in self._error_names and path in self._loops:
                    steps.append(self._loops[path].abandon)
        steps += transition.actions
        if dest is not None and target != END:
            steps += self._enter(target, kept, event, leaf, target)
        steps.append(self._emission(source, event, event, leaf, target))
        if target == END:
            steps.append(partial(self._ended, event))
        guards = tuple(
            (_plain(condition.func), condition.target) for condition in transition.conditions
        )
        moment = Moment(source, event, event, leaf, target)
        found = Edge(self.nodes.get(target), moment, steps, guards, otherwise)
        found.acts = bool(transition.actions)
        return found

    def _enter(
        self, path: str, kept: int, event: str | None, source: str | None, target: str
    ) -> list[Step]:
        """Return resets and enter signals, from the outermost loop that is entered to the leaf."""
        steps: list[Step] = []
        for entered in _inwards(path)[kept:]:
            steps += self._resets.get(entered, ())
            steps.append(self._emission(entered, ENTER, event, source, target))
        return steps

    def _emission(
        self, path: str, kind: str, event: str | None, source: str | None, target: str
    ) -> Emission:
        signal = self._signals[f"{path}:{kind}"]
        return Emission(signal, self._sender, Moment(path, kind, event, source, target))


def _with_others(edges: Mapping[str, Edge]) -> Iterator[Edge]:
    """Yield edges with their alternatives."""
    for first in edges.values():
        edge: Edge | None = first
        while edge is not None:
            yield edge
            edge = edge.otherwise


def _is_transient(path: str, plans: Mapping[str, LoopPlan]) -> bool:
    owner, _, name = path.rpartition(SEPARATOR)
    return is_transient(getattr(plans[owner].loop, name))


def wire(
    chart: Chart, signals: Mapping[str, Signal], sender: Any, ended: Callable[[str], None]
) -> None:
    """Make the `transitions` machine fire the same signals and resets when it is triggered directly."""
    resets = _resets(chart.plan)
    way = _Way(chart)
    chart.get_state(END).on_enter = [lambda event_data: ended(event_data.event.name)]
    for path in chart.paths():
        state = chart.get_state(path)
        state.on_enter = [
            *(partial(_ignoring_event, reset) for reset in resets.get(path, ())),
            partial(way.emit, signals[f"{path}:{ENTER}"], sender, path, ENTER),
        ]
        state.on_exit = [partial(way.emit, signals[f"{path}:{EXIT}"], sender, path, EXIT)]
    for event in chart.events.values():
        for path, found in event.transitions.items():
            signal = signals[f"{path}:{event.name}"]
            for transition in found:
                transition.before = [way.begin]
                inside = getattr(transition, "actions", ()) if transition.dest is None else ()
                actions = [partial(_ignoring_event, action) for action in inside]
                transition.after = [*actions, partial(way.emit, signal, sender, path, event.name)]


class _Way:
    """The transition that the library is making. Its callbacks are told only the declared source and target."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._source = self._target = ""

    def begin(self, event_data: Any) -> None:
        self._source = self._chart.state
        self._target = self._chart.target_of(event_data.transition, self._source)

    def emit(self, signal: Signal, sender: Any, path: str, kind: str, event_data: Any) -> None:
        signal.emit(sender, Moment(path, kind, event_data.event.name, self._source, self._target))


def _ignoring_event(reset: Action, _event_data: Any) -> None:
    reset()


def _takes_posted(plans: Mapping[str, LoopPlan], path: str, event: str) -> bool:
    """Return whether a posted event may take the transitions declared for a state or loop."""
    owner, _, state = path.rpartition(SEPARATOR)
    if owner:
        return plans[owner].takes_posted(state, event)
    root = plans[path]  # its outcomes, which end the machine
    return event in root.loop.posted or (event in POSTED_EVENTS and event not in root.origins)


def _plain(function: Any) -> Callable[[], object]:
    return function.test if isinstance(function, Condition) else function


@lru_cache(maxsize=4096)
def _inwards(path: str) -> tuple[str, ...]:
    """Return the path of a state and those of the loops around it, outer ones first."""
    names = path.split(SEPARATOR)
    return tuple(SEPARATOR.join(names[: depth + 1]) for depth in range(len(names)))


def _kept(leaf: list[str], dest: list[str]) -> int:
    """Return how many of the outermost states a transition neither exits nor enters.

    As in `transitions`: those common to the running state and the destination. A destination that
    is itself active is left and entered again.
    """
    common = 0
    while common < min(len(leaf), len(dest)) and leaf[common] == dest[common]:
        common += 1
    return common - 1 if common == len(dest) else common


def _resets(root: LoopPlan) -> dict[str, list[Action]]:
    """Return, for each loop, the resets of the fields that its entry resets."""
    resets: dict[str, list[Action]] = {}
    for plan in root.walk():
        by_scope: dict[str, dict[str, Field]] = {}
        for name, declared in plan.loop._fields.items():
            scope = _scope(plan.path, declared.scope)
            if scope is not None:
                by_scope.setdefault(scope, {})[name] = declared
        for scope, fields in by_scope.items():
            resets.setdefault(scope, []).append(_resetter(plan.loop, fields))
    return resets


def _scope(path: str, scope: str | None) -> str | None:
    """Return the path of the loop whose entry resets a field of the loop at `path`."""
    if scope is None:
        return path
    if scope == RUN:
        return None
    around = _inwards(path)
    named = [outer for outer in around if outer.rpartition(SEPARATOR)[2] == scope]
    return named[-1] if named else around[0]


def _resetter(loop: Loop, fields: dict[str, Field]) -> Action:
    values = vars(loop)
    made = {n: f.factory for n, f in fields.items() if f.factory is not None}
    plain = {n: f.default for n, f in fields.items() if n not in made}
    constants = {n: default for n, default in plain.items() if default is not UNSET}
    unset = [n for n in plain if n not in constants]
    if not made and not unset:
        return partial(values.update, constants)

    def reset() -> None:
        values.update(constants)
        for name, factory in made.items():
            values[name] = factory()
        for name in unset:
            values.pop(name, None)

    return reset
