"""Digests of tensors: computed where the tensors lie, and read later.

The digest of a short tensor is the sum of its elements. Each is read as a whole number, its bits are mixed,
and it is multiplied by an odd number that belongs to its place. A long tensor is read as words of 64 bits and
laid out as a table. The sums of its columns and of its rows are combined in the same way. All is modulo 2^64,
so the order of summation does not matter, and a digest is the same on every device.

Two elements that change places lie in two rows or in two columns, so sums of the table change with them. Two
tensors that differ should have the same digest only by chance, about once in 2^64, unless the differences
cancel in each row and in each column of the table at once, as those of a rectangle can. Errors of computing
hardly do that; somebody who wants to could. `torch.hash_tensor`, the exclusive or of all elements, sees
neither the order of the elements nor a value that stands there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION: Final = 2
"""Of the way in which digests are computed. Those of two versions tell nothing about each other."""

_SHORT: Final = 1 << 14
"""Bytes of a tensor that is taken as one row."""

_USUAL: Final = (Tensor, nn.Parameter)
_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_LONG: Final = 1 << 21
_COLUMNS: Final = 384
_COLUMNS_OF_LONG: Final = 3072
"""Columns of a table, and of one with many words. Multiples of 128 are summed fastest on CPUs."""

_PARTS: Final = 4
_ODD: Final = 0x2545F4914F6CDD1D

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
        self.seen = [True] * len(tensors)
        found: dict[torch.device, _Rows] = {}
        with torch.no_grad():
            for index, tensor in enumerate(tensors):
                plain = _plain(tensor)
                if plain is None:
                    self.seen[index] = False
                    continue
                rows = found.get(plain.device)
                if rows is None:
                    rows = found[plain.device] = _Rows()
                rows.add(index, plain)
            self._parts = [_on_its_way(device, rows) for device, rows in found.items()]

    @property
    def ready(self) -> bool:
        """Whether `read` returns at once."""
        return all(event is None or event.query() for _, _, event in self._parts)

    def read(self) -> NDArray[np.uint64]:
        """Return the digests, in the order of the tensors. This may wait for a device."""
        sums = np.zeros((len(self.seen), _PARTS), dtype=np.uint64)
        for places, found, event in self._parts:
            if event is not None:
                event.synchronize()
            sums.put(places, found)
        sums += _OF_PARTS
        digests: NDArray[np.uint64] = np.bitwise_xor.reduce(_mixed(sums), axis=1)
        if not all(self.seen):
            digests[np.logical_not(self.seen)] = 0
        return digests


class _Rows:
    """What the digests of the tensors of one device are sums of.

    Attributes:
        short: Short tensors, flat, by type; of each its place among the sums.
        long: Words of long ones, row by row.
    """

    def __init__(self) -> None:
        self.short: dict[torch.dtype, tuple[list[int], list[Tensor]]] = {}
        self.long: tuple[list[int], list[Tensor]] = [], []

    def add(self, index: int, plain: Tensor) -> None:
        """Take a contiguous tensor."""
        place = _PARTS * index
        if plain.nbytes <= _SHORT:
            places, rows = self.short.setdefault(plain.dtype, ([], []))
            places.append(place)
            rows.append(plain.view(-1))
            return
        words, rest = _words_of(plain)
        size = words.numel()
        columns = _COLUMNS if size < _LONG else _COLUMNS_OF_LONG
        # An odd number, so that the same change of all words does not cancel in the columns.
        count = (size // columns - 1) | 1
        done = count * columns
        table = words.as_strided((count, columns), (columns, 1))
        places, rows = self.long
        places += place, place + 1, place + 2
        rows += table.sum(0), table.sum(1), words.narrow(0, done, size - done)
        if rest is not None:
            places.append(place + 3)
            rows.append(rest)


def _plain(tensor: Tensor) -> Tensor | None:
    """Return a tensor as a contiguous one of numbers that lie side by side; None if it is no such thing."""
    if type(tensor) not in _USUAL:
        if hasattr(tensor, "to_local"):  # one of several ranks holds a part
            tensor = tensor.to_local()
        if is_lazy(tensor):
            return None
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    if tensor.is_nested:  # its rows differ in length, so it has no flat view
        return None
    usual = type(tensor) in _USUAL and not tensor.is_conj() and not tensor.is_neg()
    return tensor if usual and tensor.is_contiguous() else _copied(tensor)


def _copied(tensor: Tensor) -> Tensor | None:
    """Return a contiguous copy, or the tensor if it is contiguous; None if it has no memory of its own."""
    try:
        found = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return found if found.data_ptr() or not found.numel() else None
    except (RuntimeError, NotImplementedError, TypeError):  # a tensor of another library
        return None


def _words_of(plain: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the words of a long contiguous tensor, and the bytes that are left over."""
    flat = plain.view(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.view(torch.uint8).clone()  # as bytes: some types cannot be copied
    each = flat.element_size()
    over = flat.numel() * each % 8
    if not over:
        return flat.view(torch.int64), None
    whole = flat.numel() - over // each
    return flat[:whole].view(torch.int64), flat[whole:].view(torch.uint8).to(torch.int64)


def _on_its_way(device: torch.device, rows: _Rows) -> tuple[list[int], Any, Any]:
    """Sum the numbers of each row by their places, and let the sums come to the CPU.

    All rows of a device are one long one, so that many short tensors are a few operations.

    Returns:
        Places of the sums; the sums; the event after which they are here, None if they are.
    """
    places, pieces = [*rows.long[0]], [*rows.long[1]]
    sizes = [one.numel() for one in pieces]
    for dtype, (more, flat) in rows.short.items():
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        wide = max(1, dtype.itemsize // 8)  # words of an element: 2 of a complex number
        places += more
        sizes += [one.numel() * wide for one in flat]
        pieces.append(_whole_numbers(joined))
    words: Any = torch.cat(pieces)
    weights: Any
    sums: Any
    weights, ends = _weights(device, tuple(sizes))
    if device.type == "cpu":  # numpy is twice as fast with so few numbers
        words, weights = words.numpy(), weights.numpy()
    # The bits are mixed first: floats often differ in the highest ones alone.
    words *= _ODD
    words += words >> 32
    words *= weights
    if device.type == "cpu":
        sums = np.zeros(len(words) + 1, dtype=np.int64)
        words.cumsum(out=sums[1:])
        return places, np.diff(sums[ends.numpy()]).view(np.uint64), None
    sums = words.cumsum(0)
    sums = torch.cat((sums.new_zeros(1), sums))[ends].diff()
    if device.type != "cuda":
        return places, sums.cpu().numpy().view(np.uint64), None
    here = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    here.copy_(sums, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return places, here.numpy().view(np.uint64), event


def _whole_numbers(flat: Tensor) -> Tensor:
    """Return the bits of elements as whole numbers of 64 bits."""
    size = flat.element_size()
    return flat.view(_INTEGERS[min(size, 8)]).to(torch.int64)


@lru_cache(maxsize=16)
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


_OF_PARTS: Final = np.arange(1, _PARTS + 1, dtype=np.uint64) * np.uint64(_STEP)
