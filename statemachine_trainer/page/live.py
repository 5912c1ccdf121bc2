"""A run of this process, as the page shows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from statemachine_trainer.machine.graph import Graph
from statemachine_trainer.page.buttons import press, refusals
from statemachine_trainer.page.curves import Curves
from statemachine_trainer.page.tally import Tally

if TYPE_CHECKING:
    from statemachine_trainer.machine.driver import Driver
    from statemachine_trainer.trainer import Trainer


class LiveRun:
    """Watches a trainer of this process and steers it.

    Metrics are read in the training thread, at the ends of epochs and validations and at most once
    a second: reading them waits for the device.

    Args:
        trainer: The trainer.
    """

    steers = True

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._driver: Driver = trainer.driver
        self.tally = Tally(lambda: self._driver.requested)
        self._curves = Curves()
        self._begun = time.perf_counter()
        self._remove = self._driver.instrument(self.tally.probe)
        self._subscriptions = [
            trainer.on("batch_end", self._note, every="1s"),
            trainer.on("*validation_end", self._note),
            trainer.on("epoch_end", self._note),
        ]

    def close(self) -> None:
        """Let the run go on as if nobody had watched."""
        self.tally.go_on()
        self._remove()
        for subscription in self._subscriptions:
            subscription.cancel()

    def graph(self) -> Graph:
        """The graph of the loop, with the names of its subscribers."""
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
            "graph": id(driver.program),
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
            "edges": [*self._edges()],
            "recent": [
                {"at": at - self._begun, "state": path, "event": event}
                for at, path, event in [*tally.recent]
            ],
            "curves": self._curves.to_dict(),
            "subscribers": self._trainer.describe(),
            "buttons": refusals(self._trainer, driver, tally),
        }

    def _counts(self) -> dict[str, int]:
        context = self._driver.context
        if context is None:
            return {}
        counts = context.counts
        return {"epoch": counts.epoch, "batch": counts.batch, "step": counts.step}

    def _edges(self) -> list[dict[str, Any]]:
        """How often each edge was gone. A bubbling event is counted at the loop that takes it."""
        totals: dict[tuple[str, str], int] = {}
        nodes = self._driver.program.nodes
        for path, one in [*self.tally.states.items()]:
            for event, count in [*one.events.items()]:
                edge = nodes[path].edges.get(event) if path in nodes else None
                if edge is not None:
                    key = edge.moment.path, event
                    totals[key] = totals.get(key, 0) + count
        return [
            {"source": source, "event": event, "count": count}
            for (source, event), count in totals.items()
        ]

    def _note(self, trainer: Trainer) -> None:
        self._curves.add(trainer.steps, trainer.metrics)
