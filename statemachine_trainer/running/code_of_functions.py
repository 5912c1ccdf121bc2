"""The code of functions as short texts, so that a run that goes on with another one can be told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType

from statemachine_trainer.snapshot.kinds import is_users

_DIGITS = 8


def name_of_function(function: object) -> str:
    """Return the name of a function; the class of another object that can be called."""
    function = function.func if isinstance(function, partial) else function
    return str(getattr(function, "__qualname__", type(function).__name__))


def code_of_function(function: object) -> str | None:
    """Return a fingerprint of the code of a user's function, lambda, method, or object that is called.

    Comments, names of files and numbers of lines have no part in it; default arguments, and the functions inside, do.
    Code of libraries has none: it follows from their versions.
    """
    digest = hashlib.sha256()
    found = False
    for part in _parts(function):
        found = True
        digest.update(part)
    return digest.hexdigest()[:_DIGITS] if found else None


def _parts(function: object) -> Iterator[bytes]:
    if isinstance(function, partial):
        yield from _parts(function.func)
        for argument in (*function.args, *function.keywords.values()):
            if isinstance(argument, FunctionType | MethodType | partial):
                yield from _parts(argument)
        return
    if isinstance(function, MethodType):
        function = function.__func__
    elif not isinstance(function, FunctionType):
        function = vars(type(function)).get("__call__")
    if isinstance(function, FunctionType) and is_users(function.__module__):
        yield from _parts_of_code(function.__code__)
        yield repr(_plain((function.__defaults__, function.__kwdefaults__))).encode()


def _parts_of_code(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts_of_code(constant)
        else:
            yield repr(_plain(constant)).encode()


def _plain(value: object) -> object:
    """Return a value that is written the same in every process; the type of what is not."""
    if isinstance(value, frozenset | set):
        return sorted(map(repr, value))
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if isinstance(value, bool | int | float | str | bytes | None) else type(value)
