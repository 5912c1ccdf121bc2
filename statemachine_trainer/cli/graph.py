"""`smt graph`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statemachine_trainer.cli.common import Debug, OutputError

if TYPE_CHECKING:
    from statemachine_trainer.machine.graph import Graph


class GraphFormat(StrEnum):
    """How a graph is written."""

    mermaid = "mermaid"
    json = "json"
    text = "text"


def graph(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE:OBJECT",
            help="A Python file or dotted module, and in it a loop class, a loop, a trainer, or a "
            "function that makes one. The default loop if left out.",
        ),
    ] = None,
    form: Annotated[GraphFormat, typer.Option("--format", "-f", help="How it is written.")] = (
        GraphFormat.mermaid
    ),
    depth: Annotated[
        int | None, typer.Option(min=0, help="Close the loops that lie deeper than this.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write it to a file.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the graph of a training loop: its states and the transitions between them.

    Examples: `smt graph`, `smt graph train.py:make_trainer`,
    `smt graph statemachine_trainer.loops:BatchLoop --format text`.
    """
    from statemachine_trainer.targets import graph_of_target

    found = graph_of_target(target or "statemachine_trainer.trainer:Trainer")
    if depth is not None:
        found = found.collapse(depth)
    text = _written(found, form)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror}.") from error


def _written(graph: Graph, form: GraphFormat) -> str:
    if form is GraphFormat.json:
        return json.dumps(graph.to_dict(), indent=2)
    return str(graph) if form is GraphFormat.text else graph.to_mermaid().rstrip("\n")
