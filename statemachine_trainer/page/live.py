"""A run of this process, as the page shows it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from statemachine_trainer.machine.graph import Graph
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.machine.program import Program, Work
from statemachine_trainer.page.buttons import press, refusals
from statemachine_trainer.page.curves import Curves
from statemachine_trainer.page.tally import Tally, edges_as_data

if TYPE_CHECKING:
    from statemachine_trainer.machine.driver import Driver
    from statemachine_trainer.trainer import Trainer


_EVERY = 1.0
"""Seconds between two readings of the metrics within an epoch."""


class LiveRun:
    """Watches a trainer of this process and steers it.

    Metrics are read in the training thread, at the ends of epochs and validations and at most once
    a second: reading them waits for the device.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._driver: Driver = trainer.driver
        self.tally = Tally(lambda: self._driver.requested)
        self._curves = Curves()
        self._due = 0.0
        self._program: Program | None = None
        self._rebuilt = 0
        self._remove = [
            self._driver.instrument(self.tally.probe),
            self._driver.instrument(self._read_metrics),
        ]

    def close(self) -> None:
        """Let the run go on as if nobody had watched."""
        self.tally.go_on()
        for remove in self._remove:
            remove()

    def graph(self) -> Graph:
        """The graph of the loop as it is now; who listens to it is told by `state`."""
        return self._trainer.graph()

    def press(self, button: str) -> None:
        """Do what a button says.

        Raises:
            NotNow: It is greyed.
        """
        press(button, self._trainer, self._driver, self.tally)

    def state(self) -> dict[str, Any]:
        """All that changes, as data that JSON can hold."""
        driver, tally = self._driver, self.tally
        return {
            "graph": self._number_of_graph(),
            "state": tally.held or driver.path,
            "held": tally.held is not None,
            "running": driver.running,
            "outcome": driver.outcome,
            "posted": driver.posted,
            "counts": self._counts(),
            "states": {
                path: {"calls": one.calls, "seconds": one.seconds}
                for path, one in [*tally.states.items()]
                if one.calls
            },
            "edges": edges_as_data(self._edges()),
            "recent": [
                {"state": answer.state, "event": answer.event} for answer in [*tally.recent]
            ],
            "curves": self._curves.to_dict(),
            "subscribers": self._trainer.describe(),
            "buttons": refusals(self._trainer, driver, tally),
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

    def _edges(self) -> Counter[tuple[str, str]]:
        """How often each edge was gone. A bubbling event is counted at the loop that takes it."""
        counts: Counter[tuple[str, str]] = Counter()
        nodes = self._driver.program.nodes
        for path, one in [*self.tally.states.items()]:
            for answer in [*one.answers.values()]:
                edge = nodes[path].edges.get(answer.event) if path in nodes else None
                if edge is not None:
                    counts[edge.moment.path, answer.event] += answer.count
        return counts

    def _read_metrics(self, path: str, work: Work) -> Work:
        """A probe: reads after the end of an epoch or a validation, and now and then after a batch."""
        name = path.rpartition(SEPARATOR)[2]
        clock, curves, trainer = time.monotonic, self._curves, self._trainer

        def now_and_then() -> object:
            event = work()
            if clock() >= self._due:
                self._due = clock() + _EVERY
                curves.add(trainer.steps, trainer.metrics)
            return event

        def always() -> object:
            event = work()
            curves.add(trainer.steps, trainer.metrics)
            return event

        return {"batch_end": now_and_then, "epoch_end": always, "validation_end": always}.get(
            name, work
        )
