"""JSON of checkpoints, read as if a stranger had written it."""

from __future__ import annotations

import json
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class BadJson(ValueError):
    """Text that is not the JSON of a checkpoint."""


def loads(text: bytes) -> Json:
    """Parse JSON that is UTF-8, without repeated keys, and not nested beyond reason.

    Raises:
        BadJson: when it is not
    """
    try:
        value: Json = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise BadJson("it is nested too deeply") from None
    except ValueError as error:
        raise BadJson(f"it is not the JSON of a checkpoint ({error})") from None
    return value


_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_READABLE = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def dumps(value: Json) -> bytes:
    """JSON as UTF-8; numbers that JSON does not know are a `ValueError`."""
    return _COMPACT.encode(value).encode("utf-8")


def lines(values: dict[str, Json]) -> bytes:
    """JSON of an object for people, a line for each of its values. Python indents deeper only without its C encoder."""
    inside = [
        f"  {_READABLE.encode(name)}: {_READABLE.encode(one)}" for name, one in values.items()
    ]
    return ("{\n" + ",\n".join(inside) + "\n}").encode("utf-8")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")
