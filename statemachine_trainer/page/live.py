"""A run of this process, as the page shows it."""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from statemachine_trainer.control.buttons import Buttons, Steered
from statemachine_trainer.control.hold import Hold
from statemachine_trainer.control.processes import asking, ranks_of_run
from statemachine_trainer.graph.extraction import receivers_on
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.machine.driver import Driver
from statemachine_trainer.machine.loop import SEPARATOR, Loop
from statemachine_trainer.machine.program import Program
from statemachine_trainer.observe.blackbox import read_blackbox
from statemachine_trainer.observe.readings import PARTS, Part, Reading, Readings, named_apart
from statemachine_trainer.observe.ring import BadRing
from statemachine_trainer.observe.waiting import ranks_as_data
from statemachine_trainer.page.settings import Changes, shown
from statemachine_trainer.page.tally import Curves, Passage, Tally, edges_as_data, progress_as_data

_EVERY = 1.0
"""Seconds between two readings of the metrics within an epoch, and of the black boxes of ranks."""

_SELDOM = 50
"""How many times longer than a reading of the black boxes it takes until the next one."""


class Shown(Steered, Protocol):
    """What the page needs of a trainer."""

    @property
    def driver(self) -> Driver:
        """The driver of what ran last, or of the fit."""

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run; None if nothing of it is kept."""

    def graph(self) -> Graph:
        """Return the graph of the loop of the fit."""

    def describe(self) -> str:
        """Return who listens to what."""


class LiveRun:
    """Watches a trainer of this process and steers it.

    Metrics are read in the training thread, at the ends of epochs and validations and at most once
    a second in between: reading them waits for the device.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Shown) -> None:
        self._trainer = trainer
        self._driver = trainer.driver
        self.tally = Tally()
        self._hold = Hold.of(self._driver)
        self._buttons = Buttons(trainer, self._driver, self._hold)
        self._curves: dict[Part, Curves] = {part: Curves() for part in PARTS[:-1]}
        self._changes = Changes(trainer.run_folder)
        self._program: Program | None = None
        self._rebuilt = 0
        self._seen: list[dict[str, Any]] = []
        self._read_again = 0.0
        self._remove = [
            self._driver.instrument(self.tally.probe),
            Readings(self._take, every=1, seconds=_EVERY).attach(self._driver),
        ]

    def close(self) -> None:
        """Let the run go on as if nobody had watched."""
        self._hold.let_go()
        for remove in self._remove:
            remove()

    def graph(self) -> Graph:
        """The graph of the loop as it is now; who listens to it is told by `state`."""
        return self._trainer.graph()

    def press(self, button: str) -> str:
        """Do what a button says, and tell what becomes of it.

        Raises:
            NotNow: It is greyed.
        """
        return self._buttons.press(button)

    def set(self, values: Mapping[str, object]) -> str:
        """Change settings of the fit, and tell what becomes of it.

        Raises:
            NotNow: The run stands still.
            SettingError: There is no such setting, or it cannot have this value.
        """
        with asking("the page"):
            return self._buttons.set(values)

    def state(self) -> dict[str, Any]:
        """All that changes, as data that JSON can hold."""
        tally, look = self.tally, self._buttons.look()
        return {
            **look,
            "settings": shown(look["settings"]),
            **self._changes.read(look["settings"]),
            "graph": self._number_of_graph(),
            "counts": self._counts(),
            "progress": self._progress(),
            "ranks": self._ranks(),
            "states": {
                path: {"calls": one.calls, "seconds": one.seconds}
                for path, one in [*tally.states.items()]
                if one.calls
            },
            "edges": edges_as_data(self._edges()),
            "recent": [
                {"state": answer.state, "event": answer.event} for answer in [*tally.recent]
            ],
            "curves": named_apart(
                {part: curves.to_dict() for part, curves in self._curves.items()}
            ),
            "subscribers": self._trainer.describe(),
        }

    def _number_of_graph(self) -> int:
        """Changes whenever loops were swapped, so that the page draws the graph anew.

        The program is held here: the address of one that is gone may be that of the next.
        """
        program = self._driver.program
        if program is not self._program:
            self._program = program
            self._rebuilt += 1
        return self._rebuilt

    def _counts(self) -> dict[str, int]:
        context = self._driver.context
        if context is None:
            return {}
        counts = context.counts
        return {"epoch": counts.epoch, "batch": counts.batch, "step": counts.step}

    def _progress(self) -> dict[str, Any]:
        """Return the name of the run, and how far it is."""
        folder, context = self._trainer.run_folder, self._driver.context
        name = self._driver.name if folder is None else folder.name
        counts, limits = getattr(context, "counts", None), getattr(context, "limits", None)
        if context is None or counts is None or limits is None:
            return {"name": name}
        return progress_as_data(
            name,
            epoch=counts.epoch,
            epochs=limits.max_epochs,
            batch=counts.batch_in_epoch,
            batches=counts.batches_per_epoch,
            seconds=context.seconds_so_far(),
        )

    def _ranks(self) -> list[dict[str, Any]]:
        """Return what the black boxes of the ranks tell; nothing for a run of one process.

        They are read in the process that trains, so seldom: reading takes a fiftieth of its time at most.
        """
        folder, begun = self._trainer.run_folder, time.monotonic()
        if folder is None or ranks_of_run() == 1 or begun < self._read_again:
            return self._seen
        with suppress(BadRing):
            self._seen = ranks_as_data(read_blackbox(folder))
        now = time.monotonic()
        self._read_again = now + max(_EVERY, _SELDOM * (now - begun))
        return self._seen

    def about(self, path: str) -> dict[str, Any]:
        """Return what is known of a state: who listens to it, and where its source is."""
        heard = receivers_on(self._driver.board)
        around, _, name = path.rpartition(SEPARATOR)
        loops = dict(self._driver.root.walk(self._driver.name))
        found = loops.get(path) or getattr(loops.get(around), name, None)
        return {
            "receivers": {
                signal.rpartition(":")[2]: labels
                for signal, labels in heard.items()
                if signal.rpartition(":")[0] == path
            },
            "source": _source_of(found),
        }

    def _edges(self) -> dict[tuple[str, str], Passage]:
        """Return the edges that were taken. A bubbling event is counted at the loop that takes it."""
        passages: defaultdict[tuple[str, str], Passage] = defaultdict(Passage)
        nodes = self._driver.program.nodes
        for path, one in [*self.tally.states.items()]:
            for answer in [*one.answers.values()]:
                edge = nodes[path].edges.get(answer.event) if path in nodes else None
                if edge is not None:
                    taken = passages[edge.moment.path, answer.event]
                    taken.add(answer.count, answer.seconds)
        return passages

    def _take(self, reading: Reading) -> None:
        part: Part = "train" if reading.part == "step" else reading.part
        self._curves[part].add(reading.step, reading.metrics())


def _source_of(found: Any) -> str | None:
    """Return file and line of the method of a state, or of the class of a loop."""
    written: Any = type(found) if isinstance(found, Loop) else inspect.unwrap(found)
    try:
        return f"{inspect.getsourcefile(written)}:{inspect.getsourcelines(written)[1]}"
    except (OSError, TypeError):  # made in an interpreter, say
        return None
