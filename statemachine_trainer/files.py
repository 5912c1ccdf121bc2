"""Paths as they are given, and small files that anybody may have written.

A file in the folder of a run may be anything by the time it is read: damaged, endless, a link to somewhere else, a
pipe that nobody writes to. Reading it here waits for nothing, takes no more memory than it is allowed, and fails
with `OSError` or `ValueError` alone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

from statemachine_trainer.machine.errors import StateMachineError, suggest

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)  # Windows has none of these
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class NoPath(StateMachineError, ValueError):
    """Something else where a path of a file system is needed, such as the address `s3://bucket/run`."""


class CannotWrite(StateMachineError, OSError):
    """A folder that was asked for cannot be made, or takes no file."""


def check_writable(folder: Path, what: str) -> None:
    """Make a folder, and write a byte in it, to learn before a run begins that it takes nothing.

    Args:
        folder: The folder.
        what: What it was given for, such as "Trainer(run=...)".

    Raises:
        CannotWrite: There can be no such folder, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b".")
    except OSError as error:
        raise CannotWrite(
            f"{what}: nothing can be written in {str(folder)!r} ({error.strerror or error}). Choose another folder, "
            "or make room there and let this user write."
        ) from error


def near_folder(path: Path) -> str:
    """Return which folder may be meant by the path of one that does not exist; "" if none is near."""
    try:
        beside = [one.name for one in path.absolute().parent.iterdir() if one.is_dir()]
    except OSError:
        return ""
    return suggest(path.name, beside, cutoff=0.6)


def missing_folder(path: Path) -> str:
    """Say that a folder does not exist, and which may be meant."""
    return f"There is no folder {path}. {near_folder(path)}".rstrip()


def path_given(path: str | os.PathLike[str]) -> Path:
    """Return a path as it is meant where it is given: a change of the working directory changes nothing later.

    Raises:
        NoPath: It is empty, no text or path, or an address of something else.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        plain = isinstance(path, int | float | bytes | list | tuple | None)
        shown = repr(path) if plain else f"a {type(path).__name__}"
        raise NoPath(f"{shown} is no path. Give a folder, such as 'runs/name'.")
    text = os.fspath(path)
    if not text:
        raise NoPath(
            "The path is empty. Give a folder, such as 'runs/name', or '.' for the present one."
        )
    if "\0" in text:
        raise NoPath(f"{text!r} is no path: no name of a file holds a null character.")
    if is_address(text):
        raise NoPath(
            f"{text!r} is an address, and this needs a path of a file system. Mount what is there and give the path "
            "of the mount; or give a local folder, and have its checkpoints sent there: Checkpoints(folder, "
            "mirror=address). fit(resume=address) goes on from there, as a text with both slashes."
        )
    return Path(text).absolute()


def is_address(text: str) -> bool:
    """Whether a text is an address such as `s3://bucket/run`, and no path."""
    return _ADDRESS.match(text) is not None


def shown(path: Path) -> str:
    """Return a path as a person reads it: from the working directory, if it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere; or the working directory is gone
        return str(path)


def open_regular(path: Path) -> int:
    """Open a regular file for reading, and return its descriptor. A link, a pipe or a device is refused.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def read_regular(path: Path, longest: int) -> bytes:
    """Return what is in a regular file.

    Args:
        path: The file.
        longest: Bytes that it may have.

    Raises:
        OSError: There is none, it cannot be read, or it is longer.
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        found = bytearray()
        while piece := file.read(min(1 << 20, longest + 1 - len(found))):
            found += piece
            if len(found) > longest:
                raise OSError(errno.EFBIG, f"it has more than {longest} bytes", str(path))
    return bytes(found)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; none where it is not there, or cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  # names are all that is wanted
    except OSError:
        return []


def is_regular(path: Path) -> bool:
    """Whether there is a regular file: no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def parse_json(text: str | bytes) -> Any:
    """Return the value of a text that may be anything.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, longest: int) -> Any:
    """Return the value in a small regular file.

    Raises:
        OSError: There is none, it cannot be read, or it is longer.
        ValueError: It holds no JSON.
    """
    return parse_json(read_regular(path, longest))
