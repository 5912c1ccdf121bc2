"""What `smt runs` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from statemachine_trainer.cli.common import printable
from statemachine_trainer.machine.errors import StateMachineError, suggest
from statemachine_trainer.observe.run import NoRun, Point, Run, find_runs
from statemachine_trainer.observe.table import format_number

_SHOWN = 4
_COLOURS = {"running": "green", "killed": "red", "failed": "red", "ended": None}


@dataclass
class _Line:
    """What is told of one run."""

    name: str
    status: str = "damaged"
    place: tuple[int, int] | None = None
    changed: datetime | None = None
    metrics: dict[str, list[Point]] = field(default_factory=dict)
    best: Point | None = None
    trouble: str = ""


def list_runs(
    folder: Path, console: Console, *, best: str | None, mode: Literal["min", "max"]
) -> None:
    """Print a line for each run at and below a folder.

    Args:
        folder: Where to look.
        console: Where to print.
        best: Show the best value of this metric, and the best run first.
        mode: Which value is the best.

    Raises:
        NoRun: There is no folder, no run in it, or none with that metric.
    """
    if not folder.is_dir():
        raise NoRun(f"There is no folder {folder}.")
    lines = [_read(path, folder, best, mode) for path in find_runs(folder)]
    if not lines:
        raise NoRun(f"No run is recorded in {folder} or three folders down.")
    if best is None:
        lines.sort(key=lambda one: one.changed or datetime.min.replace(tzinfo=UTC), reverse=True)
    else:
        _refuse_unknown(best, lines)
        sign = 1 if mode == "min" else -1
        lines.sort(key=lambda one: math.inf if one.best is None else sign * one.best.value)
    console.print(_table(lines, best))
    for line in lines:
        if line.trouble:
            console.print(Text(printable(f"{line.name}: {line.trouble}"), style="red"))


def _read(path: Path, folder: Path, best: str | None, mode: Literal["min", "max"]) -> _Line:
    """Read one run. What is wrong with it is told, and hides no other run."""
    line = _Line(str(path) if path == folder else str(path.relative_to(folder)))
    try:
        run = Run(path)
        seen = run.look()
        line.status, line.changed, line.place = seen.status, run.changed(), seen.progress
        line.metrics = run.metrics()
        if best in line.metrics:
            line.best = run.best(best, mode)
    except StateMachineError as error:
        line.trouble = str(error)
    return line


def _refuse_unknown(best: str, lines: list[_Line]) -> None:
    known = {name for line in lines for name in line.metrics}
    if best not in known:
        raise NoRun(f"No run has a metric {best!r}. {suggest(best, known)}")


def _table(lines: list[_Line], best: str | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "epoch", "step", "age"):
        right = name in ("epoch", "step", "age")
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    if best is not None:
        table.add_column(f"best {best}", no_wrap=True)
    table.add_column("newest metrics", overflow="ellipsis", no_wrap=True)
    for line in lines:
        cells = [
            Text(printable(line.name)),
            Text(line.status, style=_COLOURS.get(line.status) or ""),
            *(Text(f"{number}") for number in line.place or ("", "")),
            Text(_age(line.changed)),
        ]
        if best is not None:
            found = line.best
            cells.append(Text(f"{format_number(found.value)} at {found.step}" if found else ""))
        table.add_row(*cells, Text(printable(_newest(line.metrics))))
    return table


def _newest(metrics: dict[str, list[Point]]) -> str:
    shown = [f"{name} {format_number(points[-1].value)}" for name, points in metrics.items()]
    more = f"  (+{len(shown) - _SHOWN} more)" if len(shown) > _SHOWN else ""
    return "  ".join(shown[:_SHOWN]) + more


def _age(changed: datetime | None) -> str:
    if changed is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - changed).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
