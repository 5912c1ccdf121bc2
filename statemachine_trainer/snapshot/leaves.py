"""Single values as JSON, and back, to the bit."""

from __future__ import annotations

import base64
import dataclasses
import enum
import inspect
import math
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import MemberDescriptorType, NoneType

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from statemachine_trainer.snapshot.strictjson import Json

_PATHS: Mapping[str, type[PurePath]] = {
    kind.__name__: kind for kind in (Path, PurePosixPath, PureWindowsPath)
}


class Undecodable(ValueError):
    """A document and tensors that no tree was encoded to."""


class NotALeaf(Exception):
    """A value that is not plain, or not single."""


def encode_leaf(value: object) -> Json:
    """JSON for a single value.

    Raises:
        NotALeaf: when it is none that can be written
    """
    kind = type(value)
    if kind in _ENCODERS:
        return _ENCODERS[kind](value)
    if isinstance(value, np.generic) and kind is value.dtype.type and value.dtype.kind in "biufc":
        return {"$scalar": [value.dtype.str, value.tobytes().hex()]}
    if isinstance(value, PurePath):
        return {"$path": [_path_kind(value), _of_str(str(value))]}
    if isinstance(value, datetime) and kind is datetime and _has_fixed_offset(value):
        return {"$datetime": [value.replace(tzinfo=None).isoformat(), value.fold, _offset(value)]}
    raise NotALeaf


def is_key(value: object) -> bool:
    """Whether a single value may be a key of a dict or an item of a set."""
    return type(value) in _ENCODERS


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which UTF-8 cannot hold."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def remedy(value: object) -> str:
    """What to do about a value that cannot be written."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return "define its class at the top level of a module, or write its ._asdict()"
    if isinstance(value, torch.Tensor) and is_lazy(value):
        return "a lazy layer has no shape yet: run one batch through the model before `fit`"
    if isinstance(value, enum.Enum):
        return "write its .value or its .name"
    if isinstance(value, (torch.Generator, np.random.RandomState)):
        return "write what its .get_state() returns"
    if isinstance(value, np.random.Generator):
        return "write its .bit_generator.state"
    if isinstance(value, datetime):
        return "give it a fixed offset, as in .astimezone(timezone.utc)"
    if dataclasses.is_dataclass(value):
        return (
            "define its class at the top level of a module, give it no attributes besides its "
            "fields, or write what dataclasses.asdict returns for it"
        )
    if hasattr(value, "state_dict"):
        return "write what its .state_dict() returns"
    if isinstance(value, (dict, list, tuple, set, str, int, float)):
        base = next(kind for kind in type(value).__mro__ if kind.__module__ == "builtins")
        return f"turn it into a {base.__name__}"
    return "let the state_dict that holds it give plain values instead"


def items_of(content: Json) -> list[Json]:
    """The content, which must be a list."""
    if not isinstance(content, list):
        raise Undecodable("a list is missing")
    return content


def text_of(content: Json) -> str:
    """The content, which must be a text."""
    if not isinstance(content, str):
        raise Undecodable("a text is missing")
    return content


def integer_of(content: Json) -> int:
    """The content, which must be a number without a fraction."""
    if type(content) is not int:
        raise Undecodable("a number is missing")
    return content


def _as_it_is(value: object) -> Json:
    assert value is None or isinstance(value, bool)
    return value


def _of_int(value: object) -> Json:
    assert isinstance(value, int)
    # JSON has integers of any size, but many readers do not, and Python limits their digits.
    return value if -(2**63) <= value < 2**63 else {"$int": hex(value)}


def _to_int(content: Json) -> int:
    return int(text_of(content), 16)


def _of_float(value: object) -> Json:
    assert isinstance(value, float)
    if math.isfinite(value):
        return value
    if not math.isnan(value):
        return {"$float": repr(value)}
    bits = struct.pack(">d", value).hex()  # a NaN has a sign and a payload
    return {"$float": "nan" if bits == _NAN else f"nan:{bits}"}


_NAN = struct.pack(">d", math.nan).hex()


def _to_float(content: Json) -> float:
    text = text_of(content)
    if not text.startswith("nan:"):
        return float(text)
    data = bytes.fromhex(text[4:])
    if len(data) != 8:
        raise Undecodable(f"{text!r} is not a number")
    value: float = struct.unpack(">d", data)[0]
    return value


def _of_str(value: object) -> Json:
    assert isinstance(value, str)
    if not has_surrogates(value):
        return value
    return {"$str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _to_str(content: Json) -> str:
    return _to_bytes(content).decode("utf-8", "surrogatepass")


def _of_bytes(value: object) -> Json:
    assert isinstance(value, bytes)
    return {"$bytes": base64.b64encode(value).decode()}


def _to_bytes(content: Json) -> bytes:
    return base64.b64decode(text_of(content), validate=True)


def _of_timedelta(value: object) -> Json:
    assert isinstance(value, timedelta)
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _to_timedelta(content: Json) -> timedelta:
    days, seconds, microseconds = map(integer_of, items_of(content))
    return timedelta(days, seconds, microseconds)


def _has_fixed_offset(value: datetime) -> bool:
    """Whether an offset says all of the time zone: rules of daylight saving are not in it."""
    return value.tzinfo is None or type(value.tzinfo) is timezone


def _offset(value: datetime) -> Json:
    offset = value.utcoffset()
    return None if offset is None else _of_timedelta(offset)


def _to_datetime(content: Json) -> datetime:
    text, fold, offset = items_of(content)
    value = datetime.fromisoformat(text_of(text)).replace(fold=integer_of(fold))
    if not isinstance(offset, dict):
        return value
    return value.replace(tzinfo=timezone(_to_timedelta(offset["$timedelta"])))


def _of_dtype(value: object) -> Json:
    return {"$dtype": str(value).removeprefix("torch.")}


def _to_dtype(content: Json) -> torch.dtype:
    dtype = getattr(torch, text_of(content), None)
    if not isinstance(dtype, torch.dtype):
        raise Undecodable(f"this torch has no dtype {content!r}")
    return dtype


def _of_device(value: object) -> Json:
    return {"$device": str(value)}


def _to_device(content: Json) -> torch.device:
    try:
        return torch.device(text_of(content))
    except RuntimeError:
        raise Undecodable(f"{content!r} is not a device") from None


def _path_kind(value: PurePath) -> str:
    return "Path" if isinstance(value, Path) else type(value).__name__


def _to_path(content: Json) -> PurePath:
    kind, text = items_of(content)
    return _PATHS[text_of(kind)](_to_str(text["$str"]) if isinstance(text, dict) else text_of(text))


def _to_scalar(content: Json) -> np.generic:
    kind, data = map(text_of, items_of(content))
    dtype = np.dtype(kind)
    if dtype.kind not in "biufc":
        raise Undecodable(f"{kind!r} is not a dtype of numbers")
    scalar: np.generic = np.frombuffer(bytes.fromhex(data), dtype=dtype, count=1)[0]
    return scalar


_ENCODERS: Mapping[type, Callable[[object], Json]] = {
    NoneType: _as_it_is,
    bool: _as_it_is,
    int: _of_int,
    float: _of_float,
    str: _of_str,
    bytes: _of_bytes,
    timedelta: _of_timedelta,
    torch.dtype: _of_dtype,
    torch.device: _of_device,
}

DECODERS: Mapping[str, Callable[[Json], object]] = {
    "$int": _to_int,
    "$float": _to_float,
    "$str": _to_str,
    "$bytes": _to_bytes,
    "$timedelta": _to_timedelta,
    "$datetime": _to_datetime,
    "$dtype": _to_dtype,
    "$device": _to_device,
    "$path": _to_path,
    "$scalar": _to_scalar,
}


# -- Named tuples and dataclasses -----------------------------------------------------------------

# Reading them back imports nothing and calls no code of the class: the class must be there
# already, in a module that the program has imported, under the name it had, and with the same
# fields. Named tuples and dataclasses are all that can be named so.

Name = tuple[str, str]
"""Module and qualified name of a class."""

_PACKAGE = "statemachine_trainer"
_MOVED: Mapping[Name, str] = {
    (f"{_PACKAGE}.{before}", name): f"{_PACKAGE}.{now}"
    for name, before, now in (
        ("Counts", "loops.every", "intervals"),
        ("Counts", "loops.intervals", "intervals"),
        ("EpochRecord", "observe.table", "observe.epoch_table"),
        ("Every", "loops.every", "intervals"),
        ("Every", "loops.intervals", "intervals"),
        ("Graph", "machine.graph", "graph.graph"),
        ("GraphEdge", "machine.graph", "graph.model"),
        ("GraphState", "machine.graph", "graph.model"),
        ("Phase", "loops.phases", "loops.recipes.phases"),
        ("Record", "runs", "run_record"),
        ("Turn", "loops.yielding", "loops.recipes.yielding"),
        ("TurnDone", "loops.yielding", "loops.recipes.yielding"),
    )
}
"""Where classes of ours are that stood elsewhere when a checkpoint with them was written."""


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
    kind = _find(name) or _find((_MOVED.get(name, ""), name[1]))
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
