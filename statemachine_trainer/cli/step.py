"""`smt step`: a debugger for the training loop, in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statemachine_trainer.cli.common import Debug, Remember

if TYPE_CHECKING:
    from statemachine_trainer.trainer import Trainer

_PROMPT = "(smt) "
_HISTORY = 1000
"""Lines of the history that are kept."""


def step(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE:FUNCTION",
            help="A Python file or dotted module, and in it a function that builds model, data and "
            "trainer, calls `trainer.start(model, data)`, and returns the trainer.",
        ),
    ],
    remember: Remember = 50,
    debug: Debug = False,
) -> None:
    """Step through a training, with breakpoints, and back again.

    Type help for the commands. They are read from a pipe, too.
    """
    from statemachine_trainer.cli.targets import trainer_of_target

    step_through(trainer_of_target(target), remember=remember)


def step_through(trainer: Trainer, *, remember: int) -> None:
    """Read commands of the debugger from the terminal, or a pipe, and do them.

    Args:
        trainer: A trainer whose fit was started.
        remember: Boundaries that are kept for `rewind`.
    """
    from rich.console import Console

    from statemachine_trainer.cli.terminal import Session

    session = Session(trainer, Console(highlight=False), remember=remember)
    session.greet()
    with _history():
        goes_on = True
        while goes_on:
            try:
                line = _read_line()
                goes_on = line is not None and session.do(line)
            except KeyboardInterrupt:  # at the prompt, or before the training goes on
                typer.echo("")


def _read_line() -> str | None:
    """Return the next line; None if there are no more."""
    try:
        line = input(_PROMPT)
    except EOFError:
        typer.echo("")
        return None
    if not sys.stdin.isatty():
        typer.echo(line)
    return line


@contextmanager
def _history() -> Iterator[None]:
    """Let lines be edited, and have those of earlier sessions at hand, where there is a terminal."""
    try:
        import readline
    except ImportError:  # not everywhere
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "statemachine_trainer" / "step_history"
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(_HISTORY)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
