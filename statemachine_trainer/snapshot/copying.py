"""Copying large tensors within the memory of the CPU, by two threads.

Torch copies with no more threads than it computes with, which is often one. What bounds a copy is how much memory one
core reads and writes in a second, so two take about half the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statemachine_trainer.snapshot.threads import Worker

_LARGE = 4 << 20
"""Bytes below which a tensor is left to torch: a second thread costs more than it saves there."""

_THREADS = 2


def copy_large(into: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy what is large, where that is nothing but a copy of bytes.

    Args:
        into: Plain tensors.
        given: What there is to copy, by the same names, and anything else.

    Returns:
        The tensors that have their numbers now; the others are as they were.
    """
    if torch.get_num_threads() > _THREADS:  # torch has more of them, and is as fast
        return {}
    done = {}
    copied: dict[int, int] = {}  # to where, from where: tied weights lie in one place
    worker = Worker("weights-copy")
    try:
        for name, target in into.items():
            source: Any = given.get(name)
            if not (_is_large(source) and _is_large(target) and _alike(target, source)):
                continue
            here, there = target.data_ptr(), source.data_ptr()
            if here not in copied:
                _copy(here, there, target.nbytes, worker)
                copied[here] = there
            if copied[here] == there:
                done[name] = target
    finally:
        worker.close()
    return done


def has_large(given: Mapping[str, Any]) -> bool:
    """Return whether there is anything that `copy_large` may copy."""
    return any(map(_is_large, given.values()))


def _is_large(one: Any) -> bool:
    return (
        type(one) in (Tensor, nn.Parameter)
        and one.layout is torch.strided
        and one.is_cpu
        and not one.is_quantized
        and one.nbytes >= _LARGE
        and one.is_contiguous()
        and not (one.is_conj() or one.is_neg())
        and one.data_ptr() != 0  # memory that was taken from it
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    apart = abs(one.data_ptr() - other.data_ptr()) >= one.nbytes
    return one.shape == other.shape and one.dtype == other.dtype and apart


def _copy(target: int, source: int, size: int, worker: Worker) -> None:
    half = size // 2
    try:
        later = worker.submit(ctypes.memmove, target + half, source + half, size - half)
    except RuntimeError:  # no thread is to be had
        ctypes.memmove(target, source, size)
        return
    ctypes.memmove(target, source, half)
    later.result()
