"""The command `smt`.

Nothing here imports torch before a command needs it, so that help and mistakes come at once.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from statemachine_trainer import __version__
from statemachine_trainer.cli.audit import audit
from statemachine_trainer.cli.blackbox import blackbox
from statemachine_trainer.cli.demo import demo
from statemachine_trainer.cli.diff import diff
from statemachine_trainer.cli.graph import graph
from statemachine_trainer.cli.launch import OF_THE_FUNCTION, launch
from statemachine_trainer.cli.post import post
from statemachine_trainer.cli.replay import replay
from statemachine_trainer.cli.runs import inspect, resume, runs
from statemachine_trainer.cli.step import step
from statemachine_trainer.cli.train import PASSED_ON, train
from statemachine_trainer.cli.usage import in_our_words, is_usage_error
from statemachine_trainer.cli.watch import watch
from statemachine_trainer.control.requests import BUTTONS
from statemachine_trainer.machine.errors import StateMachineError

USAGE_ERROR = 2
"""Exit code of a mistake that the user can fix."""


class _Group(TyperGroup):
    """Commands whose errors, and mistakes in calling them, are told in one style.

    `--debug` asks for the traceback.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Suggest `smt post` for events: many users guess `smt stop RUN`."""
        if args[0] in BUTTONS and self.get_command(ctx, args[0]) is None:
            run = shlex.join(args[1:]) or "RUN"
            ctx.fail(
                f"There is no command {args[0]!r}. A run is asked so: smt post {run} {args[0]}"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StateMachineError as error:
            if ctx.meta.get("debug"):
                traceback.print_exc()
            else:
                typer.echo(f"smt: {error}", err=True)
            raise typer.Exit(USAGE_ERROR) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line. Mistakes in it are told in one line, as all errors are."""
        if not kwargs.get("standalone_mode", True):
            return super().main(*args, **kwargs)
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:
            if not is_usage_error(error):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error)
            else:
                typer.echo(f"smt: {in_our_words(error)}", err=True)
            code = USAGE_ERROR
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
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


def version() -> None:
    """Print the versions of this package and of its dependencies."""
    typer.echo(f"statemachine-trainer {__version__}")
    typer.echo(f"python {sys.version.split()[0]}")
    for name in ("torch", "transitions", "blinker", "scikit-learn"):
        try:
            typer.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{name} (not installed)")


for command in (
    demo,
    graph,
    step,
    audit,
    watch,
    post,
    resume,
    replay,
    runs,
    inspect,
    diff,
    blackbox,
    version,
):
    app.command()(command)
app.command(context_settings=PASSED_ON)(train)
app.command(context_settings=OF_THE_FUNCTION)(launch)


def main() -> None:
    """Run the command line; the entry point of the console script."""
    app(prog_name="smt")
