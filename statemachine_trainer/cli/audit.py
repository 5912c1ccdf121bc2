"""`smt audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from statemachine_trainer.cli.common import Debug


def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE:FUNCTION",
            help="A function that builds everything, calls trainer.start(...) and returns the trainer.",
        ),
    ],
    debug: Debug = False,
) -> None:
    """List what checkpoints of a training hold, and what they cannot.

    Nothing is started, and no folder is touched. Ends with status 1 if there is something that they
    cannot hold.
    """
    from statemachine_trainer.cli.targets import audit_of_target

    found = audit_of_target(target)
    typer.echo(str(found))
    if found.of("not held"):
        raise typer.Exit(1)
