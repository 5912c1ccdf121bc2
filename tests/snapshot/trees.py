"""Random plain trees, and what is the same to the bit."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Hashable
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
    *([torch.float4_e2m1fn_x2] if hasattr(torch, "float4_e2m1fn_x2") else []),  # from torch 2.8
    *(torch.complex32, torch.complex64, torch.complex128),
]
NUMPY_DTYPES = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
    *("f2", "f4", "f8", "c8", "c16", ">i4", ">f8", ">c8"),
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits in any dtype; contiguous, permuted, sliced, or expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    tensor = torch.empty(shape, dtype=dtype)
    if size:
        tensor.view(-1).view(torch.uint8).copy_(
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
        )
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    if shape and tensor.shape[0] and draw(st.booleans()):
        tensor = tensor[::2]
    if draw(st.booleans()) and (dtype.is_floating_point or dtype.is_complex):
        tensor.requires_grad_()
    return tensor


def arrays() -> SearchStrategy[np.ndarray]:
    return st.sampled_from(NUMPY_DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ) | hnp.arrays("f4", (3, 4, 2)).map(lambda array: array[::-1, ::2].T)


def numpy_scalars() -> SearchStrategy[np.generic]:
    return st.sampled_from([dtype for dtype in NUMPY_DTYPES if dtype[0] != ">"]).flatmap(
        lambda dtype: hnp.from_dtype(np.dtype(dtype))
    )


def offsets() -> SearchStrategy[timezone]:
    return st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)


def keys() -> SearchStrategy[Hashable]:
    single = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters())
        | st.binary(max_size=8)
        | st.sampled_from(["$tuple", "$", "a.b", "tree", "é", "\ud800", "__metadata__"])
    )
    return st.recursive(single, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=3)


def leaves() -> SearchStrategy[object]:
    return (
        keys()
        | st.integers(-(2**70), 2**70)
        | st.binary()
        | tensors()
        | arrays()
        | numpy_scalars()
        | st.sampled_from(DTYPES)
        | st.sampled_from([torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")])
        | st.lists(st.integers(0, 9), max_size=3).map(torch.Size)
        | st.sampled_from(
            [Path("a/b"), Path("\udcff"), PurePosixPath("/"), PureWindowsPath("c:\\x")]
        )
        | st.datetimes(timezones=st.none() | offsets()).map(lambda at: at.replace(fold=1))
        | st.timedeltas()
    )


def trees() -> SearchStrategy[object]:
    return st.recursive(
        leaves(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys(), inner, max_size=4)
            | st.dictionaries(st.text(max_size=5), inner, max_size=4).map(OrderedDict)
            | st.sets(keys(), max_size=4)
            | st.frozensets(keys(), max_size=4)
        ),
        max_leaves=12,
    )


def bits(value: object) -> object:
    """Something equal for two trees when, and only when, they are the same to the bit."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        whole = value.detach().resolve_conj()
        if value.dtype.itemsize == 1:
            whole = whole.view(torch.uint8)  # some of these dtypes cannot be copied
        fresh = torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)
        content = bytes(fresh.view(-1).view(torch.uint8).tolist())
        return ("tensor", value.dtype, tuple(value.shape), value.requires_grad, content)
    if isinstance(value, np.ndarray | np.generic):
        return (kind, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, float):
        return (kind, struct.pack(">d", value))
    if isinstance(value, dict):
        pairs = [(bits(key), bits(item)) for key, item in value.items()]
        return (kind, pairs, bits(getattr(value, "_metadata", None)))
    if isinstance(value, set | frozenset):
        return (kind, sorted(map(repr, map(bits, value))))
    if isinstance(value, list | tuple):
        return (kind, [bits(item) for item in value])
    if isinstance(value, datetime):
        return (kind, value.isoformat(), value.fold, value.utcoffset())
    return (kind, value)
