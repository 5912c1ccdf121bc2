"""The parts of a compiled program: leaf states, and the edges between them.

`Program` makes them, and the engine runs them. What a transition needs lies in its edge, worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from statemachine_trainer.machine.signals import Call, Moment, Receiver, Signal

Action = Callable[[], None]
Work = Callable[[], object]

NO_ANSWER: Final = object()
"""Differs from every answer of a state."""


class Emission:
    """One signal on one edge, with its moment made beforehand, so that firing it allocates nothing."""

    __slots__ = ("moment", "receivers", "sender", "signal")

    def __init__(
        self,
        signal: Signal,
        sender: Any,
        moment: Moment,
        receivers: tuple[Receiver, ...] | None = None,
    ) -> None:
        self.signal = signal
        self.sender = sender
        self.moment = moment
        self.receivers = receivers

    def deliver(self, left: list[Step]) -> None:
        """Call the receivers. If one raises, the receivers not yet called are pushed onto `left`."""
        # Receivers are counted as they return, not removed from a list as they are called. So an
        # interrupt between two instructions repeats a call at worst, and never loses one.
        receivers, sender, moment = self.receivers, self.sender, self.moment
        if receivers is None:
            receivers = self.signal.listeners(sender)
        done = 0
        try:
            for receiver in receivers:
                receiver(sender, moment=moment)
                done += 1
        except BaseException as error:
            if done < len(receivers):  # else an interrupt came after the last call
                left.append(self.from_raising(receivers, done))
                self.note(error)
            raise

    def to(self, receivers: tuple[Receiver, ...]) -> Emission:
        """Return the same emission, to these receivers only."""
        return Emission(self.signal, self.sender, self.moment, receivers)

    def from_raising(self, receivers: tuple[Receiver, ...], index: int) -> Emission:
        """Return the rest of this emission after one of its receivers has raised."""
        again = getattr(receivers[index], "again", receivers[index])
        return self.to((again, *receivers[index + 1 :]))

    def note(self, error: BaseException) -> None:
        """Note on an error which signal it comes from."""
        error.add_note(f"Raised by a receiver of the signal {self.moment.signal!r}.")


Step = Emission | Action


class Calls(tuple[tuple[Call, Moment], ...]):
    """All calls of receivers on an edge, in order, for an edge without resets and guards.

    Attributes:
        origins: For each call the emission, its receivers, and the index among them.
    """

    origins: list[tuple[Emission, tuple[Receiver, ...], int]]

    @classmethod
    def of(cls, emissions: Iterable[Emission]) -> Calls | None:
        """Collect the calls; None if the receivers depend on the sender and are known only when they fire."""
        calls: list[tuple[Call, Moment]] = []
        origins = []
        for one in emissions:
            receivers = one.signal.same_for_all
            if receivers is None or not all(hasattr(each, "direct") for each in receivers):
                return None
            calls += [(each.direct, one.moment) for each in receivers]  # type: ignore[attr-defined]
            origins += [(one, receivers, index) for index in range(len(receivers))]
        found = cls(calls)
        found.origins = origins
        return found


class Edge:
    """The transition when a state answers with an event, or one is posted.

    Attributes:
        target: The node to run next; None when the machine ends.
        moment: The transition, as receivers get it.
        steps: All signals, resets and the end, the last one first, as they lie on a stack.
        quiet: Those steps that are not signals, in order.
        guards: Conditions, each with the result that it must give.
        otherwise: The edge to try when a guard refuses.
        acts: Whether it has actions of its own.
        heard: Whether one of the signals has receivers, or it has actions: its steps are done one by one.
        calls: The calls of receivers, if the edge does nothing else; empty without receivers. None
            if the edge has guards or resets.
    """

    __slots__ = (
        "acts", "calls", "guards", "heard", "moment", "otherwise", "quiet", "steps", "target",
    )  # fmt: skip

    def __init__(
        self,
        target: Node | None,
        moment: Moment,
        steps: list[Step],
        guards: tuple[tuple[Callable[[], object], bool], ...] = (),
        otherwise: Edge | None = None,
    ) -> None:
        self.target = target
        self.moment = moment
        self.steps = tuple(reversed(steps))
        self.quiet = tuple(step for step in steps if not isinstance(step, Emission))
        self.guards = guards
        self.otherwise = otherwise
        self.acts = self.heard = False
        self.calls: Calls | None = None

    def emissions(self) -> list[Emission]:
        """Return the signals of the edge in the order in which they fire."""
        return [step for step in reversed(self.steps) if isinstance(step, Emission)]

    def watch(self, source: Node | None) -> None:
        """Keep `heard` and `calls` up to date from now on, also in the source state."""

        def refresh() -> None:
            emissions = self.emissions()
            self.heard = self.acts or any(one.signal.receivers for one in emissions)
            self.calls = None if self.guards or self.quiet else Calls.of(emissions)
            if source is not None:
                source.forget()

        for emission in self.emissions():
            emission.signal.watch(refresh)
        refresh()

    def rest(self, calls: Calls, done: int) -> list[Step]:
        """Return the steps that are left after some of the calls, the last one first."""
        emission, receivers, index = calls.origins[done - 1]
        return [*self._after(emission), emission.to(receivers[index + 1 :])]

    def rest_with(self, calls: Calls, raising: int, error: BaseException) -> list[Step]:
        """Return the steps that are left after one of the calls has raised, the last one first."""
        emission, receivers, index = calls.origins[raising]
        emission.note(error)
        return [*self._after(emission), emission.from_raising(receivers, index)]

    def _after(self, emission: Emission) -> tuple[Step, ...]:
        return self.steps[: self.steps.index(emission)]

    def chosen(self) -> Edge | None:
        """Return this edge, or the first alternative whose guards hold; None if none does."""
        edge: Edge | None = self
        while edge is not None and not all(bool(t()) is expected for t, expected in edge.guards):
            edge = edge.otherwise
        return edge


class Node:
    """A leaf state: its work, and the edge for each event.

    Attributes:
        path: Path of the state.
        work: The bound method of the loop, wrapped in probes if there are any.
        transient: Whether no snapshot can be taken at the boundary before it.
        may_rest: Whether it may answer None, to wait for something from outside.
        edges: The edge for each event that it may answer with, those of enclosing loops included.
        errors: For each loop around it that has any, innermost first: its limit of errors in a row,
            and its edge for each type.
        posted: The edge for each event that may be posted before it runs.
        usual: An answer whose edge has no receivers; `NO_ANSWER` if none is known.
        follows: The node after `usual`. Keeping the two here saves a look-up in `edges`.
        other: A second answer of this kind.
        follows_other: The node after `other`.
    """

    __slots__ = (
        "edges", "errors", "follows", "follows_other", "may_rest", "other", "path", "posted",
        "transient", "usual", "work",
    )  # fmt: skip

    path: str
    work: Work
    transient: bool
    may_rest: bool
    edges: dict[str, Edge]
    errors: tuple[tuple[int, dict[type, Edge]], ...]
    posted: dict[str, Edge]
    usual: object
    follows: Node | None
    other: object
    follows_other: Node | None

    def edge_for(self, error: Exception) -> tuple[Edge, int] | None:
        """Return the edge that an error takes, and how often in a row; None if it takes none.

        The innermost loop with an edge for it decides, there the most specific type. If conditions
        refuse, the next one is asked.
        """
        for most, edges in self.errors:
            for kind in type(error).__mro__:
                found = edges.get(kind)
                edge = None if found is None else found.chosen()
                if edge is not None:
                    return edge, most
        return None

    def remember(self, event: str, edge: Edge) -> None:
        """Remember the target of an answer whose edge has no receivers."""
        # `follows` before the answer: the engine reads the answer first, and must then find its target.
        if self.usual is NO_ANSWER:
            self.follows, self.usual = edge.target, event
        elif self.other is NO_ANSWER:
            self.follows_other, self.other = edge.target, event
        # Another thread may have subscribed since the engine looked. Then its `forget` came before
        # the lines above, and without another one the receivers of this edge would never be called.
        if edge.calls is None or edge.calls:
            self.forget()

    def forget(self) -> None:
        """Use `edges` at the next answer. `follows` stays set, because the engine may be using it now."""
        self.usual = self.other = NO_ANSWER
