"""Keywords with which public classes are made: an unknown one is an error that says where it belongs."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, Final, NoReturn, ParamSpec, Self, TypeVar

from statemachine_trainer.machine.errors import UnknownSetting, suggest

P = ParamSpec("P")
T = TypeVar("T")
_PACKAGE: Final = __name__.partition(".")[0]
_SHOWN: Final = (bool, int, float, str, type(None))
_LONGEST: Final = 30
_NEAR: Final = 0.75
"""How near (0 to 1) a name is that somebody is likely to have meant."""

_ALIKE: Final = 0.85
"""The same for a name of another class."""

_FEW: Final = 12
"""Settings of a class that are listed where none is near."""


class HasSettings:
    """Base of public classes that take settings: a keyword that none of them takes is refused.

    Raises:
        UnknownSetting: The message has the nearest names, and the class that has such a setting. Or a setting
            was given without its name, and the class takes it by name alone.
    """

    __slots__ = ()

    other_names: ClassVar[Mapping[str, str]] = {}
    """Settings that such classes have in other libraries, and what to do here."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse unknown keywords, before Python does so with the name of an inner class."""
        if args:
            _check_places(cls, args)
        check_keywords(cls, kwargs)
        return super().__new__(cls)


def check_keywords(cls: type, given: Mapping[str, Any]) -> None:
    """Refuse keywords that a class does not take.

    Raises:
        UnknownSetting: It does not take one of them.
    """
    taken = _taken(cls) if given else None
    if taken is None:
        return
    for name, value in given.items():
        if name not in taken:
            refuse_keyword(cls, name, value, taken)


def _check_places(cls: type, args: tuple[Any, ...]) -> None:
    """Refuse settings without a name where the class takes fewer so."""
    code = getattr(cls.__init__, "__code__", None)  # type: ignore[misc]
    if code is None or code.co_flags & inspect.CO_VARARGS or len(args) < code.co_argcount:
        return
    taken = code.co_argcount - 1
    named = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
    most = "no setting" if taken == 0 else f"{taken} setting{'s' * (taken > 1)}"
    raise UnknownSetting(
        f"{cls.__name__} takes {most} without a name, and {_shown(args[taken])} is one more. Name it"
        + (f": {', '.join(f'{one}=' for one in named[:_FEW])}." if named else ".")
    )


def refuse_keyword(
    cls: type,
    name: str,
    value: object,
    known: Collection[str],
    error: type[UnknownSetting] = UnknownSetting,
) -> NoReturn:
    """Refuse a keyword, and say where it belongs.

    Args:
        cls: The class that was to be made.
        name: The keyword.
        value: What was given by it.
        known: The keywords that the class takes.
        error: The class of the error.

    Raises:
        UnknownSetting: Always.
    """
    said = getattr(cls, "other_names", {}).get(name)
    advice = f"{said}." if said else advice_on(name, value, known, cls)
    raise error(f"{cls.__name__} has no setting {name!r}. {advice}")


def refuses_unknown(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function refuse keywords that it does not take, before Python does.

    Raises:
        UnknownSetting: When the function is called with one. The message has the nearest names.
    """
    return _checked(function, UnknownSetting)


def with_checked_methods(
    error: type[UnknownSetting], *, without: Collection[str] = ()
) -> Callable[[type[T]], type[T]]:
    """Make the public methods of a class refuse keywords that they do not take.

    Args:
        error: The class of the error.
        without: Methods that are called too often for it.
    """

    def check(cls: type[T]) -> type[T]:
        for name, method in vars(cls).copy().items():
            if inspect.isfunction(method) and not name.startswith("_") and name not in without:
                setattr(cls, name, _checked(method, error))
        return cls

    return check


def _checked(function: Callable[P, T], error: type[UnknownSetting]) -> Callable[P, T]:
    code = function.__code__
    if code.co_flags & inspect.CO_VARKEYWORDS:  # it looks at them itself
        return function
    count = code.co_argcount + code.co_kwonlyargcount
    known = frozenset(code.co_varnames[code.co_posonlyargcount : count]) - {"self"}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                advice = advice_on(name, kwargs[name], known)
                raise error(f"{function.__name__}() has no argument {name!r}. {advice}")
        return function(*args, **kwargs)

    return checked


def advice_on(name: str, value: object, known: Collection[str], cls: type | None = None) -> str:
    """Return what to write instead of a keyword that is not taken.

    Args:
        name: The keyword.
        value: What was given by it.
        known: The keywords that are taken.
        cls: The class that was to be made; None for a function.
    """
    near = suggest(name, known, cutoff=_NEAR)
    found = _where_it_belongs(name, value, cls)
    if not near and not found:  # it may be a misspelt one of another class
        others = {one for kind in _public_classes() for one in settings_of(kind)}
        alike = difflib.get_close_matches(name, sorted(others), n=1, cutoff=_ALIKE)
        found = _where_it_belongs(alike[0], value, cls) if alike else ""
    if found and (near or len(known) > _FEW):
        return f"{near} {found}".strip()
    if found and not known:
        return found
    return f"{found} {near or suggest(name, known)}".strip()


def _where_it_belongs(name: str, value: object, cls: type | None) -> str:
    """Return a sentence on the public class that has a setting of this name; "" if none has."""
    given = f"{name}={_shown(value)}"
    if cls is not None and (inside := _by_place(cls, name, given)):
        return f"A loop inside has it: {cls.__name__}({inside})."
    homes = [one for one in _homes(name) if one is not cls]
    if cls is not None and name in _arguments_of_fit():
        return f"`fit` has it: trainer.fit(..., {given})."
    if not homes:
        return ""
    home, *others = homes
    needed = "..., " if _needs_more(home, name) else ""
    names = [one.__name__ for one in others[:2]]
    more = (
        f" {' and '.join(names)} {'has' if len(names) == 1 else 'have'} one, too." if names else ""
    )
    return f"{home.__name__} has it: {home.__name__}({needed}{given}).{more}"


# -- What classes take ----------------------------------------------------------------------------


def _taken(cls: type) -> set[str] | None:
    """Return the keywords that a class takes; None if it looks at them itself, or hands them to others."""
    found: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = [*inspect.signature(vars(base)["__init__"]).parameters.values()][1:]
        found |= {one.name for one in parameters if one.kind is not one.VAR_POSITIONAL}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return found
        # Those of a loop of this package go on to the class that it is made of, and in the end to
        # `Loop`, which looks at them.
        if not (base.__module__.startswith(f"{_PACKAGE}.") and _is_loop(base)):
            return None
    return None


def _is_loop(cls: type) -> bool:
    return hasattr(cls, "places") and cls.__name__ != "Loop"


def settings_of(cls: type) -> set[str]:
    """Return the names of all settings of a class."""
    found = set(getattr(cls, "more_settings", ()))
    for base in cls.__mro__[:-1]:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {one.name for one in parameters if one.kind not in _SPREAD} - {"self"}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
    return found


_SPREAD: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _homes(name: str) -> list[type]:
    """Return the public classes with a setting of this name, without those that have it from another one."""
    found = [one for one in _public_classes() if name in settings_of(one)]
    plainest = [
        one
        for one in found
        if not any(other is not one and issubclass(one, other) for other in found)
    ]
    return sorted(plainest, key=lambda one: not _is_trainer(one))


def _public_classes() -> Iterator[type]:
    """Yield the public classes that take settings. All are imported, which an error may take the time for."""
    package = importlib.import_module(_PACKAGE)
    for name in package.__all__:
        try:
            kind = getattr(package, name)
        except ImportError:  # torch is missing: the machine alone is installed
            continue
        if isinstance(kind, type) and (
            issubclass(kind, HasSettings) or hasattr(kind, "more_settings")
        ):
            yield kind


def _by_place(cls: type, name: str, given: str) -> str:
    """Return how a setting is given to a loop that a class declares for one of its places."""
    if not hasattr(cls, "places"):
        return ""
    for place in cls.places():
        kind = cls.declared(place)  # type: ignore[attr-defined]
        if not isinstance(kind, type):
            continue
        if name in settings_of(kind):
            return f"{place}={kind.__name__}({given})"
        if inside := _by_place(kind, name, given):
            return f"{place}={kind.__name__}({inside})"
    return ""


def _arguments_of_fit() -> Collection[str]:
    trainers = [one for one in _public_classes() if _is_trainer(one)]
    return [name for one in trainers for name in inspect.signature(one.fit).parameters]  # type: ignore[attr-defined]


def _is_trainer(cls: type) -> bool:
    return inspect.isfunction(getattr(cls, "fit", None))


def _needs_more(cls: type, name: str) -> bool:
    """Return whether a class cannot be made with a setting alone."""
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]  # type: ignore[misc]
    needed = [
        one.name for one in parameters if one.default is one.empty and one.kind not in _SPREAD
    ]
    return any(one != name for one in needed)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, _SHOWN) else "..."
    return text if len(text) <= _LONGEST else "..."
