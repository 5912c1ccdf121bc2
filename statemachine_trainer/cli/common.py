"""Code that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statemachine_trainer.machine.errors import StateMachineError

if TYPE_CHECKING:
    from rich.console import Console


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

Remember = Annotated[
    int,
    typer.Option(metavar="N", min=0, help="Boundaries that are kept in memory, for `rewind`."),
]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]

_WIDTH = 200
"""Columns of a table that goes to a file or another program."""


def console_for() -> Console:
    """Return what prints tables: as wide as the terminal, and wide where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def printable(text: str, keep: str = "") -> str:
    """Return text without escape sequences of the terminal: they are shown, not sent.

    Args:
        text: The text.
        keep: Unprintable characters that stay as they are.
    """
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
