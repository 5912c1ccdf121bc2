"""`smt runs`, `smt inspect` and `smt resume`: what is done with the folders of runs."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from statemachine_trainer.cli.common import Debug, Run, console_for, printable
from statemachine_trainer.machine.errors import StateMachineError, suggest
from statemachine_trainer.observe.epoch_table import format_number
from statemachine_trainer.observe.run import NoRun, Point, find_runs
from statemachine_trainer.observe.run import Run as RunOnDisk


def resume(
    run: Run,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
    debug: Debug = False,
) -> None:
    """Go on with a run: start its command again, where it was started.

    Where the script says nothing of resuming, its first `fit` goes on from the newest checkpoint.
    Signals and exit code are those of the script.
    """
    from statemachine_trainer import run_record

    if not dry:
        run_record.resume(run)
    command, folder = run_record.resume_command(run)
    typer.echo(
        f"cd {shlex.quote(str(folder))} && {run_record.RESUME_VARIABLE}=auto {shlex.join(command)}"
    )


def inspect(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or one checkpoint of it.")],
    whole: Annotated[
        bool, typer.Option("--check", help="Read every byte of every checkpoint of the run.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print what the folder of a run, or a checkpoint, holds.

    The exit code is 1 if there is damage.
    """
    from statemachine_trainer.cli.inspection import inspect as print_contents

    if not print_contents(path, console_for(), whole=whole):
        raise typer.Exit(1)


class Mode(StrEnum):
    """Which value of a metric is the best."""

    min = "min"
    max = "max"


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to look, and in folders below.")
    ] = Path("runs"),
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Show the best value, the best run first.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Whether the lowest or the highest is the best.")] = (
        Mode.min
    ),
    debug: Debug = False,
) -> None:
    """List runs: what each is doing or how it ended, how far it came, and its metrics."""
    list_runs(folder, console_for(), best=best, mode=mode.value)


# -- The list of runs -----------------------------------------------------------------------------

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
        run = RunOnDisk(path)
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
