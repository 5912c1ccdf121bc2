"""What the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statemachine_trainer.machine.errors import StateMachineError


class OutputError(StateMachineError):
    """A file that was asked for cannot be written."""


def _note_debug(context: typer.Context, value: bool) -> bool:
    if value:
        context.meta["debug"] = True
    return value


Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_note_debug, help="Show the traceback of an error."),
]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
