"""`smt graph`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from statemachine_trainer.cli.common import Debug, OutputError
from statemachine_trainer.machine.errors import StateMachineError

if TYPE_CHECKING:
    from statemachine_trainer.graph.drawable import Drawable
    from statemachine_trainer.graph.graph import Graph

DEFAULT = "statemachine_trainer.trainer:Trainer"


class WrongOption(StateMachineError):
    """An option of `smt graph` does not go with the format, or with what is drawn."""


class BadHeat(StateMachineError):
    """The file that `--heat` names does not say how long each state took."""


class GraphFormat(StrEnum):
    """How a graph is written."""

    mermaid = "mermaid"
    svg = "svg"
    png = "png"
    html = "html"
    dot = "dot"
    json = "json"
    text = "text"
    scxml = "scxml"
    xstate = "xstate"


class ThemeName(StrEnum):
    """What the colours of a picture are made for."""

    auto = "auto"
    light = "light"
    dark = "dark"


class Direction(StrEnum):
    """Where the arrows of a Mermaid diagram lead."""

    down = "TB"
    right = "LR"


_PICTURES: Final = ("svg", "png", "html", "dot")
_FORMATS_WITH: Final = {
    "heat": _PICTURES,
    "theme": _PICTURES,
    "legend": _PICTURES,
    "fold": _PICTURES,
    "pixels_per_inch": ("png",),
    "direction": ("mermaid",),
    "outcomes": ("mermaid",),
}
"""Which formats know an option that not all do, by the name that Python gives it."""


def graph(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE:OBJECT|RUN",
            help="A Python file or dotted module, and in it a loop class, a loop, a trainer, or a "
            "function that makes one; or the folder of a run. The default loop if left out.",
        ),
    ] = None,
    form: Annotated[
        GraphFormat | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="mermaid, svg, png, html, dot, json, text, scxml or xstate; as the ending of the output says unless "
            "given, else mermaid.",
        ),
    ] = None,
    loop: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which loop of a trainer: fit (unless given), validate, test or predict.",
        ),
    ] = None,
    subscribers: Annotated[
        bool, typer.Option("--subscribers", help="Name who listens to each state and event.")
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Close the loops that lie deeper than this."),
    ] = None,
    inside: Annotated[
        str | None, typer.Option("--open", metavar="PATH", help="Show this loop alone.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--diff", metavar="FILE:OBJECT|RUN", help="Show what is different in this one."
        ),
    ] = None,
    running: Annotated[
        str | None, typer.Option(metavar="PATH", help="Light this state as the running one.")
    ] = None,
    heat: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Colour states by the profile in this JSON file."),
    ] = None,
    theme: Annotated[
        ThemeName | None,
        typer.Option(
            metavar="THEME", help="Colours of a picture: auto (unless given), light or dark."
        ),
    ] = None,
    no_legend: Annotated[
        bool, typer.Option("--no-legend", help="Leave out what the signs of a picture mean.")
    ] = False,
    no_fold: Annotated[
        bool, typer.Option("--no-fold", help="Draw loops of the same shape each time.")
    ] = False,
    pixels_per_inch: Annotated[
        float | None,
        typer.Option(metavar="N", min=1, help="How fine a PNG is: 144 unless given."),
    ] = None,
    direction: Annotated[
        Direction | None,
        typer.Option(
            metavar="TB|LR", help="Mermaid from top to bottom (unless given) or left to right."
        ),
    ] = None,
    no_outcomes: Annotated[
        bool, typer.Option("--no-outcomes", help="Mermaid without the ends of the loops inside.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write it to a file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the graph of a training loop: states and transitions.

    Examples: `smt graph`, `smt graph train.py:make_trainer -o graph.svg`,
    `smt graph statemachine_trainer.loops:BatchLoop --format text`,
    `smt graph runs/digits --diff train.py:make_trainer`.
    """
    form = form or _format_of(output)
    options: dict[str, Any] = {
        "heat": heat,
        "theme": theme and theme.value,
        "legend": False if no_legend else None,
        "fold": False if no_fold else None,
        "pixels_per_inch": pixels_per_inch,
        "direction": direction and direction.value,
        "outcomes": False if no_outcomes else None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    _check_options(options, form)
    if heat is not None:
        options["heat"] = _read_heat(heat)
    look = _Look(loop, subscribers, inside, depth)
    found: Drawable
    if other is None:
        found = look.at(target or DEFAULT, running)
    else:
        found = look.at(target or DEFAULT).diff(look.at(other, running))
    written = _written(found, form, options)
    if output is None:
        if isinstance(written, bytes):
            raise OutputError("A PNG is no text for a terminal: write it to a file with -o PATH.")
        typer.echo(written)
        return
    try:
        if isinstance(written, bytes):
            output.write_bytes(written)
        else:
            output.write_text(written + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class _Look:
    """The options that select a part of a target, and of the one that it is compared with."""

    loop: str | None
    subscribers: bool
    inside: str | None
    depth: int | None

    def at(self, target: str, running: str | None = None) -> Graph:
        found = self._graph(target)
        if running is not None:
            # Before loops are closed: a closed one is lit for what runs inside.
            found = found.at(running)
        if self.inside is not None:
            found = found.open(self.inside)
        return found if self.depth is None else found.collapse(self.depth)

    def _graph(self, target: str) -> Graph:
        from statemachine_trainer.cli.targets import graph_of_target
        from statemachine_trainer.observe.run import is_run

        if is_run(Path(target)):
            return self._recorded(target)
        return graph_of_target(target, loop=self.loop, subscribers=self.subscribers)

    def _recorded(self, folder: str) -> Graph:
        from statemachine_trainer.observe.run import Run

        if self.loop is not None or self.subscribers:
            option = "--subscribers" if self.subscribers else "--loop"
            raise WrongOption(
                f"{folder} is a run, and a run records the graph of its fit, without subscribers. "
                f"Leave {option} out, or name the trainer: FILE:OBJECT."
            )
        found = Run(folder).graph()
        if found is None:
            raise WrongOption(
                f"The run {folder} has no graph in its journal. Name what makes its trainer: "
                "FILE:OBJECT."
            )
        return found


def _check_options(options: Mapping[str, object], form: GraphFormat) -> None:
    for name in options:
        formats = _FORMATS_WITH[name]
        if form.value not in formats:
            negated = "no-" if options[name] is False else ""
            raise WrongOption(
                f"--{negated}{name.replace('_', '-')} says nothing in the format {form.value}. It "
                f"goes with {', '.join(formats)}: choose one with --format, or by the ending of "
                "--output."
            )


def _format_of(output: Path | None) -> GraphFormat:
    from statemachine_trainer.graph.drawable import SUFFIXES

    if output is None:
        return GraphFormat.mermaid
    form = SUFFIXES.get(output.suffix.lower())
    if form is None:
        raise OutputError(
            f"The ending of {output} tells no format. Endings: {', '.join(SUFFIXES)}. Or say it with "
            "--format."
        )
    return GraphFormat(form)


def _written(found: Drawable, form: GraphFormat, options: Mapping[str, Any]) -> str | bytes:
    if form is GraphFormat.json:
        return json.dumps(found.to_dict(), indent=2)
    if form is GraphFormat.text:
        return str(found)
    drawn: str | bytes = getattr(found, f"to_{form.value}")(**options)
    return drawn if isinstance(drawn, bytes) else drawn.rstrip("\n")


def _read_heat(path: Path) -> dict[str, float]:
    """Return how hot states are by a saved profile: 1 is the state that took most time."""
    try:
        states = json.loads(path.read_text(encoding="utf-8"))["states"]
        totals = {name: float(one["total"]) for name, one in states.items()}
    except OSError as error:
        raise BadHeat(f"{path} cannot be read: {error.strerror}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadHeat(
            f"{path} is no profile: write one with `trainer.profile().save(...)` after training."
        ) from error
    most = max(totals.values(), default=0.0) or 1.0
    return {name: total / most for name, total in totals.items()}
