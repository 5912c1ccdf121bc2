"""Digests of tensors: computed where the tensors lie, and read later.

The bytes of a tensor are taken as 64-bit words, the last one filled with zeros. Of a short tensor the
digest is the sum of its words, their bits mixed, each times an odd number of its place. A long one is laid
out as a table: the sums of its columns and of its rows are combined so. All is modulo 2^64, so the order of
summation does not matter, and a digest is the same on every device.

Two tensors that differ have the same digest by chance, about once in 2^64, unless the differences cancel in
each row and in each column of the table at once. Errors of computing do not do that; somebody who wants to
could. `torch.hash_tensor`, the exclusive or of all elements, sees neither the order of the elements nor a
value that stands there twice, and is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from statemachine_trainer.snapshot.tensor_file import bytes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHORT: Final = 1 << 12
"""Words of a tensor that is taken as one row."""

_USUAL: Final = (Tensor, nn.Parameter)
_FLOATS: Final = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})

_LONG: Final = 1 << 20
_COLUMNS: Final = 255
_COLUMNS_OF_LONG: Final = 4095
"""Odd numbers, so that the same change of all words of a row never cancels."""

_PARTS: Final = 3
_ODD: Final = 0x2545F4914F6CDD1D
_LOW: Final = 0xFFFFFFFF

_STEP: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


class Digests:
    """The digests of some tensors, as they are at this moment. Making them waits for nothing.

    Args:
        tensors: The tensors. One without plain bytes, such as a sparse one, has the digest 0.

    Attributes:
        seen: Which of them have a digest.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.seen = [False] * len(tensors)
        self._size = len(tensors)
        found: dict[torch.device, list[tuple[int, int, Tensor]]] = {}
        with torch.no_grad():
            for index, tensor in enumerate(tensors):
                words = words_of(tensor)
                if words is not None:
                    self.seen[index] = True
                    rows = found.setdefault(words.device, [])
                    rows += [(part, index, one) for part, one in enumerate(_rows(words))]
            self._parts = [_on_its_way(device, rows) for device, rows in found.items()]

    @property
    def ready(self) -> bool:
        """Whether `read` returns at once."""
        return all(event is None or event.query() for _, _, event in self._parts)

    def read(self) -> NDArray[np.uint64]:
        """Return the digests, in the order of the tensors. This may wait for a device."""
        sums = np.zeros((_PARTS, self._size), dtype=np.uint64)
        for places, found, event in self._parts:
            if event is not None:
                event.synchronize()
            sums[places] = found.numpy().view(np.uint64)
        sums += np.arange(1, _PARTS + 1, dtype=np.uint64)[:, None] * np.uint64(_STEP)
        digests: NDArray[np.uint64] = np.bitwise_xor.reduce(_mixed(sums), axis=0)
        return np.where(self.seen, digests, np.uint64(0))


def words_of(tensor: Tensor) -> Tensor | None:
    """Return the bytes of a tensor in the order of its elements, as words of 64 bits; None if it has no plain ones."""
    usual = type(tensor) in _USUAL and tensor.dtype in _FLOATS and not tensor.is_meta
    if usual and tensor.is_contiguous():
        each = tensor.element_size()
        if tensor.numel() * each % 8 or tensor.storage_offset() * each % 8:
            return _copied(tensor.detach())
        return tensor.detach().view(-1).view(torch.int64)
    if hasattr(tensor, "to_local"):  # one of several ranks holds a part
        tensor = tensor.to_local()
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    if is_lazy(tensor):
        return None
    try:
        return _copied(tensor.detach().resolve_conj().resolve_neg().contiguous())
    except (RuntimeError, NotImplementedError, TypeError):  # a tensor of another library
        return None


def _copied(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor as words, filled up with zeros."""
    flat = tensor.reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":  # faster for short ones, of which there are many
        held = bytes(bytes_of(flat))
        return torch.frombuffer(bytearray(held + bytes(-len(held) % 8)), dtype=torch.int64)
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8, device=flat.device)
    padded[: flat.numel()] = flat
    return padded.view(torch.int64)


def _rows(words: Tensor) -> tuple[Tensor, ...]:
    """Return what the digest is made of: the words of a short tensor; of a long one three rows of words."""
    size = words.numel()
    if size <= _SHORT:
        return (words,)
    columns = _COLUMNS if size < _LONG else _COLUMNS_OF_LONG
    rows = size // columns
    table = words[: rows * columns].view(rows, columns)
    return table.sum(0), table.sum(1), words[rows * columns :]


def _on_its_way(
    device: torch.device, rows: Sequence[tuple[int, int, Tensor]]
) -> tuple[tuple[list[int], list[int]], Tensor, Any]:
    """Sum the words of each row by their places, and let the sums come to the CPU.

    All rows of a device are one long one, so that many short tensors are a few operations.

    Args:
        device: Where they lie.
        rows: For each row which part of a tensor it is, which tensor, and its words.

    Returns:
        Parts and tensors; the sums; the event after which they are here, None if they are.
    """
    weights, ends = _weights(device, tuple(one.numel() for _, _, one in rows))
    words = torch.cat([one for _, _, one in rows])
    # The bits are mixed first: floats often differ in the highest ones alone.
    words *= _ODD
    words ^= (words >> 32).bitwise_and_(_LOW)
    sums = words.mul_(weights).cumsum(0)
    sums = torch.cat((sums.new_zeros(1), sums))[ends].diff()
    places = [part for part, _, _ in rows], [index for _, index, _ in rows]
    if device.type != "cuda":
        return places, sums.cpu(), None
    here = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    here.copy_(sums, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return places, here, event


@lru_cache(maxsize=8)
def _weights(device: torch.device, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return what the words of rows are multiplied with, odd numbers that look random; and where each row ends."""
    places = np.arange(1, max(sizes) + 1, dtype=np.uint64) * np.uint64(_STEP)
    numbers = (_mixed(places) | np.uint64(1)).view(np.int64)
    weights = np.concatenate([numbers[:size] for size in sizes])
    ends = np.cumsum((0, *sizes))
    return torch.from_numpy(weights).to(device), torch.from_numpy(ends).to(device)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of 64-bit numbers (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_FIRST)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(_SECOND)
    return numbers ^ (numbers >> np.uint64(31))
