"""Several runs at once: what is told of each, and what they were set to otherwise.

`smt runs` prints it, and the page of several runs shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from statemachine_trainer.files import missing_folder
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.observe.epoch_table import format_number
from statemachine_trainer.observe.kept import Mode, kept_checkpoints
from statemachine_trainer.observe.run import NoRun, Point, Run, find_runs

MISSING: Final = "-"
"""What stands where a run has no such setting or metric."""


# -- One run --------------------------------------------------------------------------------------


@dataclass
class RunSummary:
    """What is told of one run among others.

    Attributes:
        name: Its folder, below the one that was searched.
        path: Its folder.
        status: What it is doing, or how it ended; "damaged" where it cannot be read.
        place: Epochs and optimizer steps done; None if nobody knows.
        changed: When something was last written.
        metrics: The values of each metric, those of validation first.
        hyperparameters: What it was set to.
        best: The best value of `best_by`; None if there is none.
        best_by: The metric that was asked for, or that it keeps the best checkpoint by; or nothing.
        restarts: How often `torchrun` has started its ranks again.
        trouble: Why it cannot be read; or nothing.
    """

    name: str
    path: Path = field(default_factory=Path)
    status: str = "damaged"
    place: tuple[int, int] | None = None
    changed: datetime | None = None
    metrics: dict[str, list[Point]] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    best: Point | None = None
    best_by: str = ""
    restarts: int = 0
    trouble: str = ""

    def value(self, name: str) -> Any:
        """Return the newest value of a metric, or a hyperparameter; None if there is no such one."""
        points = self.metrics.get(name)
        return points[-1].value if points else self.hyperparameters.get(name)


def read_runs(
    folders: Sequence[Path], best: str | None = None, mode: Mode = "min"
) -> list[RunSummary]:
    """Read all runs at and below some folders, each once.

    What is wrong with one of them is told in its summary, and hides no other.

    Args:
        folders: Where to look.
        best: The metric whose best value is told; that of the best checkpoint unless given.
        mode: Which value of `best` is the best.

    Raises:
        NoRun: There is no such folder.
    """
    found, known = [], set()
    for folder in folders:
        if not folder.is_dir():
            raise NoRun(missing_folder(folder))
        for path in find_runs(folder):
            if path.resolve() not in known:
                known.add(path.resolve())
                found.append(_read(path, folder if len(folders) == 1 else Path(), best, mode))
    return found


def _read(path: Path, folder: Path, best: str | None, mode: Mode) -> RunSummary:
    below = path != folder and path.is_relative_to(folder)
    one = RunSummary(str(path.relative_to(folder) if below else path), path)
    try:
        run = Run(path)
        seen = run.look()
        one.status, one.changed, one.place = seen.status, run.changed(), seen.progress
        one.metrics, one.hyperparameters = metrics_of(run), run.hyperparameters()
        one.restarts = len(run.restarts())
        one.best_by = best or _best_by(path)
        if one.best_by in one.metrics:
            one.best = run.best(one.best_by, mode if best else None)
    except StateMachineError as error:
        one.trouble = str(error)
    return one


def metrics_of(run: Run) -> dict[str, list[Point]]:
    """Return all metrics, those of validation first: a narrow terminal shows the first ones."""
    train, validation = run.metrics(part="train"), run.metrics(part="validation")
    first = {name if name not in train else f"validation/{name}" for name in validation}
    return dict(sorted(run.metrics().items(), key=lambda one: one[0] not in first))


def _best_by(path: Path) -> str:
    """Return the metric that the run keeps the best checkpoint by; nothing if there is none."""
    kept = kept_checkpoints(path)
    return next(iter(kept[-1].rules), "") if kept else ""


def best_of(run: RunSummary) -> str:
    """Return the best value, and the step at which it was measured; nothing if there is none."""
    return "" if run.best is None else f"{format_number(run.best.value)} at {run.best.step}"


# -- Several runs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What a comparison looks at, of one run.

    Attributes:
        name: Its name.
        facts: State, epochs and the like, by name.
        hyperparameters: What it was set to.
        metrics: The newest value of each.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One thing that is told of every run.

    Attributes:
        kind: What it is.
        name: Its name.
        cells: As text, in the order of the runs.
        values: As they are; None where a run has no such thing.
    """

    kind: Literal["fact", "setting", "metric"]
    name: str
    cells: list[str]
    values: list[Any]


@dataclass(frozen=True)
class Comparison:
    """What several runs were set to otherwise, and what came of it.

    Attributes:
        rows: Facts, the settings that differ, and the newest metrics.
        same: How many settings are the same in all runs, and so are no rows.
    """

    rows: list[Row]
    same: int

    @property
    def same_in_words(self) -> str:
        """How many settings are the same."""
        return f"{self.same} hyperparameter{'s are' if self.same > 1 else ' is'} the same in all"


def compared(run: RunSummary) -> Compared:
    """Return what a comparison looks at."""
    epochs, steps = ("", "") if run.place is None else map(str, run.place)
    facts = {"state": run.status, "epochs": epochs, "steps": steps}
    if run.restarts:
        facts["restarts"] = str(run.restarts)
    if run.best is not None:
        facts[f"best {run.best_by}"] = best_of(run)
    metrics = {name: points[-1].value for name, points in run.metrics.items()}
    return Compared(run.name, facts, run.hyperparameters, metrics)


def comparison(runs: Sequence[Compared]) -> Comparison:
    """Compare runs.

    A setting is shown to its last digit, a metric as in the table of epochs.
    """
    settings = list(dict.fromkeys(name for one in runs for name in one.hyperparameters))
    other = [name for name in settings if _differs(name, runs)]
    facts = dict.fromkeys(name for one in runs for name in one.facts)
    metrics = dict.fromkeys(name for one in runs for name in one.metrics)
    rows = [_row("fact", name, [one.facts for one in runs]) for name in facts]
    rows += [_row("setting", name, [one.hyperparameters for one in runs]) for name in other]
    rows += [_row("metric", name, [one.metrics for one in runs]) for name in metrics]
    return Comparison(rows, len(settings) - len(other))


def _differs(name: str, runs: Sequence[Compared]) -> bool:
    missing = object()
    return len({repr(one.hyperparameters.get(name, missing)) for one in runs}) > 1


def _row(
    kind: Literal["fact", "setting", "metric"], name: str, runs: Sequence[Mapping[str, Any]]
) -> Row:
    text = format_number if kind == "metric" else str
    missing = "" if kind == "fact" else MISSING
    cells = [text(one[name]) if name in one else missing for one in runs]
    return Row(kind, name, cells, [one.get(name) for one in runs])
