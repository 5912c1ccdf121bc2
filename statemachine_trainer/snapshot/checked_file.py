"""A file of a checkpoint that is read and checked, the large tensors in it by two threads."""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from statemachine_trainer.snapshot import tensor_file
from statemachine_trainer.snapshot.checkpoint_folder import checksum_text, crc32, crc32_combine
from statemachine_trainer.snapshot.filesystem import FileSystem
from statemachine_trainer.snapshot.snapshot_errors import Damaged
from statemachine_trainer.snapshot.threads import Worker

_HALF = 2 << 20  # below this a second thread costs more than it saves
_PIECE = 512 << 10
"""Bytes that are read before they are checked: the caches of a processor still hold them then."""

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE: give pages to memory at once, not one by one as it is written to; from Linux 5.14 on."""

_NOT_DAMAGE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}

_madvise = None
if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class CheckedFile:
    """An open file, whose every failure is the damage of that file."""

    def __init__(self, files: FileSystem, path: Path) -> None:
        self._files = files
        self._path = path
        self._sum = 0
        self._worker = Worker("checkpoint-checksum")

    def __enter__(self) -> CheckedFile:
        try:
            self.file: BinaryIO = self._files.open(self._path)
        except OSError as error:
            self._explain(error)
            raise
        self.size = self.file.seek(0, 2)
        self.file.seek(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.close()
        self.file.close()
        if isinstance(error, OSError):
            self._explain(error)

    def _explain(self, error: OSError) -> None:
        if error.errno == errno.ENOENT:
            raise Damaged(self._path, "it is missing") from None
        if error.errno == errno.ELOOP:
            raise Damaged(self._path, "it is a link, and only regular files are read") from None
        if error.errno not in _NOT_DAMAGE:
            raise Damaged(self._path, f"it cannot be read ({error.strerror or error})") from error

    def seen(self, data: bytes | bytearray | memoryview) -> None:
        """Add to the checksum; of a long piece a thread takes the second half."""
        self._in_halves(memoryview(data), lambda part, _, checksum: crc32(part, checksum))

    def fill(self, target: memoryview) -> None:
        """Read the next bytes into memory, and add them to the checksum; of many a thread takes the second half.

        Raises:
            BadTensorFile: The file ends too early.
        """
        at = self.file.tell()
        if len(target) < 2 * _HALF or not (_READS_AT_A_PLACE and isinstance(self.file, io.FileIO)):
            tensor_file.fill(self.file, target)
            self.seen(target)
            return
        descriptor = self.file.fileno()
        self._in_halves(
            target,
            lambda part, offset, checksum: _read_at(descriptor, at + offset, part, checksum),
        )
        self.file.seek(at + len(target))

    def _in_halves(self, data: memoryview, add: Callable[[memoryview, int, int], int]) -> None:
        """Add to the checksum what a function makes of a part, its place in the whole, and the checksum before."""
        half = len(data) // 2
        if crc32_combine is None or half < _HALF:
            self._sum = add(data, 0, self._sum)
            return
        try:
            later = self._worker.submit(add, data[half:], half, 0)
        except RuntimeError:  # no thread is to be had
            self._sum = add(data, 0, self._sum)
            return
        first = add(data[:half], 0, self._sum)
        self._sum = crc32_combine(first, later.result(), len(data) - half)

    def check_size(self, size: int) -> None:
        if self.size != size:
            raise Damaged(self._path, f"it has {self.size} bytes, and {size} were written")

    def check_sum(self, checksum: str) -> None:
        if checksum_text(self._sum) != checksum:
            raise Damaged(
                self._path,
                f"its checksum is {checksum_text(self._sum)}, and {checksum} was written",
            )


_READS_AT_A_PLACE = hasattr(os, "preadv")


def _read_at(descriptor: int, at: int, target: memoryview, checksum: int) -> int:
    """Read bytes from a place in a file; return the checksum that goes on from another."""
    for start in range(0, len(target), _PIECE):
        piece = target[start : start + _PIECE]
        _populate(piece)
        done = 0
        while done < len(piece):
            got = os.preadv(descriptor, [piece[done:]], at + start + done)
            if not got:
                raise tensor_file.BadTensorFile("it ends too early")
            done += got
        checksum = crc32(piece, checksum)
    return checksum


def _populate(piece: memoryview) -> None:
    """Have the system give fresh memory its pages, which takes less time all at once."""
    if _madvise is not None:
        begin = ctypes.addressof(ctypes.c_char.from_buffer(piece))
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (begin + len(piece)) // mmap.PAGESIZE * mmap.PAGESIZE
        # If it cannot, the pages come as they are written to.
        _madvise(first, max(end - first, 0), _POPULATE_WRITE)
