"""Reading the folder of a run: from any process, while it goes on or after it was killed.

Needs no torch.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, overload

from statemachine_trainer.files import is_regular, missing_folder, names_in, parse_json, path_given
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.graph.model import GraphEdge, GraphState
from statemachine_trainer.machine.errors import StateMachineError, suggest
from statemachine_trainer.machine.keywords import HasSettings
from statemachine_trainer.observe.blackbox import Look, Ring, Status, read_blackbox
from statemachine_trainer.observe.epoch_table import EpochRecord
from statemachine_trainer.observe.journal_file import (
    VERSION,
    check_journal_files,
    check_tables,
    limit_work,
)
from statemachine_trainer.observe.kept import Mode, kept_checkpoints, mode_of
from statemachine_trainer.observe.readings import PARTS, Part, named_apart
from statemachine_trainer.observe.remote import Remote
from statemachine_trainer.observe.restarts import RESTART
from statemachine_trainer.run_record import JOURNAL, RECORD, BadRecord, Record, read_record

_PATIENCE: Final = 5.0
_BY_WEIGHT: Final[tuple[Status, ...]] = ("killed", "failed", "unknown", "running", "stopped")
"""Of several processes, the status that tells most of the run; any other is that of the first."""


class NoRun(StateMachineError):
    """A folder in which no run was recorded."""


class BadJournal(StateMachineError):
    """A journal that cannot be read."""


class NoMetric(StateMachineError):
    """A metric that the run does not have."""


class BadMode(StateMachineError):
    """Neither the lowest nor the highest value was asked for."""


class Point(NamedTuple):
    """A value of a metric.

    Attributes:
        step: Optimizer steps done when it was measured.
        value: The value.
        round: 0; counted up where the steps begin anew within the run, as at each fold.
    """

    step: int
    value: float
    round: int = 0


class BestPoint(Point):
    """The best value of a metric.

    Attributes:
        path: The checkpoint with the weights that it was measured with; None if that was not kept.
    """

    path: Path | None = None

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, path={str(self.path)!r})"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run.

    Attributes:
        at: When.
        what: "started", "resumed", "stopped", "ended", "failed", "checkpoint"; "error" where an error
            edge was taken; "recovery" where a `RecoverLoop` went back; "set" where settings were changed;
            "restart" where `torchrun` started the ranks again, because it had lost one.
        facts: Such as the signal, the error, the name of the checkpoint, the batches passed over, the rank.
        step: Optimizer steps done then; None of starts and ends.
    """

    at: datetime
    what: str
    facts: Mapping[str, Any]
    step: int | None = None


class Run(HasSettings):
    """What is recorded in the folder of a run.

    Reads anew at each call, and writes nothing: a run that goes on does not notice. Only `post` asks
    its processes for something.

    Args:
        folder: The folder of the run.

    Attributes:
        path: The folder.

    Raises:
        NoRun: Nothing of a run is in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = path_given(folder)
        if not self.path.exists():
            raise NoRun(missing_folder(self.path))
        if not is_run(self.path):
            raise NoRun(
                f"{self.path} is not the folder of a run: it has no {RECORD}, no {JOURNAL} and no "
                "black box. Runs are recorded with Trainer(run='runs/name') or checkpoints='...'."
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @overload
    def metrics(self, name: str, *, part: Part | None = None) -> list[Point]: ...
    @overload
    def metrics(self, name: None = None, *, part: Part | None = None) -> dict[str, list[Point]]: ...
    def metrics(
        self, name: str | None = None, *, part: Part | None = None
    ) -> list[Point] | dict[str, list[Point]]:
        """Return the values of one metric, or of all by name, in the order of the run.

        Args:
            name: Of the metric; all of them unless given.
            part: "train" (each epoch's), "validation", "test", or "step" (the newest value at
                intervals of batches). The first three unless given; a name that more than one of
                them has then means the first, and that of another is `validation/name`.

        Raises:
            NoMetric: The run has no such metric, or there is no such part.
            BadJournal: The journal cannot be read.
        """
        if part is not None and part not in PARTS:
            raise NoMetric(f"A run has no part {part!r} of metrics. {suggest(str(part), PARTS)}")
        parts = PARTS[:-1] if part is None else (part,)
        found = named_apart({one: self._series(one) for one in parts})
        if name is None:
            return found
        if name not in found:
            raise NoMetric(f"The run {self.path} has no metric {name!r}. {suggest(name, found)}")
        return found[name]

    def epochs(self) -> list[EpochRecord]:
        """Return what is known of each epoch that has ended.

        Raises:
            BadJournal: The journal cannot be read.
        """
        found = self._select("SELECT facts FROM entries WHERE kind = 'train' ORDER BY id")
        with self._reading_facts():
            return [EpochRecord.from_facts(parse_json(facts)) for (facts,) in found]

    def graph(self) -> Graph | None:
        """Return the graph of the loop that was run, the newest; None if it is not recorded.

        Raises:
            BadJournal: The journal cannot be read.
        """
        begun = self._begun()
        with self._reading_facts():
            return None if begun is None else _graph_of(begun["graph"])

    def settings(self) -> dict[str, str]:
        """Return the settings that the trainer was made with, as Python writes them."""
        begun = self._begun()
        with self._reading_facts():
            return {} if begun is None else {f"{k}": f"{v}" for k, v in begun["settings"].items()}

    def hyperparameters(self) -> dict[str, bool | int | float | str | None]:
        """Return what the run was set to, by name; see `Trainer.hyperparameters`.

        Raises:
            BadJournal: The journal cannot be read.
        """
        begun = self._begun()
        with self._reading_facts():
            sections = {} if begun is None else begun.get("hyperparameters", {})
            found = named_apart({f"{place}": dict(named) for place, named in sections.items()})
            if not all(isinstance(one, str | int | float | None) for one in found.values()):
                raise TypeError("its hyperparameters are no plain values")
        return found

    def history(self) -> list[Event]:
        """Return starts, ends, checkpoints, recoveries and restarts in the order of time.

        Raises:
            BadRecord, BadJournal: The record, or the journal, cannot be read.
        """
        record = self.record()
        events = [_event_of(one) for one in (record.history if record else ())]
        events += self.noted("checkpoint", "error", "recovery", "set", RESTART)
        return sorted(events, key=lambda event: event.at)

    def noted(self, *kinds: str) -> list[Event]:
        """Return the entries of some kinds in the journal, such as "set", in their order.

        Raises:
            BadJournal: The journal cannot be read.
        """
        places = ", ".join("?" * len(kinds))
        rows = self._select(
            f"SELECT at, kind, facts, step FROM entries WHERE kind IN ({places}) ORDER BY id",
            *kinds,
        )
        with self._reading_facts():
            return [
                Event(
                    datetime.fromtimestamp(at, UTC), str(kind), dict(parse_json(facts)), int(step)
                )
                for at, kind, facts, step in rows
            ]

    def begun_anew(self) -> datetime:
        """Return since when the steps have been counted as they are: at each fold they begin anew.

        Raises:
            BadJournal: The journal cannot be read.
        """
        # What a recovery has gone back over is not begun anew.
        rows = self._select(
            "SELECT max(at) FROM (SELECT at, kind, step, lag(step) OVER (ORDER BY id) AS before "
            "FROM entries WHERE kind IN ('train', 'validation', 'step', 'recovery')) "
            "WHERE step < before AND kind != 'recovery'"
        )
        with self._reading_facts():
            return datetime.fromtimestamp((rows[0][0] if rows else None) or 0.0, UTC)

    def restarts(self) -> list[Event]:
        """Return how often, and why, `torchrun` has started the ranks of the run again.

        Raises:
            BadJournal: The journal cannot be read.
        """
        return self.noted(RESTART)

    def record(self) -> Record | None:
        """Return how the run was started; None if that is not recorded."""
        return read_record(self.path)

    def rings(self) -> list[Ring]:
        """Return the black boxes of its processes; see `read_blackbox`."""
        return read_blackbox(self.path)

    @property
    def status(self) -> Status:
        """What the run is doing, or how it ended: "killed" if a process is gone without a word."""
        return self._status(self.rings())

    def progress(self) -> tuple[int, int] | None:
        """Return the epochs and steps done, as far as they are known; None if nothing is."""
        return self._progress(self.rings())

    def look(self) -> Look:
        """Return what `rings`, `status` and `progress` tell, and read the black boxes once for all."""
        rings = self.rings()
        return Look(rings, self._status(rings), self._progress(rings))

    def best(self, name: str, mode: Mode | None = None) -> BestPoint | None:
        """Return the best value of a metric, and where its weights are; None if there are only NaNs.

        Args:
            name: Of the metric.
            mode: Whether less ("min") or more ("max") is better; as the `Best` of the run says unless
                given, and "min" where it has none.

        Raises:
            NoMetric: The run has no such metric.
            BadMode: The mode is neither "min" nor "max".
        """
        kept = kept_checkpoints(self.path)
        known = any(name in one.metrics for one in kept)
        part, _, rest = name.partition("/")
        logged = rest if part in PARTS and not known else name  # as the journal tells parts apart
        mode = check_mode(mode_of(kept, logged) if mode is None else mode)
        points = [one for one in self.metrics(name) if not math.isnan(one.value)]
        if not points:
            return None
        choose = min if mode == "min" else max
        found = BestPoint(*choose(points, key=lambda one: one.value))
        there = [one for one in kept if one.step == found.step]
        of_it = [one for one in there if one.metrics.get(logged) == found.value]
        found.path = of_it[-1].path if of_it else None
        return found

    def changed(self) -> datetime | None:
        """Return when anything was last written; None if nothing is there."""
        times = []
        for path in [*_rings_in(self.path), self.path / JOURNAL, self.path / RECORD]:
            with suppress(OSError):
                times.append(path.stat().st_mtime)
        since = [ring.since for ring in self.rings() if ring.since is not None]
        known = [datetime.fromtimestamp(one, UTC) for one in times]
        return max([*since, *known], default=None)

    def post(self, event: str, *, rank: int | None = None, **values: float | None) -> str:
        """Ask the processes of the run for something, as `smt post` does.

        Does not wait until it is done: that is at the next boundary that takes it.

        Args:
            event: "stop", "validate", "checkpoint", "pause", "step", "continue", or any event that
                its chart lets be posted.
            rank: The only process to ask; all of them unless given.
            **values: With "set": the settings to change, as in `post("set", lr=1e-4)`.

        Returns:
            What becomes of it.

        Raises:
            NotNow: It cannot be done now; the message says why.
            NobodyListens: The run is over, or takes no requests.
            NoAnswer: A process hangs.
        """
        remote = Remote(self, rank=rank, patience=_PATIENCE)
        told = remote.set(values) if event == "set" or values else remote.press(event)
        return next(iter(told.values()))

    # -- parts -----------------------------------------------------------------------------------

    def _status(self, rings: list[Ring]) -> Status:
        found = [ring.status for ring in rings]
        if found:
            return next((one for one in _BY_WEIGHT if one in found), found[0])
        record = self.record()
        last = record.history[-1]["event"] if record and record.history else None
        known: dict[object, Status] = {"stopped": "stopped", "ended": "ended", "failed": "failed"}
        return known.get(last, "unknown")

    def _progress(self, rings: list[Ring]) -> tuple[int, int] | None:
        rows = self._select("SELECT epoch, step FROM entries ORDER BY id DESC LIMIT 1")
        entries = [e for ring in rings[:1] for e in ring.entries(last=1)]
        if not rows and not entries:
            return None
        epoch, step = rows[0] if rows else (0, 0)
        if type(epoch) is not int or type(step) is not int:
            raise BadJournal(f"{self.path / JOURNAL} cannot be read: its counters are no numbers.")
        return epoch, entries[0].step if entries else step

    def _series(self, part: Part) -> dict[str, list[Point]]:
        rows = self._select(
            "SELECT step, name, value FROM entries LEFT JOIN metrics ON entry = id "
            "WHERE (kind = ? AND name IS NOT NULL) OR kind = 'recovery' ORDER BY id",
            part,
        )
        found: dict[str, list[Point]] = {}
        went_back: set[str] = set()  # by a recovery: their steps do not begin anew
        with self._reading_facts():
            for step, name, value in rows:
                if name is None:
                    went_back |= found.keys()
                    continue
                points = found.setdefault(str(name), [])
                last = points[-1] if points else Point(-1, 0.0)
                again = last.round + (step < last.step and name not in went_back)
                went_back.discard(name)
                points.append(Point(step, math.nan if value is None else float(value), again))
        return found

    @contextmanager
    def _reading_facts(self) -> Iterator[None]:
        """Tell a journal whose entries are something else as what it is."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError) as error:
            raise BadJournal(f"{self.path / JOURNAL} cannot be read: {error}.") from error
        except RecursionError:
            raise BadJournal(
                f"{self.path / JOURNAL} cannot be read: it is nested too deeply."
            ) from None

    def _begun(self) -> dict[str, Any] | None:
        rows = self._select(
            "SELECT facts FROM entries WHERE kind = 'begun' ORDER BY id DESC LIMIT 1"
        )
        with self._reading_facts():
            begun: dict[str, Any] | None = dict(parse_json(rows[0][0])) if rows else None
        return begun

    def _select(self, query: str, *values: str) -> list[Any]:
        path = self.path / JOURNAL
        if not os.path.lexists(path):
            return []
        try:
            check_journal_files(self.path)
            with closing(_connect(path)) as connection:
                limit_work(connection)
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    return []  # just being made
                if version > VERSION:
                    raise BadJournal(
                        f"{path} was written by a newer statemachine_trainer: it is of version "
                        f"{version}, and {VERSION} is known here. Upgrade to read it."
                    )
                check_tables(connection)
                return connection.execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise BadJournal(f"{path} cannot be read: {error}.") from error


def check_mode(mode: str) -> Mode:
    """Return which way a metric is better.

    Raises:
        BadMode: It is neither "min" nor "max".
    """
    if mode in ("min", "max"):
        return cast("Mode", mode)
    raise BadMode(f"mode={mode!r}: say 'min' if the lowest is the best, or 'max'.")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run. A `run.json` of something else does not make it one."""
    return _is_recorded(folder) or is_regular(folder / JOURNAL) or bool(_rings_in(folder))


def _rings_in(folder: Path) -> list[Path]:
    names = names_in(folder)
    return [folder / one for one in names if one.startswith("blackbox-") and one.endswith(".ring")]


def _is_recorded(folder: Path) -> bool:
    try:
        return read_record(folder) is not None
    except BadRecord:
        return False


def find_runs(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Yield the folders of runs at and below a folder. Within a run there are no others."""
    if is_run(folder):
        yield folder
    elif depth:
        for inside in (folder / name for name in names_in(folder)):
            if inside.is_dir() and not inside.is_symlink():
                yield from find_runs(inside, depth - 1)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)


def _event_of(entry: Mapping[str, Any]) -> Event:
    facts = {name: value for name, value in entry.items() if name not in ("event", "at")}
    try:
        at = datetime.fromisoformat(str(entry.get("at")))
    except (ValueError, OverflowError):
        at = datetime.fromtimestamp(0, UTC)
    return Event(at if at.tzinfo else at.replace(tzinfo=UTC), str(entry["event"]), facts)


def _graph_of(data: Mapping[str, Any]) -> Graph:
    edges = tuple(GraphEdge(**_fields_of(GraphEdge, edge)) for edge in data["edges"])
    return Graph(str(data["name"]), _state_of(data["root"]), edges, None, _state_of(data["final"]))


def _state_of(data: Mapping[str, Any]) -> GraphState:
    children = tuple(_state_of(child) for child in data["children"])
    return GraphState(**{**_fields_of(GraphState, data), "children": children})


def _fields_of(kind: type[GraphState | GraphEdge], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a part of a graph as they were.

    Raises:
        TypeError: One is of another type.
    """
    defaults = {one.name: one.default for one in fields(kind)}
    found: dict[str, Any] = {}
    for name, value in data.items():
        if name == "children":
            continue
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = tuple(value)
        default = defaults.get(name, "")
        wanted = tuple if isinstance(default, tuple) else bool if default is False else str
        if type(value) is not wanted and not (value is None and default is None):
            raise TypeError(f"{name} of a part of the graph is {value!r}"[:200])
        found[name] = value
    return found
