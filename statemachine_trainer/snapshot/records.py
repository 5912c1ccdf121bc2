"""Named tuples and instances of dataclasses, as the name of their class and their fields.

Reading them back imports nothing and calls no code of the class: the class must be there already,
in a module that the program has imported, under the name it had, and with the same fields. Named
tuples and dataclasses are all that can be named so.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from types import MemberDescriptorType

from statemachine_trainer.snapshot.leaves import Undecodable

Name = tuple[str, str]
"""Module and qualified name of a class."""


def record_of(value: object) -> tuple[Name, dict[str, object]] | None:
    """The class and the fields of a value; None where they are not all of it.

    That is so for what is no such object, for one with attributes besides its fields, and for one
    whose class cannot be found by its name, as it is defined within a function.
    """
    kind = type(value)
    fields = _fields_of(kind)
    if fields is None or _find((kind.__module__, kind.__qualname__)) is not kind:
        return None
    if isinstance(value, tuple):
        inside = dict(zip(fields, value, strict=True)) if len(fields) == len(value) else None
    else:
        inside = {name: getattr(value, name) for name in fields if hasattr(value, name)}
        inside = inside if len(inside) == len(fields) else None
    if inside is None or not getattr(value, "__dict__", {}).keys() <= inside.keys():
        return None
    return (kind.__module__, kind.__qualname__), inside


def rebuilt(name: Name, inside: Mapping[str, object]) -> object:
    """The value that `record_of` took apart.

    Raises:
        Undecodable: Its class is not there, or has other fields now.
    """
    kind = _find(name)
    fields = None if kind is None else _fields_of(kind)
    if kind is None or fields is None:
        raise Undecodable(
            f"the named tuple or dataclass {'.'.join(name)} is not there; import it before reading"
        )
    if set(fields) != set(inside):
        raise Undecodable(
            f"{'.'.join(name)} had the fields {', '.join(inside)}, and now has {', '.join(fields)}"
        )
    if issubclass(kind, tuple):
        return tuple.__new__(kind, [inside[field] for field in fields])
    made = object.__new__(kind)
    for field in fields:
        object.__setattr__(made, field, inside[field])
    return made


def _fields_of(kind: type) -> tuple[str, ...] | None:
    """Names of the fields, if it is a named tuple or a dataclass that is nothing else besides."""
    if issubclass(kind, tuple):
        fields = getattr(kind, "_fields", None)
        return fields if isinstance(fields, tuple) and hasattr(kind, "_make") else None
    own = [base for base in kind.__mro__ if base.__flags__ & _HEAP == 0]
    if own != [object] or not dataclasses.is_dataclass(kind):
        return None
    names = tuple(field.name for field in dataclasses.fields(kind))
    return None if any(_runs_code(kind, name) for name in names) else names


def _runs_code(kind: type, name: str) -> bool:
    """Whether setting the field would call something, as a property does; a slot does not."""
    attribute = inspect.getattr_static(kind, name, None)
    return hasattr(type(attribute), "__set__") and not isinstance(attribute, MemberDescriptorType)


_HEAP = 1 << 9
"""Flag of the classes that are written in Python."""


def _find(name: Name) -> type | None:
    found: object = sys.modules.get(name[0])
    for part in name[1].split("."):
        found = None if found is None else getattr(found, part, None)
    return found if isinstance(found, type) else None
