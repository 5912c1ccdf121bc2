"""Short texts that tell whether the data are those of a checkpoint. They are compared as settings are."""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader

from statemachine_trainer.audit.functions import each
from statemachine_trainer.data.own_generators import parts_of
from statemachine_trainer.loops.context import Context
from statemachine_trainer.snapshot.kinds import named
from statemachine_trainer.snapshot.tensor_file import plain_bytes

_ELEMENTS: Final = 1 << 14
"""Elements of a tensor or an array that are read, spread over it."""


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


def _contents(loader: DataLoader[Any]) -> dict[str, str]:
    found = {}
    for path, part in parts_of(loader).items():
        if path.startswith("dataset"):
            for name, value in named(part):
                for key, one in each(name, value).items():
                    if (text := numbers(one)) is not None:
                        found[f"{path}.{key}"] = text
    return found


def numbers(value: Any, most: int = _ELEMENTS) -> str | None:
    """Return shape and checksum of a plain tensor or array in memory; None of anything else.

    Args:
        value: Anything.
        most: Elements that are read, spread over it.
    """
    if type(value) is torch.Tensor:
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.dtype not in _DTYPES:
            return None
        value = value.detach().resolve_conj().resolve_neg()
        flat = value.reshape(-1) if value.is_contiguous() else value[:most].reshape(-1)
        taken: Any = plain_bytes(flat[:: max(1, len(flat) // most)])
    elif type(value) is np.ndarray and value.dtype.kind in "biufc":
        flat = value.reshape(-1) if value.flags.c_contiguous else value[:most].reshape(-1)
        taken = np.ascontiguousarray(flat[:: max(1, len(flat) // most)]).tobytes()
    else:
        return None
    return f"{tuple(value.shape)} #{zlib.crc32(taken):08x}"


_DTYPES: Final = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16),
        *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
    }
)  # that numpy has
