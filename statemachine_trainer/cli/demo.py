"""`smt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statemachine_trainer.cli.common import Debug


def demo(
    epochs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Passes over the training data.")
    ] = 12,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything random.")] = 0,
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

    Takes a few seconds on two cores. Prints the metrics of each epoch, the accuracy, and where the
    picture of the loop is. The folder of the run (see `smt inspect`, `smt runs`) has result.json,
    weights.safetensors and the graph besides. The exit code is 1 if the accuracy in validation or test is below
    97 %.
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
