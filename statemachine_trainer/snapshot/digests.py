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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION: Final = 3
"""Of the way in which digests are computed. Those of two versions tell nothing about each other."""

_SHORT: Final = 1 << 14
"""Bytes of a tensor that is taken as one row."""

_USUAL: Final = frozenset((Tensor, nn.Parameter))
_NUMBERS: Final = frozenset(
    (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.bool,
    )
)
"""Types of tensors that have a short way; the others have a longer one."""

_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_COLUMNS: Final = 128, 192, 320, 384, 640, 1152, 1920, 3072
"""What a table may have. Its columns are summed fast on CPUs if their number is a multiple of 64 and no power of 2."""

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
        described: What each of them is, such as `float32 (10, 3)`; "?" if it has no digest.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad():
            plain = [_plain(one) for one in tensors]
            self.seen = [one is not None for one in plain]
            devices = {one.device for one in plain if one is not None}
            self._parts = [
                _Part(
                    device,
                    [
                        at
                        for at, one in enumerate(plain)
                        if one is not None and one.device == device
                    ],
                    plain,
                )
                for device in devices
            ]
        self.described = ["?"] * len(tensors)
        for part in self._parts:
            for at, described in zip(part.indices, part.plan.described, strict=True):
                one = tensors[at]
                # Of a tensor of which several ranks hold parts, the whole is what is described.
                self.described[at] = (
                    described if one is plain[at] else _layout_of(one.dtype, one.shape).described
                )

    @property
    def ready(self) -> bool:
        """Whether `read` returns at once."""
        return all(part.event is None or part.event.query() for part in self._parts)

    def read(self) -> NDArray[np.uint64]:
        """Return the digests, in the order of the tensors. This may wait for a device."""
        digests = np.zeros(len(self.seen), dtype=np.uint64)
        for part in self._parts:
            digests[part.indices] = part.digests()
        return digests


class _Layout(NamedTuple):
    """How the digest of a contiguous tensor is computed.

    Attributes:
        described: Its type and its shape, in words.
        is_flat: Whether it has one dimension.
        sizes: Words of each row of what is summed. Of a short tensor: its elements. Of a long one: the sums of the
            columns and of the rows of its table, words that are no part of the table, and bytes that are no part of
            a word.
        table: Rows and columns, of a long tensor.
        strides: Of the table.
        done: Words of the table.
        after: Words that are no part of the table.
        words: Words of the tensor.
    """

    described: str
    is_flat: bool
    sizes: tuple[int, ...]
    table: tuple[int, int] | None = None
    strides: tuple[int, int] = (0, 1)
    done: int = 0
    after: int = 0
    words: int = 0


@lru_cache(maxsize=8192)
def _layout_of(dtype: torch.dtype, shape: torch.Size) -> _Layout:
    """Return how the digest of a tensor is computed, which its type and its shape tell."""
    described = f"{str(dtype)[6:]} {(*shape,)}"
    is_flat = len(shape) == 1
    length = shape.numel() * dtype.itemsize
    if length <= _SHORT:
        # An element of 16 bytes, a complex number, is 2 words.
        return _Layout(described, is_flat, (shape.numel() * max(1, dtype.itemsize // 8),))
    words, over = divmod(length, 8)
    # An odd number of rows, so that the same change of all words does not cancel in the columns.
    tables = [((words // columns - 1) | 1, columns) for columns in _COLUMNS]
    rows, columns = min(
        (one for one in tables if one[0] > 0),
        key=lambda one: one[0] + one[1] + words - one[0] * one[1],
    )
    done = rows * columns
    after = words - done
    sizes = columns, rows, after, over
    return _Layout(described, is_flat, sizes, (rows, columns), (columns, 1), done, after, words)


class _Plan(NamedTuple):
    """How the digests of some tensors of one device are computed.

    Attributes:
        described: What each of them is.
        long: Long tensors: which, and how.
        short: By type: short tensors that have one dimension, and others.
        places: Of each row of what is summed, its place among the sums: tensors by `_PARTS`.
        weights: What the words of all rows are multiplied with: odd numbers that look random.
        begins: Where each row begins.
    """

    described: list[str]
    long: list[tuple[int, _Layout]]
    short: list[list[tuple[int, bool]]]
    places: list[int]
    weights: Tensor
    begins: Tensor


@lru_cache(maxsize=16)
def _plan_of(
    device: torch.device, dtypes: tuple[torch.dtype, ...], shapes: tuple[torch.Size, ...]
) -> _Plan:
    layouts = [*map(_layout_of, dtypes, shapes)]
    long = [(at, one) for at, one in enumerate(layouts) if one.table is not None]
    short: dict[torch.dtype, list[tuple[int, bool]]] = {}
    for at, one in enumerate(layouts):
        if one.table is None:
            short.setdefault(dtypes[at], []).append((at, one.is_flat))
    in_turn = [at for at, _ in long] + [at for each in short.values() for at, _ in each]
    rows = [
        (_PARTS * at + part, size)
        for at in in_turn
        for part, size in enumerate(layouts[at].sizes)
        if size
    ]
    places, sizes = [place for place, _ in rows], [size for _, size in rows]
    numbers = np.arange(1, max(sizes, default=0) + 1, dtype=np.uint64) * np.uint64(_STEP)
    odd = (_mixed(numbers) | np.uint64(1)).view(np.int64)
    weights = np.concatenate([odd[:0], *(odd[:size] for size in sizes)])
    begins = np.cumsum((0, *sizes))[:-1]
    return _Plan(
        [one.described for one in layouts],
        long,
        [*short.values()],
        places,
        torch.from_numpy(weights).to(device),
        torch.from_numpy(begins).to(device),
    )


class _Part:
    """The digests of those tensors that lie on one device.

    Args:
        device: The device.
        indices: Which of the tensors.
        tensors: Contiguous tensors.

    Attributes:
        indices: Which of the tensors.
        plan: How the digests are computed.
        event: After it the sums are here; None if they are.
    """

    def __init__(
        self, device: torch.device, indices: list[int], tensors: Sequence[Tensor | None]
    ) -> None:
        plain: list[Any] = [tensors[at] for at in indices]
        self.indices = indices
        self.event: Any = None
        self.plan = _plan_of(
            device, tuple([one.dtype for one in plain]), tuple([one.shape for one in plain])
        )
        # All rows of a device are one long one, so that many short tensors are a few operations.
        rows: list[Tensor] = []
        for at, layout in self.plan.long:
            _add_rows(rows, plain[at], layout)
        for each in self.plan.short:
            flat = [plain[at] if is_flat else plain[at].view(-1) for at, is_flat in each]
            rows.append(_whole_numbers(flat[0] if len(flat) == 1 else torch.cat(flat)))
        self._sums = self._on_their_way(device, torch.cat(rows))

    def digests(self) -> NDArray[np.uint64]:
        """Return the digests. This may wait for the device."""
        if self.event is not None:
            self.event.synchronize()
        sums = np.zeros((len(self.indices), _PARTS), dtype=np.uint64)
        sums.put(self.plan.places, self._sums)
        sums += _OF_PARTS
        found: NDArray[np.uint64] = np.bitwise_xor.reduce(_mixed(sums), axis=1)
        return found

    def _on_their_way(self, device: torch.device, words: Any) -> Any:
        """Sum the words of each row by their places, and let the sums come to the CPU."""
        weights: Any = self.plan.weights
        begins: Any = self.plan.begins
        if not len(begins):
            return ()
        if device.type == "cpu":  # numpy is twice as fast with so few numbers
            return _summed_by_numpy(words.numpy(), weights.numpy(), begins.numpy())
        sums = _summed_by_torch(words, weights, begins)
        if device.type != "cuda":
            return sums.cpu().numpy().view(np.uint64)
        here = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
        here.copy_(sums, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record(torch.cuda.current_stream(device))
        return here.numpy().view(np.uint64)


def _summed_by_numpy(words: Any, weights: Any, begins: Any) -> NDArray[np.uint64]:
    """Return the sum of each row, in which each word counts by its place."""
    # The bits are mixed first: floats often differ in the highest ones alone.
    words *= _ODD
    words += words >> 32
    words *= weights
    return np.add.reduceat(words, begins).view(np.uint64)


def _summed_by_torch(words: Tensor, weights: Tensor, begins: Tensor) -> Tensor:
    """Return the same sums, where they are to stay on a device."""
    words *= _ODD
    words += words >> 32
    words *= weights
    before = torch.cat((words.new_zeros(1), words.cumsum(0)))
    ends = torch.cat((begins, begins.new_full((1,), len(words))))
    return before[ends].diff()


def _add_rows(rows: list[Tensor], plain: Tensor, layout: _Layout) -> None:
    """Add what is summed of a long contiguous tensor."""
    assert layout.table is not None
    words, over = _words_of(plain, layout.words)
    table = words.as_strided(layout.table, layout.strides)
    rows += table.sum(0), table.sum(1)
    if layout.after:
        at = words.storage_offset() + layout.done
        rows.append(words.as_strided((layout.after,), (1,), at))
    if over is not None:
        rows.append(over)


def _plain(tensor: Tensor) -> Tensor | None:
    """Return a tensor as a contiguous one of numbers that lie side by side; None if it is no such thing."""
    if (
        type(tensor) in _USUAL
        and tensor.dtype in _NUMBERS
        and tensor.layout is torch.strided
        and not (tensor.is_neg() or tensor.is_conj() or tensor.is_nested or tensor.is_meta)
        and tensor.is_contiguous()
    ):
        return tensor
    if type(tensor) not in _USUAL:
        if hasattr(tensor, "to_local"):  # one of several ranks holds a part
            tensor = tensor.to_local()
        if is_lazy(tensor):
            return None
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    if tensor.is_nested:  # its rows differ in length, so it has no flat view
        return None
    return _copied(tensor)


def _copied(tensor: Tensor) -> Tensor | None:
    """Return a contiguous copy, or the tensor if it is contiguous; None if it has no memory of its own."""
    try:
        found = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return found if found.data_ptr() or not found.numel() else None
    except (RuntimeError, NotImplementedError, TypeError):  # a tensor of another library
        return None


def _words_of(plain: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Return the words of a long contiguous tensor, and the bytes that are left over."""
    each = plain.element_size()
    if plain.storage_offset() * each % 8:
        # Copied as bytes, because some types cannot be copied.
        plain, each = plain.view(-1).view(torch.uint8).clone(), 1
    if plain.shape[-1] * each % 8 == 0:  # each of its rows is whole words: no more views are needed
        try:
            return plain.view(torch.int64), None
        except RuntimeError:
            pass  # a dimension of size 1 may have any stride, such as that of `x[:, :-1]`
    flat = plain.view(-1)
    whole = 8 * size // each
    if whole == flat.numel():
        return flat.view(torch.int64), None
    return flat[:whole].view(torch.int64), flat[whole:].view(torch.uint8).to(torch.int64)


def _whole_numbers(flat: Tensor) -> Tensor:
    """Return the bits of elements as whole numbers of 64 bits."""
    size = flat.element_size()
    if size > 8 and flat.stride(0) != 1:  # of one element, which may have any
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(_INTEGERS[min(size, 8)]).to(torch.int64)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of 64-bit numbers (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_FIRST)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(_SECOND)
    return numbers ^ (numbers >> np.uint64(31))


_OF_PARTS: Final = np.arange(1, _PARTS + 1, dtype=np.uint64) * np.uint64(_STEP)
