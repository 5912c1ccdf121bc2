"""The calls through which a checkpoint reaches the disk, and the names of folders.

The calls are methods of one small object. A test can replace it by one that fails at the n-th call,
or loses power there.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from statemachine_trainer.files import open_regular
from statemachine_trainer.snapshot.threads import Worker

_WRITEBACK = 16 << 20
"""Bytes written after which the disk is asked to begin taking them."""


class OutputFile(Protocol):
    """A new file being written from its beginning to its end."""

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`."""

    def begin_sync(self) -> None:
        """Let everything written go to the disk; nothing is written after it. `sync` waits for it.

        The files of a checkpoint wait for the disk together, not one after the other.
        """

    def sync(self) -> None:
        """Return when everything written is on the disk."""

    def close(self) -> None:
        """Let the file go; it is not made durable by this."""


class FileSystem(Protocol):
    """What a save asks of a disk. Each call either happens whole or raises `OSError`."""

    def create(self, path: Path) -> OutputFile:
        """Open a new file for writing; it must not exist."""

    def open(self, path: Path) -> BinaryIO:
        """Open a regular file for reading; a link, a device or a pipe is refused."""

    def make_folder(self, path: Path) -> None:
        """Make a folder; it must not exist, and its parent must."""

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, in no order."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename in one step; a file at `target` is replaced, a folder with content is not."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder are on the disk."""


class LocalFileSystem:
    """The disk of this machine.

    Args:
        together: Whether files wait for the disk together, each in a thread. Where nobody waits for
            the last of them, one after the other takes less time of the processor.
    """

    _together = True

    def __init__(self, *, together: bool = True) -> None:
        self._together = together

    def create(self, path: Path) -> OutputFile:
        return _LocalFile(path, together=self._together)

    def open(self, path: Path) -> BinaryIO:
        return os.fdopen(open_regular(path), "rb", buffering=0)

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def names(self, folder: Path) -> list[str]:
        return os.listdir(folder)  # noqa: PTH208 - each checkpoint asks, and needs no paths

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        if os.name == "nt":  # Windows cannot open a folder; its renames are journalled
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _LocalFile:
    """A file whose bytes start on their way to the disk while later ones are being written.

    Without that, a sync at the end waits for all of them at once, and takes as long again as the
    writing did. An error of the early sync is kept for `sync`: the kernel reports it only once.
    """

    def __init__(self, path: Path, *, together: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._unsynced = 0
        self._together = together
        self._worker: Worker | None = None  # most files are small, and need none
        self._early: Future[None] | None = None
        self._last: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._unsynced += len(data)
        if self._unsynced >= _WRITEBACK:
            self._begin_writeback()

    def _begin_writeback(self) -> None:
        if self._early is not None:
            if not self._early.done():
                return
            self._early.result()
        self._early = self._submit_sync()
        self._unsynced = 0

    def begin_sync(self) -> None:
        if self._together:
            with suppress(RuntimeError):  # no thread is to be had: `sync` does it
                self._last = self._submit_sync()

    def _submit_sync(self) -> Future[None]:
        if self._worker is None:
            self._worker = Worker("checkpoint-writeback")
        return self._worker.submit(os.fsync, self._descriptor)

    def sync(self) -> None:
        if self._early is not None:
            self._early.result()
        if self._last is None:
            os.fsync(self._descriptor)
        else:
            self._last.result()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        os.close(self._descriptor)


# -- Several calls in a row ------------------------------------------------------------------------


def make_folders(files: FileSystem, folder: Path) -> None:
    """Make a folder, and those that it lies in, durably; none that is there already.

    Raises:
        OSError: It cannot be done.
    """
    if folder.is_dir():
        return
    for path in reversed((folder, *folder.parents)):
        if not path.is_dir():
            with suppress(FileExistsError):
                files.make_folder(path)
            files.sync_folder(path.parent)


def replace_file(files: FileSystem, path: Path, content: bytes, *, wait: bool = True) -> None:
    """Write a small file; a loss of power leaves the one before, or this one if `wait`.

    Raises:
        OSError: It cannot be done.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        file = files.create(temporary)
    except FileExistsError:  # of an attempt that failed
        files.remove(temporary)
        file = files.create(temporary)
    try:
        file.write(content)
        file.sync()
    finally:
        file.close()
    files.rename(temporary, path)
    if wait:
        files.sync_folder(path.parent)


def delete(
    files: FileSystem, root: Path, paths: Iterable[Path], check_owned: Callable[[], object]
) -> None:
    """Delete checkpoints, and what is left of earlier attempts to.

    They are renamed first, so that a crash half-way leaves no checkpoint that lacks a file.

    Args:
        files: The disk.
        root: The folder that they lie in.
        paths: Their folders.
        check_owned: Raises where `root` has become that of another run.

    Raises:
        OSError: It cannot be done.
    """
    doomed = []
    for path in paths:
        if not path.name.startswith(TRASH):
            check_owned()
            trash = path.with_name(trash_name(path.name))
            files.rename(path, trash)
            path = trash
        doomed.append(path)
    if doomed:
        files.sync_folder(root)
    for path in doomed:
        remove_all(files, path)


def remove_all(files: FileSystem, path: Path) -> None:
    """Remove a file, or a folder with the files in it.

    Raises:
        OSError: It cannot be done.
    """
    if not _is_folder(path):
        files.remove(path)
        return
    for name in files.names(path):
        files.remove(path / name)
    files.remove_folder(path)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:  # whoever removes it hears of that
        return False


# -- Names of folders -----------------------------------------------------------------------------

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]{0,99}")
"""What a checkpoint may be called."""

FOLDER = re.compile(rf"(\d{{6,15}})-({NAME.pattern})")
"""What the folder of one is called: its number, and its name."""

TEMPORARY = ".tmp@"
TRASH = ".trash@"

_DAY = 24 * 60 * 60
_HOST = re.sub(r"[^\w.-]", "_", socket.gethostname())
# A container that starts again often has the same host and process number: this tells them apart.
_PROCESS = secrets.token_hex(4)


def temporary_name(final: str) -> str:
    """The name under which this process writes what will be called `final`."""
    return f"{TEMPORARY}{_HOST}@{os.getpid()}@{_PROCESS}@{final}"


def trash_name(name: str) -> str:
    """The name under which `name` is deleted: whoever finds it may finish the work."""
    return f"{TRASH}{name}"


def is_abandoned(path: Path) -> bool:
    """Whether the writer of a temporary folder is known to be gone, or silent for a day."""
    if path.name.startswith(TRASH):
        return True
    parts = path.name.split("@")
    if not path.name.startswith(TEMPORARY) or len(parts) != 5 or not parts[2].isdecimal():
        return False
    host, number, process = parts[1], int(parts[2]), parts[3]
    if host == _HOST:
        if number == os.getpid():
            return process != _PROCESS
        if not _is_running(number):
            return True
    return time.time() - path.lstat().st_mtime > _DAY


def _is_running(number: int) -> bool:
    if os.name == "nt":  # Windows has no harmless way to ask
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
