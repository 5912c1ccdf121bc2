"""The engine: runs a compiled program edge by edge, and survives errors and interrupts in between.

Two needs shape this code. It runs at each transition of each batch, so the usual transition must
cost no more than a look-up. And no signal, reset or posted event may be lost when a receiver raises
or an interrupt comes (Ctrl-C raises between any two instructions). So the steps that are left are
recorded before they are done.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from statemachine_trainer.machine.edges import NO_ANSWER, Calls, Edge, Emission, Node, Step
from statemachine_trainer.machine.errors import (
    AlreadyRunning,
    NotUndone,
    OftenFailed,
    StrayStopIteration,
    TooManyErrors,
    UnexpectedEvent,
    level_of_caller,
)
from statemachine_trainer.machine.failures import Failure, Undos

if TYPE_CHECKING:
    from statemachine_trainer.machine.endless import Chain

_OFTEN: Final = 100
"""Errors that take the same edge before it is told that the run may not end."""

_MOST_POSTED: Final = 1000
"""Events posted by receivers that are taken without the work of a state in between."""


class Engine:
    """The position of a machine, and the code that moves it. Base of `Driver`.

    Attributes:
        name: Name of the machine, the first of every path.
        sender: First argument of receivers.
        outcome: The event that ended the machine; None while it has not.
        resting: Whether the running state waits for something from outside.
        entries: How often the machine was set going. It is unchanged as long as the machine does
            not stop.
        failure: The last error that took an error edge; None if none has.
    """

    def __init__(self, name: str, sender: Any) -> None:
        self.name = name
        self.sender = self if sender is None else sender
        self.outcome: str | None = None
        self.resting = False
        self.entries = 0
        self.failure: Failure | None = None
        self._failures: dict[
            str, int
        ] = {}  # by state: how often it has raised since it last worked
        self._errors_taken: dict[Edge, int] = {}  # by edge: how many errors have taken it in all
        self._undos = Undos()
        self._node: Node | None = None
        self._attention = False  # whether there is anything to do at the next boundary
        self._pausing = False
        self._met = False  # whether `until` was met on the way to this boundary
        self._posted: list[str] = []
        self._posted_inside: set[str] = set()  # by receivers and states
        # Edges of such events that were taken since a state last worked, in `_step`.
        self._taken: list[Edge] = []
        # Such edges by the state before which they were taken.
        self._chains: dict[Node, Chain] = {}
        self._requests: list[Callable[[], None]] = []
        self._pending: list[Step] = []  # what is left of a transition, the next step last
        self._busy = threading.Lock()
        self._owner: int | None = None

    @property
    def path(self) -> str | None:
        """Path of the state about to run (or running); None before the start and after the end."""
        return None if self._node is None else self._node.path

    def take_pause(self) -> bool:
        """Return whether a pause was requested, and clear the request."""
        pausing = self._pausing
        if pausing:  # written only then: a pause requested in between would be lost
            self._pausing = False
        return pausing

    # -- going along edges -----------------------------------------------------------------------

    def _run(self) -> None:
        """The main loop. Kept short: it runs at each transition of each batch.

        The paths through it, cheapest first: a remembered answer whose edge has no receivers
        (`usual`, `other`); an edge with nothing but calls to make; an edge with guards; an edge
        with signals or resets.
        """
        self.resting = False
        node = self._node
        while node is not None:
            if self._attention:
                if self._attend():
                    return
                node = self._node
                if node is None:
                    break
            try:
                # Read first, then called: CPython takes `node.work()` for a method, and searches the
                # class for it each time.
                work = node.work
                event: Any = work()
            except Exception as error:
                event = self._edge_of(node, error)  # stands for the answer from here on
                if event is None:
                    raise
            # By identity: literals are interned, so this costs no hash and no comparison. An
            # equal string that is another object finds its edge below.
            if event is node.usual:
                self._node = node = node.follows
                continue
            if event is node.other:
                self._node = node = node.follows_other
                continue
            try:
                edge = node.edges.get(event)
            except TypeError:  # the answer is not hashable
                edge = None
            if edge is not None and (calls := edge.calls) is not None:
                if calls:
                    self._call(edge, calls)
                    node = self._node
                else:
                    if node.other is NO_ANSWER:
                        node.remember(event, edge)
                    self._node = node = edge.target
                continue
            if edge is None or edge.guards:
                edge = self._choose(node, event)
                if edge is None:
                    return
            if edge.heard:
                self._node = edge.target
                self._pending = [*edge.steps]
                self._deliver()
                node = self._node
            else:
                self._node = node = edge.target
                try:
                    for action in edge.quiet:
                        action()
                except BaseException:
                    # The steps that were done are not counted, because that would cost time at each
                    # transition. All are done again: doing a reset twice does no harm.
                    self._pending = [*edge.quiet[::-1]]
                    raise
        self._serve_requests()

    def _call(self, edge: Edge, calls: Calls) -> None:
        """Go to the target of an edge, and call its receivers."""
        sender, done = self.sender, 0
        try:
            self._node = edge.target  # inside the `try`, so that no interrupt loses the calls
            for call, moment in calls:
                call(sender, moment)
                done += 1
                if edge.calls is not calls:  # a subscription changed: use the new list
                    self._pending = edge.rest(calls, done)
                    break
            else:
                return
        except BaseException as error:
            if done < len(calls):  # else an interrupt came after the last call
                self._pending = edge.rest_with(calls, done, error)
            raise
        self._deliver()

    def _step(self) -> Edge | None:
        self.resting = False
        if self._node is None:  # what was left of the last transition has just been delivered
            return None
        self._serve_requests()
        edge = self._posted_edge()
        if edge is not None:
            self._note_taken(self._taken, edge)
        else:
            self._taken.clear()
            edge = self._edge_by_work(self._node)
        if edge is not None:
            self._take(edge)
        if self._node is None:
            self._serve_requests()
        return edge

    def _edge_by_work(self, node: Node) -> Edge | None:
        try:
            event = node.work()
        except Exception as error:
            edge = self._edge_of(node, error)
            if edge is None:
                raise
            return edge
        return self._choose(node, event)

    def _edge_of(self, node: Node, error: Exception) -> Edge | None:
        """Return the edge that an error of a state takes; None if there is none.

        Raises:
            TooManyErrors: The state has raised too often in a row.
        """
        found = None if isinstance(error, StopIteration | NotUndone) else node.edge_for(error)
        back, self._undos.back = self._undos.back, None
        if found is None:
            if back is not None and back != node.path:
                error.add_note(
                    f"State {node.path!r} raised it, and is undone with those before it."
                )
                self._stand_at(back)
            return None
        edge, most = found
        times = self._failures.get(node.path, 0) + 1
        failure = Failure.of(node.path, error, str(edge.moment.event), times)
        if times > most:
            raise TooManyErrors(
                f"State {node.path!r} raised {most} times in a row, each time an error edge led back "
                f"to it, and it raised again: {failure.text}. Give the edge a condition under which "
                "to try again, or raise `most_errors` of the loop that declares it."
            ) from error
        self._failures[node.path] = times
        taken = self._errors_taken[edge] = self._errors_taken.get(edge, 0) + 1
        if taken == max(most, _OFTEN) + 1:
            warnings.warn(
                f"Errors of state {node.path!r} have taken the edge for {failure.error} {taken} times. It has worked "
                "in between. If the edge leads back to work that fails each time, the run does not end: give it a "
                f"condition that counts. The last error: {failure.text}",
                OftenFailed,
                stacklevel=level_of_caller(),
            )
        # The record holds no traceback: its frames would keep alive what the state had allocated.
        self.failure = failure
        return edge

    def _stand_at(self, path: str) -> None:
        """Go back to a state that has been undone."""

    def _choose(self, node: Node, event: Any) -> Edge | None:
        """Find the edge for an answer if a look-up is not enough; None if the state rests."""
        if event.__class__ is Edge:  # that of an error
            return event
        edge = node.edges.get(event) if isinstance(event, str) else None
        edge = None if edge is None else edge.chosen()
        if edge is None:
            if event is None and node.may_rest:
                self.resting = True
                return None
            forgot = " Did it forget to return an event?" if event is None else ""
            raise UnexpectedEvent(
                f"State {node.path!r} answered {event!r}, and no transition is waiting for that."
                f"{forgot} Its events are {', '.join(map(repr, sorted(node.edges)))}."
            )
        return edge

    def _take(self, edge: Edge) -> None:
        """Follow an edge. If a receiver raises, the other receivers are called when the run goes on."""
        self._node = edge.target
        self._pending = [*edge.steps]
        self._deliver()

    def _deliver(self) -> None:
        pending = self._pending
        while pending:
            step = pending.pop()
            if isinstance(step, Emission):
                if step.receivers or step.signal.receivers:
                    step.deliver(pending)
            else:
                try:
                    step()
                except BaseException:
                    pending.append(step)
                    raise

    # -- at a boundary ---------------------------------------------------------------------------

    def _attend(self) -> bool:
        """Serve requests at this boundary; return whether to pause here."""
        # Cleared first: if another thread or a handler posts from here on, it is set again.
        # Clearing it later would undo that, and the event would wait until the next one is posted.
        self._attention = False
        taken: list[Edge] = []
        try:
            while self._node is not None:
                self._serve_requests()
                if self.take_pause() or self._met:
                    return True
                edge = self._posted_edge()
                if edge is None:
                    break
                self._note_taken(taken, edge)
                self._take(edge)
        finally:
            if self._posted or self._requests or self._pausing:
                self._attention = True
        return False

    def _note_taken(self, taken: list[Edge], edge: Edge) -> None:
        """Count the edges of events that receivers have posted since a state last worked.

        Raises:
            EndlessPosting: There are too many: each time a receiver posts the next one.
        """
        event = f"{edge.moment.event}"
        if event not in self._posted_inside:
            return
        self._posted_inside.discard(event)
        # Imported here, because most programs never need it.
        from statemachine_trainer.machine.endless import Chain, endless

        node = self._node
        if not taken and node is not None and not node.may_rest:
            chain = self._chains.get(node)
            if chain is None or chain.is_broken:
                chain = self._chains[node] = Chain(node, self._chains)
            chain.add(edge, self._most_posted(edge))
        taken.append(edge)
        if len(taken) > _MOST_POSTED:
            raise endless(taken)

    def _most_posted(self, _edge: Edge) -> int:
        """Return how often such edges may be taken before a state that does not work."""
        return _MOST_POSTED

    def _serve_requests(self) -> None:
        if not self._requests or (self._node is not None and self._node.transient):
            return
        for _ in range(len(self._requests)):  # requests made meanwhile are for the next boundary
            self._requests.pop(0)()

    def _posted_edge(self) -> Edge | None:
        """Take the first posted event that has an edge here."""
        assert self._node is not None
        for event in tuple(self._posted):
            edge = self._node.posted.get(event)
            edge = None if edge is None else edge.chosen()
            if edge is not None and self._take_posted(event):
                return edge
        return None

    def _take_posted(self, event: str) -> bool:
        try:
            self._posted.remove(event)
        except ValueError:  # withdrawn meanwhile
            return False
        return True

    def _end(self, event: str) -> None:
        self.outcome = event
        self._pausing = self._met = False

    def _forget_requests(self) -> None:
        self._posted, self._requests, self._pending = [], [], []
        self._pausing = self._met = self._attention = False
        self._posted_inside.clear()
        self._taken.clear()
        for chain in [*self._chains.values()]:  # each takes itself out
            chain.end()

    def _meet(self) -> None:
        self._met = self._attention = True

    # -- being at work ---------------------------------------------------------------------------

    @contextmanager
    def _running(self, what: str, *, finish: bool = True) -> Iterator[None]:
        """Mark the machine as running, finish an interrupted transition, note on errors where they arose."""
        mine = False
        try:  # around `acquire` too: an interrupt may come between it and the next line
            mine = self._busy.acquire(blocking=False)
            if not mine:
                raise self._already_running(what)
            self._owner = threading.get_ident()
            self.entries += 1
            if finish:
                self._deliver()
            yield
        except StopIteration as error:
            stray = StrayStopIteration(
                f"A StopIteration escaped {self._where()}. It does not end a loop here; catch it, "
                "or let the state answer with an event."
            )
            self._tell(stray)
            raise stray from error
        except BaseException as error:
            if mine:
                error.add_note(f"The machine {self.name!r} stopped {self._where()}.")
                if isinstance(error, Exception):
                    self._tell(error)
            raise
        finally:
            if mine:
                self._owner = None
                self._busy.release()

    def _tell(self, error: Exception) -> None:
        """Fire the signal `error`. What its receivers raise is noted on the error, which surfaces."""

    def _where(self) -> str:
        if self._pending:
            return f"on the way to state {self.path!r}" if self._node else "on the way to its end"
        return f"in state {self.path!r}"

    def _already_running(self, what: str) -> AlreadyRunning:
        inside = self._owner == threading.get_ident()
        who = "a receiver, a state or a handler" if inside else "another thread"
        return AlreadyRunning(
            f"The machine {self.name!r} is running in state {self.path!r}; {who} cannot {what} it. "
            "Post an event or ask for a pause instead."
        )
