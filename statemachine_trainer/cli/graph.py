"""`smt graph`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statemachine_trainer.cli.common import Debug, OutputError
from statemachine_trainer.machine.errors import StateMachineError

if TYPE_CHECKING:
    from statemachine_trainer.machine.graph import Graph
    from statemachine_trainer.machine.picture import Drawable

DEFAULT = "statemachine_trainer.trainer:Trainer"


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


class ThemeName(StrEnum):
    """What the colours of a picture are made for."""

    auto = "auto"
    light = "light"
    dark = "dark"


def graph(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE:OBJECT",
            help="A Python file or dotted module, and in it a loop class, a loop, a trainer, or a "
            "function that makes one. The default loop if left out.",
        ),
    ] = None,
    form: Annotated[
        GraphFormat | None,
        typer.Option(
            "--format",
            "-f",
            help="How it is written: by the ending of the output unless given, else as mermaid.",
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Close the loops that lie deeper than this.")
    ] = None,
    inside: Annotated[
        str | None, typer.Option("--open", metavar="PATH", help="Show this loop alone.")
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--diff", metavar="FILE:OBJECT", help="Show what is different in this one."),
    ] = None,
    heat: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Colour states by the profile in this JSON file."),
    ] = None,
    theme: Annotated[
        ThemeName | None, typer.Option(help="Colours of a picture.", show_default="auto")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write it to a file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the graph of a training loop: its states and the transitions between them.

    Examples: `smt graph`, `smt graph train.py:make_trainer -o graph.svg`,
    `smt graph statemachine_trainer.loops:BatchLoop --format text`.
    """
    found: Drawable = _shown(target or DEFAULT, inside, depth)
    if other is not None:
        found = _shown(target or DEFAULT, inside, depth).diff(_shown(other, inside, depth))
    options: dict[str, Any] = {} if heat is None else {"heat": _read_heat(heat)}
    if theme is not None:
        options["theme"] = theme.value
    written = _written(found, form or _format_of(output), options)
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


def _shown(target: str, inside: str | None, depth: int | None) -> Graph:
    from statemachine_trainer.targets import graph_of_target

    found = graph_of_target(target)
    if inside is not None:
        found = found.open(inside)
    return found if depth is None else found.collapse(depth)


def _format_of(output: Path | None) -> GraphFormat:
    from statemachine_trainer.machine.picture import SUFFIXES

    if output is None:
        return GraphFormat.mermaid
    formats = {**SUFFIXES, ".json": "json"}
    form = formats.get(output.suffix.lower())
    if form is None:
        raise OutputError(
            f"The ending of {output} tells no format. Endings: {', '.join(formats)}. Or say it with "
            "--format."
        )
    return GraphFormat(form)


def _written(found: Drawable, form: GraphFormat, options: dict[str, Any]) -> str | bytes:
    if form is GraphFormat.json:
        return json.dumps(found.to_dict(), indent=2)
    if form is GraphFormat.text:
        return str(found)
    if form is GraphFormat.mermaid:
        return found.to_mermaid().rstrip("\n")
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
