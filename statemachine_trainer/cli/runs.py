"""`smt runs`, `smt inspect` and `smt resume`: what is done with the folders of runs."""

from __future__ import annotations

import math
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.text import Text

from statemachine_trainer.cli.columns import Column, lay_out
from statemachine_trainer.cli.common import Debug, Run, console_for, printable
from statemachine_trainer.cli.comparison import side_by_side
from statemachine_trainer.machine.errors import StateMachineError, suggest
from statemachine_trainer.observe.comparison import RunSummary, best_of, compared, read_runs
from statemachine_trainer.observe.epoch_table import format_number
from statemachine_trainer.observe.run import NoRun


def resume(
    run: Run,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
    debug: Debug = False,
) -> None:
    """Go on with a run: start its command again.

    It is started in the same folder. Where the script says nothing of resuming, its first `fit` goes on from
    the newest checkpoint. Signals and exit code are those of the script.
    """
    from statemachine_trainer import run_record

    if not dry:
        run_record.resume(run)
    command, folder = run_record.resume_command(run)
    typer.echo(
        f"cd {shlex.quote(str(folder))} && {run_record.RESUME_VARIABLE}=auto {shlex.join(command)}"
    )


def inspect(
    place: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run, or one checkpoint of it."),
    ],
    whole: Annotated[
        bool, typer.Option("--check", help="Read every byte of every checkpoint of the run.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print what the folder of a run, or a checkpoint, holds.

    The exit code is 1 if there is damage. From an address, such as s3://bucket/run, all
    checkpoints are brought to a temporary folder first.
    """
    from statemachine_trainer.cli.inspection import inspect as print_contents
    from statemachine_trainer.snapshot.remote import at_hand

    with at_hand(place, whole_run=True) as folder:
        if not print_contents(Path(folder), console_for(), whole=whole, name=place):
            raise typer.Exit(1)


class Mode(StrEnum):
    """Which value of a metric is the best."""

    min = "min"
    max = "max"


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER...", help="Where to look, and in folders below: runs."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Side by side, with what they were set to otherwise.")
    ] = False,
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Show the best value, the best run first.")
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(metavar="MODE", help="min or max: the lowest or the highest is the best."),
    ] = (Mode.min),
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Only runs with this hyperparameter (or <, >, !=)."
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="By the newest value of a metric, or a hyperparameter."),
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Show this hyperparameter.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List runs, with their state, progress and metrics.

    Hyperparameters that are asked for (--where, --sort, --show) have a column each.
    """
    conditions = [Condition.of(one) for one in where or ()]
    order = Order(best=best, mode=mode.value, sort=sort)
    console, places = console_for(), folders or [Path("runs")]
    list_runs(places, console, order, conditions, show or (), compare=compare)


# -- The list of runs -----------------------------------------------------------------------------

_SIGNS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_COLOURS = {"running": "green", "killed": "red", "failed": "red", "ended": None}


class BadCondition(StateMachineError):
    """A condition on runs that cannot be read."""


@dataclass(frozen=True)
class Order:
    """In which order runs are listed: the newest first, unless something is said.

    Attributes:
        best: Show the best value of this metric, and the best run first.
        mode: Which value is the best, and so the first.
        sort: By the newest value of this metric, or by this hyperparameter.
    """

    best: str | None = None
    mode: Literal["min", "max"] = "min"
    sort: str | None = None

    def apply(self, lines: list[RunSummary]) -> None:
        """Sort the lines; those without a value come last.

        Raises:
            NoRun: No run has such a metric or hyperparameter.
        """
        if self.best is not None:
            _refuse_unknown("metric", self.best, {name for one in lines for name in one.metrics})
        if self.sort is not None:
            known = {name for one in lines for name in (*one.metrics, *one.hyperparameters)}
            _refuse_unknown("metric or hyperparameter", self.sort, known)
        if self.best is None and self.sort is None:
            oldest = datetime.min.replace(tzinfo=UTC)
            lines.sort(key=lambda one: one.changed or oldest, reverse=True)
            return
        values = {id(one): self._value(one) for one in lines}
        sign = 1 if self.mode == "min" else -1
        numbers = [one for one in lines if _is_number(values[id(one)])]
        texts = [one for one in lines if isinstance(values[id(one)], str)]
        rest = [one for one in lines if one not in numbers and one not in texts]
        numbers.sort(key=lambda one: sign * values[id(one)])
        texts.sort(key=lambda one: values[id(one)], reverse=self.mode == "max")
        lines[:] = [*numbers, *texts, *rest]

    def _value(self, line: RunSummary) -> Any:
        if self.best is not None and self.sort is None:
            return None if line.best is None else line.best.value
        return line.value(self.sort or "")


@dataclass(frozen=True)
class Condition:
    """A condition that the runs which are listed fulfil, such as `lr<=0.1`.

    Attributes:
        name: A hyperparameter, or a metric, whose newest value counts.
        sign: How it is compared.
        value: With what, as text.
    """

    name: str
    sign: str
    value: str

    @classmethod
    def of(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            BadCondition: It is none.
        """
        found = re.fullmatch(r"\s*([^=!<>]+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", text)
        if found is None:
            raise BadCondition(
                f"--where {text!r}: say NAME=VALUE, such as lr=0.1; or !=, <, <=, >, >=."
            )
        name, sign, value = found.groups()
        return cls(name, "==" if sign == "=" else sign, value)

    def holds(self, line: RunSummary) -> bool:
        """Whether it holds for a run. A name that the run does not have fulfils nothing but `!=`."""
        known = self.name in line.metrics or self.name in line.hyperparameters
        if not known:
            return self.sign == "!="
        value = line.value(self.name)
        try:
            return bool(_SIGNS[self.sign](float(value), float(self.value)))
        except (TypeError, ValueError):
            return bool(_SIGNS[self.sign](str(value), self.value))


def list_runs(
    folders: Sequence[Path],
    console: Console,
    order: Order,
    conditions: Sequence[Condition] = (),
    show: Sequence[str] = (),
    *,
    compare: bool = False,
) -> None:
    """Print a line for each run at and below some folders, or a column.

    Args:
        folders: Where to look.
        console: Where to print.
        order: In which order.
        conditions: Which runs.
        show: Hyperparameters that have a column, beside those that order and conditions name.
        compare: Print them side by side.

    Raises:
        NoRun: There is no folder, no run in it, or none with that metric or hyperparameter.
    """
    lines, where = read_runs(folders, order.best, order.mode), ", ".join(map(str, folders))
    if not lines:
        raise NoRun(f"No run is recorded in {where} or three folders down.")
    known = {name for one in lines for name in (*one.metrics, *one.hyperparameters)}
    for name in (*(one.name for one in conditions), *show):
        _refuse_unknown("metric or hyperparameter", name, known)
    order.apply(lines)
    lines = [one for one in lines if all(condition.holds(one) for condition in conditions)]
    if not lines:
        raise NoRun(f"None of the runs in {where} fulfils what --where says.")
    if compare:
        for text in side_by_side([*map(compared, lines)], console.width):
            console.print(Text(text), soft_wrap=True)
        _print_troubles(lines, console)
        return
    named = [*show, *(one.name for one in conditions), *([order.sort] if order.sort else [])]
    columns = [*_columns(lines, order.best, [*dict.fromkeys(named)])]
    newest = [_newest(line) for line in lines]
    styles = [_COLOURS.get(line.status) or "" for line in lines]
    for row in lay_out(columns, "newest", newest, width=console.width, styles=styles):
        console.print(row, soft_wrap=True)
    _print_troubles(lines, console)


def _print_troubles(lines: Sequence[RunSummary], console: Console) -> None:
    for line in lines:
        if line.trouble:
            text = Text(printable(f"{line.name}: {line.trouble}"), style="red")
            console.print(text, soft_wrap=True)


def _refuse_unknown(what: str, name: str, known: set[str]) -> None:
    if name not in known:
        raise NoRun(f"No run has a {what} {name!r}. {suggest(name, known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _columns(lines: list[RunSummary], best: str | None, named: Sequence[str]) -> Iterator[Column]:
    places = [line.place or ("", "") for line in lines]
    yield Column("run", [printable(line.name) for line in lines])
    yield Column("state", [line.status for line in lines])
    yield Column("epochs", [f"{epochs}" for epochs, _ in places], right=True)
    yield Column("steps", [f"{steps}" for _, steps in places], right=True, spare=2)
    if any(line.restarts for line in lines):
        times = [str(line.restarts or "") for line in lines]
        yield Column("restarts", times, right=True, spare=2)
    yield Column("age", [_age(line.changed) for line in lines], right=True, spare=1)
    if best is not None:
        yield Column(f"best {printable(best)}", [best_of(line) for line in lines])
    elif any(line.best for line in lines):
        yield Column("best", [f"{line.best_by} {best_of(line)}".strip() for line in lines])
    for name in named:
        yield Column(printable(name), [printable(_shown(line.value(name))) for line in lines])


def _shown(value: Any) -> str:
    return format_number(value) if isinstance(value, float) else "" if value is None else f"{value}"


def _newest(line: RunSummary) -> list[str]:
    return [
        printable(f"{name} {format_number(points[-1].value)}")
        for name, points in line.metrics.items()
    ]


def _age(changed: datetime | None) -> str:
    if changed is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - changed).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
