"""`smt runs`, `smt inspect` and `smt resume`: what is done with the folders of runs."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from statemachine_trainer.cli.common import Debug, Run, console_for


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
    from statemachine_trainer.inspection import inspect as print_contents

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
    from statemachine_trainer.cli.listing import list_runs

    list_runs(folder, console_for(), best=best, mode=mode.value)
