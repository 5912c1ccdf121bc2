"""What functions do, as short texts, so that a run that goes on with another one can be told."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from statemachine_trainer.snapshot.kinds import attributes_of_class, is_users, named

_DIGITS: Final = 8
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))
_WITH_FUNCTION: Final = (MethodType, classmethod, staticmethod)
_PARTS: Final = 8
"""Elements of a list or a tuple that are looked at one by one."""


def name_of_function(function: object) -> str:
    """Return the name of a function; the class of another object that can be called."""
    function = function.func if isinstance(function, partial) else function
    return str(getattr(function, "__qualname__", type(function).__name__))


def function_behind(thing: Any) -> Any:
    """Return the function of a partial, of a bound method, or of both; anything else as it is."""
    while issubclass(type(thing), partial):
        thing = thing.func
    return thing.__func__ if issubclass(type(thing), _WITH_FUNCTION) else thing


def variables_of(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the variables that a function encloses, and the globals that its code names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # nothing in it yet
            continue
    space: Mapping[str, object] = function.__globals__
    yield from ((name, space[name]) for name in function.__code__.co_names if name in space)


def code_of_function(function: object) -> str | None:
    """Return a fingerprint of the code of a user's function, lambda, method, or object that is called.

    Comments, names of files and numbers of lines have no part in it; default arguments, and the functions inside, do.
    Code of libraries has none: it follows from their versions.
    """
    parts = [*_parts(function)]
    return _digest(parts) if parts else None


@lru_cache(maxsize=8192)
def checksum_of_code(code: CodeType) -> str:
    """Return a fingerprint of what some code does, without its documentation."""
    return _digest(_parts_of_code(code, documented=False))


def functions_of(thing: object) -> dict[str, str]:
    """Return a text for each function of a user that an object, such as a scheduler, has as an attribute."""
    found = {}
    for name, value in named(thing):
        for path, one in each(name, value).items():
            if (text := _function(one)) is not None:
                found[path] = text
    return found


def compiler() -> str:
    """Return what the code of functions depends on besides their source."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}"


def each(name: str, value: Any) -> dict[str, object]:
    """Return the elements of a short list or tuple, or a value alone, by name."""
    if (type(value) is list or type(value) is tuple) and len(value) <= _PARTS:
        return {f"{name}[{place}]": one for place, one in enumerate(value)}
    return {name: value}


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_DIGITS]


def _parts(function: object) -> Iterator[bytes]:
    if isinstance(function, partial):
        yield from _parts(function.func)
        for argument in (*function.args, *function.keywords.values()):
            if issubclass(type(argument), (FunctionType, MethodType, partial)):
                yield from _parts(argument)
        return
    if isinstance(function, MethodType):
        function = function.__func__
    elif not isinstance(function, FunctionType):
        function = attributes_of_class(type(function)).get("__call__")
    if isinstance(function, FunctionType) and is_users(function.__module__):
        yield from _parts_of_code(function.__code__)
        yield repr(_plain((function.__defaults__, function.__kwdefaults__))).encode()


def _parts_of_code(code: CodeType, *, documented: bool = True) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
    for place, constant in enumerate(code.co_consts):
        if not documented and not place and _is_documentation(code, constant):
            continue
        if isinstance(constant, CodeType):
            yield from _parts_of_code(constant, documented=documented)
        else:
            yield repr(_plain(constant)).encode()


def _is_documentation(code: CodeType, first: object) -> bool:
    """Whether the first constant of some code is a docstring, or stands where it would."""
    if not isinstance(first, str | None) or code.co_name.startswith("<"):
        return False
    return sys.version_info < (3, 13) or bool(code.co_flags & 0x4000000)  # CO_HAS_DOCSTRING


def _plain(value: object) -> object:
    """Return a value that is written the same in every process; the type of what is not."""
    kind = type(value)
    try:
        if issubclass(kind, frozenset | set):
            return sorted(map(repr, value))  # type: ignore[call-overload]
        if issubclass(kind, tuple | list):
            return [_plain(one) for one in value]  # type: ignore[attr-defined]
        if issubclass(kind, dict):
            return {str(key): _plain(one) for key, one in value.items()}  # type: ignore[attr-defined]
        repr(value)  # with too many decimals a number has none
    except Exception:  # a class of a user may do anything
        return f"a {kind.__name__}"
    return value if issubclass(kind, _PLAIN) else kind


def _function(value: object) -> str | None:
    """Say what a function of a user does: a checksum of its code, its constants and its variables."""
    given: dict[str, object] = {}
    if type(value) is partial:
        given = {**{str(n): one for n, one in enumerate(value.args)}, **value.keywords}
        value = value.func
    value = value.__func__ if type(value) is MethodType else value
    if type(value) is not FunctionType or not is_users(value.__module__):
        return None
    variables = {**dict(_variables(value)), **given}
    constants = [one for one in value.__code__.co_consts if type(one) in _PLAIN[:5]]
    texts = [f"code #{_digest(_parts_of_code(value.__code__))}"]
    texts += [f"constants {constants}"] if constants else []
    texts += [f"{name}={one!r}" for name, one in variables.items() if type(one) in _PLAIN]
    return f"{value.__qualname__} with {', '.join(texts)}"[:500]


def _variables(function: FunctionType) -> Iterator[tuple[str, object]]:
    yield from variables_of(function)
    defaults = function.__defaults__ or ()
    names = reversed(function.__code__.co_varnames[: function.__code__.co_argcount])
    yield from islice(zip(names, reversed(defaults), strict=False), len(defaults))
