"""`smt resume` and `smt inspect`: what is done with the folder of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from statemachine_trainer.cli.common import Debug, Run

_WIDTH = 200
"""Columns of a table that goes to a file or another program."""


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
