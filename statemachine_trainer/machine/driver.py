"""The driver: runs a loop tree to its end, up to a given point, or one transition at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from statemachine_trainer.machine.board import SignalBoard
from statemachine_trainer.machine.chart import Chart
from statemachine_trainer.machine.declaration import plain_text
from statemachine_trainer.machine.edges import Edge
from statemachine_trainer.machine.engine import Engine
from statemachine_trainer.machine.errors import (
    LoopInUse,
    LoopUsedTwice,
    NotStarted,
    UnknownEvent,
    suggest,
)
from statemachine_trainer.machine.failures import Failure
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.plan import END
from statemachine_trainer.machine.program import Probe, Program, wire
from statemachine_trainer.machine.signals import ERROR, ErrorMoment, Moment
from statemachine_trainer.machine.tree_state import check_state, state_of_loops
from statemachine_trainer.machine.until import Goal, Moments, Until

__all__ = ["Driver", "Posting", "Until"]


class Posting(Protocol):
    """Receives posted events for several machines, and passes them to each through `post_here`."""

    def post(self, event: str) -> None:
        """Receive an event."""

    def waiting(self) -> Sequence[str]:
        """Return the events that were received and not passed on yet."""
        ...

    def pause(self) -> None:
        """Pause all of them at one boundary."""

    def hold(self) -> None:
        """Hold all of them before one state, until they are let go."""

    def let_go(self) -> None:
        """Let all of them go on, if they are held."""

    @property
    def held(self) -> str | None:
        """Path of the state before which they are held; None if they are not."""

    @property
    def asked_to_hold(self) -> bool:
        """Whether they are held, or will be where they meet next."""
        ...


class Driver(Engine):
    """Runs the machine of a loop tree.

    A state does its work and answers with an event. The event selects an edge, and the edge fires
    its signals. Then comes the boundary. Here, and only here, the driver serves requests for a
    snapshot, obeys a pause and takes posted events. Then the next state works.

    If a state raises, the machine follows the error edge for that type of exception. Without one it
    is at the boundary before the state, and the state works again when the run goes on. If a
    receiver raises, the machine is at the end of the transition. When the run goes on, that receiver
    and the ones after it are called first.

    Args:
        root: The outermost loop.
        name: Its name, the first of every path.
        context: The object that all loops of the tree share; each gets it as `loop.context`.
        sender: First argument of receivers; the driver itself unless given.
        board: The board to put the signals on; one of its own unless given.

    Attributes:
        machine: The `transitions` machine that defines the states and transitions.
        context: The object that all loops of the tree share.
        outcome: The event that ended the machine; None while it has not.
        resting: Whether the running state waits for something from outside.
        entries: How often the machine was set going. It is unchanged as long as the machine does not stop.
        post_to: Receives posted events instead of this machine, so that several machines agree; usually None.
    """

    machine: Chart

    def __init__(
        self,
        root: Loop,
        *,
        name: str = "loop",
        context: Any = None,
        sender: Any = None,
        board: SignalBoard | None = None,
    ) -> None:
        super().__init__(name, sender)
        self.root = root
        self.board = SignalBoard() if board is None else board
        self.context = context
        self.post_to: Posting | None = None
        self._probes: list[Probe] = []
        self._program: Program | None = None
        self._tree: list[tuple[str, Loop, Loop | None]] = []
        self.rebuild()
        root._driver = self

    # -- looking ---------------------------------------------------------------------------------

    @property
    def posted(self) -> list[str]:
        """Posted events that were not taken yet."""
        elsewhere = () if self.post_to is None else self.post_to.waiting()
        return [*dict.fromkeys((*self._posted, *elsewhere))]

    @property
    def running(self) -> bool:
        """Whether a state or a receiver is being called."""
        return self._owner is not None

    @property
    def requested(self) -> bool:
        """Whether a request waits for the next boundary at which a snapshot can be taken."""
        return bool(self._requests)

    @property
    def transient(self) -> bool:
        """Whether no snapshot can be taken at this boundary."""
        return bool(self._pending) or (self._node is not None and self._node.transient)

    def accepts(self, event: str) -> bool:
        """Return whether a posted event would be taken at this boundary."""
        edge = None if self._node is None else self._node.posted.get(event)
        return edge is not None and edge.chosen() is not None

    # -- running ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Enter the initial state, whatever happened before.

        Fields get their first values. Posted events, requests and an unfinished transition are dropped.
        """
        self._check_own("start")
        with self._running("start", finish=False):
            for _, loop in self.root.walk():
                loop.reset_fields()
            self.outcome, self.resting = None, False
            self._forget_requests()
            self.failure = None
            self._failures.clear()
            self._undos.clear()
            self._take(self.program.start)

    def run(self, until: Until = None) -> str | None:
        """Run to the end, or to the boundary at which `until` is met or a pause was requested.

        Args:
            until: Name of a signal, as `on` takes it (a state: stop when it has been entered,
                before its work), or a condition of `(sender, moment)`, evaluated at each entry of a
                state.

        Returns:
            The event that ended the machine, or None if it is at a boundary and can go on.

        Raises:
            NotStarted: There is nothing to run.
            AlreadyRunning: Called from within a state or a receiver.
        """
        self._check_ready("run")
        self._met = False
        watch = Goal(until, self.board, self.sender).watch(self._meet)
        try:
            with self._running("run"):
                self._run()
        finally:
            if watch is not None:
                watch.cancel()
        return self.outcome

    def step(self) -> Moment | None:
        """Make one transition: take a posted event if an edge exists for one, else run the state.

        Returns:
            The transition; None if the state rests.
        """
        edge = self.advance()
        self._pausing = False
        return None if edge is None else edge.moment

    def advance(self) -> Edge | None:
        """Make one transition, as `step` does, and return its edge. A requested pause stays requested."""
        self._check_ready("step")
        with self._running("step"):
            return self._step()

    def moments(self, until: Until = None) -> Iterator[Moment]:
        """Iterate over the transitions as they happen; the machine is stopped between two items.

        Args:
            until: As for `run`. The item that meets it, or at which a pause is requested, is the last.
        """
        self._check_ready("iterate over")
        return Moments(self, Goal(until, self.board, self.sender))

    def pause(self) -> None:
        """Let `run` return at the next boundary.

        May be called from receivers, other threads and handlers of operating system signals.
        """
        self._pausing = True
        self._attention = True

    def post(self, event: str) -> None:
        """Post an event from outside. It is taken at the first boundary that has an edge for it.

        May be called from receivers, other threads and handlers of operating system signals.

        Raises:
            UnknownEvent: No loop of the tree has a transition for this posted event.
        """
        # An event that another thread posts belongs to no chain.
        if self._chains and self._owner == threading.get_ident():
            self._note_poster(event)
        (self.post_here if self.post_to is None else self.post_to.post)(event)

    def post_here(self, event: str) -> None:
        """Post an event to this machine, even if `post_to` is set."""
        if event not in self.program.postable:
            raise UnknownEvent(
                f"No loop of {self.name!r} takes a posted event {event!r}. "
                f"{suggest(str(event), self.program.postable)}"
            )
        if event not in self._posted:
            if self._owner == threading.get_ident():
                self._posted_inside.add(plain_text(event))
            self._posted.append(plain_text(event))
        self._attention = True

    def withdraw(self, event: str) -> None:
        """Cancel a posted event that was not taken yet."""
        self._take_posted(event)

    def at_boundary(self, action: Callable[[], None]) -> None:
        """Call `action` once, at the next boundary at which a snapshot can be taken.

        If the machine is stopped at such a boundary, that is now. The end counts, too.
        """
        begun = self._node is not None or self.outcome is not None
        if self._owner is None and begun and not self.transient:
            action()
            return
        self._requests.append(action)
        self._attention = True

    def instrument(self, probe: Probe) -> Callable[[], None]:
        """Wrap the work of every state, from its next call on; also of loops that are swapped in later.

        Use this, not a signal, to measure or record the states themselves: a probe sees each call,
        and without one calls cost nothing extra.

        Args:
            probe: Called with the path of a state and its work. Returns the function to call
                instead, which must call the work once and return its answer.

        Returns:
            A function that removes the probe.
        """
        self._probes.append(probe)
        self.program.equip(self._probes)

        def remove() -> None:
            if probe in self._probes:
                self._probes.remove(probe)
                self.program.equip(self._probes)

        return remove

    # -- the tree --------------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The compiled program."""
        assert self._program is not None
        return self._program

    def rebuild(self) -> None:
        """Rebuild chart and program from the loop tree, or change nothing.

        Raises:
            LoopDefinitionError: The tree is invalid.
            LoopInUse: It no longer has the running state.
        """
        chart = Chart(self.root, self.name)
        if self.path is not None and self.path not in chart.leaves():
            raise LoopInUse(
                f"The new loops have no state {self.path!r}, and that is the one running. Swap "
                "them while another state runs, or before the run."
            )
        signals = self.board.attach(chart)
        old = self._program
        nodes = None if old is None else old.nodes
        self._program = Program(
            chart,
            signals,
            self.sender,
            self._end,
            reuse=nodes,
            failures=self._failures,
            undos=self._undos,
        )
        self._program.install()
        if old is not None:
            old.retire()
        self._program.equip(self._probes)
        wire(chart, signals, self.sender, self._end)
        chart.follow(self._position, self._moved_by_library, self._moving)
        self.machine = chart
        self._tree = [(path, loop, loop._parent) for path, loop in self.root.walk(self.name)]
        self.share(self.context)

    def share(self, context: Any) -> None:
        """Set the context of all loops of the tree, also of those that are swapped in later."""
        self.context = context
        for _, loop in self.root.walk():
            loop.context = context

    def loops(self) -> Iterator[tuple[str, Loop]]:
        """Yield `(path, loop)` for all loops of the tree, as `Loop.walk` finds them, outer ones first."""
        return ((path, loop) for path, loop, _ in self._tree)

    def check_replaceable(self, owner: Loop, place: str) -> None:
        """Refuse to replace a loop while one of its states is running.

        Raises:
            LoopInUse: The running state is inside that loop.
        """
        for path, loop in self.root.walk(self.name):
            inside = f"{path}{SEPARATOR}{place}{SEPARATOR}"
            if loop is owner and f"{self.path}".startswith(inside):
                raise LoopInUse(
                    f"The loop at {inside[:-1]!r} cannot be replaced while its state {self.path!r} "
                    "is running. Do it from a receiver of a state outside of it, or before the run."
                )

    # -- writing down ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the machine: path, posted events, and the fields of every loop.

        It is complete at a boundary only. While receivers are called, or after one raised, use
        `at_boundary`.
        """
        return {
            "path": self.path,
            "outcome": self.outcome,
            "posted": list(self._posted),
            "loops": state_of_loops(self.loops()),
            "fired": self.board.state_dict(),
            **({"failures": dict(self._failures)} if self._failures else {}),
            **({} if self.failure is None else {"failure": self.failure.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned. No signal fires.

        Raises:
            StateMismatch: It is the state of another loop tree; the message lists the differences.
        """
        self._check_own("load a state into")
        with self._running("load a state into", finish=False):
            check_state(state, self.root, self.name, self.program)
            for path, loop in self.root.walk(self.name):
                loop.load_state_dict(state["loops"][path]["fields"])
            self._node = None if state["path"] is None else self.program.nodes[state["path"]]
            self.outcome, self.resting = state["outcome"], False
            self._forget_requests()
            self._posted = list(state["posted"])
            self._attention = bool(self._posted)
            self._failures.clear()
            self._undos.clear()
            self._failures.update(state.get("failures", {}))
            failure = state.get("failure")
            self.failure = None if failure is None else Failure(**failure)
            self.board.load_state_dict(state["fired"])

    def _most_posted(self, edge: Edge) -> int:
        return self.program.loop_of(edge).most_posted

    def _note_poster(self, event: str) -> None:
        """Note who posts, in case the next chain of posted events does not end."""
        from statemachine_trainer.machine.endless import poster

        who = poster()
        for chain in self._chains.values():
            chain.posters[f"{event}"] = who

    def _stand_at(self, path: str) -> None:
        self._node = self.program.nodes[path]

    def _tell(self, error: Exception) -> None:
        signal = self.board.error_signal(self.name)
        if signal is None or not signal.receivers:
            return
        target = self.path or END
        moment = ErrorMoment(self.path or self.name, ERROR, None, None, target)
        moment.error = error
        for receiver in signal.listeners(self.sender):
            try:
                receiver(self.sender, moment=moment)
            except Exception as another:
                error.add_note(f"A receiver of the signal 'error' raised, too: {another!r}")

    # -- the library's machine ---------------------------------------------------------------------

    def _position(self) -> str | None:
        return self.path if self.outcome is None else END

    def _moved_by_library(self, path: str) -> None:
        self._node = self.program.nodes.get(path)
        self.outcome, self.resting = None, False

    def _moving(self) -> Any:
        return self._running("trigger an event of")

    # -- guards of the public calls --------------------------------------------------------------

    def _check_ready(self, what: str) -> None:
        if self._owner is not None:
            raise self._already_running(what)
        self._check_own(what)
        if self._node is None and not self._pending:
            why = "it was not started. Call start() first."
            if self.outcome:
                why = (
                    f"it has ended with {self.outcome!r}. To go on, raise its limit; then, or to begin "
                    "anew, call start()."
                )
            raise NotStarted(f"Nothing to {what} in {self.name!r}: {why}")

    def _check_own(self, what: str) -> None:
        """Refuse to run loops that were put into another machine later.

        These loops now use the context of that machine, so this machine would work on the wrong state.
        """
        for path, loop, parent in self._tree:
            elsewhere = (
                loop._driver is not self if loop is self.root else loop._parent is not parent
            )
            if elsewhere or (loop is self.root and loop._parent is not None):
                kind = type(loop).__name__
                raise LoopUsedTwice(
                    f"Cannot {what} the machine {self.name!r}: its {kind} at {path!r} has been put into "
                    "another machine since, and the state of one loop cannot serve two. Make a second "
                    f"{kind} for each (copy.deepcopy makes one)."
                )

    def check_at_rest(self, what: str) -> None:
        """Refuse to do something while a state or a receiver is being called.

        Raises:
            AlreadyRunning: One is.
        """
        if self._owner is not None:
            raise self._already_running(what)
