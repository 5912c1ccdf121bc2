"""A run of another process, or one that is over, as the page shows it: through its folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from statemachine_trainer.control.control_errors import PageError
from statemachine_trainer.control.requests import BUTTONS
from statemachine_trainer.graph.graph import Graph
from statemachine_trainer.machine.loop import SEPARATOR
from statemachine_trainer.observe.blackbox import Entry, Look, Ring
from statemachine_trainer.observe.remote import Remote
from statemachine_trainer.observe.run import Point, Run
from statemachine_trainer.observe.waiting import ranks_as_data
from statemachine_trainer.page.settings import changes_of, shown
from statemachine_trainer.page.tally import (
    RECENT,
    Curves,
    Passage,
    edges_as_data,
    progress_as_data,
)

_PATIENCE = 1.0
"""Seconds that a process has to answer; the page waits meanwhile."""


class FolderRun:
    """Watches a run through its folder, and steers it as far as its processes listen.

    Times and counters are those of the transitions that its black box still holds. Of several
    processes the first is shown, and a button is pressed in all.

    Args:
        folder: The folder of the run.

    Raises:
        NoRun: Nothing of a run is in it.
        PageError: Its graph is not recorded.
    """

    def __init__(self, folder: str | Path) -> None:
        self._run = Run(folder)
        self._remote = Remote(self._run, patience=_PATIENCE)
        self._graph = self._run.graph()
        if self._graph is None:
            raise PageError(
                f"The run {folder} has no graph in its journal, so there is nothing to draw. "
                "`smt blackbox` and `smt inspect` tell what is known of it."
            )

    def graph(self) -> Graph:
        """The graph of the loop that was run, the newest."""
        self._graph = self._run.graph() or self._graph
        assert self._graph is not None
        return self._graph

    def press(self, button: str) -> str:
        """Ask the processes of the run for it, and tell what becomes of it.

        Raises:
            NotNow: It is greyed.
            NobodyListens, NoAnswer: There is nobody to be asked; the message says why.
        """
        return next(iter(self._remote.press(button).values()))

    def set(self, values: Mapping[str, object]) -> str:
        """Ask the processes of the run to change settings, and tell what becomes of it.

        Raises:
            NotNow: They refuse.
            NobodyListens, NoAnswer: There is nobody to be asked; the message says why.
        """
        return next(iter(self._remote.set(values).values()))

    def is_held(self) -> bool:
        """Whether the run stands still until somebody lets it go on."""
        return bool(self._asked(self._run.look())["held"])

    def state(self) -> dict[str, Any]:
        """All that changes, as data that JSON can hold."""
        look = self._run.look()
        ring = next(iter(look.rings), None)
        entries = [] if ring is None else ring.entries()
        status = look.status
        epoch, step = look.progress or (0, 0)
        graph = self.graph()
        return {
            "graph": hash(graph),
            "state": None if ring is None else ring.state,
            "running": status == "running",
            "mood": _mood(status, ring),
            "outcome": None,
            "counts": {"epoch": epoch, "step": step},
            "progress": self._progress(epoch, ring),
            "ranks": ranks_as_data(look.rings),
            "states": _times(entries),
            "edges": edges_as_data(_edges(entries, graph)),
            "recent": [
                {"state": one.state, "event": after.event}
                for one, after in pairwise(entries[-RECENT - 1 :])
            ],
            "curves": curves_of(self._run.metrics()) | curves_of_steps(self._run),
            "subscribers": "(the black box does not know them)",
            **changes_of(self._run),
            **self._asked(look),
        }

    def _progress(self, epoch: int, ring: Ring | None) -> dict[str, Any]:
        record, last = self._run.record(), None if ring is None else ring.since
        starts = [event for event in (record.history if record else ()) if "at" in event]
        try:
            begun = datetime.fromisoformat(str(starts[0]["at"])) if starts else None
        except ValueError:
            begun = None
        seconds = (last - begun).total_seconds() if last and begun else 0.0
        limit = self._run.settings().get("max_epochs", "")
        epochs = int(limit) if limit.isdecimal() else None
        name = self._run.path.resolve().name
        return progress_as_data(name, epoch=epoch, epochs=epochs, seconds=max(0.0, seconds))

    def about(self, path: str) -> dict[str, Any]:
        """Return what is known of a state: who listened to it."""
        state = next((one for one in self.graph().states() if one.path == path), None)
        if state is None:
            return {"receivers": {}, "source": None}
        heard = {"enter": [*state.on_enter], "exit": [*state.on_exit]}
        return {"receivers": {k: who for k, who in heard.items() if who}, "source": None}

    def _asked(self, look: Look) -> dict[str, Any]:
        """What only the processes of the run can tell; of one that does not, why."""
        try:
            looks = self._remote.looks(look)
        except PageError as error:
            greyed = dict.fromkeys(BUTTONS, str(error))
            return {"held": False, "posted": [], "breaks": [], "buttons": greyed}
        first = next(iter(looks.values()))
        refusals = {name: _refusal(name, looks) for name in BUTTONS}
        found = {
            "held": first["held"],
            "posted": first["posted"],
            "breaks": first.get("breaks", []),  # of an older version there are none
            "until": first.get("until"),
            "settings": shown(first.get("settings", {})),
            "buttons": refusals,
        }
        return {**found, "state": first["state"]} if first["held"] else found


def curves_of(metrics: Mapping[str, Sequence[Point]]) -> dict[str, list[tuple[int, float | None]]]:
    """Return the curve of each metric. Of a run whose steps begin anew, as at each fold, the last round."""
    curves = Curves()
    for name, points in metrics.items():
        for point in points:
            if point.round == points[-1].round:
                curves.add(point.step, {name: point.value})
    return curves.to_dict()


def curves_of_steps(run: Run) -> dict[str, list[tuple[int, float | None]]]:
    """Return the curve of each value that was written within epochs, as `step/loss`."""
    return {f"step/{name}": points for name, points in curves_of(run.metrics(part="step")).items()}


def _refusal(name: str, looks: dict[int, dict[str, Any]]) -> str | None:
    """Why a button is greyed: because one of the ranks refuses."""
    found = ((rank, look["buttons"][name]) for rank, look in looks.items())
    rank, why = next(((rank, why) for rank, why in found if why is not None), (0, None))
    return why if why is None or len(looks) == 1 else f"Rank {rank}: {why}"


def _mood(status: str, ring: Ring | None) -> str:
    if status != "running" or ring is None or ring.since is None:
        return status
    seconds = (datetime.now(UTC) - ring.since).total_seconds()
    return f"running, in this state for {seconds:.0f} s" if seconds > 2 else "running"


def _times(entries: list[Entry]) -> dict[str, dict[str, float]]:
    """The time from each entry into a state to the next."""
    found: dict[str, dict[str, float]] = {}
    for one, after in pairwise(entries):
        if one.state.startswith("("):
            continue
        mine = found.setdefault(one.state, {"calls": 0, "seconds": 0.0})
        mine["calls"] += 1
        mine["seconds"] += (after.time - one.time).total_seconds()
    return found


def _edges(entries: list[Entry], graph: Graph) -> dict[tuple[str, str], Passage]:
    """Return the edges that were taken. A bubbling event is counted at the loop that takes it."""
    drawn = {(edge.source, edge.event) for edge in graph.edges}
    passages: defaultdict[tuple[str, str], Passage] = defaultdict(Passage)
    for one, after in pairwise(entries):
        source = one.state
        while source and (source, after.event) not in drawn:
            source = source.rpartition(SEPARATOR)[0]
        if source:
            passages[source, after.event].add(1, (after.time - one.time).total_seconds())
    return passages
