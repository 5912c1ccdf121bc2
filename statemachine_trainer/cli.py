"""The command `smt`.

Nothing here imports torch before a command needs it, so that help and mistakes come at once.
"""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from statemachine_trainer import __version__
from statemachine_trainer.machine.errors import StateMachineError

if TYPE_CHECKING:
    from statemachine_trainer.machine.graph import Graph

_WIDTH = 200
"""Columns of a table that goes to a file or another program."""

USAGE_ERROR = 2
"""Exit code of a mistake that the user can mend."""


class GraphFormat(StrEnum):
    """How a graph is written."""

    mermaid = "mermaid"
    json = "json"
    text = "text"


class OutputError(StateMachineError):
    """A file that was asked for cannot be written."""


class _Group(TyperGroup):
    """Commands whose expected errors are one line; `--debug` asks for the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StateMachineError as error:
            if ctx.meta.get("debug"):
                traceback.print_exc()
            else:
                typer.echo(f"smt: {error}", err=True)
            raise typer.Exit(USAGE_ERROR) from None


def _note_debug(context: typer.Context, value: bool) -> bool:
    if value:
        context.meta["debug"] = True
    return value


Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_note_debug, help="Show the traceback of an error."),
]

app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"smt {__version__}")
        raise typer.Exit


@app.callback()
def smt(
    shows_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train PyTorch models with a loop that is a state machine."""


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the run is written; a new folder in runs/ if left out."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    debug: Debug = False,
) -> None:
    """Train a small convolutional network on handwritten digits.

    Takes a few seconds on two cores. Prints the loop's graph, the metrics of each epoch and the
    accuracy, and writes a folder with metrics.json, graph.mmd, weights.safetensors and run.json.
    The exit code is 1 if the accuracy in validation or test is below 97 %.
    """
    from statemachine_trainer.demo import NEEDED_ACCURACY, run_demo

    result = run_demo(epochs=epochs, seed=seed, out=out, quiet=quiet, say=print)
    if not result.good:
        typer.echo(
            f"smt: the accuracy is below {NEEDED_ACCURACY:.0%}. Train for more epochs: --epochs "
            f"{max(12, 2 * epochs)}",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
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


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


@app.command()
def resume(
    run: Run,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
    debug: Debug = False,
) -> None:
    """Go on with a run: start its command again, where it was started.

    Where the script says nothing of resuming, its first `fit` goes on from the newest checkpoint.
    Signals and exit code are those of the script.
    """
    from statemachine_trainer import runs

    if not dry:
        runs.resume(run)
    command, folder = runs.resume_command(run)
    typer.echo(
        f"cd {shlex.quote(str(folder))} && {runs.RESUME_VARIABLE}=auto {shlex.join(command)}"
    )


@app.command()
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
    from rich.console import Console

    from statemachine_trainer.inspection import inspect as print_contents

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    if not print_contents(path, console, whole=whole):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the versions of this package and of what it stands on."""
    typer.echo(f"statemachine-trainer {__version__}")
    typer.echo(f"python {sys.version.split()[0]}")
    for name in ("torch", "transitions", "blinker", "scikit-learn"):
        try:
            typer.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{name} (not installed)")


def main() -> None:
    """Run the command line; the entry point of the console script."""
    app(prog_name="smt")


def _written(graph: Graph, form: GraphFormat) -> str:
    if form is GraphFormat.json:
        return json.dumps(graph.to_dict(), indent=2)
    return str(graph) if form is GraphFormat.text else graph.to_mermaid().rstrip("\n")
