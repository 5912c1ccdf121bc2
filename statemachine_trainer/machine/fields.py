"""The state of a loop: its annotated fields, and which loop resets each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from statemachine_trainer.machine.errors import LoopDefinitionError, NoValueYet
from statemachine_trainer.machine.keywords import refuses_unknown

T = TypeVar("T")

RUN: Final = "run"
"""The scope of a field that is never reset during a run."""


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET: Final = _Unset()


@dataclass(slots=True)
class Field:
    """Declares one field of a loop: its first value, and when it is reset.

    A non-data descriptor: values of instances take precedence. Reading a field that has no value
    yet raises an error instead of returning this object.

    Attributes:
        default: The value at each reset; `UNSET` if `factory` makes it or there is none.
        factory: Makes a new value at each reset (for lists, dicts and the like).
        scope: Name of the enclosing loop whose entry resets the field, "run" for never, or None for
            the loop that declares it.
        name: Name of the field, for messages.
        saved: Whether snapshots hold it. Other fields get their first value when a snapshot is loaded.
    """

    default: Any = UNSET
    factory: Callable[[], Any] | None = None
    scope: str | None = None
    name: str = ""
    saved: bool = True

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, loop: object | None, owner: type) -> Any:
        if loop is None:
            return self
        raise NoValueYet(
            f"The field {self.name!r} of {owner.__name__} has no value yet: it was declared without "
            f"a default and is read before anything has set it. Set `self.{self.name}` in a state "
            "that works earlier, or declare a default."
        )


@refuses_unknown
def field(
    default: T | _Unset = UNSET,
    *,
    factory: Callable[[], T] | None = None,
    scope: str | None = None,
    saved: bool = True,
) -> T:
    """Declare a field of a loop with more than a plain default.

    A field declared as `count: int = 0` is reset each time its loop is entered. With
    `count: int = field(0, scope="fit")` it is reset when the nearest enclosing loop called `fit` is
    entered (the root, if none has that name), and with `scope="run"` never.

    Args:
        default: The value after a reset. Must not be a list, dict or set: use `factory`.
        factory: Called without arguments for the value after a reset.
        scope: Name of the loop whose entry resets the field; None means the loop itself.
        saved: Whether snapshots hold it. Use False for what can be recomputed, such as a handle or
            a cache: it gets its default when a snapshot is loaded.

    Raises:
        LoopDefinitionError: Both a default and a factory, a class as default, a factory that is not callable, or
            `saved` that is neither True nor False.
    """
    if not isinstance(saved, bool):
        raise LoopDefinitionError(f"field(saved={saved!r}): use True or False.")
    if isinstance(default, type):
        raise LoopDefinitionError(
            f"field({default.__name__}): a class is no value. Write field(factory={default.__name__})."
        )
    if factory is not None and not isinstance(default, _Unset):
        raise LoopDefinitionError("field() takes a default or a factory, not both.")
    if factory is not None and not callable(factory):
        raise LoopDefinitionError(
            f"field(factory={factory!r}): a factory is called without arguments for each new "
            "value, as `list` is."
        )
    return Field(default, factory, scope, saved=saved)  # type: ignore[return-value]


def fields_of(cls: type, ignored: Collection[str]) -> dict[str, Field]:
    """Return the fields that a class and its bases declare, in the order of declaration.

    Args:
        cls: A class of loops.
        ignored: Names that are not fields: states, places, and the attributes that declare a loop.
    """
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        body = base.__dict__
        declared = [n for n, a in inspect.get_annotations(base).items() if _is_variable(n, a)]
        declared += [n for n, value in body.items() if isinstance(value, Field) or n in found]
        for name in dict.fromkeys(declared):
            value = body.get(name, UNSET)
            if name in ignored:
                found.pop(name, None)
            elif name not in body:
                found.setdefault(name, Field(name=name))
            else:
                found[name] = _as_field(base, name, value, found.get(name))
    return found


SINGLE: Final = frozenset({type(None), bool, int, float, str})
"""Types of most values of fields: `copied` returns these as they are."""


def copied(value: Any) -> Any:
    """Copy nested lists, dicts and tuples; leave everything else as it is.

    A state that was taken must not change as the run goes on.
    """
    kind = type(value)
    if kind is dict:
        return {key: one if type(one) in SINGLE else copied(one) for key, one in value.items()}
    if kind is list:
        return [copied(one) for one in value]
    if kind is tuple:
        return tuple(copied(one) for one in value)
    return value


def _is_variable(name: str, annotation: Any) -> bool:
    text = str(annotation)
    return not name.startswith("_") and "ClassVar" not in text and "Final" not in text


def _as_field(owner: type, name: str, value: Any, inherited: Field | None) -> Field:
    """Turn the value of a class attribute into a `Field`."""
    where = f"{owner.__name__}.{name}"
    if isinstance(value, Field):
        declared = value
    elif inspect.isdatadescriptor(value) or inspect.isroutine(value):
        raise LoopDefinitionError(
            f"{where} is a field and a {type(value).__name__} at once, so its value would not be "
            "written down. Give one of them another name."
        )
    else:
        declared = replace(inherited or Field(), default=value, factory=None, name=name)
    kind = type(declared.default)
    if kind.__hash__ is None:
        raise LoopDefinitionError(
            f"{where} has a {kind.__name__} as its default, which all loops would share. Write "
            f"`{name}: ... = field(factory={kind.__name__})`."
        )
    return declared
