"""A plain tree as JSON and tensors, and back, to the bit.

What JSON has is written as it is. What it does not have is an object with one key that begins with
a dollar sign: ``{"$tuple": [1, 2]}``. A tensor stands apart under its address in the tree, so that
a person finds ``model.conv.weight`` in the file of tensors; the tree only names it. Two places that
hold the same tensor object name the same one, and so they do again after reading.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from types import NoneType
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from statemachine_trainer.snapshot.leaves import (
    DECODERS,
    Name,
    NotALeaf,
    Undecodable,
    encode_leaf,
    has_surrogates,
    integer_of,
    is_key,
    items_of,
    rebuilt,
    record_of,
    remedy,
    text_of,
)
from statemachine_trainer.snapshot.snapshot_errors import Unwritable
from statemachine_trainer.snapshot.strictjson import Json
from statemachine_trainer.snapshot.tensor_file import Detail, TensorNotPlain, pack, unpack

Document: TypeAlias = "dict[str, Json]"
Path: TypeAlias = "tuple[Path, object, bool] | None"
"""Where a value lies: where its container lies, and the key of a mapping (True) or the index of a sequence."""
MapLocation: TypeAlias = "str | torch.device | Callable[[str], str | torch.device] | None"

_DEPTH = 100
"""Levels of nesting; with the wrappers of `$tuple` and the like this stays far within the
recursion of the JSON parser."""

_LONG = 2**63  # integers below it, and not below its negative, are numbers of JSON

_MODULE_METADATA = "_metadata"  # where `nn.Module.state_dict` keeps the versions of its modules


def encode(tree: object) -> tuple[Document, dict[str, Tensor]]:
    """Split a tree into a document for JSON and the tensors that it names.

    The document is a copy. The tensors are detached and contiguous, and share memory with those of
    the tree wherever they can.

    Args:
        tree: None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, tensors, numpy
            arrays and scalars, `torch.Size`, `torch.dtype`, `torch.device`, paths, `datetime` and
            `timedelta`, named tuples and dataclasses (see `leaves.record_of`), nested in any way;
            what `nn.Module.state_dict` returns is one such tree

    Raises:
        Unwritable: naming the first value that is something else
    """
    encoder = _Encoder()
    try:
        encoded = encoder.encode(tree, None)
    except _Deep:
        encoder = _CarefulEncoder()
        encoded = encoder.encode(tree, None)
    return {"tree": encoded, "tensors": dict(encoder.details)}, encoder.tensors


def decode(
    document: Json, tensors: Mapping[str, Tensor], *, map_location: MapLocation = None
) -> object:
    """Build the tree that `encode` split.

    Args:
        document: the first of what `encode` returned
        tensors: the second
        map_location: where tensors go that were not on the CPU (those that were stay there: the
            state of a random generator must): a device, or a function from the name of the device
            they were on to a device. None leaves all on the CPU.

    Raises:
        Undecodable: when this is not what `encode` returned
    """
    if not isinstance(document, dict) or set(document) != {"tree", "tensors"}:
        raise Undecodable("it does not hold a tree and a list of tensors")
    details = document["tensors"]
    if not isinstance(details, dict) or set(details) != set(tensors):
        raise Undecodable("it does not name the tensors that are there")
    try:
        restored = {
            name: unpack(tensors[name], detail, _placing(map_location))
            for name, detail in details.items()
        }
        return _Decoder(restored).decode(document["tree"])
    except RecursionError:
        raise Undecodable("it is nested too deeply") from None
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise Undecodable(str(error)) from error


def _placing(map_location: MapLocation) -> Callable[[str], str | torch.device]:
    if map_location is None:
        return lambda device: "cpu"
    if isinstance(map_location, (str, torch.device)):
        return lambda device: map_location
    return map_location


def address(path: Path) -> str:
    """A path as a person writes it: ``loops.fit.batches[3].x``."""
    steps = []
    while path is not None:
        path, key, named = path
        steps.append((key, named))
    text = ""
    for key, named in reversed(steps):
        if named and isinstance(key, str):
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text


def _length(path: Path) -> int:
    length = 0
    while path is not None:
        path, length = path[0], length + 1
    return length


def _check_key(value: object, path: Path) -> None:
    """Refuse what cannot be a key of a dict or an item of a set, at any depth."""
    if type(value) in (tuple, frozenset):
        assert isinstance(value, (tuple, frozenset))
        for item in value:
            _check_key(item, path)
    elif not is_key(value):
        raise Unwritable(
            address(path),
            f"{value!r}, of type {type(value).__qualname__}, is a key or an item of a set here",
            "use keys of str, int, float, bool, None, bytes, or tuples of them",
        )


class _Deep(Exception):
    """A tree that is nested very deeply, or that contains itself."""


class _Encoder:
    """Encodes a tree; raises `_Deep` where a `_CarefulEncoder` has to say what is wrong with it, if anything is."""

    _is_careful = False

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.details: dict[str, Detail] = {}
        self._names: dict[int, str] = {}
        self._alive: list[object] = []  # an id is only an object's while the object is alive
        self._depth = 0
        self._by_type: dict[type, Callable[[object, Path], Json]] = {
            list: self._list,
            tuple: lambda value, path: {"$tuple": self._list(value, path)},
            torch.Size: lambda value, path: {"$size": self._list(value, path)},
            set: lambda value, path: {"$set": self._set(value, path)},
            frozenset: lambda value, path: {"$frozenset": self._set(value, path)},
            dict: self._dict,
            OrderedDict: self._ordered_dict,
            Tensor: self._tensor,
            nn.Parameter: self._tensor,
            nn.Buffer: self._tensor,
            np.ndarray: self._tensor,
        }

    def encode(self, value: object, path: Path) -> Json:
        # Each checkpoint comes by here some hundred times in the foreground: no call lies between.
        container = self._by_type.get(type(value))
        if container is None:
            try:
                return encode_leaf(value)
            except NotALeaf:
                if (record := record_of(value)) is None:
                    raise _not_plain(value, path) from None
                container = partial(self._record, *record)
        self._depth += 1
        if self._depth > _DEPTH:
            raise _Deep
        encoded = container(value, path)
        self._depth -= 1
        return encoded

    def _list(self, value: object, path: Path) -> list[Json]:
        assert isinstance(value, (list, tuple))
        if not value:
            return []
        if type(value[0]) is int and _all_small_integers(value):
            return list(value)  # a permutation of a million indices takes no time
        return [self.encode(item, (path, i, False)) for i, item in enumerate(value)]

    def _set(self, value: object, path: Path) -> list[Json]:
        """The items in an order that does not depend on the process's seed for hashes."""
        assert isinstance(value, (set, frozenset))
        return sorted((self._hashable(item, path) for item in value), key=repr)

    def _dict(self, value: object, path: Path) -> Json:
        assert isinstance(value, dict)
        encoded: dict[str, Json] = {}
        careful = self._is_careful
        for key, item in value.items():
            if type(key) is not str or key[:1] == "$":
                break
            if not key.isascii() and has_surrogates(key):
                break
            kind = type(item)
            if (
                kind is bool
                or kind is NoneType
                or (kind is str and item.isascii())
                or (kind is int and -_LONG <= item < _LONG)
                or (kind is float and isfinite(item))
            ):
                encoded[key] = item  # as `encode` returns it: most values are of these kinds
            elif kind is dict and not careful:
                self._depth += 1
                if self._depth > _DEPTH:
                    raise _Deep
                encoded[key] = self._dict(item, (path, key, True))
                self._depth -= 1
            else:
                encoded[key] = self.encode(item, (path, key, True))
        else:
            return encoded
        # What was encoded so far is not encoded again: in a deep tree that would double at each level.
        done = len(encoded)
        pairs: list[Json] = []
        for place, (key, item) in enumerate(value.items()):
            name = self._hashable(key, path)
            inside = encoded[key] if place < done else self.encode(item, (path, key, True))
            pairs.append([name, inside])
        return {"$dict": pairs}

    def _hashable(self, value: object, path: Path) -> Json:
        """A key of a dict or an item of a set: plain, immutable, and not a tensor."""
        _check_key(value, path)
        return self.encode(value, path)

    def _ordered_dict(self, value: object, path: Path) -> Json:
        """What `nn.Module.state_dict` returns, with the versions of the modules that it carries."""
        assert isinstance(value, OrderedDict)
        metadata = getattr(value, _MODULE_METADATA, None)
        content = self._dict(value, path)
        return {"$ordered": [content, self.encode(metadata, (path, _MODULE_METADATA, True))]}

    def _record(self, name: Name, fields: dict[str, object], _value: object, path: Path) -> Json:
        return {"$record": [*name, self._dict(fields, path)]}

    def _tensor(self, value: object, path: Path) -> Json:
        assert isinstance(value, (Tensor, np.ndarray))
        if id(value) not in self._names:
            try:
                tensor, detail = pack(value)
            except TensorNotPlain as error:
                raise Unwritable(address(path), error.problem, error.remedy) from None
            name = self._free_name(address(path) or "tensor")
            self.tensors[name], self.details[name] = tensor, detail
            self._names[id(value)] = name
            self._alive.append(value)
        return {"$tensor": self._names[id(value)]}

    def _free_name(self, wanted: str) -> str:
        """Two addresses may read the same: ``{"a.b": x}`` and ``{"a": {"b": y}}``."""
        name = wanted
        if not wanted.isascii():
            name = wanted.encode("utf-8", "backslashreplace").decode("utf-8")
        candidate, count = name, 1
        while candidate in self.tensors or candidate == "__metadata__":
            count += 1
            candidate = f"{name}#{count}"
        return candidate


class _CarefulEncoder(_Encoder):
    """Knows the containers around each value, so that it can name the place where a tree contains itself."""

    _is_careful = True

    def __init__(self) -> None:
        super().__init__()
        self._open: set[int] = set()

    def encode(self, value: object, path: Path) -> Json:
        here, around = id(value), self._open
        if here in around:
            raise Unwritable(address(path), "it contains itself", "break the cycle")
        # The depth of a key is that of its container.
        if len(around) >= _DEPTH and _length(path) >= _DEPTH and self._is_container(value):
            raise Unwritable(
                address(path), f"it is nested deeper than {_DEPTH} levels", "flatten the tree"
            )
        self._depth = 0
        around.add(here)
        encoded = super().encode(value, path)
        around.discard(here)
        return encoded

    def _is_container(self, value: object) -> bool:
        return type(value) in self._by_type or record_of(value) is not None


def _not_plain(value: object, path: Path) -> Unwritable:
    kind = type(value)
    what = f"a {kind.__module__}.{kind.__qualname__} is not plain data"
    return Unwritable(address(path), what, remedy(value))


class _Decoder:
    def __init__(self, tensors: Mapping[str, Tensor | np.ndarray]) -> None:
        self._tensors = tensors
        self._by_tag: dict[str, Callable[[Json], object]] = {
            **DECODERS,
            "$tuple": lambda content: tuple(self._list(content)),
            "$size": lambda content: torch.Size(map(integer_of, items_of(content))),
            "$set": lambda content: set(self._list(content)),
            "$frozenset": lambda content: frozenset(self._list(content)),
            "$dict": lambda content: dict(self._pair(item) for item in items_of(content)),
            "$ordered": self._ordered_dict,
            "$record": self._record,
            "$tensor": lambda content: self._tensors[text_of(content)],
        }

    def decode(self, value: Json) -> object:
        if isinstance(value, list):
            return self._list(value)
        if not isinstance(value, dict):
            return value
        tags = [key for key in value if key.startswith("$")]
        if not tags:
            return {key: self.decode(item) for key, item in value.items()}
        if len(value) != 1 or tags[0] not in self._by_tag:
            raise Undecodable(f"{tags[0]!r} means nothing here")
        return self._by_tag[tags[0]](value[tags[0]])

    def _list(self, value: Json) -> list[object]:
        items = items_of(value)
        if _all_small_integers(items):
            return list(items)
        return [self.decode(item) for item in items]

    def _pair(self, value: Json) -> tuple[object, object]:
        key, item = items_of(value)
        return self.decode(key), self.decode(item)

    def _record(self, value: Json) -> object:
        module, name, fields = items_of(value)
        inside = self.decode(fields)
        if not isinstance(inside, dict):
            raise Undecodable("a record has no fields")
        return rebuilt((text_of(module), text_of(name)), inside)

    def _ordered_dict(self, value: Json) -> OrderedDict[object, object]:
        content, metadata = map(self.decode, items_of(value))
        if not isinstance(content, dict):
            raise Undecodable("an ordered dict has no content")
        restored = OrderedDict(content)
        if metadata is not None:
            setattr(restored, _MODULE_METADATA, metadata)
        return restored


def _all_small_integers(items: list[Json] | list[object] | tuple[object, ...]) -> bool:
    kinds = set(map(type, items))
    if kinds != {int}:
        return False
    return min(items) >= -(2**63) and max(items) < 2**63  # type: ignore[type-var, operator]
