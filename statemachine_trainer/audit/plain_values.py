"""Reads plain values so that they can be compared later: numbers, texts, containers, tensors, arrays.

No code of users runs: containers and numbers of their own classes are read as those of Python.
"""

from __future__ import annotations

import ctypes
import datetime
import enum
import time
import types
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, UserString, deque
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from statemachine_trainer.snapshot.checkpoint_folder import crc32
from statemachine_trainer.snapshot.kinds import HEAP, is_of_users, named
from statemachine_trainer.snapshot.tensor_file import plain_bytes

_ELEMENTS: Final = 400
"""Elements of a container that are looked at: the first half and the last half of them."""

_FEW: Final = 8
"""Elements of a container inside another one, above which it is not looked at."""

_DEPTH: Final = 3
_ATTRIBUTES: Final = 16
"""Attributes of an object that are compared if another one takes its place."""

_BYTES: Final = 1 << 16
"""Bytes of a tensor or an array that are read; of a larger array, as many spread over it."""

_BITS: Final = 4096
"""Bits of a number up to which Python writes it as decimals; with many more it refuses to."""

_WEEK: Final = 7 * 24 * 60 * 60.0

_ATOMS: Final = (bool, int, float, complex, str, bytes, type(None))
_BASES: Final[tuple[Any, ...]] = (int, float, complex, str, bytes)
_FIXED: Final[tuple[type, ...]] = (range, torch.dtype, torch.device)
_STANDARD: Final = ("datetime", "decimal", "fractions", "pathlib", "uuid")
"""Modules of the standard library whose objects say what they are."""

_RAW: Final = ("array.array", "builtins.bytearray", "builtins.memoryview")
_TENSORS: Final = (torch.Tensor, torch.nn.Parameter)
_FUNCTIONS: Final = frozenset({types.FunctionType, types.BuiltinFunctionType})
_CONTAINERS: Final = (OrderedDict, dict, list, tuple, deque, set, frozenset)


class Seen(NamedTuple):
    """A value as it was at one time.

    Attributes:
        content: What is compared.
        words: The value in a few words; of a tensor or an array its class, see `shown`.
        items: Of a dict, what is compared by key, if it has few; else None.
        itself: The object, of a tensor, an array or an object of a user.
        of_many: Whether it is a container.
        has_methods: Whether it is one whose class a user wrote, with methods that may change it.
        is_object: Whether it is an object of a user, whose attributes are values themselves.
        is_time: Whether it was read from a clock.
    """

    content: object
    words: str | type
    items: Mapping[object, object] | None = None
    itself: weakref.ref[Any] | None = None
    of_many: bool = False
    has_methods: bool = False
    is_object: bool = False
    is_time: bool = False

    @property
    def shown(self) -> str:
        """The value in a few words. Each checkpoint looks at many tensors, and says them of few."""
        if isinstance(self.words, str):
            return self.words
        shape, _ = cast(tuple[tuple[int, ...], object], self.content)[:2]
        return f"a {self.words.__name__} {tuple(shape)}"


class _Object:
    """An object of a user inside a container: it is another one if it is no longer there, and the new one differs.

    What changes in the object itself is told of its attributes, unless it has a state of its own.
    """

    def __init__(self, value: object, attributes: object) -> None:
        self.itself = weakref.ref(value) if type(value).__weakrefoffset__ else None
        self.attributes = attributes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Object):
            return False
        if self.attributes == other.attributes:
            return True
        return self.itself is not None and other.itself is not None and self.itself is other.itself

    def __hash__(self) -> int:
        return 0


class Reader:
    """Reads values as they are at one time.

    Args:
        held: Where numbers lie that checkpoints hold, by `address`: tensors there are left out.
    """

    def __init__(self, held: Collection[int | None]) -> None:
        self._held = held
        self._read: dict[int, tuple[object, object]] = {}  # with what has the identity

    def seen(self, value: Any) -> Seen | None:
        """Return what a value is; None of one that is no plain value, or that checkpoints hold."""
        try:
            kind = type(value)
            if (text := plain_text(value)) is not None:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                return Seen(text, shown, is_time=is_time(value))
            if is_numbers(kind):  # type: ignore[arg-type]
                content = self.numbers(value)
                if content is None:
                    return None
                return Seen(content, kind, itself=weakref.ref(value))
            if f"{kind.__module__}.{kind.__name__}" in _RAW:
                content = memoryview(value).tobytes()
                shown = f"a {kind.__name__} of {len(content)} bytes"
                return Seen((len(content), crc32(content)), shown, of_many=True)
            inner = inside_of(value)
            if (base := base_of(type(inner))) is not None:  # type: ignore[arg-type]
                return self._container(kind, inner, base)
            if kind in _FUNCTIONS:
                # Of a function that is made anew each time, such as a lambda, the code is the same.
                name = f"the function {value.__qualname__}"
                return Seen((name, getattr(value, "__code__", None)), name)
            return self._object(value) if is_of_users(kind) and not issubclass(kind, type) else None
        except Exception:  # a class of a user may do anything
            return None

    def _container(self, kind: type, inner: Any, base: Any) -> Seen:
        items, count = None, base.__len__(inner)
        if issubclass(base, dict) and count <= _ELEMENTS:
            items = {_plain_key(k): self._element(v) for k, v in [*base.items(inner)]}
        return Seen(
            self._elements(inner, base),
            f"a {kind.__name__} of {count}",
            items,
            of_many=True,
            has_methods=is_of_users(kind),
        )

    def _object(self, value: object) -> Seen:
        """Read the attributes of an object, for the case that another one takes its place."""
        kind = type(value)
        itself = weakref.ref(value) if kind.__weakrefoffset__ else None
        return Seen(self._attributes(value), f"a {kind.__name__}", itself=itself, is_object=True)

    def _attributes(self, value: object) -> object:
        inside = islice(named(value), _ATTRIBUTES)
        # A dict that serves as that of an object may have keys that compare as they like.
        return type(value), tuple(
            (name if type(name) is str else type(name), self._element(one, 0))
            for name, one in inside
        )

    def numbers(self, value: Any) -> object:
        """Return what tells whether a tensor or an array changed; None if a checkpoint holds it.

        Each is read once, in however many places it lies.
        """
        known = self._read.get(id(value))
        if known is None:
            known = self._read[id(value)] = value, self._content(value)
        return known[1]

    def _content(self, value: Any) -> object:
        if issubclass(type(value), np.ndarray):
            value = np.ndarray.view(value, np.ndarray)
            if value.dtype.hasobject:
                inside = value.reshape(-1)[:_ELEMENTS].tolist()
                return value.shape, self._elements(inside, list)
            step = max(1, value.nbytes // _BYTES)
            flat = value.reshape(-1) if value.flags.c_contiguous else value.flat
            return value.shape, crc32(np.ascontiguousarray(flat[::step]).tobytes())
        with torch._C.DisableTorchFunctionSubclass():
            where = address(value)
            if where is None or where in self._held or value.grad_fn is not None:
                return None
            if value.is_cpu and (size := value.nbytes) <= _BYTES:
                # What `_has_memory` and `checksum` say of most: many small tensors are looked at.
                if value.is_contiguous() and not value.is_conj() and not value.is_neg():
                    begin = value.storage_offset() * value.itemsize
                    if begin + size > value.untyped_storage().nbytes():
                        return None
                    return value.shape, crc32((ctypes.c_char * size).from_address(where))
                return (value.shape, checksum(value, where)) if _has_memory(value) else None
            return value.shape, where, value._version

    def _elements(self, value: Any, base: Any, depth: int = _DEPTH) -> object:
        count = base.__len__(value)
        few = count <= _FEW  # objects tell of their own attributes, but others may take their place
        if issubclass(base, set | frozenset):
            inside = islice(base.__iter__(value), _ELEMENTS)
            return count, frozenset(self._element(one, depth) for one in inside)
        if issubclass(base, dict):
            pairs = [*islice(base.items(value), _ELEMENTS)]
            return count, tuple(
                [(self._element(key, 0), self._element(one, depth, few=few)) for key, one in pairs]
            )
        if count <= _ELEMENTS:
            kept = [*base.__iter__(value)]
        else:
            half = _ELEMENTS // 2
            last = (
                islice(deque.__reversed__(value), half)
                if base is deque
                else base.__getitem__(value, slice(-half, None))
            )
            kept = [*islice(base.__iter__(value), half), *last]
        return count, tuple([self._element(one, depth, few=few) for one in kept])

    def _element(self, value: Any, depth: int = _DEPTH, *, few: bool = False) -> object:
        kind = type(value)
        if is_numbers(kind):  # type: ignore[arg-type]
            return self.numbers(value)
        if (text := plain_text(value)) is not None:
            return text
        base = base_of(kind)  # type: ignore[arg-type]
        if not depth:
            return kind
        if base is not None:
            return self._elements(value, base, depth - 1) if base.__len__(value) <= _FEW else kind
        return _Object(value, self._attributes(value)) if few and is_of_users(kind) else kind


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether the memory of a plain tensor is there: some wrappers free it between steps, and keep the tensor."""
    length = tensor.numel()
    if not tensor.is_contiguous():
        length = 1 + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
    needed = (tensor.storage_offset() + length) * tensor.itemsize
    return needed <= tensor.untyped_storage().nbytes()


def checksum(tensor: torch.Tensor, where: int) -> int:
    """Return a checksum of the numbers of a plain tensor on the CPU, in the order of its elements.

    Args:
        tensor: The tensor, whose memory is there.
        where: What `address` returned of it.
    """
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        # Many small tensors are looked at; to make a view of each takes longer than to read it.
        return crc32((ctypes.c_char * tensor.nbytes).from_address(where))
    return crc32(plain_bytes(tensor))


def address(tensor: torch.Tensor) -> int | None:
    """Return where the numbers of a plain tensor are; None of any other."""
    plain = type(tensor) in _TENSORS
    if (not plain and is_lazy(tensor)) or tensor.layout is not torch.strided or tensor.is_meta:
        return None
    if tensor.is_inference() or tensor.is_quantized or tensor.is_nested:
        return None
    try:
        return tensor.data_ptr() or None
    except (RuntimeError, NotImplementedError):  # of a class of its own
        return None


def is_cache(was: Seen, now: Seen) -> bool:
    """Whether a dict has all that it had, and more."""
    if was.items is None or now.items is None:
        return was.items is not None or now.items is not None  # it has become too large to say
    return len(now.items) > len(was.items) and was.items.items() <= now.items.items()


def plain_text(value: Any) -> str | None:
    """Return a number, a text, a member of an enum or a date in words; None of anything else."""
    kind = type(value)
    if kind is int and value.bit_length() > _BITS:
        return hex(value)
    if kind in _ATOMS:
        return repr(value)
    put = _how_to_put(kind)  # type: ignore[arg-type]
    return None if put is None else put(value)


# What only depends on the class is worked out once for each: every checkpoint asks for every value.


@lru_cache(maxsize=4096)
def _how_to_put(kind: type) -> Callable[[Any], str] | None:
    """Return what puts the objects of a class in words; None if they are not plain."""
    if issubclass(kind, enum.Enum):
        return _member
    if issubclass(kind, np.generic) and not kind.__flags__ & HEAP:
        return _of_void if kind is np.void else str
    for base in _BASES:
        if issubclass(kind, base):
            return cast(Callable[[Any], str], base.__repr__)
    return repr if kind.__module__ in _STANDARD or kind in _FIXED else None


def _member(value: Any) -> str:
    inside = object.__getattribute__(value, "__dict__")
    return f"{type(value).__name__}.{inside.get('_name_') or inside.get('_value_')!r}"


def _of_void(value: Any) -> str:
    return str(value.tobytes().hex())


@lru_cache(maxsize=4096)
def is_numbers(kind: type) -> bool:
    """Whether objects of a class are tensors or arrays that lie in memory, and are read like any other."""
    if issubclass(kind, torch.Tensor):
        return kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    return issubclass(kind, np.ndarray) and not issubclass(kind, np.memmap)


def is_time(value: object) -> bool:
    """Whether a value was read from a clock in the last week."""
    kind = type(value)
    if issubclass(kind, datetime.datetime):
        return abs(time.time() - cast(datetime.datetime, value).timestamp()) < _WEEK
    if kind is not float and kind is not int:
        if not issubclass(kind, float | int):
            return False
        # As the numbers of Python: those of a user may do anything.
        value = float.__float__(value) if issubclass(kind, float) else int.__int__(value)  # type: ignore[arg-type]
    assert isinstance(value, float | int)
    if value < 1000:
        return False
    clocks = (time.time(), time.perf_counter(), time.monotonic())
    if isinstance(value, int):  # in nanoseconds
        return 1e12 < value < 1e20 and any(0 <= clock - value * 1e-9 < _WEEK for clock in clocks)
    return value % 1 != 0 and any(0 <= clock - value < _WEEK for clock in clocks)


def inside_of(value: object) -> object:
    """Return what a container of `collections` has inside, or a weak one; or the value itself."""
    kind = type(value)
    if issubclass(kind, weakref.WeakValueDictionary | weakref.WeakKeyDictionary):
        # A copy: an element may go at any moment.
        return dict(object.__getattribute__(value, "__dict__")["data"])
    if issubclass(kind, UserDict | UserList | UserString | ChainMap):
        name = "maps" if issubclass(kind, ChainMap) else "data"
        return object.__getattribute__(value, "__dict__").get(name)
    return value


@lru_cache(maxsize=4096)
def base_of(kind: type) -> Any:
    """Return the class of Python that the objects of a class are read as."""
    return next((one for one in _CONTAINERS if issubclass(kind, one)), None)


def _plain_key(key: object) -> object:
    return key if type(key) in _ATOMS else repr(type(key))
