"""Short texts that tell whether data, or a function, are those of a checkpoint. They are compared as settings are."""

from __future__ import annotations

import sys
import types
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.data.own_generators import parts_of
from statemachine_trainer.loops.context import Context
from statemachine_trainer.snapshot.kinds import is_users, named

_ELEMENTS: Final = 1 << 14
"""Elements of a tensor or an array that are read, spread over it."""

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))
_PARTS: Final = 8


class Contents:
    """What the tensors and arrays hold that the data sets of a fit have as attributes.

    They are read once for each loader, before training may change them.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, dict[str, str]]] = {}

    def of(self, context: Context) -> dict[str, dict[str, str]]:
        """Return a text for each tensor and array, by loader."""
        named_feeds = [("train", context.train), *context.validation]
        loaders = {name: feed.loader for name, feed in named_feeds if feed is not None}
        known, self._known = self._known, {}
        for loader in loaders.values():
            if isinstance(loader, DataLoader):
                self._known[id(loader)] = known.get(id(loader)) or (loader, _contents(loader))
        return {
            f"the content of the data {name}": self._known[id(loader)][1]
            for name, loader in loaders.items()
            if id(loader) in self._known
        }


def functions_of(thing: object) -> dict[str, str]:
    """Return a text for each function of a user that an object, such as a scheduler, has as an attribute."""
    found = {}
    for name, value in named(thing):
        for path, one in _each(name, value).items():
            if (text := _function(one)) is not None:
                found[path] = text
    return found


def compiler() -> str:
    """Return what the code of functions depends on besides their source."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}"


# -- Data -----------------------------------------------------------------------------------------


def _contents(loader: DataLoader[Any]) -> dict[str, str]:
    found = {}
    for path, part in parts_of(loader).items():
        if path.startswith("dataset"):
            for name, value in named(part):
                for key, one in _each(name, value).items():
                    if (text := _numbers(one)) is not None:
                        found[f"{path}.{key}"] = text
    return found


def _each(name: str, value: Any) -> dict[str, object]:
    """Return the elements of a short list or tuple, or a value alone, by name."""
    if type(value) in (list, tuple) and len(value) <= _PARTS:
        return {f"{name}[{place}]": one for place, one in enumerate(value)}
    return {name: value}


def _numbers(value: Any) -> str | None:
    """Return shape and checksum of a plain tensor or array in memory; None of anything else."""
    if type(value) is torch.Tensor:
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.dtype not in _DTYPES:
            return None
        value = value.detach().resolve_conj().resolve_neg()
        flat = value.reshape(-1) if value.is_contiguous() else value[:_ELEMENTS].reshape(-1)
        taken = flat[:: max(1, len(flat) // _ELEMENTS)].numpy()
    elif type(value) is np.ndarray and value.dtype.kind in "biufc":
        flat = value.reshape(-1) if value.flags.c_contiguous else value[:_ELEMENTS].reshape(-1)
        taken = flat[:: max(1, len(flat) // _ELEMENTS)]
    else:
        return None
    return f"{tuple(value.shape)} #{zlib.crc32(np.ascontiguousarray(taken).tobytes()):08x}"


_DTYPES: Final = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16),
        *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
    }
)  # that numpy has


# -- Functions ------------------------------------------------------------------------------------


def _function(value: object) -> str | None:
    """Say what a function of a user does: a checksum of its code, its constants and its variables."""
    given: dict[str, object] = {}
    if type(value) is partial:
        given = {**{str(n): one for n, one in enumerate(value.args)}, **value.keywords}
        value = value.func
    value = value.__func__ if type(value) is types.MethodType else value
    if type(value) is not types.FunctionType or not is_users(value.__module__):
        return None
    variables = {**dict(_variables(value)), **given}
    constants = [one for one in value.__code__.co_consts if type(one) in _PLAIN[:5]]
    texts = [f"code #{_code(value.__code__):08x}"]
    texts += [f"constants {constants}"] if constants else []
    texts += [f"{name}={one!r}" for name, one in variables.items() if type(one) in _PLAIN]
    return f"{value.__qualname__} with {', '.join(texts)}"[:500]


def _code(code: types.CodeType) -> int:
    found = zlib.crc32(code.co_code + repr((code.co_names, code.co_varnames)).encode())
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            found = zlib.crc32(_code(one).to_bytes(4, "little"), found)
        elif type(one) in (*_PLAIN, tuple):
            found = zlib.crc32(repr(one).encode(), found)
    return found


def _variables(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # nothing in it yet
            continue
    space: Mapping[str, object] = function.__globals__
    yield from ((name, space[name]) for name in function.__code__.co_names if name in space)
    defaults = function.__defaults__ or ()
    names = reversed(function.__code__.co_varnames[: function.__code__.co_argcount])
    yield from islice(zip(names, reversed(defaults), strict=False), len(defaults))
