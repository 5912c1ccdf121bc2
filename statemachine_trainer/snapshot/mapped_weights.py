"""Weights of a checkpoint that stay in its file until the model has copied them.

To read a gigabyte into new memory takes several times as long as to copy it into a model that has its memory already.
So where a run goes on, the weights of its model are not read: their part of the file is mapped, checked there, and
copied from there. The mapping is gone before the run begins.

A mapped file must not change: the numbers would change with it, and where it shrinks, the system ends the process. So
a lease holds back whoever would write to it meanwhile; see `fcntl(2)`, "Leases". Where there is none to be had, as on
other systems, on disks of the network, or in files that somebody is writing to, weights are read as everything else.
So they are where somebody wants to write while the lease lasts: for how long the system holds it back is not known.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from statemachine_trainer.files import read_regular
from statemachine_trainer.snapshot.modules import copied_when_loaded
from statemachine_trainer.snapshot.strictjson import Json

if sys.platform == "linux":
    import fcntl

_SMALL = 1 << 20
"""Bytes below which a tensor is read: a mapping saves nothing there."""

_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs"}
"""File systems on which nobody but this machine changes a file, and a lease holds back all who would."""

_MOUNTS = Path("/proc/self/mountinfo")
_LONGEST_MOUNTS = 16 << 20
_POPULATE_READ = 22
"""MADV_POPULATE_READ: bring the pages in, and tell an error of the disk; from Linux 5.14 on."""


class MappedWeights:
    """Weights of a model that lie in the mapped file of a checkpoint, until the model has copied them.

    The file lends them: each is a tensor over bytes of the file, and is gone when that is closed.

    Args:
        names: The names of the tensors in the file that may be lent.
        read: Reads all tensors of the file, and checks them.
    """

    def __init__(self, names: Collection[str], read: Callable[[], Mapping[str, Tensor]]) -> None:
        self._names = names
        self._read = read
        self._places: dict[int, str] = {}  # the names of the tensors in the file, by address
        self._file: int | None = None
        self._map: mmap.mmap | None = None
        self._at = range(0)  # the addresses of the mapping
        self._lent: list[Tensor] = []

    @property
    def is_open(self) -> bool:
        """Whether a file is mapped."""
        return self._map is not None

    def open(self, file: BinaryIO, size: int) -> None:
        """Map a file, if that can be done so that nobody changes it. Else nothing of it is lent."""
        if sys.platform != "linux" or not self._names or not _is_local(file.fileno()):
            return
        try:
            self._file = os.dup(file.fileno())
            # When somebody waits for the lease, the kernel sends SIGIO, which would end the process. SIGURG does not.
            fcntl.fcntl(self._file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            # It may have changed before there was the lease.
            if os.fstat(self._file).st_size == size:
                self._map = mmap.mmap(self._file, size, access=mmap.ACCESS_COPY)
                self._map.madvise(_POPULATE_READ, 0, mmap.PAGESIZE)  # older kernels do not know it
                start = np.frombuffer(self._map, np.uint8).ctypes.data
                self._at = range(start, start + size)
                return
        except (OSError, ValueError):
            pass
        self.close()

    def lend(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], at: slice
    ) -> Tensor | None:
        """Return a tensor that lies in the file; None if it is to be read.

        Args:
            name: Its name in the file.
            dtype: Its type.
            shape: Its shape.
            at: Which bytes of the file it has.
        """
        size, aligned = at.stop - at.start, at.start % dtype.itemsize == 0
        if self._map is None or name not in self._names or size < _SMALL or not aligned:
            return None
        begin = at.start - at.start % mmap.PAGESIZE
        try:
            self._map.madvise(_POPULATE_READ, begin, at.stop - begin)
        except OSError:
            return None  # to read it will tell what is wrong
        data = np.frombuffer(self._map, np.uint8, size, at.start)
        tensor = torch.from_numpy(data).view(dtype).view(shape)
        self._places[tensor.data_ptr()] = name
        return tensor

    @contextmanager
    def copied(self, weights: MutableMapping[str, Any], model: nn.Module | None) -> Iterator[None]:
        """Within the block, let a model copy what is lent. After it the file is no longer in use.

        If somebody wants to write to the file meanwhile, it is read once more, and checked.

        Args:
            weights: What will be loaded. What a model would not copy is put in memory of its own.
            model: The model; None if it may do with its weights what it likes.

        Raises:
            Damaged: It is no longer what was written.
        """
        self._lent = [one for one in weights.values() if self._has(one)]
        try:
            into = {} if model is None or not self._lent else copied_when_loaded(model)
            if self._is_wanted():
                weights.update(self._read_again(weights))
            self._own_what_is_kept(weights, into)
            yield
            if self._is_wanted():
                for name, one in self._read_again(weights).items():
                    into[name].copy_(one)
        finally:
            self.close()

    def _read_again(self, weights: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return those of the weights that are lent, in memory of their own."""
        lent = {
            name: self._places[one.data_ptr()] for name, one in weights.items() if self._has(one)
        }
        read = self._read() if lent else {}
        return {name: read[place] for name, place in lent.items()}

    def _own_what_is_kept(
        self, weights: MutableMapping[str, Any], into: Mapping[str, Tensor]
    ) -> None:
        kept = {
            id(one)
            for name, one in weights.items()
            if self._has(one) and not (name in into and _same_kind(one, into[name]))
        }
        own = {id(one): one.clone() for one in self._lent if id(one) in kept}
        for name, one in weights.items():
            weights[name] = own.get(id(one), one)

    def _has(self, one: object) -> bool:
        # In the class of torch itself: another may keep its numbers elsewhere.
        return type(one) is Tensor and one.layout is torch.strided and one.data_ptr() in self._at

    def _is_wanted(self) -> bool:
        """Whether somebody wants to write to the file, or has begun to."""
        # A lease that somebody waits for counts as gone: later the kernel takes it away.
        return self._file is not None and fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def close(self) -> None:
        """Give the file back. Whoever still has a tensor of it finds that empty."""
        for one in self._lent:
            one.set_()  # type: ignore[call-overload]
        self._lent.clear()
        self._places.clear()
        self._at = range(0)
        if self._map is not None:
            with suppress(BufferError):  # the mapping ends with the tree that still refers to it
                self._map.close()
            self._map = None
        if self._file is not None:
            with suppress(OSError):  # not by closing alone: a process that was forked may hold it
                fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(self._file)
            self._file = None


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _is_local(file: int) -> bool:
    """Whether a file lies on a disk of this machine."""
    device = os.fstat(file).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = read_regular(_MOUNTS, _LONGEST_MOUNTS).decode(errors="replace").splitlines()
    except OSError:
        return False
    # "36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw"; see `proc_pid_mountinfo(5)`.
    kinds = {
        line.partition(" - ")[2].split(" ")[0] for line in mounts if line.split(" ")[2] == number
    }
    return bool(kinds) and kinds <= _LOCAL


# -- Which tensors --------------------------------------------------------------------------------


def mappable(document: Json) -> frozenset[str]:
    """Return the names of the tensors that may stay in the file: weights of a model that nothing else refers to.

    Args:
        document: The first of what `encode` made of the state of a fit, or of anything else.
    """
    everything: Any = document
    try:
        weights = everything["tree"]["context"]["model"]["weights"]["$ordered"][0]
        described = everything["tensors"]
        found = {
            one["$tensor"] for one in weights.values() if isinstance(one, dict) and "$tensor" in one
        }
        plain = {name for name in found if described[name].keys() <= {"device"}}
        # Of one that is an entry of the weights, the name stands there. All others stand deeper, or elsewhere.
        elsewhere = {*_names_in(everything["tree"], but=weights)}
        for one in weights.values():
            if not (isinstance(one, dict) and "$tensor" in one):
                elsewhere.update(_names_in(one))
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError):
        return frozenset()
    return frozenset(plain - elsewhere)


def _names_in(value: Any, but: object = None) -> Iterator[Any]:
    """Yield the names of the tensors to which a tree refers, except in a part of it."""
    if value is but:
        return
    if isinstance(value, dict):
        if "$tensor" in value:
            yield value["$tensor"]
        value = value.values()
    for one in value:
        if isinstance(one, dict | list):
            yield from _names_in(one, but)
