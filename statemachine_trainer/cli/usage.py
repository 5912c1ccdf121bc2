"""Mistakes on the command line, told as all other errors are: what is wrong, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from statemachine_trainer.machine.errors import StateMachineError, suggest

_BOUND = re.compile(r"(greater|less) than or equal to (\S+)")
_RANGE = re.compile(r"not in the range (.*?)\.?$")
_KINDS = (("integer", "a whole number"), ("number", "a number"), ("float", "a number"))


class BadUsage(StateMachineError):
    """An option or argument that a command does not have, lacks, or cannot read."""


def is_usage_error(error: Exception) -> bool:
    """Whether the library that reads the command line raised it."""
    # By its methods: typer brings a copy of click's classes, older ones import those of click.
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def in_our_words(error: Any) -> str:
    """Return what to tell of an error of the library that reads the command line."""
    context = getattr(error, "ctx", None)
    # Without the name that the program was called by: `smt`, or `python -m statemachine_trainer`.
    name = "" if context is None else " ".join(context.command_path.split()[1:])
    see = f"smt {name} --help" if name else "smt --help"
    return f"{_told(error, name, context)} See: {see}"


def _told(error: Any, name: str, context: Any) -> str:
    kind, given = type(error).__name__, getattr(error, "param", None)
    has_no = f"{name} has no" if name else "There is no"
    if kind == "MissingParameter" and given is not None:
        help_text = getattr(given, "help", None)
        return f"{name} needs {_name(given)}{f': {help_text}' if help_text else '.'}"
    if kind == "NoSuchOption":
        known = [] if context is None else [*_options(context)]
        return f"{has_no} option {error.option_name}. {suggest(error.option_name, known)}"
    if kind == "BadParameter" and given is not None:
        return f"{_name(given)}: {_value_refused(error.message)}"
    if (option := getattr(error, "option_name", None)) is not None:
        takes = "takes no value" if "not take" in error.message else "needs a value"
        return f"{option} {takes}."
    if (found := re.search(r"unexpected extra arguments? ?\((.*)\)", _plain(error))) is not None:
        return f"{name} takes no further argument {found[1]!r}."
    if (found := re.match(r"No such command '(.*?)'", _plain(error))) is not None:
        known = context.command.list_commands(context) if context is not None else []
        return f"{has_no} command {found[1]!r}. {suggest(found[1], known)}"
    text = _plain(error)
    return text if text.endswith((".", "?")) else f"{text}."


def _plain(error: Any) -> str:
    return " ".join(error.format_message().replace("(s)", "s").split())


def _options(context: Any) -> Iterable[str]:
    for one in context.command.get_params(context):
        yield from (name for name in getattr(one, "opts", ()) if name.startswith("-"))


def _name(given: Any) -> str:
    long = [name for name in given.opts if name.startswith("--")]
    return str((long or [given.metavar or given.name])[0])


def _value_refused(message: str) -> str:
    """Return what is wrong with a value, and which would do."""
    if (found := re.search(r"'(.*?)' is not one of (.*?)\.?$", message)) is not None:
        return f"{found[1]!r} will not do. Use one of {found[2].replace(chr(39), '')}."
    if (bound := _BOUND.search(message)) is not None:
        return f"Use a number of at {'least' if bound[1] == 'greater' else 'most'} {bound[2]}."
    if (range_ := _RANGE.search(message)) is not None:
        return f"Use a number in the range {range_[1]}."
    for word, kind in _KINDS:
        if f"valid {word}" in message:
            return f"Use {kind}."
    text = message.removeprefix("Value error, ")
    return text if text.endswith(".") else f"{text}."


# -- Options of a user's function (`smt train`) ---------------------------------------------------


def of_function(message: str, target: str) -> str:
    """Return what to tell of an error of the library that reads the options of a function.

    Args:
        message: What the library says.
        target: The function, as the user named it.
    """
    text = " ".join(message.split())
    see = f"See: smt train {target} --help"
    if (found := re.match(r"the following arguments are required: (.*)", text)) is not None:
        return f"{target} needs --{found[1].replace(', ', ', --')}. {see}"
    if (found := re.match(r"unrecognized arguments: (.*)", text)) is not None:
        return f"{target} has no parameter for {found[1]}. {see}"
    if (found := re.match(r"Option '(.*?)' is not accepted", text)) is not None:
        return f"{target} has no parameter {found[1]!r}. {see}"
    if (found := re.match(r'Parser key "(.*?)": (.*)', text)) is not None:
        return f"--{found[1]}: {_type_refused(found[2])} {see}"
    text = text.removeprefix("Problems parsing config: ")
    return f"The options of {target} cannot be read: {text.rstrip('.')}. {see}"


def _type_refused(text: str) -> str:
    found = re.match(r"Expected an? (.*?)\. Got value: (.*)$", text)
    if found is not None:
        kind = re.sub(r"<(?:class|enum) '(.*?)'>", r"\1", found[1]).replace("typing.", "")
        return f"{found[2]!r} will not do. Use {_kind_in_words(kind)}."
    if (lost := re.match(r"File does not exist: '(.*)'", text)) is not None:
        return f"There is no file {lost[1]}."
    return f"{text.rstrip('.')}."


def _kind_in_words(kind: str) -> str:
    if (choices := re.match(r"Literal\[(.*)\]", kind)) is not None:
        return f"one of {choices[1].replace(chr(39), '')}"
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
    return words.get(kind, f"a value of the type {kind}")
