"""Many ranks in one process: real machines and real meetings, over a network and a clock that are simulated.

Each rank is a thread, of which exactly one runs at any time: a scheduler hands on the turn in the order of
a virtual clock. So a simulation is the same each time for the same seed, and nothing in it takes real time.
A message may be late, may be lost and sent again, or be lost for good together with the rank that sent it.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from statemachine_trainer.loops.base import TrainingLoop
from statemachine_trainer.loops.meetings import Meetings, meeting_points
from statemachine_trainer.machine import Driver, Loop, place

LATENCY = 0.001
"""Seconds that a message takes on average."""

LOST_IN = 0.02
"""Share of messages that are lost, and sent again after `AGAIN` seconds."""
AGAIN = 0.2

NOTICED = 0.05
"""Seconds until a rank sees that the connections of another were closed."""


class Parted(AssertionError):
    """Two ranks were at different edges, or waited for each other for ever."""


class Gone(BaseException):
    """Ends the thread of a rank: it was killed."""


class ConnectionClosed(RuntimeError):
    """What a rank sees of another one that is gone."""


# -- The machine that is simulated ----------------------------------------------------------------


class Batch(Loop):
    """A batch: some time of its own, then gradients that all ranks average."""

    initial = "forward"
    transitions = (["forward_done", "forward", "backward"],)
    outcomes = ("batch_done",)

    def forward(self) -> Literal["forward_done"]:
        """Take some time."""
        self.context.work()
        return "forward_done"

    def backward(self) -> Literal["batch_done"]:
        """Wait for the gradients of all."""
        self.context.average()
        return "batch_done"


class Evaluation(TrainingLoop):
    """An evaluation on a number of batches that differs between ranks."""

    initial = "measure"
    transitions = (["measured", "measure", "measure"],)
    outcomes = ("evaluated",)
    evaluates = True

    done: int = 0

    def measure(self) -> Literal["measured", "evaluated"]:
        """Measure a batch, or say that it was the last."""
        rank: Any = self.context
        self.done += 1
        rank.work()
        return "evaluated" if self.done > rank.evaluated else "measured"


class Fit(Loop):
    """As the default tree does: events from outside are taken between two batches."""

    initial = "fetch"
    transitions = (
        ["fetched", "fetch", "batch"],
        ["batch_done", "batch", "fetch"],
        ["validate", "fetch", "evaluation"],
        ["evaluated", "evaluation", "fetch"],
        ["exhausted", "fetch", "ending"],
        ["stop", "fetch", "ending"],
    )
    posted = ("validate", "stop")
    outcomes = ("ended",)

    batch: Loop = place(Batch)
    evaluation: Loop = place(Evaluation)

    def fetch(self) -> Literal["fetched", "exhausted"]:
        """Take a batch."""
        self.context.work()
        return "exhausted" if self.context.batches_done() else "fetched"

    def ending(self) -> Literal["ended"]:
        """End."""
        return "ended"


# -- The world ------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """What the ranks exchange at one time: it is complete when each has sent its part."""

    sent: dict[int, tuple[float, ...]] = field(default_factory=dict)
    came: float = 0.0
    due: dict[int, float] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)


class World:
    """Ranks, their network and their clock.

    Args:
        size: How many ranks.
        batches: That each trains on.
        seed: Of all that happens by chance.
        alone: Let each take its events by itself, which is wrong: ranks part.
    """

    def __init__(self, size: int, batches: int, seed: int, *, alone: bool = False) -> None:
        self.random = random.Random(seed)
        self.size, self.batches = size, batches
        self.now = 0.0
        self.gone: set[int] = set()
        self.exchanges: dict[tuple[str, int], Exchange] = {}
        self.back = threading.Semaphore(0)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.ranks = [Rank(self, number, alone=alone) for number in range(size)]

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Do something at a time, between two turns of ranks."""
        self._count += 1
        heapq.heappush(self._events, (time, self._count, act))

    def delay(self) -> float:
        """How long a message takes, sent again as often as it is lost."""
        time = self.random.expovariate(1 / LATENCY)
        while self.random.random() < LOST_IN:
            time += AGAIN
        return time

    def kill(self, rank: int) -> None:
        """Let a rank be gone from now on."""
        if rank not in self.gone and self.ranks[rank].thread.is_alive():
            self.close(rank)
            self.ranks[rank].killed = True
            self.at(self.now, self.ranks[rank].turn)

    def close(self, rank: int) -> None:
        """Close the connections of a rank: what it has not sent does not come, what is under way may not."""
        self.gone.add(rank)
        for one in self.exchanges.values():
            for other in range(self.size):
                under_way = one.due.get(other, self.now) >= self.now
                if rank not in one.sent or (under_way and self.random.random() < 0.5):
                    one.broken.add(other)
            for other in [*one.waiting]:
                if other in one.broken:
                    one.waiting.discard(other)
                    self.at(self.now + NOTICED, self.ranks[other].turn)

    def run(self) -> None:
        """Run all ranks to their ends.

        Raises:
            Parted: Two were at different edges, or waited for ever.
        """
        size = threading.stack_size(1 << 18)
        try:
            for one in self.ranks:
                one.thread.start()
                self.at(self.random.random() * LATENCY, one.turn)
        finally:
            threading.stack_size(size)
        try:
            while self._events:
                self.now, _, act = heapq.heappop(self._events)
                act()
            self._check()
        finally:
            for one in self.ranks:
                one.end()

    def _check(self) -> None:
        for one in self.ranks:
            if one.error is not None:
                raise one.error
        stuck = [one.number for one in self.ranks if one.thread.is_alive()]
        if stuck:
            raise Parted(f"ranks {stuck} wait for ever")
        longest = max((one.log for one in self.ranks), key=len)
        for one in self.ranks:
            if one.log != longest[: len(one.log)]:
                raise Parted(f"rank {one.number} made other transitions")
            if not self.gone and len(one.log) < len(longest):
                raise Parted(f"rank {one.number} made fewer transitions")


class Rank:
    """One rank: its machine, its meetings, and what they ask of the world.

    Attributes:
        log: What it did that all ranks have to do alike, in its order.
        error: What went wrong that may not.
        lost: Whether it saw that another rank is gone.
    """

    def __init__(self, world: World, number: int, *, alone: bool) -> None:
        self.world, self.number = world, number
        self.log: list[object] = []
        self.error: BaseException | None = None
        self.killed = self.lost = False
        self.evaluated = world.random.randrange(4)
        self._batches = 0
        self._exchanged = {"meeting": 0, "gradients": 0}
        self._asked: tuple[int, bool] = (0, False)
        self._go = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.driver = driver = Driver(Fit(), context=self)
        driver.instrument(self._logged)
        if not alone:
            self.meetings = Meetings(self, driver, lambda: self)
            for path in meeting_points(driver):
                driver.board.watch(path, lambda _sender, moment: self.meetings.meet(moment.path))

    # -- what the machine asks for

    def work(self) -> None:
        """Take some time."""
        self._sleep_until(self.world.now + self.world.random.expovariate(1 / LATENCY))

    def batches_done(self) -> bool:
        """Count a batch; whether there was none left."""
        self._batches += 1
        return self._batches > self.world.batches

    def average(self) -> None:
        """Average the gradients of the batch with those of all ranks."""
        self._begin("gradients", [self._batches, len(self.log)])()

    # -- what the meetings ask for

    def begin_hold(self) -> Callable[[bool], bool]:
        """Nobody is here who would let them go."""
        return lambda _: True

    def begin_largest(self, values: Sequence[float]) -> Callable[[], list[float]]:
        """Exchange numbers, as `Transport` says."""
        return self._begin("meeting", values)

    def asked(self) -> tuple[int, bool]:
        """Signals and checkpoints that were asked for here, as `Stoppable` says."""
        found, self._asked = self._asked, (self._asked[0], False)
        return found

    def agreed(self, signum: int, wanted: bool) -> None:
        """Do them, as `Stoppable` says."""
        if wanted:
            self.driver.at_boundary(lambda: self.log.append("checkpoint"))
        if signum:
            self.log.append("signal")
            self.driver.pause()

    def happen(self, what: str) -> None:
        """Let something come from outside."""
        if what == "kill":
            self.world.kill(self.number)
        elif what == "signal":
            self._asked = (15, self._asked[1])
        elif what == "checkpoint":
            self._asked = (self._asked[0], True)
        elif what == "pause":
            self.meetings.pause()
        elif self.driver.path is not None:
            self.driver.post(what)

    # -- parts

    def _begin(self, kind: str, values: Sequence[float]) -> Callable[[], list[float]]:
        world, number = self.world, self._exchanged[kind]
        self._exchanged[kind] += 1
        one = world.exchanges.setdefault((kind, number), Exchange())
        one.sent[self.number] = tuple(values)
        one.came = max(one.came, world.now + world.delay())
        if len({len(sent) for sent in one.sent.values()}) > 1:
            raise Parted(f"{kind} {number}: ranks exchange different things")
        if kind == "gradients" and len({*one.sent.values()}) > 1:
            raise Parted(f"gradients {number}: ranks are in different batches")
        if world.gone - one.sent.keys():
            one.broken.update(range(world.size))
        elif len(one.sent) == world.size:
            one.due = {rank: one.came + world.delay() for rank in range(world.size)}
            for rank in one.waiting:
                world.at(one.due[rank], world.ranks[rank].turn)
            one.waiting.clear()

        def answer() -> list[float]:
            if self.number not in one.broken:
                if self.number in one.due:
                    self._sleep_until(one.due[self.number])
                else:
                    one.waiting.add(self.number)
                    self._wait()
            if self.number in one.broken:
                self._sleep_until(world.now + NOTICED)
                raise ConnectionClosed
            return [max(sent) for sent in zip(*one.sent.values(), strict=True)]

        return answer

    def _logged(self, path: str, work: Callable[[], object]) -> Callable[[], object]:
        def logged() -> object:
            if ".evaluation." not in path:
                self.log.append(path)
            return work()

        return logged

    def _live(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self.driver.start()
                self.driver.run()
                while self.driver.path is not None and "signal" not in self.log:
                    self.log.append("paused")
                    self.driver.run()
        except ConnectionClosed:
            self.lost = True
            self.world.close(self.number)
        except Gone:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.world.back.release()

    def turn(self) -> None:
        """Let it go on until it waits again. Called by the scheduler."""
        if self.thread.is_alive():
            self._go.release()
            self.world.back.acquire()
            if self.error is not None:
                raise self.error

    def end(self) -> None:
        """End its thread, wherever it is."""
        self.killed = True
        if self.thread.is_alive():
            self._go.release()
        self.thread.join()

    def _sleep_until(self, time: float) -> None:
        if time > self.world.now:
            self.world.at(time, self.turn)
            self._wait()

    def _wait(self) -> None:
        self.world.back.release()
        self._go.acquire()
        if self.killed:
            raise Gone


def simulate(
    size: int,
    batches: int,
    seed: int,
    happenings: Sequence[tuple[str, float]],
    *,
    alone: bool = False,
) -> World:
    """Simulate a run of some ranks.

    Args:
        size: How many ranks.
        batches: That each trains on.
        seed: Of all that happens by chance.
        happenings: What comes from outside to a random rank: "stop", "validate", "checkpoint", "pause",
            "signal" or "kill", and when, as a share of the time that the batches take.
        alone: Let each take its events by itself, which is wrong.

    Returns:
        The world, with the ranks as they ended.

    Raises:
        Parted: Two ranks were at different edges, or waited for ever.
    """
    world = World(size, batches, seed, alone=alone)
    whole = batches * 4 * (LATENCY + LOST_IN * AGAIN)
    for what, share in happenings:
        rank = world.ranks[world.random.randrange(size)]
        world.at(share * whole, lambda rank=rank, what=what: rank.happen(what))  # type: ignore[misc]
    world.run()
    return world
