"""Tensors in one file of the safetensors format, written and read piece by piece.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes that hold the length N
of the header, N bytes of JSON that give the dtype, shape and place of each tensor, then their bytes
without a gap. Any program that reads safetensors reads these files. They are not written by the
safetensors library because it takes a path, not a file: its bytes could neither be checksummed on
their way nor put in the way of a failing disk.
"""

from __future__ import annotations

import ctypes
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from statemachine_trainer.snapshot import strictjson
from statemachine_trainer.snapshot.strictjson import Json

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The dtypes of the format that torch knows too."""

Sink: TypeAlias = Callable[[bytes | bytearray | memoryview], None]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # the limit of the safetensors library
_DIMENSIONS = 64  # the limit of torch
_PIECE = 8 << 20
_SMALL = 64 << 10


class BadTensorFile(ValueError):
    """A file that is not safetensors, or lies about what it holds."""


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def write(tensors: Mapping[str, Tensor], sink: Sink) -> None:
    """Write contiguous tensors, of any device, of the dtypes of `DTYPES`.

    Tensors are taken to the CPU one at a time, so that a model on an accelerator does not need
    twice its memory here.
    """
    names = in_file_order(tensors)
    sink(header_of(tensors, names))
    small = bytearray()
    for name in names:
        data = bytes_of(tensors[name].detach().cpu())
        if len(data) <= _SMALL:
            small += data
        else:
            sink(bytes(small))
            small.clear()
            for start in range(0, len(data), _PIECE):
                sink(data[start : start + _PIECE])
        if len(small) > _PIECE:
            sink(bytes(small))
            small.clear()
    sink(bytes(small))


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return names, those of wide items first: then each tensor begins at a multiple of the size of its items."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def header_of(tensors: Mapping[str, Tensor], names: list[str]) -> bytes:
    """Return the beginning of a file, up to the bytes of its tensors.

    Args:
        tensors: Contiguous tensors of the dtypes of `DTYPES`.
        names: Their names, in the order of the file.
    """
    entries: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.dtype.itemsize
        shape: list[Json] = list(tensor.shape)
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
        begin = end
    text = strictjson.dumps(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


Lend: TypeAlias = Callable[[str, torch.dtype, tuple[int, ...], slice], "Tensor | None"]
"""Returns a tensor that lies in the file itself, by its name, dtype, shape, and bytes; None if there is none."""


def read(
    file: BinaryIO,
    size: int,
    seen: Sink,
    lend: Lend | None = None,
    fill_and_see: Callable[[memoryview], None] | None = None,
) -> dict[str, Tensor]:
    """Read a file of `size` bytes, each tensor into memory of its own, but for those that are lent.

    Nothing is allocated before the whole header is known to fit the size of the file. Tensors do
    not share one buffer: torch aligns each of its own, and some kernels add in another order when
    an operand is not aligned.

    Args:
        file: a file at its beginning
        size: how many bytes the file has
        seen: called with all bytes, in order, as they are read
        lend: called for each tensor; one that it returns is not read
        fill_and_see: reads the next bytes of the file, and does for them what `seen` does

    Raises:
        BadTensorFile: when the file is not safetensors, or its header does not fit
    """
    places = _places(file, size, seen)
    tensors = {}
    start = size - max((place.end for place in places.values()), default=0)
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        at = slice(start + place.begin, start + place.end)
        tensor = None if lend is None else lend(name, place.dtype, place.shape, at)
        if tensor is not None:
            file.seek(at.stop)
            seen(bytes_of(tensor))
        else:
            tensor = torch.empty(place.shape, dtype=place.dtype)
            data = bytes_of(tensor)
            if fill_and_see is not None:
                fill_and_see(data)
            else:
                fill(file, data)
                seen(data)
        tensors[name] = tensor
    return tensors


def read_some(file: BinaryIO, size: int, names: Collection[str]) -> dict[str, Tensor]:
    """Read those tensors of a file that are named, each into memory of its own.

    Raises: as `read`
    """
    places, tensors = _places(file, size, lambda _: None), {}
    start = size - max((place.end for place in places.values()), default=0)
    for name in names:
        place = places[name]
        tensors[name] = torch.empty(place.shape, dtype=place.dtype)
        file.seek(start + place.begin)
        fill(file, bytes_of(tensors[name]))
    return tensors


def describe(file: BinaryIO, size: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor in a file, from its header alone.

    Raises: as `read`
    """
    places = _places(file, size, lambda _: None)
    return {name: (place.dtype, place.shape) for name, place in places.items()}


def _places(file: BinaryIO, size: int, seen: Sink) -> dict[str, _Place]:
    """The header, checked against the size of the file."""
    start = bytearray(min(8, size))
    fill(file, memoryview(start))
    seen(start)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(_HEADER_LIMIT, size - 8):
        raise BadTensorFile(_not_safetensors(bytes(start)))
    text = bytearray(length)
    fill(file, memoryview(text))
    seen(text)
    try:
        header = strictjson.loads(bytes(text))
    except strictjson.BadJson as error:
        raise BadTensorFile(f"{_not_safetensors(bytes(start))}: in its header, {error}") from None
    if not isinstance(header, dict):
        raise BadTensorFile("its header is not an object of JSON")
    header.pop("__metadata__", None)
    places = {name: _place(name, entry) for name, entry in header.items()}
    _check_cover(places, size - 8 - length)
    return places


def _place(name: str, entry: Json) -> _Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadTensorFile(f"tensor {_short(name)} has a malformed entry in the header")
    kind, shape, offsets = entry["dtype"], _sizes(entry["shape"]), _sizes(entry["data_offsets"])
    if not isinstance(kind, str) or kind not in DTYPES:
        raise BadTensorFile(f"tensor {_short(name)} has the unknown dtype {_short(kind)}")
    if shape is None or len(shape) > _DIMENSIONS:
        raise BadTensorFile(f"tensor {_short(name)} has a malformed shape")
    if offsets is None or len(offsets) != 2:
        raise BadTensorFile(f"tensor {_short(name)} has malformed offsets")
    itemsize = DTYPES[kind].itemsize
    if math.prod(max(extent, 1) for extent in shape) * itemsize >= 2**63:
        raise BadTensorFile(f"tensor {_short(name)} has a shape beyond all memory")
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize:
        raise BadTensorFile(f"tensor {_short(name)} has a shape that does not fit its offsets")
    return _Place(DTYPES[kind], shape, offsets[0], offsets[1])


def _sizes(value: Json) -> tuple[int, ...] | None:
    """A list of integers that are not negative, or None."""
    if not isinstance(value, list):
        return None
    sizes = tuple(item for item in value if type(item) is int and 0 <= item < 2**63)
    return sizes if len(sizes) == len(value) else None


def _check_cover(places: Mapping[str, _Place], size: int) -> None:
    """Each byte belongs to exactly one tensor: no overlap, no gap, nothing beyond the end."""
    position = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != position:
            fault = "overlaps another" if place.begin < position else "leaves a gap before it"
            raise BadTensorFile(f"tensor {_short(name)} {fault}")
        position = place.end
    if position != size:
        raise BadTensorFile(f"its header describes {position} bytes of data, it has {size}")


def _not_safetensors(start: bytes) -> str:
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "it is a pickle or a zip archive in disguise, which could run code when opened"
    return "it is not a safetensors file"


def _short(value: Json) -> str:
    """What a message shows of text from a file, which may be endless."""
    return reprlib.repr(value)


def plain_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a strided tensor in the order of its elements, wherever it lies; see `bytes_of`."""
    return bytes_of(tensor.detach().resolve_conj().resolve_neg().cpu().contiguous())


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor; writing to it writes to the tensor.

    Use it before the run goes on: the tensor may be given other memory then.
    """
    # By stride 1 outright: where a tensor has one item or none, its own strides may be anything.
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    if not flat.numel():
        return memoryview(bytearray())
    # Not by `numpy()`: torch forbids for ever to resize a tensor that numpy has seen, and some models
    # resize theirs, as the observers of quantization do.
    memory = (ctypes.c_ubyte * flat.numel()).from_address(flat.data_ptr())
    memory.tensor = flat  # type: ignore[attr-defined]  # lives as long as the view
    return np.ctypeslib.as_array(memory).data


def fill(file: BinaryIO, target: memoryview) -> None:
    """Read until `target` is full; an unbuffered file may give less than asked for."""
    done = 0
    while done < len(target):
        got = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not got:
            raise BadTensorFile("it ends too early")
        done += got


# -- Tensors as what a file can hold --------------------------------------------------------------

# The file knows contiguous tensors of some dtypes. What it would lose is said beside it: the
# device, that it asked for gradients, its strides in memory, a dtype that the file does
# not know, and that it was an array of numpy. All of these are rare, and left out where they are
# not needed.

Detail: TypeAlias = "dict[str, Json]"

_STAND_INS: Mapping[str, torch.dtype] = {
    "complex128": torch.float64,
    "complex32": torch.float16,
    "float8_e8m0fnu": torch.uint8,
    "float4_e2m1fn_x2": torch.uint8,
}
"""Dtypes that the file does not know, and those under which their bytes are written."""

_KEYS = {"device", "requires_grad", "order", "strides", "dtype", "array"}
_NUMPY_DTYPE = re.compile(r"[<>|=][biufc]\d{1,2}")


class TensorNotPlain(Exception):
    """A tensor that is more, or less, than numbers in memory."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


def pack(value: Tensor | np.ndarray) -> tuple[Tensor, Detail]:
    """The contiguous tensor to write, and what it does not say by itself.

    It shares the memory of `value` where that is contiguous.
    """
    detail: Detail = {}
    if isinstance(value, np.ndarray):
        detail["array"] = value.dtype.str
        tensor = _of_array(value)
    else:
        # Each checkpoint comes by here for each tensor: no call lies between.
        if (
            value.grad_fn is not None
            or value.is_nested
            or value.layout is not torch.strided
            or value.is_quantized
            or value.is_meta
        ):
            raise _not_plain(value)
        tensor = value.detach().resolve_conj().resolve_neg()
        if not value.is_cpu:
            detail["device"] = str(value.device)
        if value.requires_grad:
            detail["requires_grad"] = True
    if tensor.dtype not in _NAMES:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in _STAND_INS:
            raise TensorNotPlain(
                f"no file holds a tensor of {tensor.dtype}", "give it a dtype of whole bytes"
            )
        detail["dtype"] = name
        if not tensor.is_complex():
            tensor = tensor.view(torch.uint8)  # torch itself can hardly copy these
    strides = _strides(tensor)
    if strides is not None:
        detail["strides"] = strides
    tensor = tensor.contiguous()
    if tensor.is_complex() and "dtype" in detail:
        tensor = torch.view_as_real(tensor)
    return tensor, detail


def unpack(
    tensor: Tensor, detail: Json, placing: Callable[[str], str | torch.device]
) -> Tensor | np.ndarray:
    """What `pack` took apart.

    Raises:
        ValueError: when the detail does not fit the tensor
    """
    if not isinstance(detail, dict) or not set(detail) <= _KEYS:
        raise ValueError("a tensor is described by unknown words")
    dtype = _stood_in_for(tensor, detail["dtype"]) if "dtype" in detail else tensor.dtype
    if dtype.is_complex and not tensor.is_complex():
        tensor = torch.view_as_complex(tensor)
    if "order" in detail:
        tensor = _ordered(tensor, detail["order"])  # so earlier versions wrote it
    if "strides" in detail:
        tensor = _strided(tensor, detail["strides"])
    tensor = tensor.view(dtype)
    if "array" in detail:
        return _to_array(tensor, detail["array"])
    if "device" in detail:
        if not isinstance(detail["device"], str):
            raise ValueError("a device is not named by text")
        tensor = tensor.to(placing(detail["device"]))
    if detail.get("requires_grad"):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(f"a tensor of {tensor.dtype} cannot ask for gradients")
        tensor.requires_grad_()
    return tensor


def _not_plain(value: Tensor) -> TensorNotPlain:
    if value.grad_fn is not None:
        return TensorNotPlain(
            "a tensor in the middle of an autograd graph, which no file holds",
            "write its .detach(), or mark the boundary at which it lives as transient",
        )
    if value.is_nested:
        return TensorNotPlain("a nested tensor", "write the list of its parts, [*x.unbind()]")
    if value.layout is not torch.strided:
        return TensorNotPlain(f"a tensor of layout {value.layout}", "write its .to_dense()")
    if value.is_quantized:
        return TensorNotPlain("a quantized tensor", "write its .int_repr(), scale and zero point")
    return TensorNotPlain("a tensor on the meta device has no values", "materialise it first")


def _strides(tensor: Tensor) -> list[Json] | None:
    """The strides, where they are not those of a tensor that was just made.

    Kernels are chosen by the layout (channels last, a transposed matrix) and add in another order;
    the strides of axes of one item count there, too. A tensor with gaps comes back without them.
    """
    strides, usual, step = tensor.stride(), [], 1
    for size in reversed(tensor.shape):
        usual.append(step)
        step *= max(size, 1)
    return None if strides == tuple(usual[::-1]) or not _is_dense(tensor) else list(strides)


def _is_dense(tensor: Tensor) -> bool:
    return (
        tensor.numel() > 0 and tensor.permute(_axes(tensor.shape, tensor.stride())).is_contiguous()
    )


def _axes(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The axes from the widest stride to the narrowest; before them those of one item."""
    return sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, -strides[axis]))


def _strided(tensor: Tensor, strides: Json) -> Tensor:
    if not isinstance(strides, list):
        raise ValueError("strides are not a list of numbers")
    steps = [step for step in strides if type(step) is int and 0 <= step < 2**63]
    if len(steps) != len(strides) or len(steps) != tensor.dim():
        raise ValueError("strides do not fit their tensor")
    laid = _laid_out(tensor, _axes(tensor.shape, steps))
    if any(a != b for a, b, n in zip(steps, laid.stride(), laid.shape, strict=True) if n > 1):
        raise ValueError("strides do not fit their tensor")
    return laid.as_strided(laid.shape, steps)


def _ordered(tensor: Tensor, order: Json) -> Tensor:
    if not isinstance(order, list) or not all(type(axis) is int for axis in order):
        raise ValueError("the order of axes is not a list of numbers")
    axes = [axis for axis in order if isinstance(axis, int)]
    if sorted(axes) != list(range(tensor.dim())):
        raise ValueError("the order of axes does not fit its tensor")
    return _laid_out(tensor, axes)


def _laid_out(tensor: Tensor, axes: list[int]) -> Tensor:
    """The same numbers in memory by these axes, from the widest stride to the narrowest."""
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    return tensor.permute(axes).contiguous().permute(inverse)


def _stood_in_for(tensor: Tensor, name: Json) -> torch.dtype:
    if not isinstance(name, str) or tensor.dtype is not _STAND_INS.get(name):
        raise ValueError("a dtype does not fit its tensor")
    dtype: torch.dtype | None = getattr(torch, name, None)
    if dtype is None:
        raise ValueError(f"this version of torch has no {name}; a newer one has")
    if dtype.is_complex and tensor.shape[-1:] != (2,):
        raise ValueError("a complex tensor is not made of pairs")
    return dtype


def _of_array(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16:
        raise TensorNotPlain(
            f"a numpy array of {array.dtype} is not an array of numbers", "write its .tolist()"
        )
    native = array.dtype.newbyteorder("=")
    dense = array.flags.forc and min(array.strides, default=0) >= 0
    if not (dense and array.flags.writeable and array.dtype.isnative):
        array = array.astype(native, order="K", copy=True)
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise TensorNotPlain(
            f"no file holds a numpy array of {array.dtype}", "round it to float64 or complex128"
        ) from None


def _to_array(tensor: Tensor, kind: Json) -> np.ndarray:
    if not isinstance(kind, str) or not _NUMPY_DTYPE.fullmatch(kind):
        raise ValueError("an array has no dtype of numpy")
    try:
        array: np.ndarray = tensor.numpy()
    except TypeError:
        raise ValueError(f"numpy has no dtype like {tensor.dtype}") from None
    dtype = np.dtype(kind)
    if dtype.newbyteorder("=") != array.dtype:
        raise ValueError("the dtype of an array does not fit its tensor")
    return array.astype(dtype, order="K", copy=False)
