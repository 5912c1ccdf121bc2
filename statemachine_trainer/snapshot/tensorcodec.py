"""A tensor or numpy array as a tensor that a file can hold, and back.

The file knows contiguous tensors of some dtypes. What it would lose is said beside it: the device,
that it asked for gradients, the order of its axes in memory, a dtype that the file does not know,
and that it was an array of numpy. All of these are rare, and left out where they are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from statemachine_trainer.snapshot.strictjson import Json
from statemachine_trainer.snapshot.tensorfile import DTYPES

Detail: TypeAlias = "dict[str, Json]"

_STAND_INS: Mapping[str, torch.dtype] = {
    "complex128": torch.float64,
    "complex32": torch.float16,
    "float8_e8m0fnu": torch.uint8,
    "float4_e2m1fn_x2": torch.uint8,
}
"""Dtypes that the file does not know, and those under which their bytes are written."""

_KEYS = {"device", "requires_grad", "order", "dtype", "array"}
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
        _check_plain(value)
        tensor = value.detach().resolve_conj().resolve_neg()
        if value.device.type != "cpu":
            detail["device"] = str(value.device)
        if value.requires_grad:
            detail["requires_grad"] = True
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _STAND_INS:
        detail["dtype"] = name
        if not tensor.is_complex():
            tensor = tensor.view(torch.uint8)  # torch itself can hardly copy these
    elif tensor.dtype not in DTYPES.values():
        raise TensorNotPlain(
            f"no file holds a tensor of {tensor.dtype}", "give it a dtype of whole bytes"
        )
    order = _order(tensor)
    if order is not None:
        detail["order"] = order
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
        tensor = _ordered(tensor, detail["order"])
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


def _check_plain(value: Tensor) -> None:
    if value.grad_fn is not None:
        raise TensorNotPlain(
            "a tensor in the middle of an autograd graph, which no file holds",
            "write its .detach(), or mark the boundary at which it lives as transient",
        )
    if value.layout is not torch.strided or value.is_nested:
        raise TensorNotPlain(f"a tensor of layout {value.layout}", "write its .to_dense()")
    if value.is_quantized:
        raise TensorNotPlain("a quantized tensor", "write its .int_repr(), scale and zero point")
    if value.device.type == "meta":
        raise TensorNotPlain("a tensor on the meta device has no values", "materialise it first")


def _order(tensor: Tensor) -> list[Json] | None:
    """The axes from the widest stride to the narrowest, where that is not their own order.

    Kernels are chosen by the layout (channels last, a transposed matrix) and add in another order.
    A tensor with gaps has no such order, and comes back without them.
    """
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    axes = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
    return list(axes) if tensor.permute(axes).is_contiguous() else None


def _ordered(tensor: Tensor, order: Json) -> Tensor:
    if not isinstance(order, list) or not all(type(axis) is int for axis in order):
        raise ValueError("the order of axes is not a list of numbers")
    axes = [axis for axis in order if isinstance(axis, int)]
    if sorted(axes) != list(range(tensor.dim())):
        raise ValueError("the order of axes does not fit its tensor")
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
