"""`smt train`: a function of the user as a command, its parameters as options and as a file."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from statemachine_trainer.cli.targets import BadTarget, object_of_target
from statemachine_trainer.cli.usage import BadUsage, of_function
from statemachine_trainer.machine.errors import StateMachineError
from statemachine_trainer.run_record import Configuration, configure

PASSED_ON: Final[dict[str, Any]] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],  # `--help` asks for the options of the function
}
_OWN: Final = ("config", "print_config", "help")


class MissingConfiguration(StateMachineError):
    """The package that reads configurations is not installed."""


def train(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE:FUNCTION", help="A function that trains; its parameters are the options."
        ),
    ],
) -> None:
    """Call your training function, with its parameters as options.

    Such as --lr 0.1; --config FILE and --print-config are there as well. FILE:FUNCTION --help lists the options;
    types and defaults are those of its signature, dataclasses and classes included. Options that come later replace
    earlier ones, so --config stands first. All of them are kept in the folders of the runs that it starts, and
    `smt resume` uses them again.
    """
    if target in ("-h", "--help"):
        typer.echo(context.get_help())
        return
    call_with_options(*read_options(target, context.args), target)


def read_options(target: str, options: Sequence[str]) -> tuple[Callable[..., Any], Any, Any]:
    """Return the function that a target names, the parser of its parameters, and what it has read.

    Raises:
        BadTarget: There is no such function.
        BadUsage: An option is misspelt, or has a value that will not do.
        MissingConfiguration: The extra `train` is not installed.
    """
    function = object_of_target(target)
    parser = parser_of(function, target)
    arguments = ["--print_config" if one == "--print-config" else one for one in options]
    try:
        return function, parser, parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise BadUsage(of_function(error.message, target)) from None


def call_with_options(function: Callable[..., Any], parser: Any, chosen: Any, target: str) -> Any:
    """Call a function with the options that were read, and return what it returns."""
    made = parser.instantiate(chosen)
    configure(configuration_of(parser, chosen, target))
    try:
        return function(
            **{name: made[name] for name in inspect.signature(function).parameters if name in made}
        )
    finally:
        configure(None)


def parser_of(function: Callable[..., Any], target: str) -> Any:
    """Return the parser of a function's parameters.

    Args:
        function: The function.
        target: How the user named it, for the messages.

    Raises:
        BadTarget: It is no function, or a parameter has a name that the command uses itself.
        MissingConfiguration: The extra `train` is not installed.
    """
    if not callable(function) or isinstance(function, type):
        raise BadTarget(f"{target} is a {type(function).__name__}. Name a function that trains.")
    taken = [name for name in inspect.signature(function).parameters if name in _OWN]
    if taken:
        raise BadTarget(
            f"{target} has a parameter {taken[0]!r}, and --{taken[0]} is an option of the command. Give the parameter "
            "another name."
        )
    if importlib.util.find_spec("jsonargparse") is None:
        raise MissingConfiguration(
            "`smt train` needs the package jsonargparse: pip install 'statemachine-trainer[train]'."
        )
    library = importlib.import_module("jsonargparse")
    parser = library.ArgumentParser(
        prog=f"smt train {target}", description=_first_line(function), exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="A YAML file with values of the options.")
    parser.add_function_arguments(function, as_group=False, fail_untyped=False)
    return parser


def configuration_of(parser: Any, chosen: Any, target: str) -> Configuration:
    """Return all options with their values, as the folders of runs keep them."""
    chosen = chosen.clone()
    chosen.pop("config", None)
    place = target.rpartition(":")[0]
    folder = Path(place).absolute().parent if place.endswith(".py") else Path.cwd()
    text: str = parser.dump(chosen, skip_unset=False)
    values = importlib.import_module("yaml").safe_load(text) or {}
    return Configuration(target, folder, text, values)


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
