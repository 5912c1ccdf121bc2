"""The black box: the last transitions of a run, readable after it was killed and while it hangs.

Each process of a run writes its own, `blackbox-<rank>.ring` in the folder of the run; see
`observe.ring` for the layout. Reading needs no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from mmap import mmap
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, NamedTuple

from statemachine_trainer.control.processes import (
    attempt_of_process,
    describe_process,
    is_alive,
    rank_of_process,
    ranks_of_run,
)
from statemachine_trainer.files import names_in
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.edges import Work
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.machine.signals import Call, CallProbe, Moment, Part, Subscription
from statemachine_trainer.observe.ring import (
    CALL,
    CALL_AT,
    CAPACITY,
    ENTRY,
    BadRing,
    RawRing,
    RingWriter,
    clock,
    read_ring,
)

_log = logging.getLogger(__name__)

Status = Literal["running", "paused", "resting", "ended", "stopped", "failed", "killed", "unknown"]
Mark = Literal["paused", "resting", "ended", "stopped", "failed"]

_MARKS: Final[Mapping[str, Mark]] = {
    f"({mark})": mark for mark in ("paused", "resting", "ended", "stopped", "failed")
}
_START, _BACK, _ODD = "(start)", "(back)", "(no event)"
_POSTED, _MOVED = "(posted)", "(moved)"
_ANSWER, _POST, _SEPARATOR = "answer", "post", "\t"
_EARLIER: Final = "-earlier"


class NoBlackBox(StateMachineError):
    """A folder without a black box was asked for one."""


# -- reading ---------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A transition: at `time`, `event` led to `state`.

    Attributes:
        number: Transitions of the process so far, from 1.
        time: When.
        event: The event; "(start)" at the very first, "(back)" where an evaluation that a receiver
            had called was over, "(posted)" where it was one of several that may be posted, "(moved)"
            where there was none, as after `rewind`.
        state: Path of the state that began its work. A mark such as "(ended)", "(paused)" or
            "(failed)" says that the process left the run there.
        step: Optimizer steps done.
    """

    number: int
    time: datetime
    event: str
    state: str
    step: int


class InReceiver(NamedTuple):
    """A receiver that is being called.

    Attributes:
        name: Its name, as `trainer.describe()` prints it.
        since: When it was called.
    """

    name: str
    since: datetime


@dataclass(frozen=True)
class Ring:
    """The black box of one process, as it was when it was read.

    Attributes:
        path: The file.
        rank: Rank of the process.
        ranks: Processes of the run; None if nobody said how many.
        pid: Its number.
        host: Its machine.
        alive: Whether it lives; None if that cannot be seen from here.
        attempt: How often `torchrun` had started the ranks again before this process.
        read: When this began to be read.
        receiver: The receiver that is being called, on the way from the state to the next one; None
            if none is. A process that hangs may hang there.
    """

    path: Path
    rank: int
    ranks: int | None
    pid: int
    host: str
    alive: bool | None
    attempt: int
    read: datetime
    receiver: InReceiver | None
    _entries: tuple[Entry, ...]

    def entries(self, last: int | None = None) -> list[Entry]:
        """Return the transitions that are kept, the oldest first; the last ones only if asked."""
        return [*self._entries] if last is None else [*self._entries[max(0, len(self) - last) :]]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def state(self) -> str | None:
        """Path of the state that it is in, or was in when it ended; None if it never ran."""
        return next((e.state for e in reversed(self._entries) if e.state not in _MARKS), None)

    @property
    def since(self) -> datetime | None:
        """When the newest entry was made: since then the state is at work, or the run at rest."""
        return self._entries[-1].time if self._entries else None

    @property
    def seconds(self) -> float | None:
        """How long that was ago when this was read; None if it never ran."""
        ago = None if self.since is None else (self.read - self.since).total_seconds()
        return None if ago is None else max(0.0, ago)

    @property
    def status(self) -> Status:
        """What the process is doing; "killed" if it is gone without having said so."""
        mark = _MARKS.get(self._entries[-1].state) if self._entries else "paused"
        if mark is not None:
            return mark
        return "unknown" if self.alive is None else "running" if self.alive else "killed"


@dataclass(frozen=True, slots=True)
class Look:
    """What a run is at, as it was at one moment.

    Attributes:
        rings: The black boxes of its processes.
        status: What it is doing, or how it ended; see `Run.status`.
        progress: Epochs and steps done; see `Run.progress`.
    """

    rings: list[Ring]
    status: Status
    progress: tuple[int, int] | None


def read_blackbox(folder: Path | str, *, earlier: bool = False) -> list[Ring]:
    """Read the black boxes in the folder of a run, one for each process, in the order of ranks.

    May be called at any time, from any process.

    Args:
        folder: The folder of the run.
        earlier: Read those of the processes before the present or last ones.

    Returns:
        The rings; none if the run wrote no black box.

    Raises:
        BadRing: A file is no black box.
    """
    tail = f"{_EARLIER}.ring" if earlier else ".ring"
    names = [one for one in names_in(Path(folder)) if one.startswith("blackbox-")]
    found = {_rank(one, tail): Path(folder, one) for one in names if one.endswith(tail)}
    rings = [_read(found[rank]) for rank in sorted(rank for rank in found if rank is not None)]
    # Of an earlier run with more processes, those of higher ranks are left.
    ranks = rings[0].ranks if rings else None
    return [ring for ring in rings if ranks is None or ring.rank < ranks]


def _rank(name: str, tail: str) -> int | None:
    number = name.removeprefix("blackbox-").removesuffix(tail)
    return int(number) if number.isdecimal() else None


def _read(path: Path) -> Ring:
    # Before it is read: nothing that happened until then is missing.
    read = datetime.now(UTC)
    raw = read_ring(path)
    try:
        return _told_by(raw, path, read)
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
        raise BadRing(f"{path} is not a black box that can be read here: {error}.") from error


def _told_by(raw: RawRing, path: Path, read: datetime) -> Ring:
    facts, legend = raw.facts, _Legend(raw.names)
    rank, ranks, pid = facts.get("rank", 0), facts.get("ranks"), facts.get("pid", 0)
    attempt = facts.get("attempt", 0)  # earlier versions wrote none
    if not all(type(one) is int for one in (rank, pid, attempt)) or type(ranks) not in (
        int,
        NoneType,
    ):
        raise ValueError("its facts are malformed")
    entries = tuple(
        Entry(
            one.number,
            _day(one.time),
            legend.event(one.way, one.state),
            legend.name(one.state),
            one.step,
        )
        for one in raw.entries
    )
    return Ring(
        path=path,
        rank=rank,
        ranks=ranks,
        pid=pid,
        host=str(facts.get("host")),
        alive=is_alive(facts),
        attempt=attempt,
        read=read,
        receiver=None
        if raw.call is None
        else InReceiver(legend.name(raw.call[0]), _day(raw.call[1])),
        _entries=entries,
    )


def _day(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


class _Legend:
    """What the numbers of a ring stand for.

    A way is an answer with the state that it leads to. Where another state was entered there was an
    event from outside in between, and the posted events of the chart tell which.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._posted: dict[tuple[str, str], list[str]] = {}
        for name in names:
            if name.startswith(f"{_POST}{_SEPARATOR}"):
                _, source, event, target = _parts(name, 4)
                self._posted.setdefault((source, target), []).append(event)

    def name(self, number: int) -> str:
        return self._names[number] if number < len(self._names) else f"(name {number})"

    def event(self, way: int, state: int) -> str:
        entered, parts = self.name(state), self.name(way).split(_SEPARATOR)
        if parts[0] != _ANSWER:  # there was no room for it
            return parts[0]
        _, event, target = _parts(self.name(way), 3)
        if target in ("", entered):
            return event
        found = self._posted.get((target, entered), [_MOVED])
        return found[0] if len(found) == 1 else _POSTED


def _parts(name: str, count: int) -> list[str]:
    """Take a name apart.

    Raises:
        ValueError: It has other parts.
    """
    parts = name.split(_SEPARATOR)
    if len(parts) != count:
        raise ValueError(f"the name {name[:80]!r} is malformed")
    return parts


class Parting(NamedTuple):
    """Where processes that should do the same part.

    Attributes:
        number: The first transition that is not the same for all.
        entries: What each rank did there, by rank.
    """

    number: int
    entries: dict[int, Entry]


def find_parting(rings: Sequence[Ring]) -> Parting | None:
    """Compare processes transition by transition, by event and state.

    One that is merely behind has not parted. What is no longer kept by all cannot be compared.

    Returns:
        The first difference; None if there is none.
    """
    by_number = {ring.rank: {one.number: one for one in ring.entries()} for ring in rings}
    common = set.intersection(*(set(found) for found in by_number.values())) if by_number else set()
    for number in sorted(common):
        entries = {rank: found[number] for rank, found in by_number.items()}
        if len({(one.event, one.state) for one in entries.values()}) > 1:
            return Parting(number, entries)
    return None


# -- writing ---------------------------------------------------------------------------------------


class BlackBox:
    """Writes down each state of some drivers as it begins its work.

    Nothing that goes wrong here harms the run: where the file cannot be made there is none, and the
    log says so.

    Args:
        folder: Where; made if need be. A black box that is there becomes the earlier one.
        drivers: The drivers; the first one counts the steps.
        capacity: Entries that are kept.
    """

    def __init__(
        self, folder: Path, drivers: Sequence[Driver], *, capacity: int = CAPACITY
    ) -> None:
        self.pid = os.getpid()
        self._drivers = drivers
        self._removers: list[Callable[[], None]] = []
        self._ring: RingWriter | None = None
        rank = rank_of_process()
        path = folder / f"blackbox-{rank}.ring"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                path.replace(path.with_name(f"blackbox-{rank}{_EARLIER}.ring"))
            place = {"rank": rank, "ranks": ranks_of_run(), "attempt": attempt_of_process()}
            facts = {**place, **describe_process()}
            self._ring = RingWriter(path, facts, capacity=capacity)
        except (OSError, ValueError, BadRing) as error:
            _log.warning(
                "There is no black box of this run: %s: %s. The run goes on. Make room in the folder, or let this "
                "user write there.",
                path,
                error,
            )
            return
        self._removers = [
            driver.instrument(_probe_for(self._ring, driver, drivers[0])) for driver in drivers
        ]
        self._removers.append(drivers[0].board.instrument(_call_probe_for(self._ring)))

    def close(self) -> None:
        """Write no more. What was written stays."""
        for remove in self._removers:
            remove()
        self._removers = []
        if self._ring is not None:  # a receiver may close it
            CALL.pack_into(self._ring.memory, CALL_AT, 0, 0)
        self._ring = None

    def mark(self, mark: Mark, event: str | None = None) -> None:
        """Write that the process leaves the run.

        Args:
            mark: How.
            event: What led to it: an outcome, or the kind of an error.
        """
        self._write(event or _ODD, f"({mark})")

    def come_back(self, driver: Driver) -> None:
        """Write that an evaluation is over, and the state goes on within which it was called."""
        if driver.path is not None:
            self._write(_BACK, driver.path)

    def _write(self, event: str, state: str) -> None:
        ring = self._ring
        if ring is not None:
            ring.write(_steps(self._drivers[0].context), ring.name(state), ring.name(_way(event)))


def _steps(context: Any) -> int:
    return 0 if context is None else int(context.counts.step)


def _probe_for(ring: RingWriter, driver: Driver, counting: Driver) -> Callable[[str, Work], Work]:
    """Make the probe of a driver. What it puts around a state is paid at each transition."""
    way = [ring.name(_way(_START))]  # by which the next state is entered, if nothing intervenes
    for node in driver.program.nodes.values():
        for event, edge in node.posted.items():
            if edge.target is not None:
                ring.name(_SEPARATOR.join((_POST, node.path, event, edge.target.path)))

    def probe(path: str, work: Work) -> Work:
        ways: dict[object, int] = {}

        def learn(answer: object) -> int:
            found = ring.name(_way_of(driver, path, answer if isinstance(answer, str) else _ODD))
            if isinstance(answer, str):
                ways[answer] = found
            return found

        # As defaults, names of a function lie side by side: between the states of a real model its
        # code finds nothing in the caches of the processor.
        def recorded(
            work: Work = work,
            here: int = ring.name(path),
            way: list[int] = way,
            ways: dict[object, int] = ways,
            counting: Driver = counting,
            store: Callable[..., None] = ENTRY.pack_into,
            memory: mmap = ring.memory,
            places: Iterator[int] = ring.places,
            clock: Callable[[], int] = clock,
        ) -> object:
            try:
                step = counting.context.counts.step
            except AttributeError:  # nothing was trained yet
                step = 0
            store(memory, next(places), step, here, way[0], clock())
            answer = work()
            try:
                way[0] = ways[answer]
            except (KeyError, TypeError):  # a new one, or nothing that a dict can look up
                way[0] = learn(answer)
            return answer

        return recorded

    return probe


def _call_probe_for(ring: RingWriter) -> CallProbe:
    """Make the probe that writes which receiver is being called."""
    current = [0]

    def probe(subscription: Subscription, part: Part, call: Call) -> Call:
        label = subscription.label()

        def recorded(
            sender: Any,
            moment: Moment,
            call: Call = call,
            here: int = ring.name(label if part == "receiver" else f"when= of {label}"),
            current: list[int] = current,
            store: Callable[..., None] = CALL.pack_into,
            memory: mmap = ring.memory,
            clock: Callable[[], int] = clock,
        ) -> Any:
            before, current[0] = current[0], here
            store(memory, CALL_AT, here, clock())
            try:
                return call(sender, moment)
            finally:
                current[0] = before
                store(memory, CALL_AT, before, clock() if before else 0)

        return recorded

    return probe


def _way(event: str, target: str = "") -> str:
    """Write an answer as a name, with the state that it leads to if this is certain."""
    return _SEPARATOR.join((_ANSWER, event, target))


def _way_of(driver: Driver, path: str, event: str) -> str:
    node = driver.program.nodes.get(path)
    edge = None if node is None else node.edges.get(event)
    if edge is None or edge.guards:
        return _way(event)
    return _way(_START) if edge.target is None else _way(event, edge.target.path)
